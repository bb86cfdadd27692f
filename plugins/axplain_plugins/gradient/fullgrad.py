"""FullGrad: what the input and every bias of a network contribute to its output, as one map."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Final

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from axplain import ArgumentError, hookimpl
from axplain.engine import Engine
from axplain.errors import UncoveredOperation, UnsupportedModel
from axplain.hidden import refuse_hidden_code
from axplain.problem import Problem
from axplain.protocols import Outcome, Settings
from axplain.seats.reading import Pass, Read, Reading
from axplain.structure import Tensors, accumulator, total
from axplain_plugins.gradient.biases import SeeingBiases

#: of the sum of all terms' sizes: how much of F(x) may be missing from them, beside rounding
ROUNDING: Final = 1e4


class FullGrad:
    """Aggregates the complete decomposition of F(x) into a map; what each part sums to goes to the notes."""

    def run(self, problem: Problem, engine: Engine, settings: Settings) -> Outcome:
        """Return (batch, 1, height, width).

        Raises:
            ArgumentError: x is no single batch of images.
            UncoveredOperation: an operation has a bias that cannot be told, or cannot be seen.
        """
        shapes = [tuple(tensor.shape) for tensor in problem.inputs]
        if len(shapes) > 1 or len(shapes[0]) != 4:
            raise ArgumentError("x", f"{shapes} came", "one tensor of images, (batch, channels, height, width)")
        refuse_hidden_code(problem.model, "Its biases must be seen.")
        reading = _Decomposition(problem.model.module)
        answers = engine.ask(problem, problem.inputs, problem.everyone(), "rules", reading)
        assert answers.terms is not None and answers.value is not None, "the reading gives them"
        picture, by_input, by_biases = answers.terms
        residual = by_input + by_biases - answers.value.double()
        notes = {"input": by_input.tolist(), "biases": by_biases.tolist()}
        return Outcome((picture,), checks={"decomposition": residual}, notes={"decomposition": notes})


@attrs.frozen(eq=False)
class _Decomposition(Reading):
    """Takes the gradients at the input and behind every bias while some rows pass."""

    root: nn.Module | None

    def take(self, x: Tensors, run: Pass) -> Read:
        """Return the map, and what the input and the biases contribute in sum: (rows,) each, in float64."""
        with torch.enable_grad():
            leaf = x[0].detach().requires_grad_()
            rows = (leaf.clone(),)
            mode = SeeingBiases(self.root, rows)
            try:
                with mode:
                    value = run(rows, nullcontext())
            finally:
                mode.marks.release()
            places: Any = [leaf, *(bias.output for bias in mode.biases)]  # torch's types know no mixture
            told: Sequence[Tensor | None] = ()
            if value.requires_grad:
                told = torch.autograd.grad(value, places, torch.ones_like(value), allow_unused=True)
        if not told or told[0] is None:
            raise UnsupportedModel(
                "model: its output does not depend differentiably on x: it detaches, rounds, or is under no_grad."
            )
        terms = [x[0] * told[0]]
        terms += [bias.value * g for bias, g in zip(mode.biases, told[1:], strict=True) if g is not None]
        sums = [_by_example(term, len(leaf)) for term in terms]
        by_input, by_biases = sums[0], sum(sums[1:], torch.zeros_like(sums[0]))
        _check(value.detach(), terms, by_input + by_biases)
        return Read(value.detach(), (full_gradient_map(terms), by_input, by_biases))


def full_gradient_map(terms: Sequence[Tensor]) -> Tensor:
    """Return the sum of all terms that are maps: (rows, 1, height, width) of the first term's, the input's, size.

    Of each: absolute values, stretched to [0, 1] over all channels of an example, summed over channels, upsampled.
    """
    size = terms[0].shape[-2:]
    maps = [term for term in terms if term.ndim == 4 and len(term) == len(terms[0]) and max(term.shape[-2:]) > 1]
    sums = [_stretched(term).sum(1, keepdim=True) for term in maps]  # upsampling is linear: after the sum it is cheap
    return torch.stack([functional.interpolate(one, size, mode="bilinear") for one in sums]).sum(0)


def _stretched(term: Tensor) -> Tensor:
    size = term.abs().to(accumulator(term.dtype))
    low, high = size.amin((1, 2, 3), keepdim=True), size.amax((1, 2, 3), keepdim=True)
    return (size - low) / (high - low).where(high > low, 1.0)


def _by_example(term: Tensor, rows: int) -> Tensor:
    """Sum a term for each example; what is folded into rows lies behind one example after the other."""
    if term.numel() % rows or (term.ndim and len(term) % rows):
        raise UncoveredOperation(
            f"model: a bias acts on values of shape {tuple(term.shape)}, which are not those of {rows} examples, the "
            "batch first. Use a method that needs no biases, such as integrated_gradients."
        )
    return total((term.reshape(rows, -1),))


def _check(value: Tensor, terms: Sequence[Tensor], told: Tensor) -> None:
    """Refuse a decomposition that misses a part of the output.

    Raises:
        UncoveredOperation: the terms do not sum to it: some of the model ran where no operation is seen.
    """
    sizes = torch.stack([_by_example(term.abs(), len(value)) for term in terms]).sum(0) + value.abs().double()
    eps = torch.finfo(terms[0].dtype).eps
    missing = (told - value.double()).abs()
    if not bool((missing <= ROUNDING * eps * sizes).all()):
        raise UncoveredOperation(
            f"model: its input and the biases that were seen account for all but {float(missing.max()):.3g} of the "
            "output: a custom autograd function, an operation outside torch's own, or a value that is detached. Use a "
            "method that needs no biases, such as integrated_gradients."
        )


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `fullgrad`."""
    return FullGrad
