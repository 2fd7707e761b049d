"""Screen: the filters that judge each document alone, and the settings that select them.

A document is compared with the opt-out lists, the sample and the evaluation files, in this order;
the first that drops it is its reason. What depends on other documents (duplicates, `limit`) is
decided later, when all blocks are read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from crystalmix.prep.filters import decontaminate, near_duplicates, opt_out, sample
from crystalmix.prep.filters.decontaminate import Decontaminate
from crystalmix.prep.filters.exact_duplicates import halves
from crystalmix.prep.filters.near_duplicates import Near
from crystalmix.prep.filters.opt_out import OptOut
from crystalmix.prep.runtime.constraints import AtLeastOne, enforce, within
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Strict, frozen

with imported_later(__name__):
    import numpy as np
    import pyarrow as pa

if TYPE_CHECKING:
    from numpy.typing import NDArray


@frozen
class Selection(Strict):
    """Settings of what is selected from a source.

    limit: the first documents only, after all other drops. sample: a share of the texts, in (0, 1].
    opt_out: lists of what must not be used. decontaminate: against evaluation files.
    """

    limit: AtLeastOne | None = None
    sample: Annotated[float, within(0, 1, "(]")] | None = None
    opt_out: tuple[OptOut, ...] = ()
    decontaminate: Decontaminate | None = None

    __post_init__ = enforce

    @property
    def columns(self) -> dict[str, str]:
        """The SQL that the opt-out lists are matched by, each under a column name of ours."""
        return {f"__match_{i}": list_.sql for i, list_ in enumerate(self.opt_out) if list_.sql}


@frozen
class Screen:
    """A selection with all that it needs in a process; small and picklable.

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
        selection = self.selection
        filters = (selection.opt_out, selection.sample, selection.decontaminate, self.near)
        return not any(filters)

    def matches(self, table: pa.Table) -> list[NDArray[np.int64]]:
        """Return for each opt-out list the number of the entry each document is, -1 for none.

        table: documents with `name`, `digest` and the columns of `Selection.columns`.
        """
        entries: list[NDArray[np.int64]] = []
        for i, list_ in enumerate(self.selection.opt_out):
            if list_.match == opt_out.ENTRIES:
                names, digests = (table[name].to_pylist() for name in ("name", "digest"))
                entries.append(list_.matched_entries(self.root, names, digests))
                continue
            values: list[Any] = table[f"__match_{i}" if list_.sql else list_.match].to_pylist()
            if list_.match == opt_out.DIGEST:
                values = [digest.hex() for digest in values]
            entries.append(list_.matched(self.root, values))
        return entries

    def judge(self, table: pa.Table, texts: list[str]) -> Judged:
        """Give each document the reason that drops it, if any."""
        judged = Judged([None] * len(texts), [None] * len(texts), self.matches(table))
        for list_, entries in zip(self.selection.opt_out, judged.matched, strict=True):
            places = {
                i: f"{list_.file}:{entries[i] + 1}" for i in np.flatnonzero(entries >= 0).tolist()
            }
            judged.drop(entries >= 0, "opt_out", places.get)
        if self.selection.sample is not None:
            low = halves(table["digest"])[:, 1]
            kept = sample.chosen(low, self.selection.sample, self.seed, self.source)
            judged.drop(~kept, "sample", lambda _: None)
        settings = self.selection.decontaminate
        if settings is not None and self.index is not None:
            index = decontaminate.index(self.index, settings.lengths, self.mark)
            rows = [i for i, reason in enumerate(judged.reasons) if reason is None]
            hits = np.full(len(texts), -1, np.int64)
            hits[rows] = index.hits([texts[i] for i in rows])
            judged.drop(hits >= 0, "contaminated", lambda i: self.evaluations[hits[i]])
        return judged

    def signatures(self, texts: list[str]) -> NDArray[np.uint32]:
        """Return the signatures of kept texts, (n, permutations)."""
        return near_duplicates.signatures(texts, self.near or Near())


@frozen
class Judged:
    """Verdicts on a batch: for each document why it is dropped (None: it is kept), and the detail.

    matched: for each opt-out list the entry that each document is, -1 for none.
    """

    reasons: list[str | None]
    details: list[str | None]
    matched: list[NDArray[np.int64]]

    def drop(
        self, mask: NDArray[np.bool_], reason: str, detail: Callable[[int], str | None]
    ) -> None:
        """Give a reason to those that have none yet; detail: document -> text."""
        for i in np.flatnonzero(mask).tolist():
            if self.reasons[i] is None:
                self.reasons[i], self.details[i] = reason, detail(i)
