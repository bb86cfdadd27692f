"""Which value of which layer a seat is, and the hooks that see it pass, or put another in its place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import attrs
import torch

# torch's containers, named tuples and the outputs of Hugging Face models are registered with it
from torch.utils._pytree import tree_flatten, tree_unflatten

from axplain.errors import ArgumentError
from axplain.model import Model

Side = Literal["output", "input"]
#: what is done where a value passes: (site, call, leaves) -> other leaves, or None to leave it as it is
Meet = Callable[[int, int, list[Any]], list[Any] | None]


@attrs.frozen(eq=False)
class Seat:
    """A value of a layer, for `explain(layer=...)`; make it with `axplain.seat`."""

    layer: torch.nn.Module | str
    of: Side = "output"
    call: int | None = None
    item: int | None = None


def seat(
    layer: torch.nn.Module | str, *, of: Side = "output", call: int | None = None, item: int | None = None
) -> Seat:
    """Say where attributions land: `explain(model, x, layer=seat("encoder.3", of="input"))`.

    Args:
        layer: a module of the model, or its dotted name.
        of: what the layer returns, or what it is given.
        call: which call of a layer that runs several times, from 0; None takes all of them.
        item: which tensor of several that it returns or is given, from 0; None takes all of them.
    """
    return Seat(layer, of, call, item)


@attrs.frozen(eq=False)
class AtSeat:
    """Baselines that are values of the layer; made by `axplain.at_seat`."""

    value: Any


def at_seat(baselines: Any) -> AtSeat:
    """Give baselines as values of the layer, in any form; without it they are inputs, and one pass carries them there.

    Args:
        baselines: a number, a tensor, a set, a callable of the layer's value or the name of a baseline.
    """
    if baselines is None:
        raise ArgumentError("at_seat", "None came", "a number, a tensor, a set, a callable or the name of a baseline")
    return AtSeat(baselines)


@attrs.frozen
class Site:
    """A seat found in the model."""

    layer: torch.nn.Module = attrs.field(eq=False, repr=False)
    name: str
    of: Side
    call: int | None
    item: int | None

    def __str__(self) -> str:
        return f"the input of layer {self.name!r}" if self.of == "input" else f"layer {self.name!r}"


def resolve_sites(given: Any, model: Model) -> tuple[Site, ...]:
    """Find the layers that `layer` names: a module, a name, a seat, or a list of these.

    Raises:
        ArgumentError: the model has no such layer, or is none that has layers.
    """
    several = given if isinstance(given, list | tuple) else [given]
    if not several:
        raise ArgumentError("layer", "an empty list came", "a layer, or several")
    module = model.module
    if module is None:
        raise ArgumentError("layer", "a layer came and the model is a plain callable", "a torch.nn.Module as the model")
    sites = tuple(resolve_site(item, module, "layer") for item in several)
    twice = next((site for i, site in enumerate(sites) if site in sites[:i]), None)
    if twice is not None:
        raise ArgumentError("layer", f"{twice} came twice", "each once")
    return sites


def resolve_site(layer: Any, model: torch.nn.Module, argument: str) -> Site:
    """Find one layer: a module, a name or a seat.

    Raises:
        ArgumentError: the model has no such layer, or the seat is none.
    """
    given = layer if isinstance(layer, Seat) else Seat(layer)
    name, layer = find_layer(given.layer, model, argument)
    if given.of not in ("output", "input"):
        raise ArgumentError(argument, f"of={given.of!r} came", '"output" or "input"')
    for what, number in (("call", given.call), ("item", given.item)):
        if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 0):
            raise ArgumentError(argument, f"{what}={number!r} came", "a whole number from 0, or None for all")
    return Site(layer, name, given.of, given.call, given.item)


def find_layer(given: Any, model: torch.nn.Module, argument: str) -> tuple[str, torch.nn.Module]:
    """Return the dotted name and the module of a layer.

    Raises:
        ArgumentError: the model has no such layer.
    """
    layers = dict(model.named_modules())
    if isinstance(given, str):
        if not given or given not in layers:
            cure = "Names with _orig_mod in them are torch.compile's: explain the module before it."
            cure = cure if any("_orig_mod" in name.split(".") for name in layers) else ""
            raise ArgumentError(argument, f"layer {given!r} came", f"one of {', '.join(filter(None, layers))}", cure)
        return given, layers[given]
    if not isinstance(given, torch.nn.Module):
        raise ArgumentError(
            argument, f"{type(given).__name__} came", "the model's name for a layer, or one of its modules"
        )
    name = next((name for name, layer in layers.items() if layer is given), None)
    if name is None:
        raise ArgumentError(
            argument, f"a {type(given).__name__} came that is no part of the model", "one of its modules"
        )
    return name or "(the model)", given


def never_reached(site: Site, argument: str) -> ArgumentError:
    """Return the refusal of a layer, or a call of one, that a pass does not run."""
    which = f" (call {site.call})" if site.call is not None else ""
    cure = "Torch uses some layers by their weights alone, as attention does its out_proj: take the one around it."
    return ArgumentError(argument, f"{site}{which} is never reached for this x", "a layer that runs", cure)


@contextmanager
def hooked(sites: tuple[Site, ...], meet: Meet) -> Iterator[None]:
    """Call `meet` wherever a site's value passes while one pass runs; the hooks are gone afterwards."""
    owner = threading.get_ident()
    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for place, site in enumerate(sites):
            handles.append(_hook(place, site, meet, owner))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(place: int, site: Site, meet: Meet, owner: int) -> torch.utils.hooks.RemovableHandle:
    calls = 0

    def met(value: Any) -> Any:
        nonlocal calls
        if threading.get_ident() != owner:  # a pass that another thread makes is none of ours
            return None
        leaves, shape = ([value], None) if isinstance(value, torch.Tensor) else tree_flatten(value)
        number, calls = calls, calls + 1
        new = meet(place, number, leaves) if site.call in (None, number) else None
        if new is None:
            return None
        return new[0] if shape is None else tree_unflatten(new, shape)

    if site.of == "output":
        return site.layer.register_forward_hook(lambda module, args, output: met(output), prepend=True)
    return site.layer.register_forward_pre_hook(
        lambda module, args, kwargs: met((args, kwargs)), prepend=True, with_kwargs=True
    )
