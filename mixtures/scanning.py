"""The first stage: sources to documents, with every drop counted under a reason."""

import re
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixtures import stages
from mixtures.context import Context, summed
from prep import documents, rawfiles, receipts, sources
from prep.errors import BrokenFile, InputError, RecipeError
from prep.fanout import watched
from prep.records import PLACES
from prep.sources import Source

Json = dict[str, Any]
# What `documents` tells of a source's settings: `source web: where: <SQL>: <fault>`.
FAULT = re.compile(r"source ([^\s:]+): (?:(where|identity|keep): )?(.*)", re.DOTALL)


def scan(context: Context, names: list[str]) -> dict[str, Json]:
    """Scan the sources that are not fresh; return the receipts of all of them."""
    with _at(context):
        works = [_Work(context, context.recipe.sources[name]) for name in names]
        todo = [work for work in works if work.receipt is None]
        groups = context.run(stages.scan, [work.items() for work in todo], "documents")
    for work, results in zip(todo, groups, strict=True):
        work.seal(results)
    return {work.source.name: work.receipt for work in works if work.receipt is not None}


@contextmanager
def _at(context: Context) -> Generator[None]:
    """Give an error about a source's settings its place in the recipe."""
    try:
        yield
    except RecipeError as error:
        found = FAULT.fullmatch(str(error))
        if found is None:
            raise
        steps = [step for step in found.groups()[:2] if step]
        raise context.recipe.fault(found[3], "sources", *steps) from None


class _Work:
    """One source on its way to its documents."""

    def __init__(self, context: Context, source: Source) -> None:
        self.source, self.root = source, context.root
        self.folder = context.out / "sources" / source.name
        found = sources.listing(source, context.root)
        self.blocks, self.skipped = list(found.names), found.skipped
        self.seen: list[Json] = []  # raw files with their times: the next build need not read them
        self.recipe = self._recipe()
        self.receipt = receipts.fresh(self.folder, self.recipe)

    def items(self) -> list[stages.Scan]:
        """Return one work item for each block."""
        mark = receipts.digest(self.recipe)
        shape = documents.structure(self.source, self.root, self.blocks)
        return [
            stages.Scan(mark, self.source, self.root, block, shape, path)
            for block, path in zip(self.blocks, self._parts(), strict=True)
        ]

    def seal(self, results: list[Json]) -> None:
        """Join the blocks' documents and write the receipt."""
        account = _account(results)
        if account["documents"] == 0:
            broken = account["broken_files"]
            raise InputError(
                f"source {self.source.name}: no document is left of {account['records']} records "
                f"(dropped: {account['dropped'] or 'nothing'}"
                f"{f'; broken files: {broken}' if broken else ''}); "
                "check `files`, `text` and `where`"
            )
        self._check_untouched()
        out = self.folder / "documents.parquet"
        with stages.naming(out):
            documents.merge(self.source, self._parts(), out)
        content = {
            "account": account,
            "blocks": [{k: r[k] for k in ("block", "documents", "text_digest")} for r in results],
            "content": receipts.digest([[r["text_digest"], r["documents"]] for r in results]),
            "broken": [{"file": r["block"], **r["broken"]} for r in results if r["broken"]],
            "skipped": [{"file": name, "why": why} for name, why in self.skipped],
            "seen": self.seen,
        }
        self.receipt = receipts.seal(self.folder, self.recipe, [receipts.describe(out)], content)
        for part in self.folder.glob("block-*.parquet"):
            part.unlink()

    def _parts(self) -> list[Path]:
        return [self.folder / f"block-{i:05d}.parquet" for i in range(len(self.blocks))]

    def _recipe(self) -> Json:
        """Describe what the documents follow from; raw files by size and digest."""
        local = self.source.hub is None
        # Texts are repaired when they are tokenised: documents and digests are of the raw text.
        settings = {k: v for k, v in asdict(self.source).items() if k != "ftfy"}
        return {
            "stage": "documents",
            "version": documents.VERSION,
            "settings": settings,
            "seed": None,
            "inputs": self._inputs() if local else self.blocks,
        }

    def _inputs(self) -> list[Json]:
        """Return size and digest of each raw file; one that looks untouched is not read again."""
        known: dict[str, Json] = {}
        if (self.folder / receipts.NAME).exists():
            known = {entry["file"]: entry for entry in receipts.read(self.folder)["seen"]}
        for block in watched(self.blocks, f"{self.source.name}: raw files", "file"):
            self.seen.append(self._entry(block, known.get(block, {})))
        return [{k: v for k, v in entry.items() if k != "modified"} for entry in self.seen]

    def _entry(self, block: str, before: Json) -> Json:
        try:
            stamp = sources.identity(self.source, self.root, block)
            looks = (stamp.bytes, stamp.modified)
            same = stamp.modified is not None and looks == (
                before.get("bytes"),
                before.get("modified"),
            )
            digest = before["xxh3"] if same else sources.digest(self.source, self.root, block)
        except BrokenFile:
            if self.source.on_error == "stop":
                raise
            stamp, digest = sources.Stamp(0, None), None  # scanning tells why
        return {"file": block, "bytes": stamp.bytes, "xxh3": digest, "modified": stamp.modified}

    def _check_untouched(self) -> None:
        """Refuse raw files that changed since their digests were taken."""
        for entry in self.seen:
            if entry["xxh3"] is None:
                continue
            stamp = sources.identity(self.source, self.root, entry["file"])
            if (stamp.bytes, stamp.modified) != (entry["bytes"], entry["modified"]):
                where = rawfiles.shown(self.root, entry["file"])
                raise InputError(f"{where}: changed while it was read; build again")


def _account(results: list[Json]) -> Json:
    dropped: Counter[str] = Counter()
    places: dict[str, list[str]] = {}
    for result in results:
        dropped.update(result["dropped"])
        for reason, found in result["places"].items():
            places[reason] = [*places.get(reason, []), *found][:PLACES]
    broken = Counter(result["broken"]["reason"] for result in results if result["broken"])
    counts = summed(results, ("records", "documents", "characters", "bytes", "blank_lines"))
    return {
        **counts,
        "dropped": dict(dropped),
        "places": places,
        "broken_files": dict(sorted(broken.items())),
    }
