"""Conversations fitted into rows: what is learnt of each, where it begins, ends and is cut."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crystalmix.prep.packing import fitted_rows, pieces
from crystalmix.prep.packing.fitted import merged
from crystalmix.prep.rows import shards, spans, token_blocks
from crystalmix.prep.rows.pack import PackSettings, Shape, shards_of
from crystalmix.prep.rows.token_blocks import Block, Stream
from helpers.talked import FIRST, PAD, check_sides, documents, encoded, owners

Talks = list[list[tuple[int, bool]]]
ways = st.builds(
    PackSettings,
    msl=st.integers(2, 12),
    pack=st.just("best_fit"),
    group_tokens=st.integers(1, 80),
    rows_per_shard=st.integers(1, 6),
    loss_across=st.booleans(),
)
EIGHT = PackSettings(msl=8, pack="best_fit", rows_per_shard=2)


def packed(folder: Path, given: Talks, chosen: PackSettings) -> list[Path]:
    """Write the rows of some conversations; return the shards."""
    made, first = [], FIRST
    for number, sizes in enumerate(given):
        made.append(encoded(number, sizes, first))
        first += sum(size for size, _ in sizes)
    path = folder / "block.ids"
    counts = token_blocks.write(path, made, vocab=50_000)
    stream = Stream((Block(path, "talk", counts.tokens, counts.wide, counts.turns),))
    bounds = pieces.groups(stream.lengths, 0, chosen)
    counted = asdict(fitted_rows.count(stream, bounds, chosen))
    fitted = merged(stream, bounds, chosen, [counted])
    out: list[Path] = []
    for number, rows in enumerate(shards_of(fitted.rows, chosen)):
        groups, place = fitted.groups_of(*rows)
        near = stream.part(groups[0], groups[-1] + 1)
        out.append(folder / shards.name(number))
        fitted_rows.pack(near, groups, place, Shape(chosen, PAD, ()), out[-1])
    return out


@settings(max_examples=40, deadline=None)
@given(given=documents, chosen=ways)
@example([[(3, False), (5, True)], [(4, False), (5, True)]], EIGHT)  # msl and msl + 1 ids
@example([[(4, True), (4, False)], [(4, False), (4, True)]], EIGHT)  # at a row's ends
@example([[(3, False), (2, True), (2, False), (4, True)]], EIGHT)  # over a row's end
@example([[(1, True)], [(7, False), (1, True)], [(7, True)]], EIGHT)
def test_each_learnt_id_is_a_label_once_and_no_other_is(
    tmp_path_factory: pytest.TempPathFactory, given: Talks, chosen: PackSettings
) -> None:
    """Packing invariants 1 and 7, chat test 4."""
    owner, labels = owners(given), 0
    ends = np.cumsum([sum(size for size, _ in sizes) for sizes in given]) + FIRST
    for path in packed(tmp_path_factory.mktemp("rows"), given, chosen):
        check_sides(path, owner)
        rows = shards.read(path)
        for piece in spans.read(spans.path_of(path)).to_pylist():
            for place in range(piece["start"], piece["stop"]):
                number, mask, label = rows[piece["row"], :, place].tolist()
                if number + 1 < ends[piece["document"]]:
                    assert (mask, label) == (owner[number + 1 - FIRST][2], number + 1)
                    labels += mask
                elif not chosen.loss_across:
                    assert (mask, label) == (0, PAD)
    firsts = {0, *(int(end) - FIRST for end in ends)}
    assert labels == sum(on for i, (_, _, on) in enumerate(owner) if i not in firsts)
