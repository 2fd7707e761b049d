"""Check of a redacted build: it is its origin without what it says, and nothing else."""

from collections.abc import Iterator
from os.path import relpath
from pathlib import Path

import numpy as np

from crystalmix.mixtures.build.lookups import ensured
from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import DOMAINS, LOOKUP, SOURCES, BuildFolder
from crystalmix.mixtures.manifest.manifest import read_manifests, read_phase_set
from crystalmix.mixtures.redaction import redact
from crystalmix.mixtures.redaction.find_documents import Found
from crystalmix.mixtures.redaction.redact import View
from crystalmix.prep.documents import lookup
from crystalmix.prep.rows import spans, tombstones
from crystalmix.prep.runtime.errors import CrystalmixError, DamageError

REMEDY = "redact again into another --out"


def faults(out: Path, origin: Path) -> Iterator[str]:
    """Yield where a redacted build is not its origin without the documents that it lists.

    Tombstones, spans and manifests are worked out again from the origin; the origin itself is for
    `verify` to check.
    """
    try:
        view = redact.read(out)
        build = BuildFolder(origin)
        if view.schema != 1 or len({*view.documents}) != len(view.documents):
            yield f"{out / redact.NAME}: is no view of schema 1 that names each once; {REMEDY}"
        digests = {manifest.phase: manifest.digest for manifest in read_manifests(origin)}
        if digests != view.phases:
            yield f"{out}: its origin {origin} has other phases than it was made from; {REMEDY}"
            return
        taken = redact.placed(ensured(origin), documents(build, view))
        yield from _manifest_faults(out, build, taken, view)
        yield from _file_faults(out, build, taken)
        if view.files is not None and view.files != (here := redact.file_digests(out)):
            for name in sorted({*view.files, *here}):
                if view.files.get(name) != here.get(name):
                    yield f"{out / name}: its bytes changed since it was written; {REMEDY}"
    except (CrystalmixError, KeyError, TypeError, ValueError, OSError) as error:
        yield f"{out}: can't be checked ({' '.join(str(error).split())}); {REMEDY}"


def documents(build: BuildFolder, view: View) -> list[Found]:
    """Return the documents that were taken; DamageError where the origin has others."""
    documents: list[Found] = []
    for source in sorted({name for name, _, _ in view.documents}):
        digests = {n: digest for name, n, digest in view.documents if name == source}
        numbers = np.array(sorted(digests), np.int64)
        table = lookup.rows(build.documents(source), numbers, ["digest"])
        for number, digest in zip(numbers.tolist(), table["digest"].to_pylist(), strict=True):
            if digest is None or digest.hex() != digests[number]:
                raise DamageError(f"source {source}: document {number} is another text now")
            documents.append(Found("entry", source, number, "", digests[number], 0, 0))
    return documents


def _manifest_faults(
    out: Path, build: BuildFolder, taken: redact.Taken, view: View
) -> Iterator[str]:
    expected = {m.phase: m for m in redact.redacted(build, taken, view.list)}
    have = {m.phase: m for m in read_manifests(out)}
    for phase, manifest in expected.items():
        if phase not in have or have[phase].digest != manifest.digest:
            yield f"{BuildFolder(out).manifest(phase)}: is not its origin's without what was taken"
    sealed = {phase: manifest.digest for phase, manifest in have.items()}
    if read_phase_set(BuildFolder(out)) != sealed:
        yield f"{BuildFolder(out).phase_set}: does not name the phases that are here; {REMEDY}"
    if BuildFolder(out).tokenizer.read_bytes() != build.tokenizer.read_bytes():
        yield f"{BuildFolder(out).tokenizer}: is not the origin's; {REMEDY}"


def _file_faults(out: Path, build: BuildFolder, taken: redact.Taken) -> Iterator[str]:
    """Yield where links, tombstones or spans are not as they were written."""
    stones = {**taken.packed, **taken.stones}
    touched = {path.parent for path in stones}
    places = [Path(SOURCES), Path(LOOKUP)]
    folders = [p.relative_to(build.path) for p in sorted(build.path.glob(f"{DOMAINS}/*/*"))]
    places += [inside for inside in folders if inside not in touched]
    for inside in touched:
        since = f"*.{purged.SIDE}.parquet"  # of purges of the origin after the view was made
        names = {p.name for p in (build.path / inside).iterdir() if not p.match(since)}
        gone = {path.name for path in stones if path.parent == inside}
        sides = {spans.path_of(Path(name)).name for name in gone}
        places += [inside / name for name in sorted(names - gone - sides)]
        names = (names - gone) | {tombstones.path_of(Path(name)).name for name in gone}
        for path in sorted((out / inside).iterdir()):
            if path.name not in names:
                yield f"{path}: is not of this view; remove it"
    for inside in places:
        link = out / inside
        if (build.path / inside).exists() and (
            not link.is_symlink() or link.resolve() != (build.path / inside).resolve()
        ):
            yield f"{link}: is no link to {relpath(build.path / inside)}; {REMEDY}"
    for path, expected in stones.items():
        try:
            if (build.path / path).exists():  # rows that are only laid out have no shard
                have, origin = tombstones.read(out / path)
                place = (build.path / path).resolve()
                if have.digest != expected.digest or origin.resolve() != place:
                    yield f"{tombstones.path_of(out / path)}: is not what was taken; {REMEDY}"
            side = spans.path_of(build.path / path)
            if side.exists() and not spans.read(spans.path_of(out / path)).equals(
                redact.without(spans.read(side), taken.documents)
            ):
                yield f"{spans.path_of(out / path)}: is not what was left; {REMEDY}"
        except (OSError, ValueError) as error:
            yield f"{out / path}: can't be read ({' '.join(str(error).split())}); {REMEDY}"
