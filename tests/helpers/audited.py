"""A build and a run whose documents can be told by their ids alone: the oracle of audits.

Four repositories are added to the small corpus. Their texts are made of letters that no other text
has, one letter for each repository, so that every row says by itself whose pieces it holds.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from crystalmix.prep.tokenizer.tokenizer import Tokenizer, TokenizerSettings, load
from crystalmix.train.trainer import session
from helpers.corpora import built, tokenizer, write_corpus, write_recipe
from helpers.runs import run_file, scratch

# letter of each repository; `copy/cat` holds the text of `seen/twice`, and comes later
LETTERS = {"seen/twice": "ж", "Owner/One": "щ", "owner/two": "щ", "owner2/other": "ю"}
WORD = {"ж": "жжя", "щ": "щщл", "ю": "ююм"}
ABSENT = "not/there"
PHASES = ("prose", "mixed", "code")
LIST = f"""# a list
seen/twice
copy/cat
owner/
{ABSENT}
"""


def text_of(letter: str, words: int) -> str:
    return WORD[letter] * words


def rows() -> list[dict[str, str]]:
    texts = {name: text_of(letter, 40 + 9 * i) for i, (name, letter) in enumerate(LETTERS.items())}
    texts["copy/cat"] = texts["seen/twice"]
    return [
        {"max_stars_repo_path": "src/a.py", "max_stars_repo_name": name, "content": text}
        for name, text in texts.items()
    ]


@lru_cache(maxsize=1)
def audited_build() -> Path:
    """Return the build; nobody may change it."""
    folder = scratch()
    write_corpus(folder)
    path = folder / "starcoderdata/python/train-00000-of-00002.parquet"
    table = pq.read_table(path)
    more = pa.Table.from_pylist(rows())
    pq.write_table(pa.concat_tables([table, more], promote_options="default"), path)
    write_recipe(folder, duplicates={"exact": "source"})
    return built(folder)


@lru_cache(maxsize=1)
def audited_run() -> Path:
    """Return a run of all three phases; nobody may change it."""
    out = scratch() / "run"
    session.train(audited_build(), str(run_file()), out, say=lambda _: None)
    return out


@lru_cache(maxsize=1)
def loaded() -> Tokenizer:
    return load(TokenizerSettings(str(audited_build() / "tokenizer.json")))


@lru_cache(maxsize=4)
def marks(letter: str) -> frozenset[int]:
    """Return the ids that only texts of a letter have."""
    assert tokenizer()
    ids = {word: set(loaded().encode(text_of(word, 30)).tolist()) for word in WORD}
    others = set().union(*(ids[word] for word in WORD if word != letter))
    return frozenset(ids[letter] - others)


def ledger_rows(run: Path, phase: str) -> Iterator[tuple[int, int, int, str, int]]:
    """Yield step, slot, epoch, shard and row of every recorded row, as parquet has them."""
    for path in sorted((run / phase / "ledger").glob("rows-*.parquet")):
        table = pq.read_table(path)
        columns = (table[name].to_pylist() for name in ("step", "slot", "epoch", "shard", "row"))
        yield from zip(*columns, strict=True)


def row_of(build: Path, shard: str, row: int) -> np.ndarray:
    """Return a row as h5py reads it: (3, msl) int32."""
    with h5py.File(build / shard) as file:
        return file["data"][row]


def segments(ids: list[int]) -> list[list[int]]:
    """Cut a row's ids before every BOS: the pieces of documents."""
    pieces: list[list[int]] = [[]]
    for number in ids:
        if number == loaded().id_of("bos"):
            pieces.append([])
        pieces[-1].append(number)
    return [piece for piece in pieces if piece]


def held(build: Path, shard: str, row: int, letter: str) -> list[int]:
    """Return the tokens of each piece of a letter in a row."""
    pieces = segments(row_of(build, shard, row)[0].tolist())
    return [len(piece) for piece in pieces if marks(letter) & set(piece)]


def recounted(run: Path, build: Path, phase: str, letter: str) -> dict[str, object]:
    """Count the exposures of a phase to a letter from decoded rows alone."""
    seen = [
        (step, slot, epoch, tokens)
        for step, slot, epoch, shard, row in ledger_rows(run, phase)
        for tokens in held(build, shard, row, letter)
    ]
    steps = sorted({step for step, *_ in seen})
    return {
        "rows": len({(step, slot) for step, slot, *_ in seen}),
        "pieces": len(seen),
        "tokens": sum(tokens for *_, tokens in seen),
        "epochs": tuple(sorted({epoch for _, _, epoch, _ in seen})),
        "steps": len(steps),
        "first": steps[0] if steps else None,
        "last": steps[-1] if steps else None,
    }


def inflated(raw: bytes) -> bytes:
    """Return what the zstd frames at the head of some bytes hold."""
    held = b""
    while raw.startswith(b"\x28\xb5\x2f\xfd"):
        frame = zstandard.ZstdDecompressor().decompressobj()
        held += frame.decompress(raw)
        raw = frame.unused_data
    return held
