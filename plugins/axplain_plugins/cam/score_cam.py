"""Score-CAM: each channel is a mask of the input, and weighs what the target says of what it lets through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from axplain import hookimpl
from axplain.engine import Engine
from axplain.errors import ArgumentError
from axplain.problem import Problem
from axplain.protocols import Outcome, Settings
from axplain.seats.reading import Activation
from axplain.structure import accumulator
from axplain_plugins.cam.formulas import over_space, scorecam
from axplain_plugins.cam.layouts import channels_of_maps, reshape_of
from axplain_plugins.cam.upsampling import check_size, finished, stretched


@attrs.frozen
class ScoreCam:
    """Runs a block of examples at a time, each under the masks of some channels."""

    def samples(self, problem: Problem, values: Mapping[str, Any]) -> int:
        return channels_of_maps(problem, values["reshape"])

    def run(self, problem: Problem, engine: Engine, settings: Settings) -> Outcome:
        reshape, maps = reshape_of(problem, settings.values["reshape"]), []
        if len(problem.inputs) > 1:
            raise ArgumentError("x", f"{len(problem.inputs)} inputs came", "one, which the channels can be masks of")
        for index in engine.blocks(problem, "value"):
            block = problem.block(index)
            held = _held(block, engine)
            held = reshape(held.to(accumulator(held.dtype)))
            check_size(tuple(block.inputs[0].shape[2:]), tuple(held.shape[2:]), block.inputs[0], "x")
            maps.append(scorecam(held, _scores(block, engine, held)))
        relu, upsample = settings.values["relu"], settings.values["upsample"]
        return Outcome((finished(torch.cat(maps), problem, relu=relu, upsample=upsample),))


def _held(block: Problem, engine: Engine) -> Tensor:
    assert block.seating is not None, "the door refuses such a method without a layer"
    found = engine.ask(block, block.inputs, block.everyone(), "value", Activation(block.seating)).activation
    assert found is not None, "it was asked for"
    return found[0]


def _scores(block: Problem, engine: Engine, held: Tensor) -> Tensor:
    """Return the target's value at x seen through each channel, (examples, channels); -inf where one is flat."""
    x = block.inputs[0]
    absent, size = block.reference_table().column(0)[0], tuple(x.shape[2:])
    scores, everyone = [], block.everyone()
    for samples in engine.samples(block, held.shape[1], "value"):
        mask = masks(held[:, samples.start : samples.stop], size).transpose(0, 1).unsqueeze(2).to(x.dtype)
        rows = torch.lerp(absent.unsqueeze(0), x.unsqueeze(0), mask).flatten(0, 1)
        value = engine.ask(block, (rows,), everyone.repeat(len(samples)), "value").value
        assert value is not None, "a value was asked for"
        scores.append(value.view(len(samples), block.batch).T)
    flat = held.amax(over_space(held)) == held.amin(over_space(held))
    return torch.cat(scores, 1).to(held.dtype).masked_fill(flat, -torch.inf)


def masks(held: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return a mask in [0, 1] for each channel, (rows, channels, *size): stretched over x, its least value 0."""
    large = stretched(held, size).flatten(2)
    low, high = large.aminmax(dim=2, keepdim=True)
    spread = torch.where(high > low, high - low, 1)
    return ((large - low) / spread).view(*held.shape[:2], *size)


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `scorecam`."""
    return ScoreCam
