"""Windows apart and masked runs: rows as a slow reading of the rule gives them, turns by name."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.rows import pack, shards
from crystalmix.prep.rows import token_blocks as blocks
from crystalmix.prep.rows.pack import PackSettings, Shape
from crystalmix.prep.rows.token_blocks import Block, Stream
from helpers.talked import FIRST, PAD, Owner, check_sides, documents, encoded, owners

cases = st.builds(
    PackSettings,
    msl=st.integers(1, 12),
    tail=st.sampled_from(["keep", "drop"]),
    rows_per_shard=st.sampled_from([1, 3, 100]),
    window=st.sampled_from(["apart", "shared"]),
)


@settings(max_examples=120, deadline=None)
@given(given=documents, chosen=cases, split=st.integers(1, 3))
def test_rows_masks_and_turns_are_those_of_the_rule(
    tmp_path_factory: pytest.TempPathFactory,
    given: list[list[tuple[int, bool]]],
    chosen: PackSettings,
    split: int,
) -> None:
    """Chat tests 4 and 5."""
    folder = tmp_path_factory.mktemp("rows")
    made, owner, first = [], owners(given), FIRST
    for number, sizes in enumerate(given):
        made.append(encoded(number, sizes, first))
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
        packed.append(pack.pack(near, place, Shape(chosen, PAD, ()), out))
        for row in shards.read(out).tolist():
            rows.append(row)
        check_sides(out, owner)
    assert rows == _slow(owner, chosen)
    assert len(rows) == pack.rows_of(stream, chosen)
    assert [p.shard.rows for p in packed[:-1]] == [chosen.rows_per_shard] * (len(packed) - 1)
    left = pack.left_out(stream, chosen)
    held = sum(p.tokens for p in packed)
    tail = len(owner) - held - sum(left.values())
    assert (
        0 <= tail <= (0 if chosen.tail == "keep" and chosen.window == "shared" else chosen.msl + 1)
    )


def _slow(owner: list[Owner], chosen: PackSettings) -> list[list[list[int]]]:
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
