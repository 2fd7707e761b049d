"""Import of token ids: documents that another program tokenised, packed to rows of ours.

    domains/<dataset>/imported/data-*.h5   rows of msl tokens, documents one after the other, with
                                           the spans of each
    phases/all/manifest.json               every row of every dataset once, in our own order

The ids are taken as they are: nothing is put between documents. The last row of a dataset is
padded, its mask 0 where there is no label. Other mixtures are sealed over the same rows by `mix`.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crystalmix.mixtures.build import seal
from crystalmix.mixtures.build.accounts import ImportAccount
from crystalmix.mixtures.build.build import alone, store, sweep, unsealed
from crystalmix.mixtures.build.context import Folder, naming, once, rows_in, shard_entries
from crystalmix.mixtures.build.seal import Basis
from crystalmix.mixtures.manifest.build_folder import IMPORTED, BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest, TokenizerIdentity
from crystalmix.mixtures.modelzoo.token_files import Counts, Ints, Kind, TokenFile, find
from crystalmix.mixtures.recipes.phase import Part, Phase
from crystalmix.mixtures.recipes.recipe import Domain
from crystalmix.mixtures.verify.accounts import IMPORT
from crystalmix.prep.rows import pack, shards, spans
from crystalmix.prep.runtime.errors import InputError, RefusalError, StaleError, UsageError
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.runtime.workers import Fanout

VERSION = 1
PHASE = "all"


@dataclass(frozen=True)
class TokenSettings:
    """How token ids become rows.

    kind: of the files. msl: tokens of a row. batch: rows of a step. vocab: ids lie below it, one
    above the highest id by default. column: of the ids in tables. rows_per_shard: of each shard.
    """

    kind: Kind
    msl: int = 2048
    batch: int = 8
    vocab: int | None = None
    column: str | None = None
    rows_per_shard: int = 4096

    def __post_init__(self) -> None:
        for key in ("msl", "batch", "rows_per_shard"):
            if getattr(self, key) < 1:
                raise UsageError(f"--{key.replace('_', '-')}: must be positive, got {self!r}")


@dataclass(frozen=True)
class Piece:
    """Work item: write the rows [first, last) of a dataset's stream as one shard.

    files: each with its documents and tokens. stop: tokens of the whole stream.
    """

    mark: str
    name: str
    files: tuple[tuple[TokenFile, Counts], ...]
    first: int
    last: int
    msl: int
    out: Path


@dataclass(frozen=True)
class Slice:
    """Some ids of a stream, and the documents in them: where each begins, and its number."""

    ids: NDArray[np.int32]
    starts: Ints
    numbers: Ints


def import_tokens(
    root: Path, out: Path, settings: TokenSettings, *, workers: int = 1
) -> list[Manifest]:
    """Pack the token ids below `root` to rows, and seal a phase of all of them.

    Raises InputError for files that are not there, RefusalError for fewer rows than one batch or an
    id over the vocabulary, StaleError where `out` holds something else.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: is no folder; give the folder of the tokens")
    built = [path for path in BuildFolder(out).sealed() if path.name != IMPORTED]
    if built or BuildFolder(out).tokenizer.exists():
        raise StaleError(f"{out}: holds a build of raw files; import into another --out")
    datasets = find(root, settings.kind, settings.column)
    with naming(out), alone(out), Fanout(workers) as pool:
        files = [file for group in datasets.values() for file in group]
        counts = dict(zip(files, pool.map(TokenFile.counts, files, "count"), strict=True))
        vocab = _vocab(counts, settings)
        folders = _pack(root, out, datasets, counts, settings, pool)
        parts = tuple(Part(name, epochs=1) for name in folders)
        phase = Phase(settings.batch, parts, name=PHASE)
        draft = seal.compose(_basis(root, out, settings, vocab), phase, folders, None)
        place = {BuildFolder(out).manifest(PHASE): draft}
        unsealed(place)
        store(out, place)
        sweep(out)
    return [draft]


def _vocab(counts: dict[TokenFile, Counts], settings: TokenSettings) -> int:
    """Return the vocabulary; RefusalError for an id that lies over the one that is given."""
    file = max(counts, key=lambda file: counts[file].highest)
    highest = counts[file].highest
    if highest < 0:
        raise InputError(f"{file.path}: holds no token, nor do the other files; give others")
    if settings.vocab is not None and highest >= settings.vocab:
        raise RefusalError(
            f"{file.path}: holds the id {highest}, the vocabulary has {settings.vocab}; "
            "give the tokenizer's --vocab"
        )
    return highest + 1 if settings.vocab is None else settings.vocab


def _basis(root: Path, out: Path, settings: TokenSettings, vocab: int) -> Basis:
    imported: Json = {"tokens": settings.kind, "digests": "rows"}
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", root.resolve().name) or "tokens"
    return Basis(name, 0, settings.msl, TokenizerIdentity(vocab), out, imported)


def _pack(
    root: Path,
    out: Path,
    datasets: dict[str, list[TokenFile]],
    counts: dict[TokenFile, Counts],
    settings: TokenSettings,
    pool: Fanout,
) -> dict[str, Folder]:
    """Write the shards of every dataset; return the datasets' sealed folders."""
    folders: dict[str, Folder] = {}
    items: dict[str, list[Piece]] = {}
    for name, files in datasets.items():
        held = tuple((file, counts[file]) for file in files)
        recipe = {
            "stage": IMPORT,
            "version": VERSION,
            "settings": {
                **{k: v for k, v in asdict(settings).items() if k not in {"batch", "vocab"}},
                "files": {f.path.relative_to(root).as_posix(): asdict(c) for f, c in held},
            },
            "seed": None,
            "inputs": {},
        }
        path = BuildFolder(out).imported(name)
        folders[name] = Folder(name, Domain((name,)), 0, path, recipe)
        if folders[name].receipt is None:
            items[name] = _pieces(folders[name], held, settings)
    flat = [item for group in items.values() for item in group]
    results = iter(list(pool.map(_write_once, flat, IMPORT)) if flat else [])
    for name, group in items.items():
        own = [next(results) for _ in group]
        tokens = sum(counts[file].tokens for file in datasets[name])
        folders[name].seal(own, ImportAccount(rows=rows_in(own), tokens=tokens))
    return folders


def _pieces(
    folder: Folder, files: tuple[tuple[TokenFile, Counts], ...], settings: TokenSettings
) -> list[Piece]:
    tokens = sum(count.tokens for _, count in files)
    rows = -(-tokens // settings.msl)
    cuts = [*range(0, rows, settings.rows_per_shard), rows]
    folder.path.mkdir(parents=True, exist_ok=True)
    return [
        Piece(
            folder.mark,
            folder.name,
            files,
            cuts[i],
            cuts[i + 1],
            settings.msl,
            folder.path / shards.name(i),
        )
        for i in range(len(cuts) - 1)
    ]


def _write_once(item: Piece) -> Json:
    return once(item.mark, item.out, lambda: _write(item))


def _write(item: Piece) -> Json:
    """Write a shard and its spans; the result is their entries."""
    total = sum(count.tokens for _, count in item.files)
    start, stop = item.first * item.msl, min(item.last * item.msl + 1, total)
    here = _slice(item.files, start, stop)
    rows = item.last - item.first
    size = shards.block_rows(item.msl)
    blocks = (
        pack.cut(
            here.ids[a * item.msl : (a + size) * item.msl + 1], min(size, rows - a), item.msl, 0
        )
        for a in range(0, rows, size)
    )
    pieces = spans.cut(here.starts, start, min(item.last * item.msl, total), item.msl)
    count = len(pieces["row"])
    columns: dict[str, Any] = {
        **{name: pieces[name] for name in ("row", "start", "stop", "offset")},
        "document": here.numbers[pieces["document"]],
        "source": pa.array([item.name] * count).dictionary_encode(),
        **{name: np.full(count, value) for name, value in (("fim", 0), ("cut1", -1), ("cut2", -1))},
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in spans.SPANS]
    spans.write(spans.path_of(item.out), pa.table(arrays, schema=spans.SPANS))
    shard = shards.write(item.out, rows, blocks)
    return {"files": shard_entries(shard, item.out, "spans")}


def _slice(files: Sequence[tuple[TokenFile, Counts]], start: int, stop: int) -> Slice:
    """Read the ids [start, stop) of a stream."""
    ids: list[NDArray[np.int32]] = []
    starts: list[Ints] = []
    numbers: list[Ints] = []
    before, documents = 0, 0
    for file, count in files:
        begin, end = max(start, before), min(stop, before + count.tokens)
        if begin < end:
            lengths, values = file.read()
            ids.append(np.asarray(values[begin - before : end - before]).astype(np.int32))
            ends = before + np.cumsum(lengths)
            here = np.flatnonzero((ends > begin) & (ends - lengths < end) & (lengths > 0))
            starts.append((ends - lengths)[here])
            numbers.append(documents + here)
        before, documents = before + count.tokens, documents + count.documents
    return Slice(np.concatenate(ids), np.concatenate(starts), np.concatenate(numbers))
