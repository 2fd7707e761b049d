"""Estimates: about how many tokens a domain will have, from a few of its raw files.

The smallest files of each source are scanned whole: what their documents keep of each raw byte
stands for all files. The first megabytes of text are encoded, conversations as their domain writes
them: their tokens a byte stand for all, less what `too_long` leaves out of documents over a row.
Duplicates and lists are not looked for, so a domain may come out smaller.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from crystalmix.mixtures.build import drop_report
from crystalmix.mixtures.build.tokenise import most_of_conversation
from crystalmix.mixtures.manifest.build_folder import DOCUMENTS
from crystalmix.mixtures.recipes.recipe import Recipe
from crystalmix.prep.chat.encode import ChatEncoder
from crystalmix.prep.chat.settings import ChatSettings
from crystalmix.prep.documents.scan import scan
from crystalmix.prep.documents.source import Document, Source, blocks, identity, listing, read
from crystalmix.prep.packing import pieces
from crystalmix.prep.readers.batch import TEXT
from crystalmix.prep.rows.pack import PackSettings
from crystalmix.prep.tokenizer.tokenizer import Tokenizer, load

TokensOf = Callable[[str, str], int]  # of a text, and its place for a refusal
FILES = 2
SAMPLE_CHARACTERS = 4_000_000


def sampled(recipe: Recipe, root: Path, known: Collection[str] = ()) -> dict[str, int]:
    """Return the tokens that each domain is estimated to have; hub datasets are left out.

    known: domains that are left out, too.

    Raises InputError where raw files are missing or broken, RefusalError for a conversation of the
    sample that a domain's template can't write.
    """
    tokenizer = load(recipe.tokenizer)
    around = recipe.rows.bos + recipe.rows.eos
    local = {name: source for name, source in recipe.sources.items() if source.hub is None}
    domains = {name: domain for name, domain in recipe.domains.items() if name not in known}
    drawn = {name for domain in domains.values() for name in domain.sources}
    samples: dict[str, _Sample] = {}
    for name in (name for name in local if name in drawn):
        drop_report.tell_unread(recipe, root, local[name], listing(local[name], root))
        samples[name] = _sample(local[name], root)
    rates: dict[tuple[str, _Way], float] = {}
    estimates: dict[str, int] = {}
    for name, domain in domains.items():
        if any(source not in samples for source in domain.sources):
            continue
        rows = recipe.rows_of(name)
        lossy = rows.too_long in ("truncate", "drop")
        most = most_of_conversation(rows.content())
        way = _Way(domain.chat, most, rows if lossy else None, 0 if domain.chat else around)
        total = 0.0
        for source in domain.sources:
            sample, key = samples[source], (source, way)
            if key not in rates:
                rates[key] = _tokens_a_byte(sample, root, _counter(tokenizer, way))
            total += sample.bytes * rates[key] + sample.documents * way.around
        side = {"train": 1 - recipe.valid, "valid": recipe.valid, None: 1.0}[domain.split]
        copies = domain.epochs if domain.upsample is None else domain.upsample.mean
        estimates[name] = round(total * side * copies)
    return estimates


@dataclass(frozen=True)
class _Sample:
    """A source with the blocks that stand for it; bytes of text and documents that it may keep."""

    source: Source
    blocks: tuple[str, ...]
    documents: float
    bytes: float


@dataclass(frozen=True)
class _Way:
    """How a domain writes a text.

    chat, most: of conversations. lossy: rows that leave out what is too long. around: BOS and EOS
    of a document, which a conversation's template has itself.
    """

    chat: ChatSettings | None
    most: int | None
    lossy: PackSettings | None
    around: int


def _sample(source: Source, root: Path) -> _Sample:
    """Scan the smallest files of a source."""
    names = blocks(source, root)
    sizes = {block: identity(source, root, block).bytes for block in names}
    chosen = sorted((b for b in names if sizes[b]), key=lambda b: (sizes[b], b))[:FILES]
    with TemporaryDirectory(prefix="crystalmix-") as scratch:
        out = Path(scratch) / DOCUMENTS
        accounts = [scan(source, root, block, out) for block in chosen]
    drop_report.tell_sampled(source, accounts)
    raw = sum(sizes[block] for block in chosen)
    scale = sum(sizes.values()) / max(1, raw) * (source.select.sample or 1.0)
    count = sum(account.documents for account in accounts) * scale
    text = sum(account.bytes for account in accounts) * scale
    share = min(1.0, (source.select.limit or count) / max(1.0, count))
    return _Sample(source, tuple(chosen), share * count, share * text)


def _counter(tokenizer: Tokenizer, way: _Way) -> TokensOf:
    """Return what counts the ids of a text that are kept, without those around it."""
    encoder = None if way.chat is None else ChatEncoder(tokenizer, way.chat, way.most)

    def count(text: str, place: str) -> int:
        if encoder is None:
            sizes = [len(tokenizer.encode(text))]
        else:
            sizes = [len(piece.ids) for piece in encoder.encode(Document(0, 0, text), place)]
        if way.lossy is None:
            return sum(sizes)
        whole = np.array(sizes, np.int64) + way.around
        return int((pieces.kept(whole, way.lossy) - way.around).sum())

    return count


def _tokens_a_byte(sample: _Sample, root: Path, tokens_of: TokensOf) -> float:
    """Encode the first texts of some files; return how many tokens a byte has."""
    tokens = size = 0
    for block in sample.blocks:
        for batch in read(sample.source, root, block):
            column: Any = batch.table[TEXT]
            for text in column.to_pylist():
                if text and size < SAMPLE_CHARACTERS:
                    tokens += tokens_of(text, f"source {sample.source.name}: {block}")
                    size += len(text.encode())
            if size >= SAMPLE_CHARACTERS:
                return tokens / size
    return tokens / max(1, size)
