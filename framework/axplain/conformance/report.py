"""What a check found: one record per method and axiom, and the report of them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, Literal

import attrs

Outcome = Literal["pass", "fail", "known failure", "skip", "reported"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("pass", "known failure", "reported", "skip", "fail")


@attrs.frozen
class Record:
    """What one method did with one axiom.

    `kind`: how the axiom is claimed, or "contract". `reason`: why it failed or was skipped. `counterexample`: the
    smallest case in which it failed, as something that can be built again. `used`: the largest share of what is allowed
    that any case used up; `gap`: the largest deviation, absolute. `cases`: how many were asked.
    """

    method: str
    distribution: str
    axiom: str
    kind: str
    outcome: Outcome
    reason: str = ""
    counterexample: str = ""
    used: float = 0.0
    gap: float = 0.0
    cases: int = 0
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether nobody expected it."""
        return self.outcome == "fail"

    def __str__(self) -> str:
        text = f"{self.outcome}: {self.distribution}: {self.method}, {self.axiom} ({self.kind or 'not declared'})"
        if self.reason:
            text += f": {self.reason}"
        if self.counterexample:
            text += f"\n  in {self.counterexample}"
        return text


@attrs.frozen
class Report:
    """The records of one check."""

    records: tuple[Record, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed unexpectedly."""
        return not self.failures

    @property
    def failures(self) -> tuple[Record, ...]:
        """What failed and is no known failure."""
        return tuple(record for record in self.records if record.failed)

    @property
    def counts(self) -> dict[str, int]:
        """How many records have each outcome."""
        counted = Counter(record.outcome for record in self.records)
        return {outcome: counted[outcome] for outcome in OUTCOMES if counted[outcome]}

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"Report({', '.join(f'{count} {outcome}' for outcome, count in self.counts.items())})"

    def __str__(self) -> str:
        lines = [str(record) for record in self.records if record.outcome not in ("pass", "skip")]
        return "\n".join([*lines, repr(self)])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain dicts, lists, numbers and strings."""
        return {"counts": self.counts, "records": [attrs.asdict(record) for record in self.records]}
