"""Ratios: asked and got shares of the parts over recorded steps."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from crystalmix.prep.runtime.errors import UsageError
from crystalmix.prep.runtime.types import Content
from crystalmix.train.record import ledger
from crystalmix.train.record.views import Traced
from crystalmix.train.trace.answers import Answer, Grid


@dataclass(frozen=True)
class Ratios(Answer):
    """Asked and got shares of each part over a range of recorded steps.

    parts: phase, part, asked and got (shares of rows), rows; got is None where none is recorded.
    """

    first: int
    last: int
    parts: pa.Table

    def content(self) -> list[Content]:
        """The parts as JSON."""
        return self.parts.to_pylist()

    def shown(self) -> Iterator[str | Grid]:
        """Yield the parts as a table."""
        cells = [
            [p["phase"], p["part"], f"{p['asked']:.6f}", f"{p['got'] or 0:.6f}", f"{p['rows']:,}"]
            for p in self.parts.to_pylist()
        ]
        yield Grid(cells, ["phase", "part", "asked", "got", "rows"])


def step_ratios(traced: Traced, first: int = 0, last: int | None = None) -> Ratios:
    """Return asked and got shares of the recorded steps [first, last]; all steps by default.

    Raises UsageError where not all of them are recorded, by some phase.
    """
    folders = {phase: traced.ledger(phase) for phase in traced.manifests}
    recorded = max(
        (ledger.span_of(p)[1] for f in folders.values() for p in ledger.segments(f)), default=None
    )
    if last is None:
        last = recorded or 0
    elif first > last:
        raise UsageError(f"--ratios: FIRST must not be after LAST, got {first}:{last}")
    elif recorded is None or last > recorded:
        known = "none" if recorded is None else f"0 to {recorded}"
        raise UsageError(f"--ratios: the recorded steps are {known}, got {first}:{last}")
    lines: list[Content] = []
    for phase, folder in folders.items():
        counts = ledger.rows_of_parts(folder, first, last)
        every = sum(counts.values())
        for part in traced.manifests[phase].parts:
            rows = counts.get(part.name, 0)
            shares = {"asked": part.asked, "rows": rows, "got": rows / every if every else None}
            lines.append({"phase": phase, "part": part.name, **shares})
    return Ratios(first, last, pa.Table.from_pylist(lines))
