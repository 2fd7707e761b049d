"""Rates: how long the stages of a build took for what they did, remembered in its store.

Seconds are of one process: wall clock times processes. Amounts are bytes of raw files, tokens, or
tokens of rows, as the stage counts.
"""

from dataclasses import dataclass, field

from crystalmix.prep.runtime.types import frozen
from crystalmix.prep.store.store import Store, read_mark, write_mark

NAME = "files/rates.json"  # with what else is remembered, and is part of no digest
LEAST_SECONDS = 0.05  # of a stage: less tells nothing
LEAST_SHARE = 0.1  # of the amount that a kept rate was measured on


@frozen
class Rate:
    """An amount, and the seconds of one process that it took."""

    amount: int
    seconds: float


@dataclass
class Pace:
    """What the stages of one build did, and how long that took."""

    stages: dict[str, Rate] = field(default_factory=dict[str, Rate])

    def add(self, stage: str, amount: int, seconds: float) -> None:
        """Count work of a stage."""
        before = self.stages.get(stage, Rate(0, 0.0))
        self.stages[stage] = Rate(before.amount + amount, before.seconds + seconds)


def read(store: Store) -> dict[str, Rate]:
    """Return the rates of the stages; {} where no build was measured."""
    path = store.path / NAME
    entries = (read_mark(path) or {}).items()
    return {stage: Rate(entry["amount"], entry["seconds"]) for stage, entry in entries}


def keep(store: Store, pace: Pace) -> None:
    """Remember the newest rates, but those of little work beside what is known."""
    known = read(store)
    newer = {
        stage: rate
        for stage, rate in pace.stages.items()
        if rate.amount and rate.seconds >= LEAST_SECONDS
        if stage not in known or rate.amount >= LEAST_SHARE * known[stage].amount
    }
    if newer:
        content = {name: vars(rate) for name, rate in {**known, **newer}.items()}
        write_mark(store.path / NAME, content)
