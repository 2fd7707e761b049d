"""Rows that are laid out: where they lie in token blocks, and row-level FIM of them on the way.

What row-level FIM and the shuffle share: both make packed rows of which spans alone are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crystalmix.mixtures.build.context import Context, Folder, streams
from crystalmix.mixtures.manifest.build_folder import shards_of
from crystalmix.prep.crystalcoder.original_row_fim import DRAWN, LegacyFim, Turn
from crystalmix.prep.fim.row_fim import RowFim
from crystalmix.prep.packing import laid_out
from crystalmix.prep.packing.laid_out import Place
from crystalmix.prep.rows import pack, shards, spans
from crystalmix.prep.rows.placed_rows import layout_of, lines_of
from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings, load

if TYPE_CHECKING:
    from crystalmix.prep.fim.document_fim import FimSettings
    from crystalmix.prep.rows.pack import PackSettings
    from crystalmix.prep.rows.shuffle import Input
    from crystalmix.prep.rows.token_blocks import Stream

HELD_TOKENS = 1 << 24  # of rows that are made at once, 2 or 4 bytes each
Numbers = NDArray[np.int64]
Located = tuple[Numbers, Numbers]  # of rows, the shard of each and its row there


def pad_of(context: Context, settings: PackSettings) -> int:
    """Return the id that fills rows."""
    tokenizer = context.tokenizer
    return (tokenizer if settings.cerebras is None else tokenizer.base).pad


def write_streams(context: Context, out: Path, epochs: Sequence[Folder]) -> None:
    """Write where the rows of folders lie, for work items (`laid_out.read`).

    epochs: packed folders, or those of row-level FIM, whose rows are made from the packed ones.
    """
    settings = context.recipe.rows_of(epochs[0].name)
    every: list[Stream] = []
    places: dict[str, Place] = {}
    for epoch in epochs:
        packed, base = epoch.behind or epoch, len(every)
        every += streams(settings, packed.blocks)
        files = {entry["name"] for entry in packed.sealed.files}
        for name in (shard.name for shard in shards_of(packed.sealed)):
            path = packed.path / name
            places[f"{epoch.place.name}/{name}"] = Place(
                stream=base + pack.process(name),
                first=pack.number(name) * settings.rows_per_shard,
                path=str(path),
                layout=layout_of(path).name in files,
            )
    laid_out.write(out, every, places, settings.msl, pad_of(context, settings))


@dataclass(frozen=True)
class RowFimAgain:
    """Row-level FIM of a domain's rows that are laid out: its settings, and where its shards lie.

    folders: of each permuted folder, by its name in origin tables, that of the packed shards behind
    it, and its epoch. Of single shards it holds nothing: it goes with every work item.
    """

    tokenizer: TokenizerSettings
    fim: FimSettings
    seed: int
    domain: str
    epochs: int
    folders: tuple[tuple[str, Path, int], ...]

    @classmethod
    def of(cls, context: Context, folders: Sequence[Folder]) -> RowFimAgain | None:
        """Return the FIM of permuted folders, None where they are not."""
        settings = folders[0].domain.fim
        if settings is None or settings.level != "row":
            return None
        places = tuple((f.place.name, (f.behind or f).path, f.epoch) for f in folders)
        how = context.recipe.tokenizer, settings, context.recipe.seed, folders[0].name
        return cls(*how, folders[0].domain.epochs, places)

    def rows(
        self, packed: laid_out.Rows, inputs: Sequence[Input], firsts: Numbers, located: Located
    ) -> Permuted:
        """Return rows permuted; packed: as they were.

        inputs: the permuted shards. firsts: the number of each one's first row in its folder.
        located: the shard of each row, and its row there.
        """
        return Permuted(self, packed, inputs, firsts, located)


class Permuted:
    """Rows that are permuted as they pass; arguments as of `RowFimAgain.rows`."""

    def __init__(
        self,
        how: RowFimAgain,
        packed: laid_out.Rows,
        inputs: Sequence[Input],
        firsts: Numbers,
        located: Located,
    ) -> None:
        which, within = located
        self.how, self.packed, self.inputs = how, packed, inputs
        epochs = {name: epoch for name, _, epoch in how.folders}
        own = [epochs[item.name.partition("/")[0]] for item in inputs]
        self.epoch, self.number = np.array(own, np.int64)[which], firsts[which] + within
        behind = {name: path for name, path, _ in how.folders}
        self.spans = self._lines(located, "spans", behind)
        self.drawn = self._lines(located, DRAWN) if how.fim.dialect == "cerebras" else None

    def _lines(
        self, located: Located, kind: str, behind: Mapping[str, Path] | None = None
    ) -> pa.Table:
        """Return the lines of all rows in a side file, `row` counted among these rows.

        behind: folders whose shards' they are, in place of the permuted shards'.
        """
        which, within = located
        tables: list[pa.Table] = []
        for place in np.unique(which).tolist():
            out = np.flatnonzero(which == place)
            folder, _, name = self.inputs[place].name.partition("/")
            shard = self.inputs[place].path if behind is None else behind[folder] / name
            table = spans.read(spans.path_of(shard, kind))
            taken, owner = lines_of(table["row"].to_numpy(), within[out])
            lines = table.take(pa.array(taken, pa.int64()))
            tables.append(lines.set_column(0, "row", pa.array(out[owner], pa.int64())))
        joined = pa.concat_tables(tables).unify_dictionaries()
        order = np.argsort(joined["row"].to_numpy(), kind="stable")
        return joined.take(pa.array(order, pa.int64()))

    def rows(self, first: int, last: int) -> Iterator[shards.Rows]:
        """Yield the rows [first, last) of them as blocks."""
        for block in self.packed.rows(first, last):
            out = np.empty_like(block)
            epochs = self.epoch[first : first + len(block)]
            for epoch in np.unique(epochs).tolist():
                some = np.flatnonzero(epochs == epoch)
                out[some] = self._made(block[some], some + first, epoch)
            yield out
            first += len(block)

    def _made(self, block: shards.Rows, rows: Numbers, epoch: int) -> shards.Rows:
        how, tokenizer = self.how, load(self.how.tokenizer)
        table = _of_rows(self.spans, rows)
        if self.drawn is not None:
            legacy = LegacyFim(tokenizer, how.fim, Turn(0, how.epochs, epoch))
            return legacy.again(block, table, _of_rows(self.drawn, rows))
        work = RowFim(tokenizer, how.fim, how.seed, how.domain, epoch)
        return work.again(block, table, self.number[rows])


def _of_rows(table: pa.Table, rows: Numbers) -> pa.Table:
    """Return the lines of some rows, which are counted from 0."""
    taken, owner = lines_of(table["row"].to_numpy(), rows)
    lines = table.take(pa.array(taken, pa.int64()))
    return lines.set_column(0, "row", pa.array(owner, pa.int64()))
