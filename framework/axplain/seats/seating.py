"""What a seat is in one model: its tensors, how what runs before them can be skipped, and whether x goes around."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from axplain.seats.sites import Site
from axplain.seats.trace import Trace
from axplain.specs import BaselineKind
from axplain.structure import Structure


@attrs.frozen
class Slot:
    """One tensor of a seat: which call of which site, which of its tensors, the axis of its rows, and what it is."""

    site: int
    call: int
    item: int
    axis: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@attrs.frozen(eq=False)
class Survey:
    """What the two passes told: the slots, how to skip what is before them, and whether x goes around them.

    `switches`: whether the model itself turns gradients on or off behind the seat. `written`: whether it writes to what
    is put there.
    """

    slots: tuple[Slot, ...]
    trace: Trace | None
    bypassed: bool
    switches: bool = False
    written: bool = True


@attrs.frozen(eq=False)
class Seating:
    """Where a question's attributions land. `baselines`: given as values of the seat, for a method of this kind."""

    sites: tuple[Site, ...]
    structure: Structure
    survey: Survey
    baselines: Any = None
    baseline_kind: BaselineKind = "none"
    method: str = ""

    def __str__(self) -> str:
        return in_words(self.sites)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The tensors of the seat."""
        return self.survey.slots

    def passing(self, site: int, call: int) -> list[tuple[int, Slot]]:
        """Return the slots that one call of a site holds, and their numbers."""
        return [(i, slot) for i, slot in enumerate(self.slots) if (slot.site, slot.call) == (site, call)]

    @property
    def trace(self) -> Trace | None:
        """How to skip the operations before the seat."""
        return self.survey.trace

    @property
    def used(self) -> tuple[tuple[int, int], ...]:
        """Which results of before the seat are used behind it."""
        return tuple(self.trace.used) if self.trace is not None else ()

    @property
    def axes(self) -> tuple[int | None, ...]:
        """The axis of the rows of each of them; None where it has none."""
        return tuple(self.trace.used.values()) if self.trace is not None else ()

    def without_trace(self) -> Seating:
        """Return the same, for models that take another way for other data."""
        return attrs.evolve(self, survey=attrs.evolve(self.survey, trace=None))

    @property
    def cut(self) -> bool:
        """Whether all that the target knows of x passes the seat, so that attributions can sum to F(x) - F(x')."""
        return not self.survey.bypassed


def in_words(sites: tuple[Site, ...]) -> str:
    """Say which layers these are."""
    return ", ".join(str(site) if site.call is None else f"{site} (call {site.call})" for site in sites)


def structure_at(sites: tuple[Site, ...], slots: tuple[Slot, ...], *, several: bool) -> Structure:
    """Return how attributions are put together: a tensor, a tuple of one layer's, or a dict of those of several."""
    if several:
        return Structure("dict", tuple(_label(sites, slots, slot) for slot in slots))
    if len(slots) == 1:
        return Structure("tensor", ("x",))
    return Structure("tuple", tuple(map(str, range(len(slots)))))


def _label(sites: tuple[Site, ...], slots: tuple[Slot, ...], slot: Slot) -> str:
    """Return the layer's name, and what else tells its tensors apart."""
    site = sites[slot.site]
    mine = [other for other in slots if other.site == slot.site]
    calls, items = len({other.call for other in mine}), len({other.item for other in mine})
    twins = [other for other in sites if other.name == site.name]
    words = [
        site.name,
        site.of if len({twin.of for twin in twins}) > 1 else "",
        f"call {slot.call}" if calls > 1 or len({twin.call for twin in twins}) > 1 else "",
        f"item {slot.item}" if items > 1 or len({twin.item for twin in twins}) > 1 else "",
    ]
    return " ".join(filter(None, words))
