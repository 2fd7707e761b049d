"""Findings: every disagreement between what a manifest planned and what a ledger recorded."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.manifest.manifest import read as read_manifest
from crystalmix.mixtures.manifest.rows_of_steps import StepRow
from crystalmix.prep.runtime.errors import CrystalmixError, InputError
from crystalmix.prep.runtime.workers import shown
from crystalmix.train.record import ledger, proof, run_folder, skips
from crystalmix.train.record.run_folder import CheckpointState, PhaseFolder
from crystalmix.train.trace.answers import Answer, Grid

MOST = 20  # findings reported per phase
BRIEF = 12  # digits of a digest that are shown
BLOCK_ROWS = 1 << 18  # rows of the ledger that are compared at once
BLOCK_STEPS = 1 << 12  # steps whose digests are chained at once
SHOWN = ["step", "digest", "chain", "skipped"]  # of steps; their parts are most of them


@dataclass(frozen=True)
class Findings(Answer):
    """Disagreements between plan and ledger, one line each; the steps that were skipped."""

    disagreements: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    proof: tuple[str, ...] = ()
    purged: tuple[str, ...] = ()

    @property
    def faulty(self) -> bool:
        """Whether there is a disagreement."""
        return bool(self.disagreements)

    def content(self) -> list[str]:
        """The disagreements as JSON."""
        return list(self.disagreements)

    def shown(self) -> Iterator[str | Grid]:
        """Yield the disagreements, or that there are none and which steps were skipped."""
        yield from self.disagreements or (
            "ledger equals plan: yes",
            *self.skipped,
            *self.proof,
            *self.purged,
        )


def compare(build: Path, run: Path, *, batches: bool = False) -> Findings:
    """Compare a run's ledger with the manifests of its build; arguments as of `findings`."""
    disagreements = findings(build, run, batches=batches)
    if disagreements:
        return Findings(tuple(disagreements))
    skipped, proven = skips.lines(skips.recorded(run)), proof.lines(run)
    return Findings((), tuple(skipped), tuple(proven), tuple(purged_lines(build, run)))


def findings(build: Path, run: Path, *, batches: bool = False) -> list[str]:
    """Return one line for each disagreement; none if every recorded step is as planned.

    batches: read the rows of every step again and compare their digests too (slow).
    """
    begun = run_folder.phases(run)
    if not begun:
        raise InputError(f"{run}: holds no run; give the --out of `crystalmix train`")
    lines: list[str] = []
    for folder in begun:
        try:
            manifest = read_manifest(BuildFolder(build).phase(folder.name))
            lines += _fork_faults(build, folder)
            for line in islice(_phase(folder, manifest, build if batches else None), MOST):
                lines.append(line)  # kept where a later check can't go on
        except CrystalmixError as error:
            lines.append(str(error))
    return lines


def purged_lines(build: Path, run: Path) -> Iterator[str]:
    """Yield, by phase, how many steps consumed rows that were purged since, by which purges."""
    folder = BuildFolder(build)
    for phase in run_folder.phases(run):
        manifest = read_manifest(folder.phase(phase.name))
        gone = purged.since(folder, manifest)
        if not gone:
            continue
        numbers = ledger.read(phase.ledger, "steps", None, ["step"])["step"].to_numpy().tolist()
        steps = [step for step in numbers if _holds(manifest, step, gone)]
        if not steps:
            continue
        ids = ", ".join((purged.redaction(folder, manifest) or {}).get("certificates", []))
        yield (
            f"{phase.name}: {len(steps):,} of {len(numbers):,} steps consumed rows that were "
            f"purged since ({ids}): the bytes that they were fed can be worked out no more; which "
            "rows, and the chain of digests, can"
        )


def _holds(manifest: Manifest, step: int, gone: dict[str, NDArray[np.int64]]) -> bool:
    """Tell whether a step draws a row that is gone."""
    refs = manifest.step(step)
    places = ((manifest.paths[i], row) for i, row in zip(refs.shard, refs.row, strict=True))
    return any(path in gone and row in gone[path] for path, row in places)


def checked(run: Path) -> str:
    """Return a summary of a run's recorded steps, phase by phase."""
    steps = {
        phase.name: ledger.count(phase.ledger, "steps")
        for phase in run_folder.phases(run)
        if ledger.segments(phase.ledger, "steps")
    }
    counts = ", ".join(f"{phase} {count:,}" for phase, count in steps.items())
    return f"a run of {sum(steps.values()):,} steps ({counts})"


def _phase(phase: PhaseFolder, manifest: Manifest, root: Path | None) -> Iterator[str]:
    folder = phase.path
    begun = run_folder.read_claim(phase).manifest
    if begun != manifest.digest:
        size = BRIEF if _brief(begun) != _brief(manifest.digest) else None
        named, here = str(begun)[:size], manifest.digest[:size]
        yield f"{folder}: was trained on manifest {named}, not on {here}"
    newest = phase.newest
    if newest is None:
        # Begun, but stopped before its first checkpoint: nothing is recorded for good.
        yield from (_unsealed(path) for path in ledger.segments(phase.ledger))
        return
    state = run_folder.read_state(newest)
    yield from _sealed_files(phase, manifest, newest, state)
    names = {file.name for file in state.sealed_ledger(newest).files}
    steps = ledger.read(phase.ledger, "steps", names, ["step", "skipped"])
    numbers, skipped = (steps[name].to_numpy() for name in ("step", "skipped"))
    if not np.array_equal(numbers, np.arange(len(numbers))):
        yield f"{folder}: steps are not 0 to {len(numbers) - 1} without gaps"
    if len(numbers) > manifest.steps:
        yield f"{folder}: holds {len(numbers)} steps, planned {manifest.steps}"
    yield from _chain(folder, manifest, ledger.stream(phase.ledger, "steps", names, SHOWN))
    lines = skips.faults(folder, ledger.stream(phase.ledger, "steps", names, SHOWN))
    yield from (f"{folder}: {line}" for line in lines)
    yield from _rows(phase, manifest, names, np.sort(numbers[~skipped]))
    if root is not None:
        digests = ledger.stream(phase.ledger, "steps", names, ["digest"])
        yield from _bytes(folder, manifest, root, digests, len(numbers))


def _fork_faults(build: Path, phase: PhaseFolder) -> Iterator[str]:
    """Yield where a fork does not go on from the manifest that its build was redacted from."""
    fork = run_folder.read_fork(phase)
    if fork is None:
        return
    from crystalmix.mixtures.redaction import redact  # brings the stages of a build

    if redact.is_redacted(build):
        origins = {redact.read(build).phases.get(phase.name)}
    else:
        place = BuildFolder(build)
        here = read_manifest(place.phase(phase.name)).digest
        origins = {here, *purged.before(place, here)}
    if fork.manifest not in origins:
        yield (
            f"{phase.fork}: goes on from manifest {_brief(fork.manifest)}, of which this build's "
            f"{phase.name} was not made"
        )
    ends = ledger.of_steps(phase.ledger, "steps", [fork.steps - 1])["chain"].to_pylist()
    if ends != [fork.chain]:
        yield f"{phase.fork}: its chain does not end in step {fork.steps - 1} as it says"


def _sealed_files(
    phase: PhaseFolder, manifest: Manifest, newest: Path, state: CheckpointState
) -> Iterator[str]:
    """Hold the ledger's files against the newest checkpoint, which sealed them."""
    if not run_folder.is_saved_under(phase, state, manifest.digest):
        yield (
            f"{newest}: was saved under manifest {_brief(state.manifest)}, "
            f"not under {_brief(manifest.digest)}"
        )
    sealed = state.sealed_ledger(newest)
    yield from run_folder.damages(phase.ledger, sealed.files)
    names = {file.name for file in sealed.files}
    for path in ledger.segments(phase.ledger):
        if path.name not in names:
            yield _unsealed(path)


def _unsealed(path: Path) -> str:
    return f"{path}: is in no checkpoint; resume the run to cut it"


def _chain(folder: Path, manifest: Manifest, tables: Iterator[pa.Table]) -> Iterator[str]:
    chain = ledger.first_chain(run_folder.chain_root(PhaseFolder(folder), manifest.digest))
    for batch in (batch for table in tables for batch in table.to_batches(BLOCK_STEPS)):
        columns = (batch[name].to_pylist() for name in ("step", "digest", "chain"))
        for step, digest, recorded in zip(*columns, strict=True):
            chain = ledger.next_chain(chain, digest)
            if chain != recorded:
                yield f"{folder}: the chain of digests breaks at step {step}"
                return


def _rows(
    phase: PhaseFolder, manifest: Manifest, names: set[str], steps: NDArray[np.int64]
) -> Iterator[str]:
    """Compare the recorded rows with the planned ones, block by block; steps: those not skipped."""
    folder, batch = phase.path, manifest.batch
    count = ledger.count(phase.ledger, "rows", names)
    if count != len(steps) * batch:
        yield f"{folder}: holds {count} rows for {len(steps)} steps of {batch}"
    planned, done = Planned(manifest), 0
    for have in whole_steps(ledger.stream(phase.ledger, "rows", names), batch):
        own = steps[done : done + -(-len(have) // batch)]
        numbers = have["step"].to_numpy()
        same = numbers[: len(own) * batch] == np.repeat(own, batch)[: len(numbers)]
        good = int(np.argmin(same)) // batch if not same.all() else len(numbers) // batch
        good = min(good, len(own))
        yield from planned.differences(folder, own[:good], have.slice(0, good * batch))
        if good < len(own):
            yield _misplaced(folder, batch, int(own[good]), have.slice(good * batch, batch))
            return
        done += good
    if done < len(steps):
        yield _misplaced(folder, batch, int(steps[done]), ledger.ROWS.empty_table())


def whole_steps(tables: Iterator[pa.Table], batch: int) -> Iterator[pa.Table]:
    """Yield tables cut to blocks of whole steps; what is left over comes last."""
    size = max(1, BLOCK_ROWS // batch) * batch
    buffer = ledger.ROWS.empty_table()
    for table in tables:
        buffer = pa.concat_tables([buffer, table])
        while len(buffer) >= size:
            yield buffer.slice(0, size)
            buffer = buffer.slice(size)
    if len(buffer):
        yield buffer


def _misplaced(folder: Path, batch: int, step: int, have: pa.Table) -> str:
    numbers = sorted(map(str, {*have["step"].to_pylist()}))
    return (
        f"{folder}: in place of step {step}'s {batch} rows stand {len(have)} "
        f"of {'step' if len(numbers) == 1 else 'steps'} {', '.join(numbers) or 'none'}"
    )


class Planned:
    """The rows of a manifest's steps as numbers, to be compared with those of a ledger."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.parts = {part.name: place for place, part in enumerate(manifest.parts)}
        self.paths: dict[str, int] = {}  # a path may stand in two parts
        numbers = [self.paths.setdefault(path, len(self.paths)) for path in manifest.paths]
        self.number = np.array(numbers, np.int64)

    def differences(self, folder: Path, steps: NDArray[np.int64], have: pa.Table) -> Iterator[str]:
        """Yield a line for each row of some steps that is not the planned one."""
        if not len(steps):
            return
        manifest, batch = self.manifest, self.manifest.batch
        cuts = np.flatnonzero(np.diff(steps) != 1) + 1
        plans = [
            manifest.rows(int(run[0]) * batch, (int(run[-1]) + 1) * batch)
            for run in np.split(steps, cuts)
        ]
        part, shard, row, epoch = (
            np.concatenate([getattr(plan, name) for plan in plans])
            for name in ("part", "shard", "row", "epoch")
        )
        same = (
            (part == _numbers(have["part"], self.parts))
            & (row == have["row"].to_numpy())
            & (epoch == have["epoch"].to_numpy())
            & (self.number[shard] == _numbers(have["shard"], self.paths))
            & (np.tile(np.arange(batch), len(steps)) == have["slot"].to_numpy())
        )
        for place in np.flatnonzero(~same).tolist():
            step, slot = int(steps[place // batch]), place % batch
            [fed] = have.slice(place, 1).select([f.name for f in fields(StepRow)]).to_pylist()
            names = manifest.parts[part[place]].name, manifest.paths[shard[place]]
            planned = StepRow(slot, names[0], epoch[place], names[1], row[place])
            rows = f"{_row(StepRow(**fed))}, planned {_row(planned)}"
            yield f"{folder}: step {step} slot {slot} consumed {rows}"


def _numbers(column: Any, numbers: dict[str, int]) -> NDArray[np.int64]:  # noqa: ANN401
    """Return the numbers of names in a dictionary column (Arrow), -1 of those that have none."""
    arrays: list[NDArray[np.int64]] = []
    for array in column.chunks:
        codes = [numbers.get(name, -1) for name in array.dictionary.to_pylist()]
        arrays.append(np.array(codes, np.int64)[array.indices.to_numpy(zero_copy_only=False)])
    return np.concatenate([np.empty(0, np.int64), *arrays])


def _row(row: StepRow) -> str:
    return "{shard} row {row} (part {part}, epoch {epoch}, slot {slot})".format(**vars(row))


def _brief(digest: object) -> str:
    return str(digest)[:BRIEF]


def _bytes(
    folder: Path, manifest: Manifest, root: Path, tables: Iterator[pa.Table], count: int
) -> Iterator[str]:
    from crystalmix.train.trainer.batches import Batches

    batches = Batches(manifest, root)
    digests = (digest for table in tables for digest in table["digest"].to_pylist())
    gone = purged.since(BuildFolder(root), manifest)
    first: int | None = None  # of the wrong steps that follow each other
    for step, digest in enumerate(shown(digests, count, f"{manifest.phase}: batches", "step")):
        known = digest not in {None, ledger.SKIPPED}  # None: harvested without reading
        wrong = (
            known and not (gone and _holds(manifest, step, gone)) and batches[step].digest != digest
        )
        if not wrong and first is not None:
            yield _other_bytes(folder, first, step - 1)
        first = (step if first is None else first) if wrong else None
    if first is not None:
        yield _other_bytes(folder, first, count - 1)


def _other_bytes(folder: Path, first: int, last: int) -> str:
    steps = f"step {first} was" if first == last else f"steps {first} to {last} were"
    return f"{folder}: {steps} fed other bytes than the shards hold now"
