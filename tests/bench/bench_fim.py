"""Measure fill-in-the-middle on real text, in CPU-seconds of one process.

    python tests/bench_fim.py TOKENIZER [TEXTS]

TOKENIZER: a tokenizer.json with FIM tokens. TEXTS: a folder of parquet (`content`) or JSON lines
(`text`) to pack and permute; without it, the corpus beside the checkout, or made-up programs.
Rows are timed without reading and writing shards; every pair of ways is compared before it is told.
"""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
import pyarrow.parquet as pq
import tokenizers
import xxhash

from crystalmix.prep.crystalcoder.original_row_fim import LegacyFim, Turn
from crystalmix.prep.crystalcoder.original_row_text import decode
from crystalmix.prep.documents.source import Document
from crystalmix.prep.fim import row_fim as rowfim
from crystalmix.prep.fim.document_fim import DocumentFim, FimSettings
from crystalmix.prep.fim.row_spans import BLOCK_ROWS
from crystalmix.prep.fim.segments import Segments
from crystalmix.prep.tokenizer.tokenizer import Tokenizer, TokenizerSettings, load

Result = TypeVar("Result")
MSL, ROWS, MEGABYTES, ROUNDS = 2048, 2400, 24, 3
DEFAULT = Path(__file__).parents[2].parent / "shared" / "corpora" / "dev" / "starcoderdata"


def measured(work: Callable[[], Result]) -> tuple[Result, float]:
    """Run something and return its result and its CPU-seconds."""
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def texts(folder: Path) -> list[str]:
    """Return texts of a folder, files in turn, up to some megabytes."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".parquet", ".jsonl"))
    found: list[str] = []
    for each in zip(*map(read, files), strict=False):
        found += each
    found += [text for path in files for text in read(path)][len(found) :]
    sizes = np.cumsum([len(text.encode()) for text in found])
    return found[: int(np.searchsorted(sizes, MEGABYTES * 1e6)) + 1]


def read(path: Path) -> Iterator[str]:
    """Yield the texts of a file."""
    if path.suffix == ".parquet":
        yield from filter(None, pq.read_table(path, columns=["content"])["content"].to_pylist())
    else:
        yield from (orjson.loads(line)["text"] for line in path.read_bytes().splitlines())


def made_up() -> list[str]:
    """Return programs of random words."""
    rng = np.random.default_rng(0)
    words = np.array(["value", "index", "result", "items", "total", "name", "config", "parse"])
    line = "    {0}_{1} = {2}({3}, {4})\n"
    return [
        f"def {words[i % 8]}(x):\n"
        + "".join(line.format(*rng.choice(words, 4), i) for _ in range(80))
        for i in range(4000)
    ]


def in_pieces(text: str) -> Iterator[str]:
    """Yield a text as the original tokenised it, some 2,000 characters at a time."""
    while text:
        place = text.find(" ", 2000)
        piece, text = (text, "") if place < 0 else (text[:place], text[place:])
        yield piece


def rows(tokenizer: Tokenizer, given: list[str], *, pieces: bool) -> np.ndarray:
    """Pack texts to rows: (rows, 3, MSL), as many as are measured at most."""
    bos, eos = tokenizer.id_of("bos"), tokenizer.id_of("eos")
    parts: list[np.ndarray] = []
    size = 0
    for text in given:
        cut = in_pieces(text) if pieces else [text]
        parts += [[bos], *(tokenizer.encode(piece) for piece in cut), [eos]]  # type: ignore[list-item]
        size += len(text) // 5
        if size > ROWS * MSL * 2:
            break
    flat = np.concatenate([np.asarray(part, np.int32) for part in parts])
    count = min(ROWS, (len(flat) - 1) // MSL)
    out = np.ones((count, 3, MSL), dtype=np.int32)
    out[:, 0] = flat[: count * MSL].reshape(count, MSL)
    out[:, 2] = flat[1 : count * MSL + 1].reshape(count, MSL)
    return out


def original(tokenizer: Tokenizer, given: np.ndarray, settings: FimSettings) -> np.ndarray:
    """Permute rows as the original's algorithm does: decode, draw, cut, encode with tokenizers."""
    model = tokenizers.Tokenizer.from_str(tokenizer.raw.decode())
    random = np.random.RandomState(0)
    prefix, middle, suffix = (tokenizer.id_of(f"fim_{n}") for n in ("prefix", "middle", "suffix"))
    bos, eos, pad = tokenizer.id_of("bos"), tokenizer.id_of("eos"), tokenizer.pad
    encode: Any = lambda text: model.encode(text, add_special_tokens=False).ids  # noqa: E731

    def part(ids: list[int]) -> list[int]:
        if not random.binomial(1, settings.rate):
            return ids
        with_bos = ids[:1] == [bos]  # today's library leaves out a space after it
        text = decode(tokenizer, ids) if with_bos else model.decode(ids, skip_special_tokens=False)
        low, high = sorted(random.randint(0, len(text) + 1, size=2))
        a, b, c = encode(text[:low]), encode(text[low:high]), encode(text[high:])
        if random.binomial(1, settings.spm_rate):
            return [prefix, suffix, *c, middle, *a, *b]
        return [prefix, *a, suffix, *c, middle, *b]

    out = np.empty_like(given)
    for number, row in enumerate(given):
        ids: list[int] = []
        inner: list[int] = []
        for token in row[0].tolist():
            if token != eos:
                inner.append(token)
            elif inner:
                ids += [*part(inner), eos]
                inner = []
        ids += part(inner)
        fill = [pad] * (MSL - len(ids))
        mask = [1] * min(MSL, len(ids)) + [0] * len(fill)
        out[number] = [[*ids, *fill][:MSL], mask, [*ids[1:], eos, *fill][:MSL]]
    return out


def cerebras(tokenizer: Tokenizer, given: np.ndarray, settings: FimSettings) -> list[np.ndarray]:
    """Permute rows by `legacyfim`."""
    work, random = LegacyFim(tokenizer, settings, Turn(0, 1, 0)), np.random.RandomState(0)
    out: list[np.ndarray] = []
    for first in range(0, len(given), BLOCK_ROWS):
        block = given[first : first + BLOCK_ROWS]
        used = np.full(len(block), MSL)
        out.append(
            work.rebuild(block, used, work.permute(block, used, partial(work.draw, random))[1])
        )
    return out


def blocks(tokenizer: Tokenizer, given: np.ndarray) -> list[tuple[np.ndarray, Segments]]:
    """Return rows by block, with the pieces of documents they hold."""
    bos, eos = tokenizer.id_of("bos"), tokenizer.id_of("eos")
    found: list[tuple[np.ndarray, Segments]] = []
    for first in range(0, len(given), BLOCK_ROWS):
        block = given[first : first + BLOCK_ROWS]
        ids = np.ascontiguousarray(block[:, 0]).reshape(-1)
        start = np.union1d(np.arange(0, len(ids), MSL), np.flatnonzero(ids == eos) + 1)
        start = start[start < len(ids)]
        stop = np.append(start[1:], len(ids))
        segments = Segments(ids, len(block), start // MSL, start, stop, ids[start] == bos)
        found.append((block, segments))
    return found


def exact(
    tokenizer: Tokenizer, given: list[tuple[np.ndarray, Segments]], settings: FimSettings
) -> None:
    """Permute rows by `rowfim`, block by block and none of them kept, as a shard is written."""
    work = rowfim.RowFim(tokenizer, settings, 0, "all", 0)
    pad, loss = tokenizer.pad, settings.loss
    for i, (block, segments) in enumerate(given):
        numbers = np.arange(len(block)) + i * BLOCK_ROWS
        rowfim.rebuild(block, segments, work.permute(segments, numbers), pad, loss)


def told(name: str, tokens: float, seconds: list[float]) -> None:
    """Write one line: the median of some rounds."""
    middle = sorted(seconds)[len(seconds) // 2]
    sys.stdout.write(f"{name:42s} {tokens / middle:8.2f} M tokens/CPU-s\n")


def on_rows(tokenizer: Tokenizer, given: list[str]) -> None:
    """Time FIM on rows."""
    row = FimSettings(0.9, level="row")
    legacy = FimSettings(0.9, level="row", dialect="cerebras")
    old, new = (rows(tokenizer, given, pieces=pieces) for pieces in (True, False))
    parts = blocks(tokenizer, new)
    ways: dict[str, Callable[[], Any]] = {
        "row, as the original: plain reference": lambda: original(tokenizer, old, legacy),
        "row, as the original: cerebras": lambda: cerebras(tokenizer, old, legacy),
        "row, exact, characters": lambda: exact(tokenizer, parts, row),
        "row, exact, tokens": lambda: exact(
            tokenizer, parts, FimSettings(0.9, level="row", cut="token")
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        made = {name: measured(work) for name, work in ways.items()}
        (one, _), (other, _) = list(made.values())[:2]
        if not np.array_equal(one, np.concatenate(other)):
            raise SystemExit("cerebras rows are not those of the plain reference")
        for name, (_, seconds) in made.items():
            times[name].append(seconds)
    for name, seconds in times.items():
        told(name, len(old) * MSL / 1e6, seconds)


def on_documents(tokenizer: Tokenizer, given: list[str]) -> None:
    """Time FIM on documents beside tokenising alone, document by document in turn."""
    # Each with a tokenizer of its own: neither finds the words that the other remembers.
    plain, other = (Tokenizer(tokenizer.settings, tokenizer.raw) for _ in range(2))
    encode = DocumentFim(other, FimSettings(0.9), 0, "all", 0)
    documents = [
        Document(i, xxhash.xxh3_64_intdigest(text.encode()), text) for i, text in enumerate(given)
    ]
    ways: tuple[Callable[[Document], Any], ...] = (lambda each: plain.encode(each.text), encode)
    seconds, tokens, half = [0.0, 0.0], 0, len(documents) // 4
    for number, document in enumerate(documents):
        for way in (0, 1) if number % 2 else (1, 0):
            made, taken = measured(lambda run=ways[way], each=document: run(each))
            if number >= half:  # those before warm both
                seconds[way] += taken
                tokens += len(made) if way == 0 else 0
    alone, permuted = seconds
    told("documents, tokenising alone", tokens / 1e6, [alone])
    told("documents, tokenising and FIM", tokens / 1e6, [permuted])
    sys.stdout.write(f"documents: FIM takes {permuted / alone:.2f} times the CPU of tokenising\n")


def main(path: str, folder: str | None = None) -> None:
    """Print M tokens per CPU-second of every kind of FIM."""
    tokenizer = load(TokenizerSettings(path))
    place = Path(folder) if folder else DEFAULT
    given = texts(place) if place.exists() else made_up()
    on_rows(tokenizer, given)
    on_documents(tokenizer, given)


if __name__ == "__main__":
    main(*sys.argv[1:])
