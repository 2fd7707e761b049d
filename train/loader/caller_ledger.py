"""A ledger kept by any training loop, which `show`, `trace`, `verify` and `sql` read like our own.

What was fed is digested from the tensors themselves, so that `verify` finds a batch that was not
the plan's. How it is known is told with it: recorded by a caller.
"""

import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from os.path import relpath
from pathlib import Path
from shutil import rmtree
from typing import Any, Self

from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.runtime.errors import CrystalmixError, InputError, RefusalError, UsageError
from crystalmix.prep.runtime.receipts import FileEntry
from crystalmix.train.loader.fed import Fed, fed, joined
from crystalmix.train.loader.ranks import Ranks
from crystalmix.train.record import ledger, run_folder, seal, skips
from crystalmix.train.record.run_folder import CallersCheckpoint, PhaseFolder

OPEN: set[Path] = set()  # folders of phases whose ledger this process holds


class CallerLedger:
    """The ledger of one phase, kept by a loop of the caller's own.

    `feed` each micro-batch, `record` each step after it, `seal` with each checkpoint; steps that no
    seal covers are cut when the ledger is opened again. step: cut back to the seal at this step,
    where training goes on from an older checkpoint than the newest. ranks: processes that open,
    feed, record and seal together; rank 0 writes. While it is open no other process writes.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        build: Path,
        step: int | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.manifest, self.phase = manifest, PhaseFolder(folder / manifest.phase)
        self._ranks = ranks or Ranks()
        self._open = ExitStack()
        self._fed: list[Fed] = []
        start: tuple[int, Path | None] | CrystalmixError = (0, None)
        if self._ranks.rank == 0:
            try:
                start = self._begin(folder, build, step)
            except CrystalmixError as error:
                start = error
        start = self._ranks.share(start)
        if isinstance(start, CrystalmixError):
            raise start
        self._next_step, self._checkpoint = start

    @property
    def next_step(self) -> int:
        """The step to train next."""
        return self._next_step

    @property
    def checkpoint(self) -> Path | None:
        """The caller's checkpoint to go on from, of the newest seal; None where there is none."""
        return self._checkpoint

    def feed(
        self,
        ids: Any,  # noqa: ANN401  an array, a tensor, or all three by name
        mask: Any = None,  # noqa: ANN401
        labels: Any = None,  # noqa: ANN401
        *,
        losses: Any = None,  # noqa: ANN401
    ) -> Fed:
        """Digest what the model is given for the step to come, a micro-batch or all of it.

        Arguments as of `fed`. Micro-batches come in the order of their slots.
        """
        self._fed.append(fed(ids, mask, labels, losses=losses))
        return self._fed[-1]

    def record(
        self,
        step: int,
        parts: Fed | Sequence[Fed] = (),
        *,
        loss: float | None = None,
        gradient_norm: float | None = None,
        learning_rate: float | None = None,
    ) -> None:
        """Take down a step that was trained on, in order.

        parts: what was fed, of one process or of all by rank: the whole batch, in the order of its
        slots; by default what `feed` was given since the last step, of each rank. loss: nats per
        token, from the losses that were fed by default. Raises UsageError for a step that is not
        the next one, RefusalError for a batch of another size.
        """
        if step != self._next_step:
            raise UsageError(f"{self.phase.path}: the next step is {self._next_step}, got {step}")
        shares = [parts] if isinstance(parts, Fed) else list(parts) or self._fed
        gathered = self._ranks.gather(shares)
        self._fed = []
        if self._ranks.rank == 0:
            whole = joined([share for shares in gathered for share in shares])
            self._check_size(step, whole)
            refs = self.manifest.step(step)
            entries = whole.part_entries(refs.part, [part.name for part in self.manifest.parts])
            loss = whole.loss() if loss is None else loss
            self._ledger.record(
                ledger.Consumed(
                    step, refs, whole.digest, loss, entries, gradient_norm, learning_rate
                )
            )
        self._next_step += 1

    def skip(self, step: int) -> None:
        """Take down a step that is passed over: its rows are not fed."""
        if step != self._next_step:
            raise UsageError(f"{self.phase.path}: the next step is {self._next_step}, got {step}")
        if self._ranks.rank == 0:
            steps = f"{self.manifest.phase}:{step}:{step}"
            skips.ask(self.phase.path.parent, [self.manifest], [steps])
            self._ledger.record(skips.skipped(step))
        self._fed, self._next_step = [], step + 1

    def seal(self, checkpoint: Path | str | None = None) -> Path:
        """Seal what was recorded, with a checkpoint of the caller's: its files are digested.

        checkpoint: a file or a folder, written by all ranks. Returns the folder of the seal. Raises
        InputError where no checkpoint is there.
        """
        self._ranks.gather(None)  # every rank has written its part
        if self._ranks.rank == 0:
            place = None if checkpoint is None else Path(checkpoint)
            state = run_folder.CheckpointState(
                self._next_step,
                manifest=self.manifest.digest,
                ledger=self._ledger.seal(),
                caller=CallersCheckpoint() if place is None else self._described(place),
            )
            path = self.phase.checkpoint(self._next_step)
            path.mkdir(parents=True, exist_ok=True)
            run_folder.write_state(path, state)
            seal.seal_phase(self.phase, seal.described(self.phase))
            self._checkpoint = place
        self._checkpoint = self._ranks.share(self._checkpoint)
        return self.phase.checkpoint(self._next_step)

    def close(self) -> None:
        """Let other processes write; what was not sealed is lost."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, folder: Path, build: Path, step: int | None) -> tuple[int, Path | None]:
        """Open the folder for writing; return the next step and the checkpoint to go on from."""
        place = self.phase.path.resolve()
        if place in OPEN:
            raise UsageError(f"{place}: is open in this process already; close that ledger first")
        self._open.enter_context(run_folder.alone(self.phase.path))
        self._open.callback(OPEN.discard, place)
        OPEN.add(place)
        weakref.finalize(self, self._open.close)  # a loop that ends by an error does not close
        try:
            self._claim()
            run_folder.remember(folder, build)
            run_folder.remove_temporaries(self.phase.path)
            self._ledger = ledger.Ledger(self.phase.ledger, self.manifest)
            checkpoint = self._cut(step)
            seal.seal_run(folder, self.manifest.phase)
            seal.seal_phase(self.phase, seal.described(self.phase))
            return self._ledger.next_step, checkpoint
        except BaseException:
            self._open.close()
            raise

    def _claim(self) -> None:
        """Write down that a caller keeps this phase, or refuse a folder of another run."""
        own = run_folder.Claim(self.manifest.digest, caller=True)
        remedy = f"remove {self.phase.path} and train this phase again"
        otherwise = "is of another run ({}); take another folder"
        run_folder.write_claim(self.phase, own, otherwise, remedy)

    def _cut(self, step: int | None) -> Path | None:
        """Go back to the newest seal, or to the one at a step; remove the seals after it."""
        seals = {run_folder.step_of(p): p for p in run_folder.checkpoints(self.phase.checkpoints)}
        if step is None:
            step = max(seals, default=0)
        elif step and step not in seals:
            known = ", ".join(map(str, seals)) or "none"
            raise UsageError(f"{self.phase.path}: no seal at step {step} (there are {known})")
        for number, path in seals.items():
            if number > step:
                rmtree(path)
        state = run_folder.read_state(seals[step]) if step else None
        self._ledger.truncate(None if state is None else state.ledger)
        caller = None if state is None else state.caller
        return None if caller is None or caller.at is None else self.phase.path.parent / caller.at

    def _check_size(self, step: int, whole: Fed) -> None:
        if len(whole.tokens) != self.manifest.batch:
            raise RefusalError(
                f"{self.phase.path}: step {step} was fed {len(whole.tokens)} rows, the manifest's "
                f"batch is {self.manifest.batch}; feed all micro-batches of all ranks"
            )

    def _described(self, checkpoint: Path) -> CallersCheckpoint:
        """Return where a checkpoint is, relative to the run, and its files."""
        if not checkpoint.exists():
            raise InputError(f"{checkpoint}: no such checkpoint; seal after it is written")
        single = checkpoint.is_file()
        root = checkpoint.parent if single else checkpoint
        paths = [checkpoint] if single else sorted(p for p in root.rglob("*") if p.is_file())
        entries = (
            replace(FileEntry.of(path), name=path.relative_to(root).as_posix()) for path in paths
        )
        at = relpath(checkpoint.resolve(), self.phase.path.parent.resolve())
        return CallersCheckpoint(tuple(entries), at)
