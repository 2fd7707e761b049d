"""Rows in other trainers' formats are the phase's rows, in its order, with their documents."""

from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import crystalmix as cm
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import DamageError, RefusalError, StaleError, UsageError
from helpers import kills
from helpers.corpora import crystalmix
from helpers.exported import (
    COLUMNS,
    MSL,
    PHASE,
    documents,
    exported,
    of_part,
    opened,
    references,
    repeating_build,
    rows,
    tokens,
)

FORMATS = ("megatron", "mds", "parquet", "bin", "arrow")


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def check_columns(table: pa.Table, places: list[int] | None = None) -> None:
    """Compare a table with the phase's rows, all or some of them."""
    places = list(range(len(references()))) if places is None else places
    for channel, name in enumerate(("input_ids", "loss_mask", "labels")):
        if name in table.column_names:
            got = np.array(table[name].to_pylist())
            assert np.array_equal(got, rows()[places, channel])
    for name in COLUMNS:
        assert table[name].to_pylist() == [references()[place][name] for place in places]
    of_rows = documents()
    for place, pieces in zip(places, table["documents"].to_pylist(), strict=True):
        assert [tuple(piece.values()) for piece in pieces] == of_rows[place]


def test_the_phase_has_fim_and_several_epochs() -> None:
    assert {(entry["part"], entry["epoch"]) for entry in references()} == {
        *(("wiki-odd", epoch) for epoch in range(3)),
        *(("code", epoch) for epoch in range(2)),
    }
    assert any(piece[5] > 0 for pieces in documents() for piece in pieces)


def test_parquet_holds_rows_in_order_with_their_documents(tmp_path: Path) -> None:
    folder = exported(tmp_path, "parquet")
    files = sorted(folder.glob("*.parquet"))
    assert [pq.read_metadata(file).num_rows for file in files] == [50] * 6 + [20]
    check_columns(pa.concat_tables([pq.read_table(file) for file in files]))


def test_arrow_is_a_folder_that_datasets_loads(tmp_path: Path) -> None:
    import datasets

    loaded: Any = datasets.load_from_disk(str(exported(tmp_path / "out", "arrow")))
    assert len(loaded) == len(references())
    check_columns(loaded.with_format("arrow")[:])
    with_numpy = loaded.with_format("numpy")[17]
    assert np.array_equal(with_numpy["input_ids"], rows()[17, 0])


@pytest.mark.parametrize("to", ["bin", "megatron"])
def test_tokens_are_ids_and_the_last_label(to: str, tmp_path: Path) -> None:
    folder = exported(tmp_path, to)
    files = sorted(folder.glob("*.bin"))
    assert receipts.read(folder).account["tokens"] == "uint16"
    got = np.concatenate([np.fromfile(file, np.uint16) for file in files]).reshape(-1, MSL + 1)
    assert np.array_equal(got, tokens())
    bits = np.concatenate([np.fromfile(f, np.uint8) for f in sorted(folder.glob("*.mask"))])
    mask = np.unpackbits(bits.reshape(-1, MSL // 8), axis=1)[:, :MSL]
    assert np.array_equal(mask, rows()[:, 1])
    sides = [pq.read_table(file) for file in sorted(folder.glob("*.parquet"))]
    check_columns(pa.concat_tables(sides))
    assert len(list(folder.glob("*.idx"))) == (len(files) if to == "megatron" else 0)


def test_by_domain_each_part_is_a_folder_in_the_order_of_consumption(tmp_path: Path) -> None:
    folder = exported(tmp_path, "parquet", order="domain")
    parts = sorted({entry["part"] for entry in references()})
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == parts
    for part in parts:
        files = sorted((folder / part).glob("*.parquet"))
        sizes = [pq.read_metadata(file).num_rows for file in files]
        assert set(sizes[:-1]) <= {50}
        check_columns(pa.concat_tables([pq.read_table(file) for file in files]), of_part(part))


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_is_the_same_for_any_number_of_workers(to: Any, tmp_path: Path) -> None:
    many = exported(tmp_path / "two", to)
    one = tmp_path / "one"
    cm.export_rows(repeating_build(), one, phase=PHASE, to=to, rows_per_file=50)
    assert contents(one) == contents(many)


def export_job(out: str) -> None:
    """Export in this process, and die before the fourth file gets its name."""
    met = [0]

    def stop(kind: str, path: str, _before: int) -> bool:
        met[0] += kind == "os.rename" and ".mds" in path
        return met[0] > 3

    kills._watch(out, stop)
    cm.export_rows(repeating_build(), out, phase=PHASE, to="mds", rows_per_file=50)


def test_a_killed_export_goes_on_and_ends_in_the_same_files(tmp_path: Path) -> None:
    assert kills.run(export_job, str(tmp_path / "killed")) == -9
    left = sorted((tmp_path / "killed").glob("*.mds"))
    before = {path.name: path.stat().st_mtime_ns for path in left}
    assert len(before) == 3
    killed = exported(tmp_path / "killed", "mds")
    assert contents(killed) == contents(exported(tmp_path / "whole", "mds"))
    assert all((killed / name).stat().st_mtime_ns == time for name, time in before.items())


def test_what_is_exported_is_not_exported_again(tmp_path: Path) -> None:
    folder = exported(tmp_path, "bin")
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    exported(folder, "bin")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    with pytest.raises(StaleError, match=r"settings.to was 'bin', is now 'mds'|settings\.to"):
        exported(folder, "mds")
    (folder / "rows-00001.bin").write_bytes(b"")
    with pytest.raises(DamageError, match="rows-00001.bin"):
        exported(folder, "bin")


def test_documents_may_be_left_out(tmp_path: Path) -> None:
    folder = exported(tmp_path, "parquet", documents=False)
    table = pq.read_table(sorted(folder.glob("*.parquet"))[0])
    assert table["documents"].null_count == 50


def test_labels_that_tokens_alone_can_not_hold_are_refused(tmp_path: Path) -> None:
    import h5py

    build = tmp_path / "build"
    copytree(repeating_build(), build)
    entry = references()[3]
    with h5py.File(build / entry["shard"], "r+") as file:
        data: Any = file["data"]
        row = data[entry["row"]]
        row[2, 5] += 1
        data[entry["row"]] = row
    with pytest.raises(RefusalError, match="position 3 has labels that are not its ids one place"):
        cm.export_rows(build, tmp_path / "bin", phase=PHASE, to="bin")
    cm.export_rows(build, tmp_path / "parquet", phase=PHASE, to="parquet")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"to": "csv"}, "--to: must be one of megatron, mds, parquet, bin, arrow, vsl, got 'csv'"),
        ({"phase": "none"}, r"no phase is called 'none' \(there are code, mixed, prose\)"),
        ({"order": "random"}, "--order: must be one of consumption, domain, got 'random'"),
        ({"rows_per_file": 0}, "--rows-per-file: must be positive, got 0"),
    ],
)
def test_what_can_not_be_exported_is_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        cm.export_rows(repeating_build(), tmp_path, **{"phase": PHASE, "to": "bin", **settings})


def test_the_command_says_what_was_written(tmp_path: Path) -> None:
    words = ("--phase", PHASE, "--to", "megatron", "--out", tmp_path / "out", "--workers", 1)
    result = crystalmix("export-rows", repeating_build(), *words)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[0] == f"{PHASE}: {len(references())} rows"
    assert "4 files of megatron" in result.stdout
    assert len(opened().phases) == 3
