"""Each raw file is opened at most three times, however many sources, domains and epochs read it.

Counted by the kernel (inotify), so that workers and what Arrow opens itself are seen.
"""

import ctypes
import os
import struct
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow.parquet as pq
import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.prep.tokenizer.tokenizer import Tokenizer
from helpers import corpora

OPEN, CLOSE = 0x20, 0x08 | 0x10  # of a file; a close between two opens keeps them two events
HEAD = struct.Struct("iIII")
MOST = 3  # for its digest, for documents, for tokens
JSONL = {"files": ["slimpajama/train"]}
PARQUET: dict[str, Any] = {"files": ["starcoderdata/python"], "text": "content"}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")


@contextmanager
def opens(folder: Path) -> Generator[Counter[str]]:
    """Count the opens of each file below a folder, by any process; whole at the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_CLOEXEC)
    places = {
        libc.inotify_add_watch(watch, os.fsencode(place), OPEN | CLOSE): place
        for place in (folder, *(path for path in folder.rglob("*") if path.is_dir()))
    }
    assert min(places) > 0, os.strerror(ctypes.get_errno())
    counts, last = Counter[str](), folder / "last"

    def read() -> None:
        while True:
            data = os.read(watch, 1 << 16)
            while data:
                number, mask, _, size = HEAD.unpack_from(data)
                name = os.fsdecode(data[HEAD.size : HEAD.size + size].rstrip(b"\0"))
                data = data[HEAD.size + size :]
                if name == last.name:
                    return
                if mask & OPEN and name and not (places[number] / name).is_dir():
                    counts[(places[number] / name).relative_to(folder).as_posix()] += 1

    reader = Thread(target=read, daemon=True)
    reader.start()
    try:
        yield counts
    finally:
        last.touch()
        reader.join(10)
        os.close(watch)
    assert not reader.is_alive()


@pytest.mark.parametrize(("kind", "workers"), [("jsonl", 2), ("parquet", 1)])
def test_seven_sources_open_a_raw_file_three_times_at_most(
    tmp_path: Path, kind: str, workers: int
) -> None:
    corpora.write_corpus(tmp_path)
    common = JSONL if kind == "jsonl" else PARQUET
    texts = "text" if kind == "jsonl" else "content"
    names = [f"s{number}" for number in range(7)]
    wheres = {f"s{i}": {"where": f"length({texts}) % 7 <> {i}"} for i in range(1, 7)}
    fim = {"fim": {"rate": 0.5}, "epochs": 2}
    path = corpora.write_recipe(
        tmp_path,
        sources={
            **dict.fromkeys(corpora.RECIPE["sources"]),
            **{n: {**common, **wheres.get(n, {})} for n in names},
        },
        domains={
            **dict.fromkeys(corpora.RECIPE["domains"]),
            **{n: {"sources": [n], **fim} for n in names},
        },
        phases={
            **dict.fromkeys(corpora.RECIPE["phases"]),
            "all": {
                "steps": 4,
                "batch": 7,
                "max_shared": 1,
                "parts": [{"domain": name, "weight": 1} for name in names],
                "normalise": True,
            },
        },
    )
    recipe = recipes.load(path)
    raw = tmp_path / common["files"][0]
    with opens(raw) as counts:
        build(recipe, tmp_path, tmp_path / "build", workers=workers)
    files = {p.relative_to(raw).as_posix() for p in raw.rglob("*") if p.is_file()} - {"last"}
    assert counts.keys() == files
    assert max(counts.values()) <= MOST, counts
    (raw / "last").unlink()
    with opens(raw) as counts:
        build(recipe, tmp_path, tmp_path / "build", workers=workers)
    assert counts == {}


def test_a_document_is_encoded_once_for_all_domains_and_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora.write_corpus(tmp_path)
    encode, counts = Tokenizer._whole, Counter[str]()

    def counted(tokenizer: Tokenizer, text: str) -> Any:
        counts[text] += 1
        return encode(tokenizer, text)

    monkeypatch.setattr(Tokenizer, "_whole", counted)
    recipe = recipes.load(corpora.write_recipe(tmp_path))  # python's files are in `code`, twice
    build(recipe, tmp_path, tmp_path / "build", phases=["code"])
    files = (tmp_path / "starcoderdata/python").glob("*.parquet")
    texts = [t for file in files for t in pq.read_table(file)["content"].to_pylist() if t]
    assert {counts[text] for text in texts} == {1}
