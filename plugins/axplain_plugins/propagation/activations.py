"""The activations of networks: operations that take one element in and give one element out."""

from __future__ import annotations

from typing import Final

ACTIVATIONS: Final = frozenset(
    {
        *("relu", "relu6", "hardtanh", "threshold", "clamp_min", "clamp_max", "sigmoid", "tanh", "gelu", "silu"),
        *("mish", "elu", "selu", "celu", "softplus", "log_sigmoid", "softsign", "tanhshrink", "hardswish"),
        *("leaky_relu", "exp", "hardsigmoid", "softshrink", "erf", "abs", "square"),
    }
)
