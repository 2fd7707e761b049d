"""The work items that a build fans out: one block or one shard each, done once and remembered.

An item is a small picklable description of its work. Its result is JSON, kept beside its output as
a `.done` file until the stage is sealed, so that a killed build goes on where it stopped. `mark` is
the digest of the folder's whole recipe: an item of another recipe is done again.
"""

import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from crystalmix.mixtures.build.tokenise import Side, encoder, prepared
from crystalmix.prep.crystalcoder.original_row_fim import LegacyFim, Turn
from crystalmix.prep.documents import scan as documents
from crystalmix.prep.documents.source import Source
from crystalmix.prep.filters.sample import Split
from crystalmix.prep.filters.screen import Screen
from crystalmix.prep.fim.document_fim import FimSettings
from crystalmix.prep.fim.row_fim import RowFim
from crystalmix.prep.rows import pack, shards, shuffle, spans
from crystalmix.prep.rows import token_blocks as blocks
from crystalmix.prep.rows.pack import Controls, PackSettings
from crystalmix.prep.rows.spans import path_of
from crystalmix.prep.runtime.receipts import describe, once, read
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.tokenizer.special_spellings import Literals
from crystalmix.prep.tokenizer.tokenizer import Tokenizer, TokenizerSettings, load


@dataclass(frozen=True)
class Scan:
    """Read one block of a source and write its documents."""

    mark: str
    source: Source
    root: Path
    block: str
    shape: str | None
    out: Path
    screen: Screen


@dataclass(frozen=True)
class Tokenise:
    """Encode the documents [first, last) of one block, for one domain and epoch."""

    mark: str
    source: Source
    root: Path
    block: str
    documents: Path
    rows: tuple[int, int]
    tokenizer: TokenizerSettings
    settings: PackSettings
    fim: FimSettings | None
    draw: tuple[int, str, int]  # seed, domain, epoch
    split: Split | None
    out: Path


@dataclass(frozen=True)
class Pack:
    """Cut the rows [first, last) of a stream of blocks to one shard.

    stream: the blocks that hold those rows' tokens; base: the position of their first token.
    """

    mark: str
    stream: tuple[blocks.Block, ...]
    base: int
    rows: tuple[int, int]
    settings: PackSettings
    pad: int
    controls: tuple[int, ...]
    out: Path


@dataclass(frozen=True)
class Permute:
    """Apply row-level FIM to one shard."""

    mark: str
    shard: Path
    first_row: int
    tokenizer: TokenizerSettings
    fim: FimSettings
    draw: tuple[int, str, int]
    turn: Turn  # whose draws they are in the original's dialect
    controls: tuple[int, ...]
    out: Path


@dataclass(frozen=True)
class Shuffle:
    """Write the rows [first, last) of the shuffled order of a domain's packed folders.

    order: a file of row numbers (.npy), where the order is no formula; the folders' shards are in
    the order of their names then.
    """

    mark: str
    folders: tuple[Path, ...]
    rows: tuple[int, int]
    seed: int | None
    domain: str
    order: Path | None
    out: Path


def scan(item: Scan) -> Json:
    """Do a Scan; the result is the block's account."""
    return _once(
        item.mark,
        item.out,
        lambda: documents.scan(
            item.source, item.root, item.block, item.shape, item.out, item.screen
        ),
    )


def tokenise(item: Tokenise) -> Json:
    """Do a Tokenise; the result is the block's account."""
    return _once(item.mark, item.out, lambda: _tokenise(item))


def _tokenise(item: Tokenise) -> Json:
    tokenizer = load(item.tokenizer)
    literals = Literals(tokenizer.added)
    encode = encoder(tokenizer, item.source, item.settings, item.fim, item.draw)
    controls = controls_of(tokenizer, item.settings)
    texts = documents.texts(item.source, item.root, item.block, item.documents, item.rows)
    side = None if item.split is None else Side(item.split)
    texts = texts if side is None else side.of(texts)
    chosen = prepared(texts, item.source, item.block, tokenizer, literals)
    framed = (pack.frame(encode(document), controls) for document in chosen)
    account = blocks.write(item.out, framed, vocab=tokenizer.vocab)
    told = {} if side is None else {"held_out": side.held_out, "bytes": side.bytes}
    return {**asdict(account), "literals": literals.account(), **told}


def controls_of(tokenizer: Tokenizer, settings: PackSettings) -> Controls:
    """Return the ids that packing adds; RecipeError if the tokenizer lacks one that is asked."""
    bos = tokenizer.id_of("bos") if settings.bos else None
    eos = tokenizer.id_of("eos") if settings.eos else None
    return Controls(bos, eos, tokenizer.pad)


def pack_shard(item: Pack) -> Json:
    """Do a Pack; the result is the shard's entry, its spans' entry and its account."""
    return _once(item.mark, item.out, lambda: _pack(item))


def _pack(item: Pack) -> Json:
    stream = blocks.Stream(item.stream, item.base)
    packed = pack.pack(stream, item.rows, item.settings, item.pad, item.controls, item.out)
    account = {name: getattr(packed, name) for name in ("tokens", "padding", "controls")}
    return {"files": _files(packed.shard, item.out, "spans"), "account": account}


def permute(item: Permute) -> Json:
    """Do a Permute; the result is the shard's entry, its spans' entry and its account."""
    return _once(item.mark, item.out, lambda: _permute(item))


def _permute(item: Permute) -> Json:
    tokenizer = load(item.tokenizer)
    if item.fim.dialect == "cerebras":
        shard, account = LegacyFim(tokenizer, item.fim, item.turn).apply(item.shard, item.out)
    else:
        work = RowFim(tokenizer, item.fim, *item.draw)
        shard, account = work.apply(item.shard, item.first_row, item.out)
    tokens = spans.tokens(path_of(item.out))
    padding = shard.rows * shard.msl - tokens
    counted = count_controls(item.out, item.controls, tokenizer.pad, padding)
    told = {**asdict(account), "tokens": tokens, "padding": padding, "controls": counted}
    return {"files": _files(shard, item.out, "spans"), "account": told}


def shuffle_shard(item: Shuffle) -> Json:
    """Do a Shuffle; the result is the shard's entry and its origin's entry."""

    def work() -> Json:
        inputs = shuffle_inputs(item.folders, item.mark, by_name=item.order is not None)
        if item.order is None:
            order = shuffle.order(inputs, item.rows, item.seed, item.domain)
        else:
            order = np.array(np.load(item.order, mmap_mode="r")[slice(*item.rows)])
        shard = shuffle.shuffle(inputs, order, item.out)
        return {"files": _files(shard, item.out, "origin")}

    return _once(item.mark, item.out, work)


@lru_cache(maxsize=4)
def shuffle_inputs(
    folders: tuple[Path, ...], _mark: str, *, by_name: bool = False
) -> tuple[shuffle.Input, ...]:
    """Return the shards of sealed folders in order (or by name), read from their receipts.

    The mark names the folders' content: folders built anew under their names are read anew.
    """
    found = [
        shuffle.Input(f"{folder.name}/{entry['name']}", folder / entry["name"], entry["rows"])
        for folder in folders
        for entry in read(folder)["files"]
        if entry["name"].endswith(".h5")
    ]
    return tuple(sorted(found, key=lambda item: item.name) if by_name else found)


def _files(shard: shards.Shard, out: Path, side: str) -> list[Json]:
    return [shard.entry(), describe(path_of(out, side))]


def count_controls(shard: Path, controls: tuple[int, ...], pad: int, padding: int) -> int:
    """Count the control ids among a shard's inputs, its padding left out."""
    wanted = np.array(controls, dtype=np.int32)
    found = sum(int(np.isin(block[:, 0], wanted).sum()) for block in shards.blocks(shard))
    return found - (padding if pad in controls else 0)


def _once(mark: str, out: Path, work: Any) -> Json:  # noqa: ANN401  () -> Json
    done = out.with_name(f"{out.name}.done")
    if not out.exists():
        done.unlink(missing_ok=True)  # the output was taken away: what was done is undone
    with naming(out):
        return once(done, [mark, out.name], work)


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Give an error of the disk (full, too large) the name of what was being written.

    h5py raises RuntimeError where closing fails, and hides the number in the message.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        told: int | str | None = getattr(error, "errno", None)
        if told is None and (found := re.search(r"errno *=? *(\d+)", str(error))):
            told = found[1]
        if told is None or getattr(error, "filename", None) is not None:
            raise
        raise OSError(int(told), os.strerror(int(told)), str(path)) from None
