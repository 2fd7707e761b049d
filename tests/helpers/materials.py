"""What the tests of prep share: texts that break things, tokenizers, raw files of every kind."""

import bz2
import lzma
import os
import tarfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import xxhash
import zstandard
from hypothesis import strategies as st
from isal import igzip
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from crystalmix.prep.documents.source import Document
from crystalmix.prep.rows import shards
from crystalmix.prep.rows.token_blocks import Encoded
from crystalmix.prep.tokenizer import train_bpe as bpe
from crystalmix.prep.tokenizer.tokenizer import Tokenizer, TokenizerSettings, load

SHARED = Path(__file__).parents[2].parent / "shared" / "reference"
SPECIALS = ("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>")
SPELT = ("<s>", "</s>", "<unk>", "<0x0A>", *bpe.FIM, *SPECIALS)
# Pieces of text that a tokenizer, a cut or a reader of lines may stumble over.
PIECES = (
    *SPELT,
    *(" ", "  ", "\t", "\n", "\r\n", "\r", "▁", " ▁", "\u2028", "\x85", "\x00", "\ufeff", "\xa0"),
    *(
        "日本語",
        "テキスト",
        "한국어",
        "é",
        "e\u0301",
        "Zürich",
        "👩‍👩‍👧‍👦",
        "🇨🇭",
        "𝔘",
        "naïve",
        "\ufffd",
    ),
    *("def f(x):\n", "    return x", "a", "B", "7", "the quick brown fox", ";", "{", "lattice"),
)
TRAINING = (
    "def f(x):\n    return x\n" * 9,
    "the quick brown fox jumps over the lattice " * 9,
    "日本語のテキスト 日本語 naïve Zürich é" * 9,
    "<s> </s> <|fim_prefix|> <fim_middle> <|endoftext|> " * 5,
)

texts = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=24).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)


def shared(*names: str) -> Path:
    """Return a file or folder of ../shared/reference; skip without it, but fail in CI."""
    path = SHARED.joinpath(*names)
    if not path.exists():
        reason = f"{path}: the reference is not here"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return path


def nasty(folder: Path) -> Path:
    """Unpack the nasty corpus into a folder; skip without it, but fail in CI."""
    archive = shared().parent / "corpora" / "nasty.tar.gz"
    if not archive.exists():
        reason = f"{archive}: the nasty corpus is not here"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="fully_trusted")
    return folder / "nasty"


def llama() -> Tokenizer:
    """Return the tokenizer of the original: 32,000 pieces, no FIM tokens."""
    return load(TokenizerSettings(str(shared("tokenizer", "llama-32000.json"))))


def crystal() -> Tokenizer:
    """Return CrystalCoder's tokenizer: llama's with 22 added tokens."""
    return load(TokenizerSettings(str(shared("tokenizer", "crystal-32022.json"))))


@lru_cache(maxsize=1)
def small() -> Tokenizer:
    """Return a Llama-style tokenizer of 400 pieces."""
    return made(bpe.train(TRAINING, 400))


@lru_cache(maxsize=2)
def byte_level(*, prefix_space: bool = False) -> Tokenizer:
    """Return a byte-level tokenizer as GPT-2's; some of its pieces hold parts of characters."""
    return _byte_level([pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)])


@lru_cache(maxsize=1)
def starcoder_like() -> Tokenizer:
    """Return a byte-level tokenizer that splits digits first."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    return _byte_level([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


@lru_cache(maxsize=1)
def llama_3_like() -> Tokenizer:
    """Return a byte-level tokenizer with Llama 3's pattern, whole words taken as they are."""
    return _byte_level(_split(r"\p{N}{1,3}"), ignore_merges=True)


@lru_cache(maxsize=1)
def qwen_like() -> Tokenizer:
    """Return a byte-level tokenizer with Qwen's pattern and normal form."""
    return _byte_level(_split(r"\p{N}"), normalizer=normalizers.NFC())


@lru_cache(maxsize=1)
def metaspace() -> Tokenizer:
    """Return a Llama-style tokenizer whose dummy space comes from its pre-tokenizer."""
    content = orjson.loads(small().raw)
    content["normalizer"] = None
    content["pre_tokenizer"] = {
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False,
    }  # fmt: skip
    return made(content)


def _split(digits: str) -> list[Any]:
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits +
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )  # fmt: skip
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    return [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


def _byte_level(steps: list[Any], normalizer: Any = None, **settings: Any) -> Tokenizer:
    model = tokenizers.Tokenizer(models.BPE(**settings))
    model.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    model.decoder = decoders.ByteLevel()
    if normalizer is not None:
        model.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(TRAINING, trainer)
    return made(model.to_str().encode())


def made(raw: bytes | dict[str, Any], **settings: Any) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json at hand."""
    content = raw if isinstance(raw, bytes) else orjson.dumps(raw)
    return Tokenizer(TokenizerSettings("here", **settings), content)


Make = Callable[[], Tokenizer]

# Those that give a text back as it was, and those of them that know FIM.
TOKENIZERS: dict[str, Make] = {
    "llama": llama,
    "crystal": crystal,
    "small": small,
    "byte-level": byte_level,
}
FIM_TOKENIZERS = {name: make for name, make in TOKENIZERS.items() if name != "llama"}

# Every kind that is met: Llama's and byte-level ones, normalisers and added tokens of all sorts.
KINDS: dict[str, Make] = {
    "llama": llama,
    "crystal": crystal,
    "small": small,
    "metaspace": metaspace,
    "gpt-2": byte_level,
    "gpt-2 with a space": lambda: byte_level(prefix_space=True),
    "starcoder": starcoder_like,
    "llama 3": llama_3_like,
    "qwen": qwen_like,
}


def whole(document: Encoded) -> list[int]:
    """Return all ids of a document, those that the packer put around it too."""
    first, last = document.around
    return [*first.tolist(), *document.ids.tolist(), *last.tolist()]


def raw(path: Path, records: Sequence[dict[str, Any] | bytes]) -> Path:
    """Write records (or lines as they are) to a file of the kind that its suffix tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(records)), path)
        return path
    lines = [line if isinstance(line, bytes) else orjson.dumps(line) for line in records]
    path.write_bytes(squeezed(path, b"".join(line + b"\n" for line in lines)))
    return path


def squeezed(path: Path, content: bytes) -> bytes:
    """Compress as the suffix of a path tells."""
    if path.suffix == ".gz":
        return igzip.compress(content)
    if path.suffix in (".zst", ".zstd"):
        return zstandard.compress(content)
    if path.suffix == ".bz2":
        return bz2.compress(content)
    if path.suffix == ".xz":
        return lzma.compress(content)
    return content


def names(folder: Path) -> list[str]:
    """Return the names of what a folder holds, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def content_digest(shard: Path) -> str:
    """The sha256 over a shard's decoded array, read again from its file."""
    content = sha256()
    for block in shards.blocks(shard):
        content.update(np.ascontiguousarray(block, dtype="<i4").data)
    return content.hexdigest()


def document(text: str, number: int = 0) -> Document:
    digest = xxhash.xxh3_128_intdigest(text.encode()) % 2**64
    return Document(number, digest, text)
