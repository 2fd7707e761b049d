"""The ledger of a run whose rows are loaded elsewhere: each step is held against the plan, then
taken down.

This process reads the rows of a step itself, from the manifest alone, for their digest and the
tokens of each part; what the cluster gave back must be of those rows.
"""

from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mixtures.manifest import Manifest
from prep import receipts
from train import csxproof
from train.batches import Batch, Batches
from train.ledger import Ledger, Step
from train.optim import Linear, schedule

Json = dict[str, Any]
Arrays = dict[str, NDArray[Any]]


class Follower:
    """Follows the steps of a phase beside the cluster; root: the build, metrics: a file."""

    def __init__(
        self, manifest: Manifest, root: Path, ledger: Path, metrics: Path, rates: tuple[Linear, ...]
    ) -> None:
        self.manifest, self.metrics, self.rates = manifest, metrics, rates
        self.ledger = Ledger(ledger, manifest)
        self.batches = Batches(manifest, root)
        self._ahead: Iterator[Batch] = iter(())
        self._began = 0.0

    def go_back(self, state: Json | None) -> None:
        """Cut ledger and metrics back to what a checkpoint sealed, to nothing without one."""
        self.ledger.truncate(None if state is None else state["ledger"])
        if self.metrics.exists():
            lines = self.metrics.read_bytes().splitlines(keepends=True)
            receipts.write_atomic(self.metrics, b"".join(lines[: self.ledger.next_step]))

    def begin(self) -> None:
        """Start to read the steps that come."""
        self._ahead = self.batches.ahead(self.ledger.next_step)
        self._began = monotonic()

    def record(self, number: int, told: Arrays) -> float:
        """Hold a step that came back against the plan, take it down, and return its loss.

        told: loss, gradient_norm, learning_rate, row_losses (B,), rows (B, 2), as `csxstep.Told`.
        Raises ClusterError for a step that is not the planned one.
        """
        batch = next(self._ahead)
        order = csxproof.places(number, told["rows"], csxproof.row_digests(_rows(batch)))
        rate = schedule(self.rates, number)
        csxproof.check_rate(number, float(told["learning_rate"]), rate)
        parts = self._parts(batch, told["row_losses"][order].astype(np.float64))
        loss, norm = float(told["loss"]), float(told["gradient_norm"])
        step = Step(batch.step, batch.refs, batch.digest, loss, norm, rate, parts)
        self.ledger.record(step)
        self._write(step, batch.ids.numel())
        return loss

    def seal(self, loaders: Json) -> Json:
        """Seal what was taken down, if the loaders stand where it ends; return a state's keys."""
        position = self.ledger.next_step * self.manifest.batch
        csxproof.check_loader(loaders, self.manifest.digest, position)
        return {"ledger": self.ledger.seal(), "loaders": loaders}

    def _parts(self, batch: Batch, sums: NDArray[np.float64]) -> tuple[Json, ...]:
        """Return rows, loss-carrying tokens and mean loss of each part; sums: nll of each row."""
        counts = batch.mask.sum(1).numpy()
        told: list[Json] = []
        for number, entry in enumerate(self.manifest.parts):
            here = batch.refs.part == number
            rows, tokens = int(here.sum()), int(counts[here].sum())
            if rows:
                mean = float(sums[here].sum()) / tokens if tokens else 0.0
                told.append({"part": entry.name, "rows": rows, "tokens": tokens, "loss": mean})
        return tuple(told)

    def _write(self, step: Step, tokens: int) -> None:
        now = monotonic()
        line = {
            "step": step.step,
            "loss": step.loss,
            "gradient_norm": step.gradient_norm,
            "learning_rate": step.learning_rate,
            "tokens_per_second": round(tokens / max(now - self._began, 1e-9)),
            "parts": {part["part"]: part["loss"] for part in step.parts},
        }
        self._began = now
        with self.metrics.open("ab") as file:
            file.write(orjson.dumps(line) + b"\n")


def _rows(batch: Batch) -> NDArray[np.int32]:
    """Return a batch as it lies in shards: (B, 3, msl) int32."""
    return np.stack([x.numpy() for x in (batch.ids, batch.mask, batch.labels)], axis=1)
