"""Merging by work items: the same documents, dropped records and signatures as in one process."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crystalmix.prep.documents import dropped, merge
from crystalmix.prep.documents.merge import NEAR, Choice, Items, Removed
from crystalmix.prep.documents.schema import identity, side
from crystalmix.prep.documents.source import Source
from crystalmix.prep.runtime import randomness
from crystalmix.prep.runtime.workers import Fanout

SIZES = (30, 0, 5, 41, 12, 1, 28)
WIDTH = 4


def blocks(folder: Path, sizes: Sequence[int] = SIZES) -> list[Path]:
    """Write blocks of documents, with signatures and a dropped record each."""
    rng = randomness.stream(1, "blocks")
    parts: list[Path] = []
    for number, size in enumerate(sizes):
        part, name = folder / f"block-{number}.parquet", f"f{number}.jsonl"
        columns = {
            "document": pa.nulls(size, pa.int64()),
            "file": pa.array([name] * size, pa.string()).dictionary_encode(),
            "record": np.arange(1, size + 1),
            "name": [f"n{i}" if i % 3 else None for i in range(size)],
            "digest": pa.array([rng.bytes(16) for _ in range(size)], pa.binary(16)),
            "characters": rng.integers(1, 99, size),
            "bytes": rng.integers(1, 99, size),
        }
        pq.write_table(pa.table(columns, schema=identity()), part)
        with dropped.growing(side(part, "dropped"), dropped.SCHEMA) as write:
            dropped.DropList(name, write).add([0], ["blank"])
        side(part, "near").write_bytes(rng.bytes(WIDTH * size))
        parts.append(part)
    return parts


def left_out(block: int) -> Removed:
    records = np.arange(2, SIZES[block] + 1, 7)
    return Removed(records, ["duplicate"] * len(records), [f"of {block}", None] * 3)


@pytest.mark.parametrize("limit", [None, 40, 1])
def test_pieces_of_work_items_are_joined_to_the_file_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    def removed(block: int) -> Removed:
        whole = left_out(block)
        return Removed(whole.records, whole.reasons, whole.details[: len(whole.records)])

    source, parts = Source("s", ("f*.jsonl",)), blocks(tmp_path)
    choice = Choice(removed, limit, WIDTH)
    for name in ("one", "many", "pieces"):
        (tmp_path / name).mkdir()
    one, many = (tmp_path / name / "documents.parquet" for name in ("one", "many"))
    accounts = merge.merge(source, parts, one, choice)
    monkeypatch.setattr(merge, "ITEM_DOCUMENTS", 45)
    monkeypatch.setattr(merge, "BATCH_ROWS", 16)
    again = merge.merge(source, parts, one, choice)
    items = Items(Fanout(), tmp_path / "pieces")
    assert merge.merge(source, parts, many, choice, items) == again == accounts
    assert many.read_bytes() == one.read_bytes()
    assert many.with_name(NEAR).read_bytes() == one.with_name(NEAR).read_bytes()
    drops = [pq.read_table(path.with_name(dropped.NAME)) for path in (one, many)]
    assert drops[1].to_pylist() == drops[0].to_pylist()
    assert len([*(tmp_path / "pieces").glob("piece-*.near")]) == 3


def group_sizes(path: Path) -> list[int]:
    metadata = pq.read_metadata(path)
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


def test_a_row_group_has_whole_batches_of_as_many_raw_files_as_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, parts, out = (
        Source("s", ("f*.jsonl",)),
        blocks(tmp_path),
        tmp_path / "documents.parquet",
    )
    merge.merge(source, parts, out)
    assert group_sizes(out) == [sum(SIZES)]
    monkeypatch.setattr(merge, "BATCH_ROWS", 32)
    merge.merge(source, parts, out)
    assert group_sizes(out) == [30, 5, 32, 9 + 12 + 1, 28]  # 32 + 9 are of one file
    monkeypatch.setattr(merge, "GROUP_BYTES", 1)
    merge.merge(source, parts, out)
    assert group_sizes(out) == [30, 5, 32, 9, 12, 1, 28]


def test_the_footer_of_documents_does_not_grow_with_raw_files(tmp_path: Path) -> None:
    source, sizes = Source("s", ("f*.jsonl",)), list[int]()
    for count in (150, 600):
        (folder := tmp_path / str(count)).mkdir()
        merge.merge(source, blocks(folder, [1] * count), folder / "documents.parquet")
        metadata = pq.read_metadata(folder / "documents.parquet")
        assert (metadata.num_row_groups, metadata.num_rows) == (1, count)
        sizes.append(metadata.serialized_size)
    assert sizes[1] < sizes[0] + 64


def test_a_source_of_one_item_is_joined_without_pieces(tmp_path: Path) -> None:
    parts, out = blocks(tmp_path), tmp_path / "documents.parquet"
    items = Items(Fanout(), tmp_path / "not there")
    accounts = merge.merge(Source("s", ("f*.jsonl",)), parts, out, merge.EVERYTHING, items)
    assert [account.documents for account in accounts] == [*SIZES]
