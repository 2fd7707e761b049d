"""`cm.verify` and `cm.diff`: what is wrong with a build or a run, what differs between two."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import overload

from crystalmix.prep.runtime.atomic_files import as_url, is_url, read_json, settle
from crystalmix.prep.runtime.errors import DamageError, UsageError
from crystalmix.prep.runtime.types import frozen
from crystalmix.train.trace.answers import Answer, Grid, Verdict

Place = str | Path


@overload
def existing(place: Place, *, whole: bool = False, by_ranges: bool = False) -> Path: ...
@overload
def existing(place: None, *, whole: bool = False, by_ranges: bool = False) -> None: ...
def existing(place: Place | None, *, whole: bool = False, by_ranges: bool = False) -> Path | None:
    """Return a path that may be left out, for a url that of its mirror.

    whole: bring every file behind the url, also shards, which wait else until they are read.
    by_ranges: tables and large JSON wait for a question or a training, which read parts of them.
    Raises UsageError where nothing is there.
    """
    if place is None:
        return None
    if is_url(place):
        from crystalmix.prep.objects.mirror import mirror

        return mirror(as_url(place), whole=whole, by_ranges=by_ranges)
    path = Path(place)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    if not by_ranges:
        from crystalmix.train.record.run_folder import WHERE

        settle(path)
        if (where := path / WHERE).is_file():
            with suppress(DamageError, KeyError):  # whoever needs the build tells
                settle(path / str(read_json(where)["build"]))
    return path


def raw_files(place: Place | None) -> Path | None:
    """Return the folder of raw files, for a url the `Path` that stands for it.

    Raises UsageError where no folder is there, or a url carries credentials.
    """
    if place is None or not is_url(place):
        return existing(place)
    from crystalmix.prep.objects.remote import checked

    return Path(checked(as_url(place)))


@frozen
class ShardVerdict(Answer):
    """What `verify` found in HDF5 files that no build of ours made."""

    path: Path
    faults: tuple[str, ...]
    text: tuple[str, ...]
    value: dict[str, object]
    notes: tuple[str, ...] = ()

    def content(self) -> dict[str, object]:
        """Return counts and faults as JSON."""
        return self.value

    def shown(self) -> Iterator[str | Grid]:
        """Yield counts and faults."""
        yield from self.text


@frozen
class Differences(Answer):
    """What differs between two manifests or builds, one line each."""

    text: tuple[str, ...]

    @property
    def faulty(self) -> bool:
        """Whether anything differs."""
        return bool(self.text)

    def content(self) -> list[str]:
        """Return the differences."""
        return list(self.text)

    def shown(self) -> Iterator[str | Grid]:
        """Yield the differences, or the word that there are none."""
        yield from self.text or ("equal",)


def verify(path: Place, *, run: Place | None = None, workers: int = 1) -> Verdict | ShardVerdict:
    """Read a build again and list every disagreement.

    run: compare this run's ledger with its plan too, its batches with the shards, and every file
    of it with its seal. workers: processes. A folder that was made from a run (an export, say) is
    held against its receipt and the ledger of `run`. A path of HDF5 files that no build of ours
    made gives a `ShardVerdict`; of a release every file, the ledger and the weights are checked.
    Raises InputError where there is nothing to check.
    """
    from dataclasses import asdict

    from crystalmix.mixtures.verify import foreign_shards
    from crystalmix.mixtures.verify.account_report import checked
    from crystalmix.mixtures.verify.kept import MALFORMED
    from crystalmix.mixtures.verify.verify import verify as check

    path = existing(path, whole=True)
    run = existing(run, whole=True)
    if (path / "bound.json").is_file():
        return _bound(path, run)
    if run is None and (path / "release.json").exists():
        return _release(path)
    if run is None and (files := foreign_shards.verify(path, workers=workers)) is not None:
        return ShardVerdict(path, tuple(files.faults), tuple(files.lines()), asdict(files))
    notes: list[str] = []
    faults = check(path, workers=workers, note=notes.append)
    read = [] if faults else [checked(path)]
    if run is not None:
        from crystalmix.train.adaptive import check as adaptive
        from crystalmix.train.record import proof, seal
        from crystalmix.train.record.run_folder import build_of
        from crystalmix.train.record.skips import lines, recorded
        from crystalmix.train.trace import findings

        begun = build_of(run, path)
        try:
            faults += findings.findings(begun, run, batches=True)
            faults += adaptive.faults(begun, run)
        except MALFORMED as error:
            faults.append(
                f"{run}: can't be held against {begun} ({type(error).__name__}: {error}); mend "
                "what else is reported first"
            )
        folder = seal.check(run)
        faults += [line for line in folder.faults if line not in faults]
        notes += folder.notes
        if not faults:
            read += [findings.checked(run), folder.read()]
            if line := adaptive.summary(path):
                read.append(line)
            notes += [*lines(recorded(run)), *proof.lines(run)]
            notes += findings.purged_lines(begun, run)
    return Verdict(tuple(faults), tuple(read), tuple(notes))


def _bound(path: Path, run: Path | None) -> Verdict:
    """Check a folder that was made from a run."""
    from crystalmix.train.record import later

    receipt = later.read(path)
    if run is None:
        raise UsageError(f"{path}: was made from a run; give it as --run to check that too")
    faults = later.check(path, run)
    subject = f"{receipt.kind} of {receipt.phase}, step {receipt.step}: {len(receipt.files)} files"
    read = () if faults else (f"{path}: {subject}, and the ledger up to that step, agree",)
    return Verdict(tuple(faults), read, ())


def _release(path: Path) -> Verdict:
    """Check a release: its files, its ledger against its manifests, its weights."""
    from crystalmix.train.record import proof
    from crystalmix.train.trace import findings
    from crystalmix.train.weights import release

    faults = release.faults(path)
    faults += findings.findings(path / release.BUILD, path / release.RUN)
    if faults:
        return Verdict(tuple(faults), (), ())
    content = release.read(path)
    read = (
        f"a release of {len(content.revisions)} revisions, {content.files} files",
        findings.checked(path / release.RUN),
    )
    return Verdict((), read, tuple(proof.lines(path / release.RUN, every=True)))


def diff(old: Place, new: Place) -> Differences:
    """Compare two manifests, or two builds phase by phase: settings, parts, and which rows moved.

    Raises InputError where one of them holds no manifest.
    """
    from crystalmix.mixtures.manifest import report

    return Differences(tuple(report.differences(existing(old), existing(new))))
