"""Receipts of what is made from a run later: evaluations, cards, exports, releases.

    <folder>/bound.json   digests of the folder's files, and which steps of which ledger they are of

The ledger is named by the head of its chain at the checkpoint, which hangs on every batch before
it: a folder made from another run, or from this one before it was trained anew, does not fit.
What stands below `<run>/later/` is checked with the run; elsewhere, by `check`.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from crystalmix.prep.runtime.atomic_files import file_digest
from crystalmix.prep.runtime.errors import CrystalmixError, InputError
from crystalmix.prep.runtime.receipts import FileEntry
from crystalmix.prep.runtime.records import read_sealed, write_sealed
from crystalmix.prep.runtime.types import Content
from crystalmix.train.record import ledger, run_folder
from crystalmix.train.record.run_folder import PhaseFolder

NAME = "bound.json"
LATER = "later"  # of a run: the folders whose receipts are checked with it
REMEDY = "make it again"


@dataclass(frozen=True)
class BoundReceipt:
    """What was made from a run, and the steps of the ledger that it hangs on.

    kind: a word such as `evaluation` or `card`. step: steps done. chain: head of the ledger's chain
    there. manifest: digest of the phase's. weights: digest of all parameters, None where the
    checkpoint has none. settings: what else it follows from. files: of the folder, this one apart.
    """

    kind: str
    phase: str
    step: int
    chain: str
    manifest: str | None
    weights: str | None
    settings: Content
    files: tuple[FileEntry, ...]


def bind(folder: Path, checkpoint: Path, kind: str, settings: Content) -> BoundReceipt:
    """Seal a folder as made from a checkpoint of a run; call it when all files are written.

    Raises DamageError for a checkpoint that seals no ledger, InputError for one outside a run: what
    is made from it hangs on nothing.
    """
    if not is_of_run(checkpoint):
        raise InputError(f"{checkpoint}: is in no run; give a checkpoint below the run's folder")
    state = run_folder.read_state(checkpoint)
    receipt = BoundReceipt(
        kind=kind,
        phase=checkpoint.resolve().parent.parent.name,
        step=state.step,
        chain=state.sealed_ledger(checkpoint).chain,
        manifest=state.manifest,
        weights=state.weights,
        settings=settings,
        files=tuple(_entries(folder)),
    )
    write_sealed(folder / NAME, asdict(receipt))
    return receipt


def is_of_run(checkpoint: Path) -> bool:
    """Tell whether a checkpoint lies in a run, so that what is made from it can be bound."""
    return PhaseFolder(checkpoint.resolve().parent.parent).claim.exists()


def read(folder: Path) -> BoundReceipt:
    """Read a folder's receipt; InputError where there is none, DamageError where it was edited."""
    path = folder / NAME
    if not path.is_file():
        raise InputError(f"{folder}: has no {NAME}; name a folder that was made from a run")
    return read_sealed(path, BoundReceipt, REMEDY, exact=True)


def check(folder: Path, run: Path) -> list[str]:
    """Return a line for each way in which a folder is not what was made from a run."""
    try:
        receipt = read(folder)
        return [*_file_faults(folder, receipt), *_chain_faults(folder, receipt, run)]
    except (CrystalmixError, OSError) as error:
        return [str(error)]


def of_run(run: Path) -> list[Path]:
    """Return the folders that are checked with a run, sorted."""
    return sorted(path.parent for path in (run / LATER).glob(f"*/{NAME}"))


def _entries(folder: Path) -> Iterator[FileEntry]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != NAME:
            yield FileEntry(name, path.stat().st_size, file_digest(path))


def _file_faults(folder: Path, receipt: BoundReceipt) -> Iterator[str]:
    yield from run_folder.damages(folder, receipt.files)
    names = {entry.name for entry in receipt.files}
    for entry in _entries(folder):
        if entry.name not in names:
            yield f"{folder / entry.name}: came after the receipt; {REMEDY}, or remove it"


def _chain_faults(folder: Path, receipt: BoundReceipt, run: Path) -> Iterator[str]:
    """Yield where the receipt's step of the ledger is not what the run holds."""
    phase = PhaseFolder(run / receipt.phase)
    newest = phase.newest
    if newest is None:
        yield f"{folder}: is of phase {receipt.phase}, of which {run} has no checkpoint; {REMEDY}"
        return
    state = run_folder.read_state(newest)
    if receipt.manifest != state.manifest:
        yield f"{folder}: is of another manifest than {phase.path}; {REMEDY}"
    elif receipt.step > state.step:
        yield (
            f"{folder}: is of step {receipt.step}, {phase.path} has {state.step}; "
            "resume the run, then check again"
        )
    elif _chain_at(phase, receipt.step, newest) != receipt.chain:
        yield (
            f"{folder}: hangs on another ledger than {phase.path} has up to step {receipt.step}; "
            f"{REMEDY}"
        )


def _chain_at(phase: PhaseFolder, step: int, newest: Path) -> str:
    """Return the head of a ledger's chain after so many steps, worked out from its batches."""
    state = run_folder.read_state(newest)
    sealed = state.sealed_ledger(newest)
    if step == sealed.steps:
        return sealed.chain
    root = run_folder.chain_root(phase, str(state.manifest))
    return ledger.chain_after(phase.ledger, root, {entry.name for entry in sealed.files}, step)
