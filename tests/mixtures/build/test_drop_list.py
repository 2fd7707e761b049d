"""The list of what was dropped: by the command line, whole or not at all, for fresh sources too."""

from collections import Counter
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest

from crystalmix.mixtures.build import drop_report
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import UsageError
from helpers import corpora


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("corpus")
    corpora.write_corpus(made)
    corpora.write_recipe(
        made, duplicates={"exact": "source"}, sources={"web": {"select": {"limit": 30}}}
    )
    return made


def test_build_writes_every_dropped_record_beside_the_build(folder: Path) -> None:
    recipe, out = folder / "recipe.yaml", folder / "build"
    done = corpora.crystalmix("build", recipe, "--out", out, "--dropped", folder / "all.parquet")
    assert done.exit_code == 0, done.output
    rows = pq.read_table(folder / "all.parquet").to_pylist()
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row["source"], Counter())[row["reason"]] += 1
    for path in sorted((out / "sources").iterdir()):
        assert receipts.read(path).account["dropped"] == counts.get(path.name, {})
    assert counts["web"] == {"where": 84, "no_text": 3, "blank": 3, "limit": 6}
    assert corpora.crystalmix("verify", out).exit_code == 0
    told = corpora.crystalmix("show", out).stdout
    assert "limit 6" in told


def test_sources_that_are_fresh_are_listed_too(folder: Path) -> None:
    recipe, out = folder / "recipe.yaml", folder / "build"
    for name in ("one.jsonl", "two.jsonl"):
        done = corpora.crystalmix("build", recipe, "--out", out, "--dropped", folder / name)
        assert done.exit_code == 0, done.output
    lines = (folder / "one.jsonl").read_bytes()
    assert lines == (folder / "two.jsonl").read_bytes()
    first = orjson.loads(lines.splitlines()[0])
    assert list(first) == ["source", "file", "record", "reason", "digest", "name", "detail"]
    assert first["reason"] == "where"
    assert len(first["digest"]) == 32


@pytest.mark.parametrize("name", ["all.csv", "none/all.jsonl", "taken.parquet"])
def test_a_list_that_cant_be_written_is_refused_before_the_build(tmp_path: Path, name: str) -> None:
    (tmp_path / "taken.parquet").mkdir()
    corpora.write_corpus(tmp_path)
    recipe, path = corpora.write_recipe(tmp_path), tmp_path / name
    done = corpora.crystalmix("build", recipe, "--out", tmp_path / "out", "--dropped", path)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"crystalmix: --dropped {path}: must ")
    assert not (tmp_path / "out").exists()


def test_a_list_is_there_when_it_is_whole(folder: Path, tmp_path: Path) -> None:
    drop_report.check_list(None)
    path = tmp_path / "all.jsonl"
    path.write_text("from before")
    with pytest.raises(FileNotFoundError):
        drop_report.write_list({"web": folder / "build/sources/web", "x": tmp_path / "none"}, path)
    assert path.read_text() == "from before"
    assert [p.name for p in tmp_path.iterdir()] == ["all.jsonl"]
    drop_report.write_list({}, path)
    assert path.read_bytes() == b""
    with pytest.raises(UsageError, match=r"must end in .parquet or .jsonl"):
        drop_report.check_list(tmp_path / "x")
