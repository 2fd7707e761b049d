"""Verify on rows of others: every file told, sound ones with their digests, by the command line."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from crystalmix.cli import main
from crystalmix.mixtures.verify import foreign_shards as foreign
from crystalmix.prep.rows import shards
from crystalmix.prep.rows.pack import cut
from helpers.materials import SHARED

NASTY = SHARED.parent / "corpora" / "nasty.tar.gz"


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["verify", *(str(word) for word in words), "--workers", "1"])


def write(path: Path, rows: int = 3, msl: int = 4) -> shards.Shard:
    data = cut(np.arange(rows * msl + 1, dtype=np.int32), rows, msl, 0)
    return shards.write(path, rows, [data])


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not NASTY.exists():
        pytest.skip("needs ../shared")
    folder = tmp_path_factory.mktemp("nasty")
    with tarfile.open(NASTY) as archive:
        wanted = ("nasty/hdf5/", "nasty/MANIFEST.json")
        members = [each for each in archive if each.name.startswith(wanted)]
        archive.extractall(folder, members, filter="data")
    return folder / "nasty"


REFUSED = {
    "float": "`data` is float32, not int32",
    "labels_off_by_one": "row 0, position 0: its label is 2, but the next input is 10802",
    "no_data": "has no dataset `data`",
    "not_hdf5": "file signature not found",
}


@pytest.mark.golden
def test_every_nasty_file_is_read_or_refused_as_its_manifest_says(nasty: Path) -> None:
    listed = json.loads((nasty / "MANIFEST.json").read_text("utf-8"))
    cases = [case for case in _cases(listed) if str(case["path"]).startswith("hdf5/")]
    assert len(cases) == 8
    for case in cases:
        path = nasty / str(case["path"])
        result = run(path)
        if case["file"] == "ok":
            assert result.exit_code == 0, result.output
            assert f"sound: 1 files, {case['good']} rows," in result.output
        else:
            assert result.exit_code == 1
            (line,) = result.output.strip().splitlines()
            assert line.startswith(f"{path}: ")
            assert REFUSED[path.stem] in line


def _cases(value: object) -> list[dict[str, object]]:
    if isinstance(value, dict):
        own = [value] if "path" in value and "file" in value else []
        return own + [case for each in value.values() for case in _cases(each)]
    if isinstance(value, list):
        return [case for each in value for case in _cases(each)]
    return []


@pytest.mark.golden
def test_a_folder_tells_all_of_its_files(nasty: Path) -> None:
    result = run(nasty / "hdf5")
    assert result.exit_code == 1
    lines = result.output.strip().splitlines()
    assert [line.split()[1] for line in lines[1:5]] == ["10", "10", "10", "0"]
    for line, told in zip(lines[5:], REFUSED.values(), strict=True):
        assert told in line
    told = json.loads(run(nasty / "hdf5", "--json").output)
    assert (len(told["files"]), len(told["faults"])) == (4, 4)


def test_a_sound_folder_shows_rows_tokens_and_digests(tmp_path: Path) -> None:
    made = [write(tmp_path / "deep" / shards.name(i), rows) for i, rows in enumerate((3, 5))]
    result = run(tmp_path)
    assert result.exit_code == 0
    lines = result.output.strip().splitlines()
    assert lines[-1] == "sound: 2 files, 8 rows, 32 tokens"
    for line, shard in zip(lines[1:], made, strict=False):
        assert line.split()[1:4] == [str(shard.rows), "4", str(4 * shard.rows)]
        assert line.endswith(f"sha256 {shard.digest}")


def test_the_result_does_not_depend_on_the_workers(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / shards.name(i), 3 + i)
    (tmp_path / shards.name(3)).write_bytes(b"no HDF5")
    assert foreign.verify(tmp_path, workers=1) == foreign.verify(tmp_path, workers=2)


@pytest.mark.parametrize("place", ["sources", "domains/web/packed", "phases"])
def test_what_looks_like_a_build_is_checked_as_one(tmp_path: Path, place: str) -> None:
    write(tmp_path / place / shards.name(0))
    assert foreign.verify(tmp_path) is None
    result = run(tmp_path)
    assert result.exit_code == 1
    assert "holds no build" in result.output


def test_a_path_without_rows_is_no_build(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 1
    assert "holds no build" in result.output
    assert run(tmp_path / "none.h5").exit_code == 2
