"""Windows apart and masked runs: rows as a slow reading of the rule gives them, turns by name."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.rows import pack, shards, spans, turns
from crystalmix.prep.rows import token_blocks as blocks
from crystalmix.prep.rows.pack import PackSettings
from crystalmix.prep.rows.token_blocks import Block, Encoded, Stream

PAD = 3
# Of each document the sizes of its turns, and whether each is learnt.
documents = st.lists(
    st.lists(st.tuples(st.integers(1, 7), st.booleans()), min_size=1, max_size=5),
    min_size=1,
    max_size=6,
)
cases = st.builds(
    PackSettings,
    msl=st.integers(1, 12),
    tail=st.sampled_from(["keep", "drop"]),
    rows_per_shard=st.sampled_from([1, 3, 100]),
    window=st.sampled_from(["apart", "shared"]),
)


def encoded(number: int, sizes: list[tuple[int, bool]], first: int) -> Encoded:
    ends = np.cumsum([size for size, _ in sizes])
    starts = ends - [size for size, _ in sizes]
    runs = [[a, b] for a, b, (_, on) in zip(starts, ends, sizes, strict=True) if not on]
    marks = [[start, message, message % 7] for message, start in enumerate(starts.tolist())]
    ids = np.arange(first, first + ends[-1])
    return Encoded(number, ids, 0, masked=np.array(runs, np.int64), turns=np.array(marks, np.int64))


@settings(max_examples=120, deadline=None)
@given(given=documents, chosen=cases, split=st.integers(1, 3))
def test_rows_masks_and_turns_are_those_of_the_rule(
    tmp_path_factory: pytest.TempPathFactory,
    given: list[list[tuple[int, bool]]],
    chosen: PackSettings,
    split: int,
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    made, owner, first = [], [], 100
    for number, sizes in enumerate(given):
        made.append(encoded(number, sizes, first))
        for message, (size, on) in enumerate(sizes):
            owner += [(number, message, on)] * size
        first += sum(size for size, _ in sizes)
    written = []
    for i in range(0, len(made), split):
        path = folder / f"block-{i}.ids"
        counts = blocks.write(path, made[i : i + split], vocab=50_000)
        written.append(Block(path, "talk", counts.tokens, counts.wide, counts.turns))
    stream = Stream(tuple(written))
    packed, rows = [], []
    for i, bounds in enumerate(pack.ranges_of(stream, chosen)):
        near, place = pack.part(stream, bounds, chosen)
        out = folder / shards.name(i)
        packed.append(pack.pack(near, place, chosen, PAD, (), out))
        for row in shards.read(out).tolist():
            rows.append(row)
        _check_sides(out, owner)
    assert rows == _slow(owner, chosen)
    assert len(rows) == pack.rows_of(stream, chosen)
    assert [p.shard.rows for p in packed[:-1]] == [chosen.rows_per_shard] * (len(packed) - 1)
    left = pack.left_out(stream, chosen)
    held = sum(p.tokens for p in packed)
    tail = len(owner) - held - sum(left.values())
    assert (
        0 <= tail <= (0 if chosen.tail == "keep" and chosen.window == "shared" else chosen.msl + 1)
    )


def _slow(owner: list[tuple[int, int, bool]], chosen: PackSettings) -> list[list[list[int]]]:
    """Cut a stream of ids 100, 101, ... to rows, in the words of the settings."""
    msl, apart = chosen.msl, chosen.window == "apart"
    ids = [100 + i for i in range(len(owner))]
    rows = []
    for start in range(0, len(ids), msl + 1 if apart else msl):
        window = ids[start : start + msl + 1]
        if chosen.tail == "drop" and len(window) < msl + 1:
            continue
        inputs = window[:-1] if apart else window[:msl]
        mask = [int(owner[start + j][2]) for j in range(1, len(window))]
        if any(mask):
            labels = window[1:] + [PAD] * (msl + 1 - len(window))
            mask += [0] * (msl - len(mask))
            rows.append([inputs + [PAD] * (msl - len(inputs)), mask, labels])
    return rows


def _check_sides(shard: Path, owner: list[tuple[int, int, bool]]) -> None:
    """Every input that is no padding is of one span, and of one piece of a turn."""
    data = shards.read(shard)[:, 0]
    for kind in ("spans", turns.KIND):
        covered = np.zeros(data.shape, int)
        for piece in pq.read_table(spans.path_of(shard, kind)).to_pylist():
            covered[piece["row"], piece["start"] : piece["stop"]] += 1
            for place in range(piece["start"], piece["stop"]):
                number, message, _ = owner[data[piece["row"], place] - 100]
                assert piece["document"] == number
                if kind == turns.KIND:
                    assert (piece["message"], piece["role"]) == (message, turns.ROLES[message % 7])
        assert ((covered == 1) == (data != PAD)).all()
