"""Documents of turns, some of them learnt; every id tells its document and its turn."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from hypothesis import strategies as st

from crystalmix.prep.rows import shards, spans, turns
from crystalmix.prep.rows.token_blocks import Encoded

PAD = 3
FIRST = 100  # id of the first token of all; the others follow
Owner = tuple[int, int, bool]  # of a token: its document, its turn, and whether it is learnt
# Of each document the sizes of its turns, and whether each is learnt.
documents = st.lists(
    st.lists(st.tuples(st.integers(1, 7), st.booleans()), min_size=1, max_size=5),
    min_size=1,
    max_size=6,
)


def owners(given: list[list[tuple[int, bool]]]) -> list[Owner]:
    """Return what each token of some documents is of, in order."""
    return [
        (number, message, on)
        for number, sizes in enumerate(given)
        for message, (size, on) in enumerate(sizes)
        for _ in range(size)
    ]


def encoded(number: int, sizes: list[tuple[int, bool]], first: int) -> Encoded:
    ends = np.cumsum([size for size, _ in sizes])
    starts = ends - [size for size, _ in sizes]
    runs = [[a, b] for a, b, (_, on) in zip(starts, ends, sizes, strict=True) if not on]
    marks = [[start, message, message % 7] for message, start in enumerate(starts.tolist())]
    ids = np.arange(first, first + ends[-1])
    return Encoded(number, ids, 0, masked=np.array(runs, np.int64), turns=np.array(marks, np.int64))


def check_sides(shard: Path, owner: list[Owner]) -> None:
    """Every input that is no padding is of one span, and of one piece of a turn."""
    data = shards.read(shard)[:, 0]
    for kind in ("spans", turns.KIND):
        covered = np.zeros(data.shape, int)
        for piece in pq.read_table(spans.path_of(shard, kind)).to_pylist():
            covered[piece["row"], piece["start"] : piece["stop"]] += 1
            for place in range(piece["start"], piece["stop"]):
                number, message, _ = owner[data[piece["row"], place] - FIRST]
                assert piece["document"] == number
                if kind == turns.KIND:
                    assert (piece["message"], piece["role"]) == (message, turns.ROLES[message % 7])
        assert ((covered == 1) == (data != PAD)).all()
