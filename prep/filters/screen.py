"""Selection: which documents of a source are wanted, and what drops the others, one by one.

A document is held against the opt-out lists, the sample and the evaluation files, in this order;
the first that drops it is its reason. What depends on other documents (duplicates, `limit`) is
decided later, when all blocks are read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crystalmix.prep.filters import decontaminate, sample
from crystalmix.prep.filters import near_duplicates as near
from crystalmix.prep.filters import opt_out as optout
from crystalmix.prep.filters.decontaminate import Decontaminate
from crystalmix.prep.filters.exact_duplicates import halves
from crystalmix.prep.filters.near_duplicates import Near
from crystalmix.prep.filters.opt_out import OptOut


@dataclass(frozen=True)
class Selection:
    """What of a source is wanted.

    limit: the first documents only, after all other drops. sample: a share of the texts, in (0, 1].
    opt_out: lists of what must not be used. decontaminate: against evaluation files.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    limit: int | None = None
    sample: float | None = None
    opt_out: tuple[OptOut, ...] = ()
    decontaminate: Decontaminate | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: must be positive, got {self.limit}")
        if self.sample is not None and not 0 < self.sample <= 1:
            raise ValueError(f"sample: must lie in (0, 1], got {self.sample}")

    @property
    def columns(self) -> dict[str, str]:
        """The SQL that the opt-out lists are matched by, each under a column name of ours."""
        return {f"__match_{i}": each.sql for i, each in enumerate(self.opt_out) if each.sql}


@dataclass(frozen=True)
class Screen:
    """A selection at work in one process; a small picklable description.

    seed: the recipe's. index: of the evaluation files, `evaluations` their names. near: the
    signatures to take of what is kept.
    """

    source: str
    selection: Selection
    root: Path
    seed: int
    index: Path | None = None
    evaluations: tuple[str, ...] = ()
    mark: str = ""
    near: Near | None = None

    @property
    def idle(self) -> bool:
        """Whether the screen drops nothing and takes no signatures."""
        asked = self.selection
        return not (asked.opt_out or asked.sample or asked.decontaminate or self.near)

    def matches(self, table: pa.Table) -> list[NDArray[np.int64]]:
        """Return for each opt-out list the number of the entry each document is, -1 for none.

        table: documents with `name`, `digest` and the columns of `Selection.columns`.
        """
        told: list[NDArray[np.int64]] = []
        for i, each in enumerate(self.selection.opt_out):
            values: list[Any] = table[f"__match_{i}" if each.sql else each.match].to_pylist()
            if each.match == optout.DIGEST:
                values = [digest.hex() for digest in values]
            told.append(each.matched(self.root, values))
        return told

    def judge(self, table: pa.Table, texts: list[str]) -> "Judged":
        """Give each document the reason that drops it, if any."""
        judged = Judged([None] * len(texts), [None] * len(texts), self.matches(table))
        for each, entries in zip(self.selection.opt_out, judged.matched, strict=True):
            judged.drop(
                entries >= 0, "opt_out", lambda i, e=each, n=entries: f"{e.file}:{n[i] + 1}"
            )
        if self.selection.sample is not None:
            low = halves(table["digest"])[:, 1]
            kept = sample.chosen(low, self.selection.sample, self.seed, self.source)
            judged.drop(~kept, "sample", lambda _: None)
        settings = self.selection.decontaminate
        if settings is not None and self.index is not None:
            index = decontaminate.index(self.index, settings.ngram, self.mark)
            left = [i for i, reason in enumerate(judged.reasons) if reason is None]
            hits = np.full(len(texts), -1, np.int64)
            hits[left] = index.hits([texts[i] for i in left])
            judged.drop(hits >= 0, "contaminated", lambda i: self.evaluations[hits[i]])
        return judged

    def signatures(self, texts: list[str]) -> NDArray[np.uint32]:
        """Return the signatures of kept texts, (n, permutations)."""
        return near.signatures(texts, self.near or Near())


@dataclass(frozen=True)
class Judged:
    """For each document of a batch: why it is dropped (None: it is kept) and the detail.

    matched: for each opt-out list the entry that each document is, -1 for none.
    """

    reasons: list[str | None]
    details: list[str | None]
    matched: list[NDArray[np.int64]]

    def drop(self, which: NDArray[np.bool_], reason: str, detail: Any) -> None:  # noqa: ANN401
        """Give a reason to those that have none yet; detail: document -> text."""
        for i in np.flatnonzero(which).tolist():
            if self.reasons[i] is None:
                self.reasons[i], self.details[i] = reason, detail(i)
