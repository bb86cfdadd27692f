"""Guided integrated gradients: the loop, which asks for a gradient, and takes a step that depends on it."""

from __future__ import annotations

from axplain import Engine, hookimpl
from axplain.problem import Problem
from axplain.protocols import Outcome, Settings
from axplain_guided_ig.line import Line
from axplain_guided_ig.step import Corridor, advanced


class GuidedIG:
    """Walks each example from its baseline to its input, all examples side by side, each on its own path."""

    def run(self, problem: Problem, engine: Engine, settings: Settings) -> Outcome:
        """Explain every example of the problem."""
        n_steps, fraction = settings.values["n_steps"], settings.values["fraction"]
        line = Line.of(problem.reference_table().column(0), problem.inputs)
        place = line.start()
        sums = line.start()
        for taken in range(n_steps):
            corridor = Corridor.after((taken + 1) / n_steps, settings.values["max_dist"])
            terms = engine.ask(problem, line.at(place), problem.everyone(), "gradient").terms
            assert terms is not None, "a gradient was asked for"
            slope = line.flat(terms)
            moved = advanced(place, slope, line.step.abs(), corridor, fraction)
            sums += slope * (moved - place) * line.step
            place = moved
        return Outcome(line.split(sums))


@hookimpl
def axplain_plugin() -> type[GuidedIG]:
    """Return the class behind `guided_ig`."""
    return GuidedIG
