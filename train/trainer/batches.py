"""Batches: the rows of a step as tensors, with the references they came from.

A batch is a pure function of the manifest and the step: no state, so a resume needs the step alone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from crystalmix.mixtures.manifest.manifest import Manifest, RowRefs
from crystalmix.prep.rows.scattered_rows import gather
from crystalmix.train.loader.batches import read_ahead
from crystalmix.train.loader.row_pieces import RowPieces
from crystalmix.train.model.documents import Documents

WHOLE = slice(None)


@dataclass(frozen=True)
class Batch:
    """A process's slots of one step: ids, mask and labels (rows, msl) int32, where rows are from.

    refs: of the whole batch, all processes' slots. tokens: of each row here, those that carry
    loss. digests: 16 bytes for each row here, xxh3-128 over all that it holds. pieces: of each row
    here the lengths of its documents' pieces, where attention is masked between them.
    """

    step: int
    ids: Tensor
    mask: Tensor
    labels: Tensor
    refs: RowRefs
    slots: slice
    tokens: NDArray[np.int64]
    digests: bytes
    pieces: list[NDArray[np.int64]] | None = None

    def documents(self, rows: slice, device: torch.device) -> Documents | None:
        """Return the documents of some rows here; None where attention is not masked."""
        return None if self.pieces is None else Documents.of(self.pieces[rows], device)

    @property
    def digest(self) -> str:
        """The digest of a batch that is held whole."""
        return digest([self.digests])


def digest(shares: Iterable[bytes]) -> str:
    """Return a batch's digest from the digests of its rows in order, however they are shared."""
    return xxhash.xxh3_128_hexdigest(b"".join(shares))


class Batches:
    """The steps of a manifest as a sequence of batches; shards are read below `root`.

    slots: which of each batch's rows are read, all by default.
    """

    def __init__(self, manifest: Manifest, root: Path, slots: slice = WHOLE) -> None:
        self.manifest, self.slots = manifest, slots
        self.paths = [root / path for path in manifest.paths]
        self.pieces = RowPieces(manifest, root)

    def __len__(self) -> int:
        return self.manifest.steps

    def __getitem__(self, step: int) -> Batch:
        """Read the rows of a step."""
        refs = self.manifest.step(step)
        # (rows, 3, msl) int32
        rows = gather(self.paths, refs.shard[self.slots], refs.row[self.slots], whole=True)
        ids, mask, labels = (
            torch.from_numpy(np.ascontiguousarray(rows[:, channel])) for channel in range(3)
        )
        tokens = rows[:, 1].sum(1, dtype=np.int64)
        digests = b"".join(xxhash.xxh3_128_digest(row.data) for row in rows)
        pieces = self.pieces.of(refs, self.slots)
        return Batch(step, ids, mask, labels, refs, self.slots, tokens, digests, pieces)

    def ahead(self, steps: Iterable[int], depth: int = 2, threads: int = 1) -> Iterator[Batch]:
        """Yield the batches of steps, the next `depth` of them read ahead by threads."""
        return read_ahead(self.__getitem__, steps, depth, threads)
