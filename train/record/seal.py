"""Seal of a run's folder: digests of all that stands in it beside the ledger.

    <run>/phases.json        build.json, and the phases that were begun
    <run>/<phase>/seal.json  written after each checkpoint: the ledger's chain head, the checkpoints
                             that are kept, and the phase's other files
    <run>/later/*/           what was made from the run afterwards, each with a receipt: `later`

Files that grow are sealed up to the length that they had; what came later is named. Runs of
versions before seals are checked as far as their checkpoints go, with a note.
"""

import fcntl
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import xxhash

from crystalmix.prep.runtime.atomic_files import file_digest, read_json
from crystalmix.prep.runtime.errors import CrystalmixError, DamageError
from crystalmix.prep.runtime.receipts import FileEntry
from crystalmix.prep.runtime.records import read_sealed, write_sealed
from crystalmix.train.record import later, run_folder
from crystalmix.train.record.run_folder import CheckpointState, PhaseFolder

RESUME = "resume the run to seal it again"


@dataclass(frozen=True)
class PhaseSeal:
    """What a phase's folder held at a checkpoint.

    step: steps done. chain: head of the ledger's chain. checkpoints: the state.json of each that
    was kept; it lists the other files of its checkpoint.
    """

    step: int
    chain: str
    checkpoints: tuple[FileEntry, ...]
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class RunSeal:
    """Which phases a run has begun, and its build.json."""

    build: FileEntry
    phases: tuple[str, ...]


@dataclass
class Check:
    """The report on a run's folder: faults and notes, a line each, and counts of what was read."""

    faults: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    checkpoints: int = 0
    files: int = 0

    def read(self) -> str:
        """Return in words what was read."""
        return f"{self.checkpoints} checkpoints and {self.files} other files of it"


def seal_run(run: Path, phase: str) -> None:
    """Write down that a phase of a run was begun; phases may be begun by several processes."""
    handle = os.open(run, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        path = run / run_folder.PHASES
        phases = read_sealed(path, RunSeal, RESUME, exact=True).phases if path.exists() else ()
        build = _file(run / run_folder.WHERE, run)
        write_sealed(path, asdict(RunSeal(build, tuple(sorted({*phases, phase})))))
    finally:
        os.close(handle)


def described(phase: PhaseFolder) -> tuple[FileEntry, ...]:
    """Return the files of a phase beside ledger and checkpoints, as they are now."""
    return tuple(_file(path, phase.path) for path in _files(phase))


def seal_phase(phase: PhaseFolder, files: Sequence[FileEntry]) -> None:
    """Seal a phase's folder at its newest checkpoint; files: as they were then (`described`)."""
    newest = phase.newest
    if newest is None:
        phase.seal.unlink(missing_ok=True)
        return
    state = run_folder.read_state(newest)
    paths = [path / run_folder.STATE for path in run_folder.checkpoints(phase.checkpoints)]
    states = tuple(_file(path, phase.checkpoints) for path in paths)
    seal = PhaseSeal(state.step, state.sealed_ledger(newest).chain, states, tuple(files))
    write_sealed(phase.seal, asdict(seal))


def check(run: Path) -> Check:
    """Read a run's folder again, ledgers apart: checkpoints, metrics, settings, set of phases."""
    result = Check()
    phases = run_folder.phases(run)
    path = run / run_folder.PHASES
    sealed = path.exists() or any(phase.seal.exists() for phase in phases)
    if sealed:
        with _errors_as_faults(result):
            seal = read_sealed(path, RunSeal, RESUME, exact=True)
            result.faults += _changes(run, seal.build, whole=True)
            result.files += 2
            if list(seal.phases) != sorted({*seal.phases}):
                result.faults.append(f"{path}: names a phase twice or out of order; {RESUME}")
            begun = {phase.name for phase in phases}
            result.faults += [
                f"{run / name}: is missing, though the run began that phase; restore it"
                for name in seal.phases
                if name not in begun
            ]
            result.notes += [
                f"{phase.path}: is of no phase that phases.json lists"
                for phase in phases
                if phase.name not in seal.phases
            ]
    else:
        result.notes.append(
            f"{run}: has no seal (a version before 0.2 trained it): its metrics, samples, "
            "evaluations and settings were not checked, nor whether a phase is gone"
        )
        where = run / run_folder.WHERE
        with _errors_as_faults(result) if where.exists() else suppress(DamageError):
            read_json(where, "say where the build is with --build")
    names = {run_folder.WHERE, run_folder.PHASES, *(phase.name for phase in phases)}
    _check_later(run, names, result)
    result.notes += _unread(run, names)
    for phase in phases:
        with _errors_as_faults(result):
            _check_phase(phase, result, sealed=sealed)
    return result


def _check_later(run: Path, names: set[str], result: Check) -> None:
    """Check what was made from a run and stands in it, with a receipt of its own."""
    bound = later.of_run(run)
    for folder in bound:
        result.faults += later.check(folder, run)
        result.files += sum(path.is_file() for path in folder.rglob("*"))
    if bound:
        names.add(later.LATER)
        result.notes += _unread(run / later.LATER, {folder.name for folder in bound})


def _check_phase(phase: PhaseFolder, result: Check, *, sealed: bool) -> None:
    checkpoints = run_folder.checkpoints(phase.checkpoints)
    for path in checkpoints:
        with _errors_as_faults(result):
            state = run_folder.read_state(path)
            result.faults += run_folder.damages(path, state.files)
            names = {entry.name for entry in state.files}
            result.notes += _unread(path, {*names, run_folder.STATE})
            result.checkpoints += 1
            _check_callers(phase, state, result)
    known = {"checkpoints", "ledger", "seal.json"}
    known |= {path.relative_to(phase.path).parts[0] for path in _files(phase)}
    result.notes += _unread(phase.path, known)
    result.notes += _unread(phase.checkpoints, {path.name for path in checkpoints})
    if not phase.seal.exists():
        if sealed:
            result.notes.append(f"{phase.path}: is not sealed yet; {RESUME}")
        return
    seal = read_sealed(phase.seal, PhaseSeal, RESUME, exact=True)
    result.files += 1 + len(seal.files)
    newest = max(map(run_folder.step_of, checkpoints), default=0)
    result.faults += _misnamed(phase, seal)
    _check_states(phase, seal, newest, result)
    for file in seal.files:
        path = phase.path / file.name
        result.faults += _changes(phase.path, file, whole=path in {phase.claim, phase.skips})
        if path.exists() and path.stat().st_size > file.bytes and path not in {phase.claim}:
            result.notes.append(f"{path}: what came after step {seal.step} is not sealed")
    names = {file.name for file in seal.files}
    result.notes += [
        f"{path}: came after step {seal.step} and is not sealed"
        for path in _files(phase)
        if path.relative_to(phase.path).as_posix() not in names
    ]


def _check_callers(phase: PhaseFolder, state: CheckpointState, result: Check) -> None:
    """Read the files of a caller's checkpoint again, where they still are."""
    if state.caller is None or state.caller.at is None:
        return
    folder, files = state.caller.files(phase.path.parent)
    if any((folder / file.name).exists() for file in files):
        result.faults += run_folder.damages(folder, files)
        result.files += len(files)
    elif files:
        result.notes.append(
            f"{phase.path}: the caller's checkpoint of step {state.step} is not at {folder}; "
            "not read"
        )


def _check_states(phase: PhaseFolder, seal: PhaseSeal, newest: int, result: Check) -> None:
    """Compare the checkpoints that are there with those that were kept."""
    for file in seal.checkpoints:
        gone = not (phase.checkpoints / file.name).exists()
        if not (gone and newest > seal.step):  # removed after a later one was written
            result.faults += _changes(phase.checkpoints, file, whole=True)
    if newest > seal.step:
        result.notes.append(f"{phase.path}: steps from {seal.step} on are not sealed; {RESUME}")
        return
    last = phase.checkpoint(seal.step)
    if last.exists() and run_folder.read_state(last).sealed_ledger(last).chain != seal.chain:
        result.faults.append(f"{phase.seal}: is of another ledger than its newest checkpoint")


def _misnamed(phase: PhaseFolder, seal: PhaseSeal) -> Iterator[str]:
    """Yield where a seal names a file twice, or another step than its newest checkpoint."""
    for entries in (seal.checkpoints, seal.files):
        if len({entry.name for entry in entries}) != len(entries):
            yield f"{phase.seal}: names a file twice; {RESUME}"
    newest = max((phase.checkpoints / entry.name for entry in seal.checkpoints), default=None)
    if newest != phase.checkpoint(seal.step) / run_folder.STATE:
        yield f"{phase.seal}: is of step {seal.step}, not of the newest that it names; {RESUME}"


def _changes(folder: Path, file: FileEntry, *, whole: bool) -> Iterator[str]:
    """Yield how a file differs from what was sealed; whole: it may not have grown either."""
    path = folder / file.name
    if not path.exists():
        yield f"{path}: is missing, though it was sealed; restore it"
        return
    size = path.stat().st_size
    if size < file.bytes or (whole and size != file.bytes):
        yield f"{path}: has {size} bytes, its seal says {file.bytes}; restore it"
    elif _digest(path, file.bytes) != file.xxh3:
        yield f"{path}: its bytes changed since it was sealed; restore it"


def _files(phase: PhaseFolder) -> list[Path]:
    """Return the files of a phase that are sealed by their bytes, sorted."""
    lines = (phase.metrics, phase.evaluation, phase.samples, phase.tasks)
    lines = (phase.claim, phase.fork, phase.skips, *lines)
    events = sorted(path for path in phase.tensorboard.rglob("*") if path.is_file())
    return [path for path in (*lines, *events) if path.exists()]


def _unread(folder: Path, names: set[str]) -> list[str]:
    """Return a line for each thing in a folder that nothing checks."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [f"{path}: is not of a run; not read" for path in paths if path.name not in names]


def _file(path: Path, folder: Path) -> FileEntry:
    size = path.stat().st_size
    return FileEntry(path.relative_to(folder).as_posix(), size, _digest(path, size))


def _digest(path: Path, size: int) -> str:
    """Return the xxh3-128 of the first bytes of a file, in hex."""
    if path.stat().st_size == size:
        return file_digest(path)
    with path.open("rb") as file:
        return xxhash.xxh3_128_hexdigest(file.read(size))


@contextmanager
def _errors_as_faults(result: Check) -> Generator[None]:
    """Record an error as a fault, so that the next check goes on."""
    try:
        yield
    except (CrystalmixError, OSError) as error:
        result.faults.append(str(error))
