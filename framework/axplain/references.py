"""The door for `baselines`: numbers, tensors, sets, callables and plugin names become one table of rows."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from axplain.discovery import catalog
from axplain.errors import ArgumentError, warn
from axplain.parameters import settle_values
from axplain.problem import References
from axplain.protocols import Baseline
from axplain.randomness import Key
from axplain.registry import registry
from axplain.specs import BaselineKind
from axplain.structure import Structure, Tensors, all_finite


@attrs.frozen(eq=False)
class Distribution:
    """A set of references, whatever the method; made by `axplain.distribution`."""

    rows: Any


def distribution(rows: Any) -> Distribution:
    """Mark baselines as a set: every example is explained against all of its rows, and the results are averaged.

    Args:
        rows: (n, ...) per input, in the structure of `x`; row i of every input belongs together.
    """
    return Distribution(rows)


def resolve_references(
    given: Any, kind: BaselineKind, x: Any, inputs: Tensors, structure: Structure, key: Key, method: str
) -> References | None:
    """Turn what the user gave as baselines into the table of references that a method of this kind takes.

    Raises:
        ArgumentError: the method takes none, or shapes, devices or values do not fit.
    """
    if kind == "none":
        if given is None:
            return None
        raise ArgumentError(
            "baselines", f"{_brief(given)} came", f"nothing: {method} uses no baselines", "Leave it out."
        )
    if given is None and kind == "reference_set":
        warn(
            f"{method} explains against a distribution of baselines and none was given: it uses the single reference "
            "zeros. Pass baselines=, for example some training examples."
        )
    as_set = kind == "reference_set" or isinstance(given, Distribution)
    items = _items(_call(given, x), structure)
    labels = structure.labels("baselines")
    tables = [
        _table(item, tensor, as_set, label, key.at(label))
        for item, tensor, label in zip(items, inputs, labels, strict=True)
    ]
    return _join(tables, labels, len(inputs[0]), inputs[0].device)


def _call(given: Any, x: Any) -> Any:
    """Ask a callable for its baselines, handing it `x` where it takes an argument."""
    if not callable(given):
        return given
    try:
        takes_x = bool(inspect.signature(given).parameters)
    except ValueError:  # some builtins have no signature
        takes_x = True
    return _made(given(x) if takes_x else given())


def _made(baselines: Any) -> Any:
    if baselines is None:
        raise ArgumentError("baselines", "the callable returned NoneType", "a tensor, or a number")
    return baselines


def _items(given: Any, structure: Structure) -> tuple[Any, ...]:
    """Split baselines into one item per input; a number, a name or a plugin holds for every input."""
    is_set = isinstance(given, Distribution)
    rows = given.rows if is_set else given
    count = len(structure.names)
    if isinstance(rows, dict) and "use" not in rows:
        if structure.kind != "dict" or rows.keys() != set(structure.names):
            expected = f"the keys {list(structure.names)}" if structure.kind == "dict" else "no dict: x is none"
            cure = 'A baseline with parameters is {"use": name, ...}.'
            raise ArgumentError("baselines", f"a dict with the keys {list(rows)} came", expected, cure)
        items: tuple[Any, ...] = tuple(rows[name] for name in structure.names)
    elif isinstance(rows, tuple):
        items = rows
    elif isinstance(rows, Tensor) and count > 1:
        raise ArgumentError("baselines", "one tensor came", f"one item for each of the {count} inputs", "Give a tuple.")
    else:
        items = (rows,) * count
    if len(items) != count:
        raise ArgumentError("baselines", f"{len(items)} items came", f"{count}, one for each input")
    return tuple(Distribution(item) for item in items) if is_set else items


def _table(item: Any, x: Tensor, as_set: bool, label: str, key: Key) -> Tensor:
    """Return (1 or batch, k, ...) references for one input."""
    if isinstance(item, Distribution):
        item, as_set = item.rows, True
    if callable(item) and not isinstance(item, Tensor):
        item = _made(item(x))
    if hasattr(item, "__array__") and not isinstance(item, Tensor):
        item = torch.as_tensor(item, device=x.device)
    if isinstance(item, Tensor) and item.ndim == 0:
        item = item.item()
    if as_set and isinstance(item, Tensor) and not len(item):
        raise ArgumentError(label, f"a set of shape {tuple(item.shape)} came", "at least one row")
    plugin = _plugin(item, x, as_set, label)
    try:
        table = plugin.references(x, key)
    except ArgumentError as error:
        raise (error if error.argument != "baselines" else error.of(label)) from None
    if (
        table.ndim != x.ndim + 1
        or table.shape[2:] != x.shape[1:]
        or len(table) not in (1, len(x))
        or not table.shape[1]
    ):
        raise ArgumentError(
            label,
            f"{_brief(item)} came, which gives references of shape {tuple(table.shape[2:])}",
            f"shape {tuple(x.shape[1:])}, as in x, behind a first dimension of "
            + ("any length" if as_set else f"1 or {len(x)}, the batch"),
        )
    if table.is_complex():
        raise ArgumentError(label, f"{table.dtype} came", f"{x.dtype}, as x")
    if table.is_floating_point() and not all_finite(table):
        raise ArgumentError(label, "NaN or inf came", "finite numbers")
    if not x.is_floating_point() and table.is_floating_point() and bool((table != table.round()).any()):
        raise ArgumentError(label, f"fractions came for an input of {x.dtype}", "whole numbers")
    return table.detach().to(x.dtype)


def _plugin(item: Any, x: Tensor, as_set: bool, label: str) -> Baseline:
    """Build the baseline plugin that an item means."""
    if item is None:
        return _build("zeros", {}, x, label)
    if isinstance(item, numbers.Real) and not isinstance(item, bool):
        if not math.isfinite(item):
            raise ArgumentError(label, f"{item} came", "a finite number")
        return _build("value", {"value": float(item)}, x, label)
    if isinstance(item, str):
        return _build(item, {}, x, label)
    if isinstance(item, Mapping) and "use" in item:
        return _build(item["use"], {name: value for name, value in item.items() if name != "use"}, x, label)
    if isinstance(item, Tensor):
        _check_tensor(item, x, as_set, label)
        return _build("distribution" if as_set else "tensor", {"rows": item}, x, label)
    raise ArgumentError(
        label, f"{_brief(item)} came", "a number, a tensor, a callable, the name of a baseline, or { 'use': name, ... }"
    )


def _check_tensor(item: Tensor, x: Tensor, as_set: bool, label: str) -> None:
    if item.device != x.device:
        raise ArgumentError(label, f"a tensor on {item.device} came", f"one on {x.device}, where x is")
    if item.shape == x.shape[1:] and not (item.ndim == x.ndim):
        raise ArgumentError(
            label,
            f"shape {tuple(item.shape)} came, without a batch dimension",
            f"{('n' if as_set else 1, *x.shape[1:])}",
            "Call .unsqueeze(0) on it.",
        )
    lengths_fit = as_set or (item.ndim > 0 and len(item) in (1, len(x)))
    if item.ndim == x.ndim and item.shape[1:] == x.shape[1:] and not lengths_fit:
        raise ArgumentError(
            label,
            f"{len(item)} references came for {len(x)} examples",
            f"one for all or one for each (first dimension 1 or {len(x)})",
            "If a set is meant, pass axplain.distribution(tensor), or use a method that averages over a set.",
        )


def _build(name: Any, arguments: dict[str, Any], x: Tensor, label: str) -> Baseline:
    if not isinstance(name, str):
        raise ArgumentError(
            label, f"{name!r} came", f"the name of a baseline: {', '.join(catalog().names('baseline'))}"
        )
    spec = catalog().find(name, "baseline")
    if spec.requires.input_dtype == "floating" and not x.is_floating_point():
        cure = "Of token ids give one that means nothing, such as the id of a mask token."
        raise ArgumentError(label, f"{name!r} came for an input of {x.dtype}", "whole numbers", cure)
    plugin: Baseline = registry().build(spec, settle_values(spec, arguments, f"{label}[{{!r}}]"))
    return plugin


def _join(tables: list[Tensor], labels: tuple[str, ...], batch: int, device: torch.device) -> References:
    """Give all inputs one index, so that the k-th reference of an example is one joint row of all of them."""
    owners = max(len(table) for table in tables)
    count = max(table.shape[1] for table in tables)
    for table, label in zip(tables, labels, strict=True):
        if table.shape[1] not in (1, count):
            raise ArgumentError(
                label, f"{table.shape[1]} references came", f"{count}, as for the other inputs", "Rows belong together."
            )
    if owners == count == 1:
        return References(tuple(table[0] for table in tables), torch.zeros(batch, 1, dtype=torch.long, device=device))
    rows = tuple(t.expand(owners, count, *t.shape[2:]).reshape(owners * count, *t.shape[2:]) for t in tables)
    index = torch.arange(owners * count, device=device).view(owners, count)
    return References(rows, index.expand(batch, count))


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{type(value).__name__} {value!r}"[:80]
