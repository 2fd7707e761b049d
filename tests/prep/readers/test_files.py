"""Raw files behind urls are read as files are, and every name leads back to its file."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalmix.prep.documents import source as sources
from crystalmix.prep.documents.source import Source
from crystalmix.prep.readers import files as rawfiles
from crystalmix.prep.runtime.errors import InputError, MachineError, RecipeError
from helpers.materials import raw
from helpers.scans import ROWS, TEXTS, Scanned, arrow_file, texts


@pytest.fixture
def memory() -> Iterator[Any]:
    files: Any = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def served(folder: Path, files: Any) -> None:
    for path in folder.iterdir():
        files.pipe(f"/data/{path.name}", path.read_bytes())


def formats(folder: Path) -> list[str]:
    """Write the same rows in several formats and return the names."""
    for name in ("a.jsonl", "b.jsonl.gz", "c.ndjson.zst", "d.json.bz2"):
        raw(folder / name, ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "e.parquet")
    arrow_file(folder / "f.arrow", stream=False)
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("pattern", ["memory://data", "memory://data/*.*"])
def test_urls_are_listed_and_read_as_files_are(tmp_path: Path, memory: Any, pattern: str) -> None:
    (tmp_path / "raw").mkdir()
    names = formats(tmp_path / "raw")
    served(tmp_path / "raw", memory)
    memory.pipe("/data/.hidden.jsonl", b"no data")
    memory.pipe("/data/README", b"no data")
    made = Scanned(tmp_path, Source("s", files=(pattern,), where="n < 99"))
    assert made.blocks == [f"memory:///data/{name}" for name in names]
    assert texts(made) == TEXTS[:99] * len(names)


def test_a_url_below_the_file_scheme_is_read(tmp_path: Path) -> None:
    raw(tmp_path / "a-1.jsonl.zst", ROWS[:5])
    url = f"file://{tmp_path}"
    made = Scanned(tmp_path / "elsewhere", Source("s", files=(url,), half="odd"))
    assert made.blocks == [f"{url}/a-1.jsonl.zst"]
    assert texts(made) == TEXTS[:5]


def test_a_url_is_stamped_by_its_version_and_digested_by_its_bytes(
    tmp_path: Path, memory: Any
) -> None:
    content = raw(tmp_path / "a.jsonl", ROWS[:5]).read_bytes()
    memory.pipe("/data/a.jsonl", content)
    source = Source("s", files=("memory://data",))
    [name] = sources.blocks(source, tmp_path)
    stamp = sources.identity(source, tmp_path, name)
    assert stamp == sources.identity(source, tmp_path, name)
    assert stamp.bytes == len(content)
    assert stamp.modified is not None
    assert sources.digest(source, tmp_path, name) == rawfiles.digest(tmp_path, "a.jsonl")
    memory.pipe("/data/a.jsonl", content)
    assert stamp != sources.identity(source, tmp_path, name)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "raw").mkdir()
    handler = partial(Quiet, directory=str(tmp_path / "raw"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def test_files_of_a_server_are_read(tmp_path: Path, server: str) -> None:
    names = formats(tmp_path / "raw")
    source = Source("s", files=tuple(f"{server}/{name}" for name in names), where="n < 99")
    made = Scanned(tmp_path, source)
    assert texts(made) == TEXTS[:99] * len(names)
    assert sources.digest(source, tmp_path, made.blocks[0]) == rawfiles.digest(
        tmp_path / "raw", "a.jsonl"
    )
    stamp = sources.identity(source, tmp_path, made.blocks[0])
    assert stamp.bytes == (tmp_path / "raw" / "a.jsonl").stat().st_size
    assert stamp.modified is not None


def test_what_a_server_has_not_is_told(tmp_path: Path, server: str) -> None:
    with pytest.raises(InputError, match=r"none.jsonl matches no file"):
        sources.blocks(Source("s", files=(f"{server}/none.jsonl",)), tmp_path)
    with pytest.raises(MachineError, match=r"none.jsonl: can't be read"):
        list(sources.read(Source("s"), tmp_path, f"{server}/none.jsonl"))


def test_a_scheme_that_nothing_opens_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nosuch://a/b.jsonl: can't be opened"):
        sources.blocks(Source("s", files=("nosuch://a/b.jsonl",)), tmp_path)


@given(st.text(st.characters(exclude_categories=[]), max_size=20))
def test_a_name_leads_back_to_its_path(path: str) -> None:
    decodable = "".join(c for c in path if not "\ud800" <= c <= "\udfff") + "\udcff"
    name = rawfiles.escaped(decodable)
    assert rawfiles.unescaped(name) == decodable
    assert name.encode()
    assert "\n" not in name
