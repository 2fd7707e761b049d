"""The loader that a cluster's workers run: a map over the positions of a manifest.

Row of position p is what the manifest's order says, so the rows of step k are the positions
[k * batch, (k + 1) * batch) on any number of systems and workers; where to start is the whole
state. What a worker streamed is not seen by the process that writes the ledger: each row
therefore carries its position and a digest of its tokens through the step (`train.cerebras.proof`).

A worker imports this module by name: crystalmix must be installed there or on its python_paths.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crystalmix.mixtures.manifest.manifest import Manifest, read
from crystalmix.prep.rows.scattered_rows import gather
from crystalmix.prep.runtime.errors import StaleError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.cerebras.backend import cstorch
from crystalmix.train.cerebras.proof import PlanEndError, agreed, row_digests


class PlanRows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The rows of a manifest by position."""

    def __init__(self, manifest: Manifest, root: Path) -> None:
        self.manifest = manifest
        self.paths = [root / path for path in manifest.paths]

    def __len__(self) -> int:
        return self.manifest.steps * self.manifest.batch

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """Read the row of one position."""
        return {name: tensor[0] for name, tensor in self.batch([position]).items()}

    def batch(self, positions: Sequence[int]) -> dict[str, Tensor]:
        """Read the rows of consecutive positions, named as Model Zoo names them: all int32.

        `rows` (B, 2): each row's position in the plan and the digest of what it holds.
        """
        refs = self.manifest.rows(positions[0], positions[-1] + 1)
        if len(refs.row) != len(positions):
            raise ValueError(f"positions {positions[0]} to {positions[-1]} are not consecutive")
        rows = gather(self.paths, refs.shard, refs.row, whole=True)  # (B, 3, msl) int32
        marks = np.stack([np.asarray(positions, dtype=np.int32), row_digests(rows)], axis=1)
        ids, mask, labels = (np.ascontiguousarray(rows[:, channel]) for channel in range(3))
        named = {"input_ids": ids, "attention_mask": mask, "labels": labels, "rows": marks}
        return {name: torch.from_numpy(array) for name, array in named.items()}


class PlanLoader:
    """Batches of a plan from a position on; cstorch's RestartableDataLoader."""

    def __init__(self, manifest: Manifest, root: Path) -> None:
        self.manifest, self.rows, self.start = manifest, PlanRows(manifest, root), 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield this worker's share of each step; raise where the plan ends, never repeat it."""
        if self.start < len(self.rows):
            for positions in self._sampler():
                yield self.rows.batch(positions)
        phase, steps = self.manifest.phase, self.manifest.steps
        raise PlanEndError(f"the plan of phase {phase} ends after step {steps - 1}; ask no more")

    def __len__(self) -> int:
        return (len(self.rows) - self.start) // self.manifest.batch

    def _sampler(self) -> Any:  # noqa: ANN401
        return cstorch().utils.data.DistributedSampler(
            self.rows,
            shuffle=False,
            shard=True,
            batch_size=self.manifest.batch,
            drop_last=True,
            start_index=self.start,
        )

    def state_dict(self) -> Json:
        """Return one worker's state at a checkpoint."""
        worker = cstorch().distributed.get_worker_state()
        return {
            "manifest": self.manifest.digest,
            "batch": self.manifest.batch,
            "start": self.start,
            "next": self.start + worker.appliance_step * self.manifest.batch,
            "step": worker.appliance_step,
            "worker": worker.global_worker_id,
            "workers": worker.total_num_workers,
            "rows": worker.samples_streamed,
        }

    def aggregate_state_dict(self, worker_states: Sequence[Json]) -> Json:
        """Return the state of all workers together; ClusterError where they disagree."""
        return agreed(worker_states)

    def deaggregate_state_dict(self, aggregated_state_dict: Json, strict: bool = True) -> Json:
        """Return what a worker needs to go on: the same for all of them."""
        del strict
        return aggregated_state_dict

    def load_state_dict(self, state_dict: Json, strict: bool = True) -> None:
        """Go on at the position that a checkpoint names; StaleError for another manifest's."""
        del strict
        digest = state_dict["manifest"]
        if digest != self.manifest.digest:
            raise StaleError(
                f"the loader's state is of manifest {digest[:12]}, this one is "
                f"{self.manifest.digest[:12]}; go on with the build it was trained on"
            )
        self.start = int(state_dict["next"])


def loader(manifest: str, digest: str, root: str) -> PlanLoader:
    """Make the loader of a phase where it runs, from names alone: a worker gets nothing else.

    manifest: the folder that holds it; digest: what it must have; root: the build's folder.
    """
    sealed = read(Path(manifest))
    if sealed.digest != digest:
        raise StaleError(
            f"{manifest}: this worker sees manifest {sealed.digest[:12]}, the run follows "
            f"{digest[:12]}; mount the same build everywhere"
        )
    return PlanLoader(sealed, Path(root))
