"""The ledger of a run whose rows are loaded elsewhere: each step is held against the plan, then
taken down.

This process reads the rows of a step itself, from the manifest alone, for their digests and the
tokens of each part; what the cluster gave back must be of those rows.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.runtime.errors import DivergenceError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.cerebras import proof
from crystalmix.train.model.optimizer import schedule
from crystalmix.train.record.ledger import Ledger, Step
from crystalmix.train.record.metrics import Metrics
from crystalmix.train.record.run_folder import PhaseFolder, SealedLedger
from crystalmix.train.runfile.settings import Run
from crystalmix.train.trainer.batches import Batch, Batches
from crystalmix.train.trainer.gradients import divergence, part_sums, per_part, strange_rows

Arrays = dict[str, NDArray[Any]]


class Follower:
    """Follows the steps of a phase beside the cluster; root: the build, out: the phase's folder."""

    def __init__(self, run: Run, manifest: Manifest, root: Path, out: Path) -> None:
        self.run, self.manifest, self.out = run, manifest, out
        self.ledger = Ledger(PhaseFolder(out).ledger, manifest)
        self.batches = Batches(manifest, root)
        self._ahead: Iterator[Batch] = iter(())
        self._began = 0.0

    def begin(self, last: int) -> Metrics:
        """Start to read the steps up to `last` that come; return the metrics to write them to."""
        first, settings = self.ledger.next_step, self.run.settings
        self._ahead = self.batches.ahead(range(first, last), settings.prefetch, settings.readers)
        self._began = monotonic()
        return Metrics(self.out, self.run.metrics, self.manifest, first)

    def record(self, number: int, arrays: Arrays, metrics: Metrics) -> float:
        """Hold a step that came back against the plan, take it down, and return its loss.

        arrays: loss, gradient_norm, learning_rate, row_losses (B,), rows (B, 2), as a `StepOutput`.
        Raises ClusterError for a step that is not the planned one, DivergenceError for one whose
        loss or gradients are no numbers.
        """
        batch = next(self._ahead)
        order = proof.places(number, arrays["rows"], proof.shortened(batch.digests))
        rate = schedule(self.run.optimizer.learning_rate, number)
        proof.check_rate(number, float(arrays["learning_rate"]), rate)
        loss, norm = float(arrays["loss"]), float(arrays["gradient_norm"])
        losses = arrays["row_losses"][order].astype(np.float64)
        if not math.isfinite(loss + norm):
            strange = strange_rows(self.manifest, batch, torch.from_numpy(losses))
            numbers = f"loss {loss:g}, gradient norm {norm:g}"
            raise DivergenceError(divergence(self.manifest, number, strange, numbers))
        totals = part_sums(batch, losses, len(self.manifest.parts))
        parts = per_part(self.manifest, batch, totals)
        step = Step(number, batch.refs, batch.digest, loss, norm, rate, parts)
        self.ledger.record(step)
        now = monotonic()
        metrics.step(step, batch.ids.numel() / max(now - self._began, 1e-9))
        self._began = now
        return loss

    def seal(self, loaders: Json) -> SealedLedger:
        """Seal what was taken down, if the loaders stand where it ends."""
        position = self.ledger.next_step * self.manifest.batch
        proof.check_loader(loaders, self.manifest.digest, position)
        return self.ledger.seal()
