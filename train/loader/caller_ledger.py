"""A ledger kept by any training loop, which `show`, `trace`, `verify` and `sql` read like our own.

What was fed is digested from the tensors themselves, so that `verify` finds a batch that was not
the plan's. How it is known is told with it: recorded by a caller.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from types import TracebackType
from typing import Any, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical, read_json, write_atomic
from crystalmix.prep.runtime.errors import RefusalError, StaleError, UsageError
from crystalmix.train.record import ledger, run_folder, seal
from crystalmix.train.record.run_folder import PhaseFolder


@dataclass(frozen=True)
class Fed:
    """What a process fed: of each row xxh3-128 over ids, mask and labels, and labels that count.

    Small enough to be gathered from all ranks (`torch.distributed.gather_object`).
    """

    digests: bytes
    tokens: NDArray[np.int64]  # (rows,)


def fed(ids: Any, mask: Any, labels: Any) -> Fed:  # noqa: ANN401  arrays or tensors
    """Digest the arrays or tensors (rows, msl) that a step was fed, on any device."""
    rows = np.stack([_array(each) for each in (ids, mask, labels)], axis=1)  # (rows, 3, msl) int32
    digests = b"".join(xxhash.xxh3_128_digest(row.data) for row in rows)
    return Fed(digests, rows[:, 1].sum(1, dtype=np.int64))


class CallerLedger:
    """The ledger of one phase, kept by a loop of the caller's own: one process, rank 0, keeps it.

    `record` each step after it, `seal` with each checkpoint; steps that no seal covers are cut when
    the ledger is opened again. step: cut back to the seal at this step, where training goes on from
    an older checkpoint than the newest. While it is open no other process writes.
    """

    def __init__(self, folder: Path, manifest: Manifest, build: Path, step: int | None) -> None:
        self.manifest, self.phase = manifest, PhaseFolder(folder / manifest.phase)
        self._open = ExitStack()
        self._open.enter_context(run_folder.alone(self.phase.path))
        try:
            self._claim()
            run_folder.remember(folder, build)
            run_folder.remove_temporaries(self.phase.path)
            self._ledger = ledger.Ledger(self.phase.ledger, manifest)
            self._cut(step)
            seal.seal_run(folder, manifest.phase)
            seal.seal_phase(self.phase, seal.described(self.phase))
        except BaseException:
            self._open.close()
            raise

    @property
    def next_step(self) -> int:
        """The step to train next."""
        return self._ledger.next_step

    def record(
        self,
        step: int,
        parts: Fed | Sequence[Fed],
        *,
        loss: float | None = None,
        gradient_norm: float | None = None,
        learning_rate: float | None = None,
    ) -> None:
        """Take down a step that was trained on, in order.

        parts: what was fed, of one process or of all by rank: the whole batch, in the order of its
        slots. loss: nats per token. Raises UsageError for a step that is not the next one,
        RefusalError for a batch of another size.
        """
        shares = [parts] if isinstance(parts, Fed) else list(parts)
        tokens = np.concatenate([share.tokens for share in shares])
        if step != self.next_step:
            raise UsageError(f"{self.phase.path}: the next step is {self.next_step}, got {step}")
        if len(tokens) != self.manifest.batch:
            raise RefusalError(
                f"{self.phase.path}: step {step} was fed {len(tokens)} rows, the manifest's batch "
                f"is {self.manifest.batch}; gather what all ranks fed"
            )
        digest = xxhash.xxh3_128_hexdigest(b"".join(share.digests for share in shares))
        refs = self.manifest.step(step)
        counts = [
            {"part": part.name, "rows": int(here.sum()), "tokens": int(tokens[here].sum())}
            for number, part in enumerate(self.manifest.parts)
            if (here := refs.part == number).any()
        ]
        entries = tuple({**count, "loss": None} for count in counts)
        self._ledger.record(
            ledger.Consumed(step, refs, digest, loss, entries, gradient_norm, learning_rate)
        )

    def seal(self, checkpoint: Path | str | None = None) -> Path:
        """Seal what was recorded, with a checkpoint of the caller's: its files are digested.

        Returns the folder of the seal.
        """
        files: list[Path] = []
        if checkpoint is not None:
            place = Path(checkpoint)
            files = [p for p in sorted(place.rglob("*")) if p.is_file()] or [place]
        content = {
            "manifest": self.manifest.digest,
            "model": None,
            "ledger": self._ledger.seal(),
            "step": self.next_step,
            "weights": None,
            "files": [],
            "caller": {"checkpoint": [receipts.describe(path) for path in files]},
        }
        path = self.phase.checkpoint(self.next_step)
        path.mkdir(parents=True, exist_ok=True)
        run_folder.write_state(path, content)
        seal.seal_phase(self.phase, seal.described(self.phase))
        return path

    def close(self) -> None:
        """Let other processes write; what was not sealed is lost."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _claim(self) -> None:
        """Write down that a caller keeps this phase, or refuse a folder of another run."""
        own = {"manifest": self.manifest.digest, "run": None, "init": None, "caller": True}
        path = self.phase.claim
        if not path.exists():
            write_atomic(path, canonical(own))
            return
        before = read_json(path, f"remove {self.phase.path} and train this phase again")
        if lines := receipts.differences(before, own, "run"):
            raise StaleError(
                f"{path}: is of another run ({'; '.join(lines[:2])}); take another folder"
            )

    def _cut(self, step: int | None) -> None:
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
        sealed = run_folder.read_state(seals[step]).ledger if step else None
        self._ledger.truncate(sealed)


def _array(value: Any) -> NDArray[np.int32]:  # noqa: ANN401  an array or a tensor
    """Return an array or a tensor as int32 on the host."""
    host = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
    return host.astype(np.int32, copy=False)
