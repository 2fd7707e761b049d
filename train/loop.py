"""The loop: steps of a manifest through model and optimiser, recorded, checkpointed, resumable.

Position in the data, learning rate and numbers follow from (run, manifest, step) alone, so k steps,
a kill, a resume and n - k steps give the same losses and the same ledger as n steps.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from mixtures.manifest import Manifest
from prep import receipts
from prep.errors import RecipeError, RefusalError, StaleError
from train import checkpoint, folder, skips
from train.batches import Batch, Batches
from train.evaluate import Evaluator
from train.ledger import Ledger, Step
from train.metrics import Metrics
from train.model import Crystal, batch_loss, initialise, row_losses
from train.optim import AdamW, clip, groups, schedule
from train.run import Run

Json = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What training a phase gave."""

    first_step: int  # where this process began: 0, or the checkpoint it resumed
    steps: int
    loss: float
    weights: str  # digest of the final weights


class Trainer:
    """One phase of a run; root: the build, out: the phase's own folder in the run."""

    def __init__(self, run: Run, manifest: Manifest, root: Path, out: Path) -> None:
        self.run, self.manifest, self.root, self.out = run, manifest, root, out
        _check_fit(run, manifest)
        if run.settings.threads is not None:
            torch.set_num_threads(run.settings.threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = Crystal(run.model)
        initialise(self.model, run.settings.seed)
        self.model.to(self.device)
        self.optimizer = AdamW(groups(self.model, run.optimizer), run.optimizer)
        self.batches = Batches(manifest, root)
        self.ledger = Ledger(out / "ledger", manifest)
        self.skips = skips.read(out)
        self.evaluator = Evaluator(run.evaluation, manifest, root, out, run.model)

    @property
    def checkpoints(self) -> Path:
        """The folder of this phase's checkpoints."""
        return self.out / "checkpoints"

    def begin(self, init_from: Path | None) -> int:
        """Resume from the newest checkpoint, or start with given or fresh weights."""
        self._claim(init_from)
        folder.remove_temporaries(self.out)
        newest = folder.latest(self.checkpoints)
        if newest is None:
            self.ledger.truncate()
            if init_from is not None:
                checkpoint.load_weights(init_from, self.model)
            return 0
        state = checkpoint.load(newest, self.model, self.optimizer)
        self.ledger.truncate(state["ledger"])
        checkpoint.keep_last(self.checkpoints, self.run.settings.keep_checkpoints)
        return int(state["step"])

    def train(self, init_from: Path | None = None, stop: int | None = None) -> Outcome:
        """Train to the last step (or to `stop`), and leave a checkpoint there."""
        with folder.alone(self.out):
            first = self.begin(init_from)
            last = max(first, min(stop or self.manifest.steps, self.manifest.steps))
            loss = self._steps(first, last) if first < last else float("nan")
        return Outcome(first, last, loss, checkpoint.weights_digest(self.model))

    def _steps(self, first: int, last: int) -> float:
        """Do the steps [first, last) and return the loss of the last one."""
        loss = float("nan")
        with Metrics(self.out, self.run.metrics, self.manifest, first) as metrics:
            for batch in self.batches.ahead(first):
                loss = self._one(batch, metrics)
                finished = batch.step + 1
                dtype = self.run.settings.dtype
                metrics.evaluation(self.evaluator.after(finished, self.model, dtype))
                if finished % self.run.settings.checkpoint_steps == 0 or finished == last:
                    self._checkpoint(finished)
                if finished == last:
                    break
        return loss

    def _one(self, batch: Batch, metrics: Metrics) -> float:
        began = monotonic()
        step = skips.skipped(batch.step) if batch.step in self.skips else self.step(batch)
        self.ledger.record(step)
        seconds = monotonic() - began
        metrics.step(step, batch.ids.numel() / seconds)
        return step.loss

    def step(self, batch: Batch) -> Step:
        """Do one optimiser step and return what the ledger takes down."""
        rate = schedule(self.run.optimizer.learning_rate, batch.step)
        nll = self._gradients(batch)
        norm = clip(self.model.parameters(), self.run.optimizer.max_gradient_norm)
        self.optimizer.set_learning_rate(rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss = float(batch_loss(nll.double()))
        parts = self._parts(batch, nll)
        return Step(batch.step, batch.refs, batch.digest, loss, float(norm), rate, parts)

    def _gradients(self, batch: Batch) -> Tensor:
        """Accumulate gradients over micro-batches; return the nll of each token: (B, msl)."""
        rows = batch.ids.shape[0]
        size = self.run.settings.micro_batch or rows
        told: list[Tensor] = []
        for first in range(0, rows, size):
            piece = slice(first, first + size)
            ids, mask, labels = (
                x[piece].to(self.device) for x in (batch.ids, batch.mask, batch.labels)
            )
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=self.run.settings.dtype == "bfloat16"
            ):
                logits = self.model(ids)
            nll = row_losses(logits, labels, mask)
            batch_loss(nll, rows).backward()
            told.append(nll.detach())
        return torch.cat(told).cpu()

    def _parts(self, batch: Batch, nll: Tensor) -> tuple[Json, ...]:
        """Return rows, loss-carrying tokens and mean loss of each part in a batch."""
        part = torch.from_numpy(batch.refs.part)
        sums, counts = nll.double().sum(1), batch.mask.sum(1)
        told: list[Json] = []
        for number, entry in enumerate(self.manifest.parts):
            here = part == number
            rows, tokens = int(here.sum()), int(counts[here].sum())
            if rows:
                mean = float(sums[here].sum()) / tokens if tokens else 0.0
                told.append({"part": entry.name, "rows": rows, "tokens": tokens, "loss": mean})
        return tuple(told)

    def _checkpoint(self, finished: int) -> None:
        state = {
            "manifest": self.manifest.digest,
            "model": asdict(self.run.model),
            "ledger": self.ledger.seal(),
        }
        checkpoint.save(self.checkpoints, finished, self.model, self.optimizer, state)
        checkpoint.keep_last(self.checkpoints, self.run.settings.keep_checkpoints)

    def _claim(self, init_from: Path | None) -> None:
        """Say what this folder's training follows from, or refuse to go on with something else."""
        start = None
        if init_from is not None:
            state = folder.read_state(init_from)
            start = state["weights"]
            _check_model(init_from, state["model"], self.run)
        wanted = {"manifest": self.manifest.digest, "run": self.run.content(), "init": start}
        path = self.out / folder.RUN
        if path.exists():
            found = folder.read_json(path, f"remove {self.out} and train this phase again")
            told = receipts.differences(found, wanted, "run")
            if told:
                raise StaleError(
                    f"{path}: was begun otherwise ({'; '.join(told[:3])}); train into another --out"
                )
        else:
            receipts.write_atomic(path, receipts.canonical(wanted))
        folder.remember(self.out.parent, self.root)


def _check_fit(run: Run, manifest: Manifest) -> None:
    """Refuse a model too small for the manifest's rows or tokens."""
    if manifest.tokenizer["vocab"] > run.model.vocab_size:
        raise RecipeError(
            f"model.vocab_size: must be at least {manifest.tokenizer['vocab']} for phase "
            f"{manifest.phase}'s tokenizer, got {run.model.vocab_size}"
        )
    if manifest.msl > run.model.max_position_embeddings:
        raise RecipeError(
            f"model.max_position_embeddings: must be at least {manifest.msl} for phase "
            f"{manifest.phase}'s rows, got {run.model.max_position_embeddings}"
        )
    size = run.settings.micro_batch
    if size is not None and manifest.batch % size:
        raise RefusalError(
            f"runconfig.micro_batch: must divide the batch of {manifest.batch}, got {size}"
        )


def _check_model(init_from: Path, before: Json, run: Run) -> None:
    """Refuse to go on with the weights of another model."""
    now = {**asdict(run.model), "attention": before["attention"]}  # a path, not another function
    told = receipts.differences(before, now, "model")
    if told:
        raise StaleError(
            f"{init_from}: holds another model ({'; '.join(told[:3])}); "
            "train with its run file, or all phases into another --out"
        )
