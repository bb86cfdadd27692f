"""Backward rules that change rectifiers alone: guided backpropagation and the deconvolutional network."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import attrs
from torch import Tensor

from axplain import hookimpl
from axplain.propagation.rules import OWN_GRADIENT, Around, Call, Rule, RuleSet, Situation
from axplain_plugins.propagation.winners import POOLED

#: Operations that cut at zero, always or where their lower bound is zero: its position and name.
_RECTIFIERS: Final[Mapping[str, tuple[int, str] | None]] = MappingProxyType(
    {
        "relu": None,
        "relu6": None,
        "clamp": (1, "min"),
        "clip": (1, "min"),
        "clamp_min": (1, "min"),
        "hardtanh": (1, "min_val"),
    }
)
#: Other rectifiers, and code with rectifiers inside: the papers say nothing of them.
_UNDEFINED: Final = frozenset(
    {
        *("gelu", "silu", "mish", "elu", "selu", "celu", "softplus", "leaky_relu", "prelu", "rrelu", "hardswish"),
        *("softshrink", "hardshrink", "threshold", "glu", "rnn_relu", "rnn_relu_cell"),
        *("_transformer_encoder_layer_fwd", "_native_multi_head_attention"),
    }
)


def positive(gradient: Tensor, *_: Tensor) -> Tensor:
    """Return `max(g, 0)`."""
    return gradient.clamp(min=0)


#: max(g, 0) f'(x): what is positive on the way back passes where the unit was active on the way there
GUIDED: Final = Rule(around=Around(positive))
#: max(g, 0): what is positive on the way back passes, whatever the unit did on the way there
DECONVOLVED: Final = Rule(onward=positive)


def _rectifies(call: Call) -> bool:
    bound = _RECTIFIERS[call.name]
    if bound is None:
        return True
    low = call.argument(*bound)
    return not bool(low.any()) if isinstance(low, Tensor) else low is not None and low == 0


@attrs.frozen
class Rectified(RuleSet):
    """One rule for rectifiers; every other operation keeps its own gradient."""

    rectified: Rule
    unknown: Literal["refuse", "gradient"] = "refuse"
    references: bool = False

    def rule(self, operation: str) -> Rule | None:
        if operation in _RECTIFIERS:
            return attrs.evolve(self.rectified, choose=self._chosen)
        if operation == "max_pool2d":
            return POOLED
        return None if operation in _UNDEFINED else OWN_GRADIENT

    def _chosen(self, situation: Situation) -> Rule:
        """Return the rule of one call: a clamp rectifies where its lower bound is zero."""
        return self.rectified if _rectifies(situation.call) else OWN_GRADIENT


_RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {"guided_rectifiers": GUIDED, "deconvolution_rectifiers": DECONVOLVED}
)


@hookimpl
def axplain_plugin(name: str) -> Any:
    """Return what makes the rule set of guided backpropagation, or of deconvolution."""
    return lambda **settings: Rectified(_RULES[name], **settings)
