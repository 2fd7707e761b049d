"""Batches: the rows of a step as tensors, with the references they came from.

A batch is a pure function of the manifest and the step: no state, so a resume needs the step alone.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from mixtures.manifest import Manifest, RowRefs
from prep.scatter import gather


@dataclass(frozen=True)
class Batch:
    """One step's rows: ids, mask and labels (B, msl) int32, and where each row is from.

    digest: xxh3-128 over the rows' bytes in slot order.
    """

    step: int
    ids: Tensor
    mask: Tensor
    labels: Tensor
    refs: RowRefs
    digest: str


class Batches:
    """The steps of a manifest as a sequence of batches; shards are read below `root`."""

    def __init__(self, manifest: Manifest, root: Path) -> None:
        self.manifest = manifest
        self.paths = [root / path for path in manifest.paths]

    def __len__(self) -> int:
        return self.manifest.steps

    def __getitem__(self, step: int) -> Batch:
        """Read the rows of a step."""
        refs = self.manifest.step(step)
        rows = gather(self.paths, refs.shard, refs.row)  # (B, 3, msl) int32
        ids, mask, labels = (
            torch.from_numpy(np.ascontiguousarray(rows[:, channel])) for channel in range(3)
        )
        return Batch(step, ids, mask, labels, refs, xxhash.xxh3_128_hexdigest(rows.data))

    def ahead(self, start: int, depth: int = 2) -> Iterator[Batch]:
        """Yield the batches from a step on, reading the next ones in a thread meanwhile."""
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            waiting = [
                pool.submit(self.__getitem__, s)
                for s in range(start, min(start + depth, len(self)))
            ]
            for step in range(start, len(self)):
                batch = waiting.pop(0).result()
                if step + depth < len(self):
                    waiting.append(pool.submit(self.__getitem__, step + depth))
                yield batch
