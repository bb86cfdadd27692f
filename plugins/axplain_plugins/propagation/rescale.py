"""DeepLIFT's rescale rule for every operation: a table of plain functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import attrs

from axplain import hookimpl
from axplain.propagation.rules import Rule, RuleSet
from axplain_plugins.propagation import maxima, normalisations, products, secants, winners

_SECANT = """
    sigmoid tanh gelu silu mish elu selu celu softplus log_sigmoid softsign tanhshrink hardswish
    leaky_relu rrelu hardsigmoid softshrink erf erfc sin cos tan asin
    acos atan arcsin arccos arctan sinh cosh asinh acosh atanh arcsinh arccosh arctanh expm1 log1p exp2 sinc logit
    special_expit special_erf erfinv rad2deg deg2rad
"""
_MIDPOINT = """
    matmul mm bmm mv dot vdot inner outer ger einsum kron cross linalg_cross linear bilinear conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d conv_transpose3d addmm addbmm baddbmm addmv addr addcmul lerp var
    tensordot mse_loss
"""


def _pooling(dimensions: int, run: Callable[..., tuple[Any, ...]]) -> Rule:
    return Rule(maxima.pooling(dimensions), run, by_element=True)


_TABLE: Final[tuple[tuple[str, Rule], ...]] = (
    (_SECANT, Rule(secants.secant, by_element=True)),
    ("prelu", Rule(secants.secant)),  # its slopes lie on dimension 1
    ("log log2 log10", Rule(secants.relative_secant, by_element=True)),
    ("atan2 arctan2 hypot logaddexp logaddexp2", Rule(secants.corrected, several=True)),
    ("relu relu6 hardtanh threshold abs absolute clamp_min clamp_max", Rule(secants.linear_pieces, by_element=True)),
    ("exp", Rule(secants.exponential, by_element=True)),
    ("sqrt", Rule(secants.square_root, by_element=True)),
    ("rsqrt", Rule(secants.inverse_square_root, by_element=True)),
    ("reciprocal", Rule(secants.reciprocal, by_element=True)),
    ("square", Rule(secants.square, by_element=True)),
    ("pow", Rule(secants.power, several=True)),
    (_MIDPOINT, Rule(products.midpoint, several=True)),
    ("mul multiply", Rule(products.product, several=True)),
    ("div divide true_divide", Rule(products.quotient, several=True)),
    ("std", Rule(products.root_of_quadratic)),
    ("layer_norm", Rule(normalisations.layer_norm)),
    ("rms_norm", Rule(normalisations.rms_norm)),
    ("group_norm", Rule(normalisations.group_norm)),
    ("instance_norm", Rule(normalisations.instance_norm)),
    ("softmax", Rule(normalisations.softmax)),
    ("log_softmax", Rule(normalisations.log_softmax)),
    ("logsumexp", Rule(normalisations.logsumexp)),
    *((f"max_pool{n}d", _pooling(n, winners.pool_with_winners(f"max_pool{n}d"))) for n in (1, 2, 3)),
    *((f"max_pool{n}d_with_indices", _pooling(n, winners.keep_winners)) for n in (1, 2, 3)),
    *((f"adaptive_max_pool{n}d", _pooling(n, winners.keep_winners)) for n in (1, 2, 3)),
    ("max amax", Rule(maxima.reduction(), several=True)),
    ("min amin", Rule(maxima.reduction(smallest=True), several=True)),
    ("maximum", Rule(maxima.larger(), several=True)),
    ("fmax", Rule(maxima.larger(tie=1.0), several=True)),
    ("fmin", Rule(maxima.larger(smallest=True, tie=1.0), several=True)),
    ("minimum", Rule(maxima.larger(smallest=True), several=True)),
)
_RULES: Final[Mapping[str, Rule]] = MappingProxyType({name: rule for names, rule in _TABLE for name in names.split()})


@attrs.frozen
class Rescale(RuleSet):
    """Multipliers that turn the change of each operation's inputs into the change of its output."""

    unknown: Literal["refuse", "gradient"] = "refuse"
    references: bool = True

    def rule(self, operation: str) -> Rule | None:
        return _RULES.get(operation)


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `deeplift_rescale`."""
    return Rescale
