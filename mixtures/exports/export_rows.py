"""Export a phase's rows in its order of consumption, or part by part, to another trainer's format.

    <out>/rows-00000.bin ...          files of `rows_per_file` rows, in order
    <out>/<part>/rows-00000.bin ...   by domain: of each part, in the order of consumption
    <out>/receipt.json                what was exported; written last

Each file is a work item of its own, so that the result is the same for any number of workers, and a
killed export goes on where it stopped.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from crystalmix.mixtures.exports import columnar, mds, plain_tokens, vsl
from crystalmix.mixtures.exports.row_blocks import Block, Range, blocks, part_positions
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.manifest.manifest import read as read_manifest
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import lock_folder
from crystalmix.prep.runtime.errors import RefusalError, UsageError
from crystalmix.prep.runtime.receipts import Receipt
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.runtime.workers import Fanout

VERSION = 1
STAGE = "export-rows"
Format = Literal["megatron", "mds", "parquet", "bin", "arrow", "vsl"]
Arrangement = Literal["consumption", "domain"]
ROWS_PER_FILE = 16_384
DONE = ".done"


@dataclass(frozen=True)
class ExportSettings:
    """What to export.

    phase: of the build. to: the format. order: rows in the order of consumption, or each part's
    apart. rows_per_file: of each file, the last one apart. documents: also say which documents'
    pieces each row holds, where the build knows.
    """

    phase: str
    to: Format
    order: Arrangement = "consumption"
    rows_per_file: int = ROWS_PER_FILE
    documents: bool = True

    def __post_init__(self) -> None:
        for key, allowed in (("to", get_args(Format)), ("order", get_args(Arrangement))):
            if (value := getattr(self, key)) not in allowed:
                raise UsageError(f"--{key}: must be one of {', '.join(allowed)}, got {value!r}")
        if self.rows_per_file < 1:
            raise UsageError(f"--rows-per-file: must be positive, got {self.rows_per_file}")


@dataclass(frozen=True)
class Exported:
    """An export: its settings, the folders of files (one, or one a part) and their rows.

    masked: the parts over whose rows attention is masked between documents.
    """

    path: Path
    settings: ExportSettings
    rows: dict[str, int]
    files: int
    bytes: int
    masked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """Work item: write one file. stem: its path without suffix. count: its rows."""

    mark: str
    build: Path
    settings: ExportSettings
    chosen: Range
    stem: Path
    number: int
    count: int


def export_rows(build: Path, out: Path, settings: ExportSettings, *, workers: int = 1) -> Exported:
    """Write the rows of a phase below `out`; what is written already is not written again.

    Raises UsageError for a phase that the build does not have, StaleError where `out` holds another
    export, RefusalError for labels that the format can't hold.
    """
    folder = BuildFolder(build)
    if not folder.manifest(settings.phase).exists():
        known = ", ".join(path.parent.name for path in folder.manifests()) or "none"
        raise UsageError(f"--phase: no phase is called {settings.phase!r} (there are {known})")
    manifest = read_manifest(folder.phase(settings.phase))
    if any(manifest.masked) and not (settings.documents or settings.to == "vsl"):
        raise RefusalError(
            f"phase {settings.phase}: masks attention between documents, whose pieces rows alone "
            "don't hold; leave out --no-documents, or export it to vsl"
        )
    recipe = {
        "stage": STAGE,
        "version": VERSION,
        "settings": asdict(settings),
        "seed": None,
        "inputs": {"manifest": manifest.digest},
    }
    out.mkdir(parents=True, exist_ok=True)
    with lock_folder(out, f"{out}: another process exports here; wait for it"):
        receipt = receipts.fresh(out, recipe)
        if receipt is None:
            receipt = _export(manifest, build, out, settings, recipe, workers)
    size = sum(entry["bytes"] for entry in receipt.files)
    rows = receipt.account["rows"]
    return Exported(out, settings, rows, len(receipt.files), size, tuple(masked_parts(manifest)))


def _export(
    manifest: Manifest, build: Path, out: Path, settings: ExportSettings, recipe: Json, workers: int
) -> Receipt:
    mark = receipts.digest(recipe)
    groups = _groups(manifest, build, out, settings, mark)
    items = [item for group in groups.values() for item in group]
    with Fanout(workers) as pool:
        results = list(pool.map(_write_once, items, STAGE))
    entries: list[Json] = []
    for item, result in zip(items, results, strict=True):
        place = item.stem.parent.relative_to(out).as_posix()
        entries += [{**file, "name": _below(place, file["name"])} for file in result["files"]]
    for group in groups.values():
        entries += _finished(group, manifest.msl, out, mark)
    rows = {name: sum(item.count for item in group) for name, group in groups.items()}
    tokens = np.dtype(plain_tokens.dtype_of(manifest.tokenizer.vocab)).name  # in plain numbers
    account: Json = {"rows": rows, "msl": manifest.msl, "tokens": tokens}
    if parts := masked_parts(manifest):
        account["masked"] = parts
    digest = receipts.digest([[entry["name"], entry["xxh3"]] for entry in entries])
    content = {"account": account, "content": digest}
    receipt = receipts.seal(out, recipe, entries, content)
    for item in items:
        _with(item.stem, DONE).unlink(missing_ok=True)
    for path in out.rglob(".*.tmp"):
        path.unlink()
    return receipt


def masked_parts(manifest: Manifest) -> list[str]:
    """Return the parts over whose rows attention is masked between documents."""
    return [p.name for p, on in zip(manifest.parts, manifest.masked, strict=True) if on]


def _groups(
    manifest: Manifest, build: Path, out: Path, settings: ExportSettings, mark: str
) -> dict[str, list[Item]]:
    """Return the work items of each folder: the phase's, or one of each part."""
    total = manifest.steps * manifest.batch
    if settings.order == "consumption":
        counts: list[tuple[str, int | None, int]] = [("", None, total)]
    else:
        taken = manifest.order.counts(total)
        counts = [(part.name, i, taken[i]) for i, part in enumerate(manifest.parts) if taken[i]]
    groups: dict[str, list[Item]] = {}
    for name, part, count in counts:
        cuts = [*range(0, count, settings.rows_per_file), count]
        bounds = cuts if part is None else [*part_positions(manifest, part, cuts[:-1]), total]
        groups[name or manifest.phase] = [
            Item(
                mark,
                build,
                settings,
                Range(bounds[i], bounds[i + 1], part),
                _stem(out / name, settings.to, i),
                i,
                cuts[i + 1] - cuts[i],
            )
            for i in range(len(cuts) - 1)
        ]
    return groups


def _stem(folder: Path, to: Format, number: int) -> Path:
    return folder / (mds.name(number).removesuffix(".mds") if to == "mds" else f"rows-{number:05d}")


def _write_once(item: Item) -> Json:
    """Do an Item; its result is the entries of its files."""
    item.stem.parent.mkdir(parents=True, exist_ok=True)
    key = [item.mark, item.stem.name, item.chosen.first, item.chosen.last]
    return receipts.once(_with(item.stem, DONE), key, lambda: _write(item))


def _write(item: Item) -> Json:
    manifest = read_manifest(BuildFolder(item.build).phase(item.settings.phase))
    documents = item.settings.documents or item.settings.to == "vsl"
    rows = blocks(manifest, item.build, item.chosen, documents)
    paths, stream = _stream(item, manifest, rows)
    deque(stream, maxlen=0)
    if item.settings.to == "megatron":
        dtype = plain_tokens.dtype_of(manifest.tokenizer.vocab)
        index = _with(item.stem, ".idx")
        plain_tokens.write_index(index, item.count, manifest.msl + 1, dtype)
        paths.append(index)
    return {"files": [receipts.describe(path) for path in sorted(paths)]}


def _stream(
    item: Item, manifest: Manifest, rows: Iterable[Block]
) -> tuple[list[Path], Iterator[Block]]:
    """Return the files of an item, and the blocks that write them as they pass."""
    to, stem, msl = item.settings.to, item.stem, manifest.msl
    if to == "mds":
        path = _with(stem, ".mds")
        return [path], mds.write(path, rows, item.count, msl)
    if to == "vsl":
        path = _with(stem, ".h5")
        return [path], vsl.write(path, rows, item.count, msl)
    if to == "parquet":
        path = _with(stem, ".parquet")
        return [path], columnar.write_parquet(path, rows, msl)
    if to == "arrow":
        path = _with(stem, ".arrow")
        return [path], columnar.write_arrow(path, rows, msl)
    dtype = plain_tokens.dtype_of(manifest.tokenizer.vocab)
    paths = [_with(stem, suffix) for suffix in (".bin", ".mask", ".parquet")]
    tokens = plain_tokens.write(stem, rows, dtype)
    return paths, columnar.write_references(paths[2], tokens)


def _finished(group: Sequence[Item], msl: int, out: Path, mark: str) -> list[Json]:
    """Write what a folder needs beside its files; return their entries."""
    folder, to = group[0].stem.parent, group[0].settings.to
    place = folder.relative_to(out).as_posix()
    names: tuple[str, ...] = ()
    if to == "mds":
        files = [_with(item.stem, ".mds") for item in group]
        mds.write_index(folder, files, [item.count for item in group], msl)
        names = (mds.INDEX,)
    elif to == "arrow":
        files = [_with(item.stem, ".arrow") for item in group]
        columnar.write_dataset_files(folder, files, receipts.digest([mark, place])[:16])
        names = ("state.json", "dataset_info.json")
    entries = [receipts.describe(folder / name) for name in names]
    return [{**entry, "name": _below(place, entry["name"])} for entry in entries]


def _with(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def _below(place: str, name: str) -> str:
    return name if place == "." else f"{place}/{name}"
