"""Layout of a run on disk. No other module spells these names.

    build.json                   where the build is, relative to the run
    phases.json                  which phases were begun: `seal`
    <phase>/run.json             what the phase's training follows from: `claim`
    <phase>/ledger/*.parquet     what each step consumed: `ledger`
    <phase>/checkpoints/step-*/  weights and moments; state.json is written last
    <phase>/metrics.jsonl        one line per step, to watch it
    <phase>/evaluation.jsonl     held-out losses, a line per part and kind
    <phase>/samples.jsonl        greedy samples, a line per prompt
    <phase>/tasks.jsonl          results of `evaluate`, a line per step, task and metric
    <phase>/skips.json           steps that `--skip-steps` named
    <phase>/fork.json            of a fork: which of its steps are of another run
    <phase>/seal.json            digests of all that stands in the phase's folder: `seal`
    <phase>/tensorboard/         the same numbers for tensorboard

Nothing here needs torch, so a run can be read without it.
"""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from os.path import relpath
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal

from crystalmix.mixtures.manifest.manifest import state_with
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical, lock_folder, read_json, write_atomic
from crystalmix.prep.runtime.errors import DamageError, InputError, StaleError
from crystalmix.prep.runtime.receipts import FileEntry
from crystalmix.prep.runtime.records import read_record, read_sealed, write_sealed
from crystalmix.prep.runtime.types import Content, Json, Within

WHERE = "build.json"
PHASES = "phases.json"
RUN = "run.json"
STATE = "state.json"
BUILD_REMEDY = re.compile("; [^;]*build again$")


@dataclass(frozen=True)
class Claim:
    """What a phase's training follows from.

    run: model, optimiser and settings (`Run.content`), None where another program trained. init:
    digest of the weights that it began with. checkpoints: their kind, where they are not torch's.
    caller: its ledger is kept by a caller. harvested: its ledger was written from the plan.
    """

    manifest: str | None = None
    run: Json | None = None
    init: str | None = None
    checkpoints: str | None = None
    caller: bool = False
    harvested: bool = False

    def setting(self, section: str, key: str, otherwise: Any) -> Any:  # noqa: ANN401  as written
        """Return a setting of the run, or what holds where it says nothing."""
        return (self.run or {}).get(section, {}).get(key, otherwise)

    @property
    def loss_unit(self) -> str:
        """What the recorded loss of a step is a mean over: all its places, or what is learnt."""
        if self.run is None:
            return "as recorded"
        scaling = self.setting("settings", "loss_scaling", "batch_size")
        return "nats per token with loss" if scaling == "num_tokens" else "nats per place of a row"

    def content(self) -> Content:
        """Return it as run.json holds it: what a kind of run does not have is left out."""
        optional = {key: getattr(self, key) for key in ("checkpoints", "caller", "harvested")}
        content: Json = {"manifest": self.manifest, "run": self.run, "init": self.init}
        return content | {key: value for key, value in optional.items() if value}


@dataclass(frozen=True)
class SealedLedger:
    """A ledger as a checkpoint sealed it: head of the chain, steps, segments."""

    chain: str
    steps: int
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class ProofRange:
    """Steps from first to last, both inclusive, and how it is known what they consumed."""

    first: int
    last: int
    degree: Literal["recorded", "caller", "proven", "assumed"]


@dataclass(frozen=True)
class CallersCheckpoint:
    """A checkpoint of a caller's own: its files as they were, where it is, relative to the run."""

    checkpoint: tuple[FileEntry, ...] = ()
    at: str | None = None

    def files(self, run: Path) -> tuple[Path, list[FileEntry]]:
        """Return the folder that its files lie in, and these."""
        assert self.at is not None
        place, files = run / self.at, list(self.checkpoint)
        single = len(files) == 1 and files[0].name == place.name and not place.is_dir()
        return (place.parent if single else place), files


@dataclass(frozen=True)
class CheckpointState:
    """What `state.json` says of a checkpoint; None for what its kind does not have.

    step: steps done. weights: digest of all parameters. files: of the checkpoint, this one apart.
    moments: whether the optimiser's are there, where that is not certain. proof, harvested: of a
    harvested run, what proves it and which checkpoint it is from. caller: files of a caller's own
    checkpoint. loaders: the state of a cluster's. imported: where weights alone are from.
    """

    step: int
    files: tuple[FileEntry, ...] = ()
    manifest: str | None = None
    model: Json | None = None
    ledger: SealedLedger | None = None
    weights: str | None = None
    moments: bool | None = None
    proof: tuple[ProofRange, ...] | None = None
    harvested: Json | None = None
    caller: CallersCheckpoint | None = None
    loaders: Json | None = None
    imported: Json | None = None

    def content(self) -> Content:
        """Return it as state.json holds it, without its digest."""
        optional = ("moments", "proof", "harvested", "caller", "loaders", "imported")
        content: Json = asdict(self)
        if self.caller is not None and self.caller.at is None:
            del content["caller"]["at"]
        return {k: v for k, v in content.items() if v is not None or k not in optional}

    def sealed_ledger(self, path: Path) -> SealedLedger:
        """Return the ledger; DamageError where the checkpoint `path` has none."""
        if self.ledger is None:
            raise DamageError(f"{path}: seals no ledger; it is no checkpoint of a run")
        return self.ledger


@dataclass(frozen=True)
class Fork:
    """Which steps of a phase are of another run: the first so many, under another manifest.

    manifest: its digest, on which the chain of digests hangs. chain: its head after those steps.
    parent: the name of that run.
    """

    manifest: str
    steps: int
    chain: str
    parent: str


@dataclass(frozen=True)
class PhaseFolder:
    """The folder of one phase in a run, and the paths in it."""

    path: Path
    claim = Within(RUN)  # what the training follows from
    ledger = Within("ledger")  # the folder of the ledger's segments
    checkpoints = Within("checkpoints")  # the folder of the checkpoints
    metrics = Within("metrics.jsonl")  # lines of JSON, one per step
    evaluation = Within("evaluation.jsonl")  # lines of JSON, one per evaluation, part and kind
    samples = Within("samples.jsonl")  # lines of JSON, one per evaluation and prompt
    tasks = Within("tasks.jsonl")  # lines of JSON, one per evaluated step, task and metric
    skips = Within("skips.json")  # the steps to pass over
    fork = Within("fork.json")  # which of its steps are of another run
    seal = Within("seal.json")  # digests of all that stands here
    tensorboard = Within("tensorboard")  # the folder of tensorboard's events

    @property
    def name(self) -> str:
        """The phase's name."""
        return self.path.name

    @property
    def newest(self) -> Path | None:
        """The newest whole checkpoint, None where there is none."""
        return latest(self.checkpoints)

    def checkpoint(self, step: int) -> Path:
        """Return the folder of a step's checkpoint, whether it is there or not."""
        return self.checkpoints / checkpoint_name(step)


def remember(run: Path, build: Path) -> None:
    """Write down where the run's build is, relative to the run."""
    where = {"build": relpath(build.resolve(), run.resolve())}
    content = canonical(where)
    if not (run / WHERE).exists() or (run / WHERE).read_bytes() != content:
        write_atomic(run / WHERE, content)


def build_of(run: Path, build: Path | None) -> Path:
    """Return a run's build: the one given, or the one it remembers.

    Where that was superseded since, it is what the build was when the run's phases were begun.
    """
    place = _build_of(run, build)
    folder = state_with(place, claimed(run))
    if not folder.is_dir() and build is None:
        raise DamageError(f"{run}: its build is not at {place}; say where with --build")
    return folder


def run_and_build(path: Path, build: Path | None) -> tuple[Path | None, Path]:
    """Return the run (None where the path is a build) and its build."""
    return (path, build_of(path, build)) if (path / WHERE).exists() else (None, path)


def claimed(run: Path) -> set[str]:
    """Return the digests of the manifests that a run's phases were begun with."""
    digests: set[str] = set()
    for phase in phases(run):
        if phase.claim.exists():
            try:
                digest = read_json(phase.claim).get("manifest")
            except DamageError:
                continue  # whoever needs the claim tells
            digests |= {digest} if isinstance(digest, str) else set()
    return digests


def _build_of(run: Path, build: Path | None) -> Path:
    if build is not None:
        return build
    path = run / WHERE
    if not path.exists():
        raise InputError(f"{run}: holds no run; give the --out of `crystalmix train`")
    where = read_json(path, "say where the build is with --build").get("build")
    if not isinstance(where, str):
        raise DamageError(f"{path}: names no build; say where it is with --build")
    return (run / where).resolve()


def phases(run: Path) -> list[PhaseFolder]:
    """Return the folders of the phases that a run has begun, sorted by name."""
    paths = {path.parent for name in (RUN, "ledger") for path in run.glob(f"*/{name}")}
    return [PhaseFolder(path) for path in sorted(paths)]


def checkpoint_name(step: int) -> str:
    """Return the folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """Return how many steps are done in a checkpoint, by its name."""
    return int(checkpoint.name.removeprefix("step-"))


def checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / STATE).exists())


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint of a folder, or None."""
    return max(checkpoints(folder), default=None)


def write_claim(phase: PhaseFolder, claim: Claim, otherwise: str, remedy: str) -> None:
    """Write a phase's claim; StaleError where it has another one.

    otherwise: what the error says, `{}` for the differences. remedy: of a file that can't be read.
    """
    content, path = claim.content(), phase.claim
    if not path.exists():
        write_atomic(path, canonical(content))
    elif lines := receipts.differences(read_json(path, remedy), content, "run"):
        raise StaleError(f"{path}: {otherwise.format('; '.join(lines[:3]))}")


def write_fork(phase: PhaseFolder, fork: Fork) -> None:
    """Write which steps of a phase are of another run."""
    write_atomic(phase.fork, canonical(asdict(fork)))


def read_fork(phase: PhaseFolder) -> Fork | None:
    """Return which steps of a phase are of another run; None where it is no fork."""
    return read_record(phase.fork, Fork, "fork again") if phase.fork.exists() else None


def chain_root(phase: PhaseFolder, manifest: str) -> str:
    """Return the digest of the manifest that a phase's chain hangs on; manifest: its own."""
    fork = read_fork(phase)
    return manifest if fork is None else fork.manifest


def is_saved_under(phase: PhaseFolder, state: CheckpointState, manifest: str) -> bool:
    """Tell whether a checkpoint is of a phase's manifest, or of the one that it was forked from."""
    fork = read_fork(phase)
    before = fork is not None and state.step <= fork.steps and state.manifest == fork.manifest
    return before or state.manifest == manifest


def read_claim(phase: PhaseFolder, remedy: str = "train this phase again") -> Claim:
    """Read a phase's claim."""
    return read_record(phase.claim, Claim, remedy)


def write_state(checkpoint: Path, state: CheckpointState) -> None:
    """Write a checkpoint's state, with a digest of its own."""
    write_sealed(checkpoint / STATE, state.content())


def read_state(checkpoint: Path) -> CheckpointState:
    """Read a checkpoint's state and check its own digest; its files are not looked at."""
    remedy = "remove this checkpoint to go on from the one before"
    return read_sealed(checkpoint / STATE, CheckpointState, remedy)


def check_files(folder: Path, files: Sequence[FileEntry], remedy: str) -> None:
    """Check the files that a checkpoint lists; DamageError names the first that changed."""
    for line in damages(folder, files):
        raise DamageError(f"{line}; {remedy}")


def damages(folder: Path, files: Sequence[FileEntry]) -> list[str]:
    """Return one line for each listed file that is missing or has other bytes."""
    lines = receipts.damages(folder, files)
    return [BUILD_REMEDY.sub("", line) for line in lines]  # what mends a build mends no run


def remove_temporaries(phase: Path) -> None:
    """Remove what a crash left half-written in a phase's folder."""
    paths = [path for name in (WHERE, PHASES) for path in phase.parent.glob(f".{name}.*.tmp")]
    inside = PhaseFolder(phase)
    for place in (phase, inside.ledger, inside.checkpoints):
        paths += place.glob(".*.tmp")
    for path in paths:
        if path.is_dir():
            rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def alone(phase: Path) -> AbstractContextManager[None]:
    """Keep other processes from training in a phase's folder; the lock dies with the process."""
    return lock_folder(
        phase, f"{phase}: another process trains here; wait for it or train into another --out"
    )
