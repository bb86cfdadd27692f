"""The user's model behind one call: how inputs are passed, and which tensor is its output."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import attrs
import torch
from torch import Tensor

from axplain.errors import ArgumentError, UnsupportedModel
from axplain.structure import Structure, Tensors, all_finite

#: How torch words that two tensors of an operation have different types.
_OF_TYPES: Final = re.compile(r"dtype|scalar type|data ?type|type \(.*\) and .*type \(.*\) should be the same")
_CASTS: Final = {
    torch.float16: "half()",
    torch.bfloat16: "bfloat16()",
    torch.float32: "float()",
    torch.float64: "double()",
}


@attrs.define
class RowCount:
    """Rows counted at the model: the method's own, and apart from them those of checks and predictions."""

    forward: int = 0
    backward: int = 0
    check_forward: int = 0


@attrs.frozen(eq=False)
class Model:
    """Calls `function` with rows in the user's structure: positional, or by keyword where `x` is a dict."""

    function: Callable[..., Any]
    structure: Structure

    @property
    def key(self) -> Any:
        """What tells this model from others that are made of the same function, where something is remembered of it."""
        return None

    @property
    def steady(self) -> bool:
        """Whether what it leaves out of its passes is known to give the same again."""
        return False

    @property
    def spares(self) -> bool:
        """Whether it is known not to write to its inputs."""
        return False

    @property
    def module(self) -> torch.nn.Module | None:
        """The model as a module, where it is one."""
        return self.function if isinstance(self.function, torch.nn.Module) else None

    @functools.cached_property
    def parts(self) -> Mapping[str, torch.nn.Module]:
        """The model and all modules in it by their dotted names, walked once for a call; none of a plain callable."""
        return dict(self.module.named_modules()) if self.module is not None else {}

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters of all of them; one that is shared comes several times."""
        each = (part._parameters.values() for part in self.parts.values())
        return [parameter for parameters in each for parameter in parameters if parameter is not None]

    def __call__(self, inputs: Tensors, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        """Return the raw output at some rows."""
        positional, keyword = arguments
        with self.telling_types(inputs):
            if self.structure.kind == "dict":
                return self.function(*positional, **self.structure.pack(inputs), **keyword)
            return self.function(*inputs, *positional, **keyword)

    @contextmanager
    def telling_types(self, inputs: Tensors) -> Iterator[None]:
        """Say which of x and the model has which floating type, where a pass fails for having two.

        Nothing is refused beforehand: models that cast by themselves, or under autocast, take any.

        Raises:
            ArgumentError: torch says that types differ, and those of an input and of all parameters do.
        """
        try:
            yield
        except (RuntimeError, ValueError) as error:
            if isinstance(error, ArgumentError) or not _OF_TYPES.search(str(error)):
                raise
            types = {parameter.dtype for parameter in self.parameters if parameter.is_floating_point()}
            labelled = zip(self.structure.labels("x"), inputs, strict=False)
            other = next(
                ((name, x.dtype) for name, x in labelled if x.is_floating_point() and {x.dtype} != types), None
            )
            if len(types) != 1 or other is None:
                raise
            raise _of_another_type(*other, types.pop(), error) from error


def _of_another_type(name: str, came: torch.dtype, wanted: torch.dtype, error: Exception) -> ArgumentError:
    first, plain = str(error).partition("\n")[0].rstrip("."), str(came).removeprefix("torch.")
    ways = [f"{name}.{_CASTS[wanted]}"] if wanted in _CASTS else []
    ways += [f"model.{_CASTS[came]}"] if came in _CASTS else []
    return ArgumentError(
        name,
        f"{plain} came, and the model failed: {first}",
        f"{str(wanted).removeprefix('torch.')}, the type of the model's parameters",
        f"Pass {', or use '.join(ways)}." if ways else "",
    )


def output_tensor(raw: Any) -> Tensor:
    """Return the tensor that a target indexes: the output, its `logits`, or the first element of a tuple.

    Raises:
        UnsupportedModel: there is no such tensor, or a dict leaves open which one is meant.
    """
    if isinstance(raw, Tensor):
        return raw
    logits = raw.get("logits") if isinstance(raw, Mapping) else getattr(raw, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(raw, Mapping):
        tensors = [value for value in raw.values() if isinstance(value, Tensor)]
        if len(tensors) == 1:
            return tensors[0]
        found = f"a dict with the keys {list(raw)}"
    elif isinstance(raw, tuple | list) and raw and isinstance(raw[0], Tensor):
        return raw[0]
    else:
        found = f"{type(raw).__name__} without logits"
    raise UnsupportedModel(
        f"model: it returned {found}; expected a tensor, a tuple whose first element is one, a dict with one tensor or "
        "`logits`, or an object with `logits`. Pass target=lambda output: ... to choose one value per example yourself."
    )


def finite_values(value: Tensor) -> Tensor:
    """Return the target's values if they are numbers.

    Raises:
        UnsupportedModel: some are NaN or inf.
    """
    if not all_finite(value):
        bad = int((~value.isfinite()).sum())
        raise UnsupportedModel(
            f"model: the target is NaN or inf at {bad} of {len(value)} rows; look for a division by zero, an overflow "
            "in half precision, or points that the model was never meant to see."
        )
    return value
