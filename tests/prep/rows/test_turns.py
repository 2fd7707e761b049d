"""Turns of pieces: each cut where a turn begins, at the cost of pieces and turns."""

import random
import tracemalloc
from itertools import pairwise

import numpy as np
import pyarrow as pa

from crystalmix.prep.rows import turns
from crystalmix.prep.rows.placed_rows import Owners


def tables(lengths: list[list[int]], pieces: list[tuple[int, int, int]]) -> tuple[pa.Table, Owners]:
    """Return pieces and owners; lengths: of turns, pieces: document, offset, size."""
    flat: list[list[int]] = []
    for sizes in lengths:
        firsts = np.cumsum([0, *sizes])[:-1].tolist()
        flat.append([x for i, first in enumerate(firsts) for x in (first, i - 1, i % 7)])
    documents = pa.table({"tokens": [sum(sizes) for sizes in lengths], "turns": flat})
    number, offset, size = (np.array(column) for column in zip(*pieces, strict=True))
    start = np.arange(len(pieces)) % 3
    columns = {"row": start, "start": start, "stop": start + size, "offset": offset}
    source = pa.array(["talk"] * len(pieces)).dictionary_encode()
    return pa.table({**columns, "source": source, "document": number}), Owners(documents, number)


def test_each_id_of_a_piece_has_the_turn_that_a_walk_finds() -> None:
    chance = random.Random(7)
    for _ in range(100):
        lengths = [[chance.randrange(5) for _ in range(chance.randrange(9))] for _ in range(6)]
        pieces = [
            (number, low, high - low)
            for number, sizes in enumerate(lengths)
            for low, high in pairwise(sorted({0, sum(sizes), chance.randint(0, sum(sizes))}))
        ]
        if not pieces:
            continue
        chance.shuffle(pieces)
        table, owners = tables(lengths, pieces)
        expected: list[tuple[int, int, int]] = []  # piece's place in its row, message, document
        for (number, offset, size), start in zip(pieces, table["start"].to_pylist(), strict=True):
            of_id = [i for i, length in enumerate(lengths[number]) for _ in range(length)]
            expected += [(start + i, of_id[offset + i] - 1, number) for i in range(size)]
        got = turns.cut(table, owners).to_pylist()
        found = [
            (i, t["message"], t["document"]) for t in got for i in range(t["start"], t["stop"])
        ]
        assert found == expected
        assert all(t["role"] == turns.ROLES[(t["message"] + 1) % 7] for t in got)


def test_a_long_conversation_in_many_rows_takes_memory_for_its_turns_alone() -> None:
    """Each row of it once had all of its turns: 8,000 messages took 900 MB, 200,000 over 20 GB."""
    table, owners = tables([[4] * 20_000], [(0, 8 * i, 8) for i in range(10_000)])
    tracemalloc.start()
    try:
        assert len(turns.cut(table, owners)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
