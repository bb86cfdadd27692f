"""Ablation-CAM: a channel weighs what the target loses without it, asked of the model that begins at the layer."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import attrs
import torch
from torch import Tensor

from axplain import hookimpl
from axplain.engine import Engine
from axplain.errors import ArgumentError
from axplain.problem import Problem
from axplain.protocols import Outcome, Settings
from axplain.seats.tail import lowered
from axplain.structure import accumulator
from axplain_plugins.cam.formulas import ablationcam
from axplain_plugins.cam.layouts import Reshape, channels_of_maps, reshape_of, without_reader
from axplain_plugins.cam.upsampling import finished


@attrs.frozen
class AblationCam:
    """Sets one channel after the other to zero, on all of its places; class and register tokens keep theirs."""

    def samples(self, problem: Problem, values: Mapping[str, Any]) -> int:
        return channels_of_maps(problem, values["reshape"])

    def run(self, problem: Problem, engine: Engine, settings: Settings) -> Outcome:
        reshape = reshape_of(problem, settings.values["reshape"])
        tail, maps = lowered(problem, engine), []
        for index in engine.blocks(tail, "value"):
            block = tail.block(index)
            (value,) = block.inputs
            held = reshape(value)
            places = _places(reshape, value, held)
            clean, without = _clean(block, engine), _without(block, engine, places)
            zero = (clean == 0).nonzero().flatten()
            if len(zero):
                came = f"its value is 0 for example {int(index[zero[0]])}"
                raise ArgumentError("target", came, "another value: ablationcam gives each drop as a share of it")
            if places.numel() < value[0].numel() and _same(without, clean):
                raise without_reader(str(problem.seating))
            wide = accumulator(held.dtype)
            maps.append(ablationcam(held.to(wide), clean.to(wide), without.to(wide)))
        relu, upsample = settings.values["relu"], settings.values["upsample"]
        return Outcome((finished(torch.cat(maps), problem, relu=relu, upsample=upsample),))


def _clean(block: Problem, engine: Engine) -> Tensor:
    """Return F(x), (examples,), which the pass that found the predicted class has told already."""
    if block.clean is not None:
        return block.clean
    value = engine.ask(block, block.inputs, block.everyone(), "value").value
    assert value is not None, "a value was asked for"
    return value


def _without(block: Problem, engine: Engine, places: Tensor) -> Tensor:
    """Return the target's values where each channel is zero, (examples, channels)."""
    (value,), everyone, values = block.inputs, block.everyone(), []
    for samples in engine.samples(block, len(places), "value"):
        rows = value.expand(len(samples), *value.shape).flatten(2)
        gone = places[samples.start : samples.stop, None].expand(-1, block.batch, -1)
        rows = rows.scatter(2, gone, 0).view(-1, *value.shape[1:])
        found = engine.ask(block, (rows,), everyone.repeat(len(samples)), "value").value
        assert found is not None, "a value was asked for"
        values.append(found.view(len(samples), block.batch).T)
    return torch.cat(values, 1)


def _same(without: Tensor, clean: Tensor) -> bool:
    """Whether for some example nothing but rounding changes the value, whatever channel is missing."""
    rounding = 16 * torch.finfo(clean.dtype).eps * clean[:, None].abs()
    return bool(((without - clean[:, None]).abs() <= rounding).all(1).any())


def _places(reshape: Reshape, value: Tensor, held: Tensor) -> Tensor:
    """Return where the elements of each channel lie in what a layer holds: (channels, places).

    Raises:
        ArgumentError: `reshape` computes, so that a channel of its maps is none of the layer.
    """
    numbered = torch.arange(prod(value.shape[1:]), device=value.device).view(1, *value.shape[1:])
    places = reshape(numbered).flatten(2)[0]
    known = not places.is_floating_point() and bool(((places >= 0) & (places < numbered.numel())).all())
    if not known or not torch.equal(value.flatten(1)[:, places], held.flatten(2)):
        came = "it gives numbers that the layer does not hold"
        raise ArgumentError("reshape", came, "a function that only picks and moves them: ablationcam takes them out")
    return places


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `ablationcam`."""
    return AblationCam
