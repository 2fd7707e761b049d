"""Training on the Wafer-Scale Cluster, or on cstorch's CPU backend: same manifest, same ledger.

The loader runs on the cluster's workers and this process sees its first batch only, so steps are
taken down by following the plan beside it (`follower`). A checkpoint is `model.mdl`, whose
loader state names the manifest and the next position, and `state.json`, written last.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from traceback import format_exc
from typing import Any

import h5py
import torch
import xxhash

from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.runtime.errors import ClusterError, CrystalmixError, InputError
from crystalmix.prep.runtime.receipts import FileEntry
from crystalmix.prep.runtime.types import Json
from crystalmix.train.cerebras.backend import Target, bring_up, cstorch
from crystalmix.train.cerebras.follower import Follower
from crystalmix.train.cerebras.loader import loader
from crystalmix.train.cerebras.step import CsxStep, matmul
from crystalmix.train.model.crystal import Crystal, initialise
from crystalmix.train.model.processes import World
from crystalmix.train.record import run_folder, seal
from crystalmix.train.runfile.settings import Run
from crystalmix.train.trainer.checkpoint import Checkpoints
from crystalmix.train.trainer.claim import claim, settled
from crystalmix.train.trainer.trainer import Outcome

MDL = "model.mdl"
NO_PICKLES = 0.5  # the format of .mdl files that holds JSON where older ones hold pickles
ARTIFACTS, FAILURE = "cerebras", "failure.txt"


class CsxTrainer:
    """One phase of a run; root: the build, out: the phase's own folder in the run."""

    def __init__(self, run: Run, manifest: Manifest, root: Path, out: Path, target: Target) -> None:
        self.manifest, self.root, self.out, self.target = manifest, root, out, target
        self.run = settled(run, out, World())
        self.follower = Follower(self.run, manifest, root, out)
        self.first, self.loss = 0, float("nan")

    @property
    def checkpoints(self) -> Path:
        """The folder of this phase's checkpoints."""
        return run_folder.PhaseFolder(self.out).checkpoints

    def train(self, init_from: Path | None = None, stop: int | None = None) -> Outcome:
        """Train to the last step (or to `stop`), and leave a checkpoint there."""
        with run_folder.alone(self.out):
            newest = self.begin(init_from)
            last = max(self.first, min(stop or self.manifest.steps, self.manifest.steps))
            if self.first < last:
                with self._told():
                    step, data = self._restored(newest, init_from)
                    self._execute(step, data, last)
        state = run_folder.read_state(self.checkpoints / run_folder.checkpoint_name(last))
        return Outcome(self.first, last, self.loss, str(state.weights))

    @contextmanager
    def _told(self) -> Generator[None]:
        """Turn what cstorch and the cluster raise into one line; all of it goes to a file."""
        try:
            yield
        except CrystalmixError:
            raise
        except Exception as error:
            path = self.out / ARTIFACTS / FAILURE
            path.parent.mkdir(exist_ok=True)
            path.write_text(format_exc(), "utf-8")
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ClusterError(
                f"cstorch failed: {first.rstrip('.')} (all of it: {path}); mend it and run the "
                "same command again to go on from the last checkpoint"
            ) from error

    def begin(self, init_from: Path | None) -> Path | None:
        """Cut everything back to the newest checkpoint, and return that if there is one."""
        if init_from is not None:
            checked(init_from)
        claim(self.out, self.root, self.run, self.manifest, init_from, MDL)
        run_folder.remove_temporaries(self.out)
        for path in self.checkpoints.glob("step-*"):
            if not (path / run_folder.STATE).exists():
                rmtree(path)
        newest = run_folder.latest(self.checkpoints)
        self.follower.ledger.truncate(None if newest is None else checked(newest).ledger)
        self.first = self.follower.ledger.next_step
        self._keep()
        return newest

    def _restored(self, newest: Path | None, init_from: Path | None) -> tuple[CsxStep, Any]:
        """Bring the backend up; return step and loader as a checkpoint left them, or as new."""
        api = cstorch()
        backend = bring_up(self.target, self.out / ARTIFACTS)
        if self.target.kind == "CPU" and self.run.settings.threads is not None:
            torch.set_num_threads(self.run.settings.threads)
        settings, start = matmul(self.run.model), init_from if newest is None else newest
        if start is None:
            model = Crystal(settings)
            initialise(model, self.run.settings.seed)
        else:
            with backend.device:  # a cluster's device draws nothing that is loaded anyway
                model = Crystal(settings)
        step = CsxStep(model, self.run.optimizer, self.run.settings.dtype)
        names = (str(self.manifest.folder), self.manifest.digest, str(self.root))
        data = api.utils.data.DataLoader(loader, *names)
        if start is not None:
            state = api.load(str(start / MDL))
            if newest is None:
                model.load_state_dict(state["model"])
            else:
                step.load(state)
                data.load_state_dict(state["dataloader"])
        return step, data

    def _execute(self, step: CsxStep, data: Any, last: int) -> None:  # noqa: ANN401
        """Do the steps [first, last)."""
        api = cstorch()
        executor = api.utils.data.DataExecutor(
            data, num_steps=last - self.first, checkpoint_steps=self._schedule(last)
        )

        @api.step_closure
        def record(**outputs: Any) -> None:
            arrays = {name: api.to_numpy(value) for name, value in outputs.items()}
            self.loss = self.follower.record(self.first + executor.iteration, arrays, metrics)

        @api.checkpoint_closure
        def save() -> None:
            self._save(self.first + executor.user_iteration, step, data.state_dict())

        @api.trace
        def traced(batch: Json) -> None:
            record(**vars(step(batch)))

        with self.follower.begin(last) as metrics:
            for batch in executor:
                traced(batch)
                save()

    def _schedule(self, last: int) -> Any:  # noqa: ANN401
        """Return which of the steps to do have a checkpoint after them, counted from 0."""
        every, count = self.run.settings.checkpoint_steps, last - self.first
        first = min(every - self.first % every, count) - 1
        schedule = cstorch().utils.data.Schedule
        return schedule([schedule.Range(first, count, every, include_last=True)])

    def _save(self, finished: int, step: CsxStep, loaders: Json) -> None:
        """Seal the ledger and write a checkpoint; its state, written last, makes it one."""
        ledger = self.follower.seal(loaders)
        path = self.checkpoints / run_folder.checkpoint_name(finished)
        rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        content = {**step.state(), "dataloader": loaders, "global_step": finished}
        cstorch().save(content, str(path / MDL))
        state = run_folder.CheckpointState(
            finished,
            files=(FileEntry.of(path / MDL),),
            manifest=self.manifest.digest,
            model=asdict(self.run.model),
            ledger=ledger,
            weights=weights_digest(path / MDL),
            loaders=loaders,
        )
        run_folder.write_state(path, state)
        self._keep()
        phase = run_folder.PhaseFolder(self.out)
        seal.seal_phase(phase, seal.described(phase))

    def _keep(self) -> None:
        Checkpoints(self.checkpoints, self.run.settings).keep()


def checked(path: Path) -> run_folder.CheckpointState:
    """Return the state of an .mdl checkpoint after checking the bytes of its files."""
    state = run_folder.read_state(path)
    if not (path / MDL).exists():
        raise InputError(
            f"{path}: holds no {MDL} (another backend trained it); go on with --backend torch, or "
            "train all phases into another --out"
        )
    run_folder.check_files(path, state.files, "remove this checkpoint to go on from the one before")
    with h5py.File(path / MDL) as file:
        if float(file.attrs.get("__version__", 0.1)) < NO_PICKLES:
            raise InputError(
                f"{path / MDL}: is of a release before 2.2, which cstorch runs pickles of; "
                "convert it with `crystalmix csx checkpoint`"
            )
    return state


def weights_digest(path: Path) -> str:
    """Return the digest of an .mdl file's parameters, the same as `checkpoint.weights_digest`."""
    api, content = cstorch(), sha256()
    for key, tensor in sorted(api.load(str(path))["model"].items()):
        values = api.to_numpy(tensor.to("cpu")).tobytes()
        content.update(f"{key} {xxhash.xxh3_128_hexdigest(values)}\n".encode())
    return content.hexdigest()
