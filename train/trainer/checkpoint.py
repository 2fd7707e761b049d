"""Checkpoints: model, optimiser and state of a step, whole or not there at all.

`step-00001500/` holds torch.distributed.checkpoint's files and `state.json` (step, manifest digest,
ledger, digest of the weights). It is written under a temporary name, flushed, and renamed; the name
alone makes it a checkpoint. Every process writes its own part; any number of processes reads it.
"""

import warnings
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from typing import Any, Self

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from crystalmix.prep.runtime.atomic_files import temporary_name
from crystalmix.prep.runtime.errors import CrystalmixError, DamageError
from crystalmix.prep.runtime.machine import machine_error
from crystalmix.prep.runtime.receipts import FileEntry
from crystalmix.prep.runtime.types import Json
from crystalmix.train.model.processes import World
from crystalmix.train.record import run_folder
from crystalmix.train.record.run_folder import CheckpointState
from crystalmix.train.runfile.settings import RunSettings
from crystalmix.train.trainer.dcp_reader import SafePlanner, SafeReader

ALONE = World()


class Checkpoints:
    """The checkpoints of a phase: written between two steps or beside them, kept by `settings`."""

    def __init__(self, folder: Path, settings: RunSettings, world: World = ALONE) -> None:
        self.folder, self.settings, self.world = folder, settings, world
        self._pending: Future[Path] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def save(
        self,
        state: CheckpointState,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        done: Callable[[], object] = lambda: None,
    ) -> None:
        """Write the checkpoint of a state; beside the steps that follow if `async_checkpoints`.

        The one before is waited for first, and what went wrong with it raised. done: called by the
        first process when the checkpoint is there and those that are not kept are gone.
        """
        self.wait()
        digest = weights_digest(model, self.world)
        weights, moments = get_state_dict(model, optimizer)
        content = {"model": weights, "optimizer": moments}
        state = replace(state, weights=digest)
        if not self.settings.async_checkpoints:
            self._write(content, state, done)
            return
        with _quiet():
            copied: Any = BlockingAsyncStager().stage(content)
        thread = ThreadPoolExecutor(1, "checkpoints")
        self._pending = thread.submit(self._write, copied, state, done)
        thread.shutdown(wait=False)

    def wait(self) -> None:
        """Return when nothing is being written any more."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def keep(self) -> None:
        """Remove the checkpoints that are not to be kept, and what is left of removing others."""
        if self.world.first:
            keep(self.folder, self.settings.keep_checkpoints, self.settings.keep_every)

    def _write(self, content: Json, state: CheckpointState, done: Callable[[], object]) -> Path:
        path = write(self.folder, content, state, self.world)
        self.keep()
        if self.world.first:
            done()
        return path


def save(
    folder: Path, state: CheckpointState, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Path:
    """Write the checkpoint of one process and return its path."""
    weights, moments = get_state_dict(model, optimizer)
    state = replace(state, weights=weights_digest(model))
    return write(folder, {"model": weights, "optimizer": moments}, state)


def write(folder: Path, content: Json, state: CheckpointState, world: World = ALONE) -> Path:
    """Write a checkpoint: the files of all processes, then its state, then rename it.

    What was written before an error is removed: a full disk needs its room.
    """
    group = world.background
    path = folder / run_folder.checkpoint_name(state.step)

    def make() -> str:
        temporary = temporary_name(path)
        temporary.mkdir(parents=True)
        return str(temporary)

    temporary = Path(world.on_first(make, group))

    def name() -> None:
        run_folder.write_state(temporary, replace(state, files=tuple(files)))
        rmtree(path, ignore_errors=True)
        temporary.rename(path)

    try:
        write_files(temporary, content, group)
        shares = world.each(lambda: _file_entries(temporary, world), group)
        files = sorted((file for share in shares for file in share), key=lambda file: file.name)
        world.on_first(name, group)
    except BaseException:
        if world.first:
            rmtree(temporary, ignore_errors=True)
        raise
    return path


def write_files(folder: Path, content: Json, group: dist.ProcessGroup | None = None) -> None:
    """Write the files of a checkpoint, beside which its state is to be put."""
    try:
        with _quiet(), _unwrapped():
            save_state(content, checkpoint_id=folder, process_group=group)
    except OSError as error:
        error.filename = error.filename or str(folder)
        raise


def load(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, world: World = ALONE
) -> CheckpointState:
    """Load model and optimiser from a checkpoint; return its state."""
    state = world.on_first(lambda: read_state(path))
    weights, moments = get_state_dict(model, optimizer)
    whole: dict[str, Any] = {"model": weights, "optimizer": moments}
    _load(path, whole, state)
    set_state_dict(
        model, optimizer, model_state_dict=whole["model"], optim_state_dict=whole["optimizer"]
    )
    _check_weights(path, model, state, world)
    return state


def load_weights(path: Path, model: nn.Module, world: World = ALONE) -> CheckpointState:
    """Load the weights alone, to begin a next phase; return the checkpoint's state."""
    state = world.on_first(lambda: read_state(path))
    whole = {"model": get_model_state_dict(model)}
    _load(path, whole, state)
    set_model_state_dict(model, whole["model"])
    _check_weights(path, model, state, world)
    return state


def _load(path: Path, whole: Json, state: CheckpointState) -> None:
    """Fill a state dict from a checkpoint's files, without running what they hold."""
    reader = SafeReader(path, [file.name for file in state.files])
    try:
        with _quiet(), _unwrapped():
            load_state(whole, storage_reader=reader, planner=SafePlanner())
    except CrystalmixError:
        raise
    except Exception as error:
        if machine_error(error) is not None:
            raise
        brief = next(iter(str(error).splitlines()), type(error).__name__)
        raise DamageError(
            f"{path}: can't be loaded ({brief}); remove this checkpoint or restore it"
        ) from None


def read_state(path: Path) -> CheckpointState:
    """Read a checkpoint's state and check the bytes of its files."""
    state = run_folder.read_state(path)
    run_folder.check_files(path, state.files, "remove this checkpoint to go on from the one before")
    return state


def keep(folder: Path, last: int, every: int | None = None) -> None:
    """Remove all but the newest checkpoints and those whose step `every` divides.

    What is left of removing others goes too.
    """
    whole = run_folder.checkpoints(folder)
    kept = {*whole[-last:]}
    if every is not None:
        kept |= {path for path in whole if run_folder.step_of(path) % every == 0}
    for path in folder.glob("step-*"):
        if path not in kept:
            (path / run_folder.STATE).unlink(missing_ok=True)  # first: half of it is no checkpoint
            rmtree(path, ignore_errors=True)


def weights_digest(model: nn.Module, world: World = ALONE) -> str:
    """Return the sha256 over the names and xxh3-128 of all parameters, on every process.

    All processes must ask for it: each parameter is gathered where it is sharded.
    """
    content = sha256()
    for key, tensor in sorted(model.state_dict().items()):
        gather = getattr(tensor, "full_tensor", None)
        whole: Tensor = tensor if gather is None else gather()
        if world.first:
            flat = whole.detach().cpu().contiguous().flatten().view(torch.uint8)
            content.update(f"{key} {xxhash.xxh3_128_hexdigest(flat.numpy().data)}\n".encode())
    return world.on_first(content.hexdigest)


def _file_entries(temporary: Path, world: World) -> list[FileEntry]:
    """Return this process's share of the entries of the files that all have written."""
    files = sorted(temporary.iterdir())
    return [FileEntry.of(file) for file in files[world.rank :: world.size]]


def _check_weights(path: Path, model: nn.Module, state: CheckpointState, world: World) -> None:
    digest = weights_digest(model, world)

    def check() -> None:
        if digest != state.weights:
            raise DamageError(f"{path}: its weights are not those that were saved; remove it")

    world.on_first(check)


@contextmanager
def _quiet() -> Generator[None]:
    with warnings.catch_warnings():
        # Without a process group torch.distributed.checkpoint warns that it assumes one process;
        # that of torch 2.4 calls what torch itself has deprecated.
        expected = ".*single process.*|.*torch.distributed.*|.*TypedStorage is deprecated.*"
        warnings.filterwarnings("ignore", message=expected)
        yield


@contextmanager
def _unwrapped() -> Generator[None]:
    """Raise what went wrong in a process where torch wraps it: a full disk, or a signal.

    After a write that failed, closing the file fails too, as a fault of its own.
    """
    try:
        yield
    except CheckpointException as error:
        failure: BaseException | None = next(failure for failure, _ in error.failures.values())
        first = failure
        while failure is not None and not isinstance(failure, OSError):
            failure = failure.__context__
        raise failure or first or error from None
