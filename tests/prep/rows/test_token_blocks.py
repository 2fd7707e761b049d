"""Blocks: written ids come back by position, with the documents they belong to."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.rows import token_blocks as blocks
from crystalmix.prep.rows.token_blocks import Block, Encoded, Stream
from crystalmix.prep.runtime.errors import DamageError
from helpers.materials import names

Lengths = list[list[int]]  # of each document of each block
lengths = st.lists(st.lists(st.integers(0, 7), max_size=5), min_size=1, max_size=5)


def documents(sizes: list[int], first: int = 0) -> list[Encoded]:
    """Return documents whose ids tell the document and the place: 100 * document + place."""
    return [
        Encoded(number, np.arange(size) + 100 * number, min(size, 1), number % 3, (number, size))
        for number, size in enumerate(sizes, start=first)
    ]


def stream_of(folder: Path, sizes: Lengths, *, vocab: int = 50_000) -> Stream:
    """Write blocks of documents, numbered on from block to block."""
    made: list[Block] = []
    first = 0
    for i, block in enumerate(sizes):
        path = folder / f"block-{i:05d}.ids"
        account = blocks.write(path, documents(block, first), vocab=vocab)
        made.append(Block(path, f"source{i}", account.tokens, account.wide))
        first += len(block)
    return Stream(tuple(made))


def all_ids(sizes: Lengths) -> list[int]:
    flat = [size for block in sizes for size in block]
    return [i for document in documents(flat) for i in document.ids.tolist()]


@settings(max_examples=60, deadline=None)
@given(sizes=lengths, data=st.data())
def test_a_stream_is_the_concatenation_of_its_blocks(
    tmp_path_factory: pytest.TempPathFactory, sizes: Lengths, data: st.DataObject
) -> None:
    stream = stream_of(tmp_path_factory.mktemp("blocks"), sizes)
    ids = all_ids(sizes)
    assert stream.tokens == len(ids)
    start = data.draw(st.integers(0, len(ids)))
    stop = data.draw(st.integers(start, len(ids)))
    found = stream.slice(start, stop)
    assert found.dtype == np.int32
    assert found.tolist() == ids[start:stop]
    near = stream.part(start, stop)
    assert near.slice(start, stop).tolist() == ids[start:stop]
    assert len(near.blocks) <= len(stream.blocks)


@settings(max_examples=60, deadline=None)
@given(sizes=lengths.filter(lambda sizes: any(map(any, sizes))), data=st.data())
def test_the_documents_of_a_range_are_those_that_touch_it(
    tmp_path_factory: pytest.TempPathFactory, sizes: Lengths, data: st.DataObject
) -> None:
    stream = stream_of(tmp_path_factory.mktemp("blocks"), sizes)
    start = data.draw(st.integers(0, stream.tokens - 1))
    stop = data.draw(st.integers(start + 1, stream.tokens))
    touched = sorted({i // 100 for i in all_ids(sizes)[start:stop]})
    for view in (stream, stream.part(start, stop)):
        told = view.documents(start, stop).to_pylist()
        assert [row["document"] for row in told if row["tokens"]] == touched
        for row in told:
            assert row["tokens"] == 0 or stream.slice(row["first"], row["first"] + 1)[0] == (
                100 * row["document"]
            )
            assert row["source"] == f"source{block_of(sizes, row['document'])}"
            assert (row["fim"], row["cut1"], row["cut2"]) == (
                *(row["document"] % 3, row["document"]),
                row["tokens"],
            )


def block_of(sizes: Lengths, document: int) -> int:
    return int(np.searchsorted(np.cumsum([len(block) for block in sizes]), document, "right"))


def test_ids_are_held_and_written_many_documents_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "WAITING_TOKENS", 4)
    sizes = [[3, 0, 2, 9, 1], [0], [], [1, 1, 1, 1, 1]]
    stream = stream_of(tmp_path, sizes)
    assert stream.slice(0, stream.tokens).tolist() == all_ids(sizes)
    assert (tmp_path / "block-00001.ids").stat().st_size == 0


@pytest.mark.parametrize("vocab", [1 << 16, (1 << 16) + 1])
def test_ids_up_to_the_last_of_a_vocabulary_are_kept(tmp_path: Path, vocab: int) -> None:
    ids = np.array([0, 1, vocab - 1])
    path = tmp_path / "block-00000.ids"
    account = blocks.write(path, [Encoded(0, ids, 1)], vocab=vocab)
    stream = Stream((Block(path, "s", 3, account.wide),))
    assert stream.slice(0, 3).tolist() == ids.tolist()


def test_a_block_of_plain_ids_as_older_stores_have_it_is_read(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, [[5, 2], [3]])
    path = tmp_path / "block-00000.ids"
    path.write_bytes(np.array([0, 1, 2, 3, 4, 100, 101], "<u2").tobytes())
    assert stream.slice(0, 10).tolist() == all_ids([[5, 2], [3]])


def test_the_account_counts_documents_tokens_controls_and_permuted(tmp_path: Path) -> None:
    account = blocks.write(tmp_path / "b.ids", documents([3, 0, 2, 4]), vocab=500)
    assert account == blocks.BlockCounts(4, tokens=9, controls=3, permuted=2, wide=False)
    index = pq.read_table(tmp_path / "b.parquet")
    assert index.schema == blocks.INDEX
    assert index["tokens"].to_pylist() == [3, 0, 2, 4]
    empty = blocks.write(tmp_path / "none.ids", [], vocab=500)
    assert (empty.documents, empty.tokens) == (0, 0)


def test_an_error_midway_leaves_no_block(tmp_path: Path) -> None:
    def breaking() -> Iterator[Encoded]:
        yield from documents([3])
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        blocks.write(tmp_path / "b.ids", breaking(), vocab=500)
    assert names(tmp_path) == []


def test_a_block_written_anew_is_read_anew(tmp_path: Path) -> None:
    for first in range(5):
        path = tmp_path / "b.ids"
        blocks.write(path, documents([4], first), vocab=5000)
        stream = Stream((Block(path, "s", 4, wide=False),))
        assert stream.slice(0, 4).tolist() == [100 * first + place for place in range(4)]


def test_a_block_that_is_missing_or_cut_off_is_damage(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, [[5], [5]])
    (tmp_path / "block-00001.ids").write_bytes(b"ab")
    assert stream.slice(0, 5).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(DamageError, match=r"block-00001.ids: is not as it was written"):
        stream.slice(0, 6)
    (tmp_path / "block-00001.ids").write_bytes(bytes(2 * 5 + 2))  # of more ids than there were
    with pytest.raises(DamageError, match=r"block-00001.ids: .* \(12 bytes for 5 numbers\)"):
        stream.slice(5, 10)
    (tmp_path / "block-00001.ids").unlink()
    with pytest.raises(DamageError, match=r"remove .* and build again"):
        stream.slice(5, 10)
