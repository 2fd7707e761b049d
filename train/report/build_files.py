"""Files of a build that its phases need, for cards: names, and when they were written."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import DOCUMENTS, TOKENIZER
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import DamageError, RefusalError
from crystalmix.train.report.facts import Facts


def files(facts: Facts) -> list[str]:
    """Return the files of a build that its phases need, relative to it, sorted.

    Manifests, the tokenizer, the documents of sources, shards and what lies beside them. Raises
    RefusalError for a redacted view, whose rows no file holds, DamageError for a missing file.
    """
    refuse_views(facts)
    build = facts.build
    names = {
        build.manifest(phase.name).relative_to(build.path).as_posix() for phase in facts.phases
    }
    if build.tokenizer.exists():
        names.add(TOKENIZER)
    names |= {f"{source.folder}/{DOCUMENTS}" for source in facts.sources}
    shards = {
        shard.path for phase in facts.phases for p in phase.manifest.parts for shard in p.shards
    }
    names |= shards
    folders = {Path(shard).parent for shard in shards}
    domains = {part.domain for phase in facts.phases for part in phase.manifest.parts}
    folders |= {
        path.relative_to(build.path) for d in domains for path in build.domain(d).glob("epoch-*")
    }
    for folder in folders:
        names |= set(_sides(build.path, folder))
    for name in names:
        if not (build.path / name).exists():
            raise DamageError(f"{build.path / name}: is missing; restore it, or build again")
    return sorted(names)


def refuse_views(facts: Facts) -> None:
    """Raise RefusalError where a phase is a redacted view."""
    for phase in facts.phases:
        if phase.manifest.redaction is not None and not purged.is_purged(phase.manifest):
            raise RefusalError(
                f"{facts.build.path}: phase {phase.name} is a redacted view, whose rows no file "
                "holds; write them with `crystalmix export-rows`, or use another --as"
            )


def written(path: Path) -> str:
    """Return when a file was last written, as its file system has it, in UTC by the second."""
    return datetime.fromtimestamp(int(path.stat().st_mtime), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def public_name(name: str) -> str:
    """Return the name of a raw file as a card has it: of an absolute path the last step alone.

    >>> public_name("wiki/a.jsonl"), public_name("/home/me/a.jsonl")
    ('wiki/a.jsonl', 'a.jsonl')
    """
    return PurePosixPath(name).name if name.startswith("/") else name


def _sides(build: Path, folder: Path) -> Iterator[str]:
    """Yield the files of a folder of rows that say where its rows are from: spans and origins."""
    if (build / folder / receipts.NAME).exists():
        for entry in receipts.read(build / folder).files:
            if entry["name"].endswith(".parquet"):
                yield (folder / entry["name"]).as_posix()
