"""Cuts between tokens: all segments at once as one by one, and draws as `fim.plan` reads them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.fim import document_fim as fim
from crystalmix.prep.fim import token_cuts as tokencuts
from crystalmix.prep.fim.document_fim import FimSettings
from crystalmix.prep.fim.segments import LEFT_TO_RIGHT, PSM, Segments, Sentinels, lay

MARKS = Sentinels(900, 901, 902)
# Rows as segments of (control ids before, text, control ids behind).
segment = st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 1)).filter(any)
rows = st.lists(st.lists(segment, min_size=1, max_size=5), min_size=1, max_size=5)
unit = st.floats(0, 1, exclude_max=True)


def block(rows: list[list[tuple[int, int, int]]]) -> tuple[Segments, tuple[np.ndarray, np.ndarray]]:
    """Return rows of segments, each row as long as the longest, and the bodies."""
    msl = max(sum(map(sum, row)) for row in rows)
    places = []
    for i, row in enumerate(rows):
        start = i * msl
        for before, text, behind in row:
            stop = start + before + text + behind
            places.append((i, start, stop, start + before, stop - behind))
            start = stop
    columns = np.array(places, dtype=np.int64).T
    ids = np.arange(len(rows) * msl, dtype=np.int32)
    begins = np.ones(len(places), dtype=np.bool_)
    return Segments(ids, len(rows), *columns[:3], begins), (columns[3], columns[4])


def naive(segments: Segments, bodies: tuple[np.ndarray, ...], plans: tokencuts.Plans) -> list[list]:
    """Permute segment by segment with Python lists: (ids, place of the middle)."""
    made = []
    ids = segments.ids.tolist()
    for i, (start, stop) in enumerate(zip(segments.start, segments.stop, strict=True)):
        low, high = int(bodies[0][i]), int(bodies[1][i])
        body = ids[low:high]
        a, b = int(plans.first[i]), int(plans.second[i])
        prefix, middle, suffix = body[:a], body[a:b], body[b:]
        if plans.form[i] == LEFT_TO_RIGHT:
            made.append((ids[start:stop], 0))
            continue
        if plans.form[i] == PSM:
            new = [900, *prefix, 902, *suffix, 901]
        else:
            new = [900, 902, *suffix, 901, *prefix]
        whole = [*ids[start:low], *new, *middle, *ids[high:stop]]
        made.append((whole, low - start + len(new)))
    return made


@settings(max_examples=200, deadline=None)
@given(rows=rows, rate=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 999))
def test_all_at_once_is_one_by_one(
    rows: list[list[tuple[int, int, int]]], rate: float, seed: int
) -> None:
    segments, bodies = block(rows)
    draws = np.random.default_rng(seed).random((len(segments.row), 4))
    plans = tokencuts.plan((rate, 0.5), draws, bodies[1] - bodies[0])
    made = tokencuts.permute(segments, bodies, plans, MARKS)
    wanted = naive(segments, bodies, plans)
    assert made.lengths.tolist() == [len(ids) for ids, _ in wanted]
    assert made.middles.tolist() == [middle for _, middle in wanted]
    out, used = lay(made.runs, 200, -1)
    for i, row in enumerate(out.tolist()):
        told = [ids for j, (ids, _) in enumerate(wanted) if segments.row[j] == i]
        assert row[: used[i]] == [token for ids in told for token in ids]


@settings(max_examples=200, deadline=None)
@given(
    draws=st.lists(st.tuples(unit, unit, unit, unit), min_size=1, max_size=9),
    length=st.sampled_from([0, 1, 2, 7, 2048, 10**6]),
    rate=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_draws_mean_what_they_mean_for_one(
    draws: list[tuple[float, ...]], length: int, rate: float
) -> None:
    drawn = np.array(draws)
    plans = tokencuts.plan((rate, 0.4), drawn, np.full(len(draws), length))
    for i, u in enumerate(drawn):
        one = fim.plan(FimSettings(rate, 0.4), u.tolist(), length)
        assert (plans.form[i], plans.first[i], plans.second[i]) == (one.form, one.first, one.second)
