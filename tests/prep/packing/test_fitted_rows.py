"""Fitted rows against the documents: every id once, labels of its own document, true spans."""

import hashlib
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from crystalmix.prep.packing import fitted_rows, pieces
from crystalmix.prep.packing.fitted import merged
from crystalmix.prep.rows import shards, spans
from crystalmix.prep.rows import token_blocks as blocks
from crystalmix.prep.rows.pack import PackSettings, Shape, shards_of
from crystalmix.prep.rows.token_blocks import Block, Encoded, Stream

PAD = 3


@dataclass
class Case:
    """Documents by block, and the rows that they were fitted into."""

    folder: Path
    documents: list[list[list[int]]]  # by block: ids of each
    settings: PackSettings
    loss_from: int = 0
    pad: int = PAD

    def __post_init__(self) -> None:
        made: list[Block] = []
        number = 0
        for i, block in enumerate(self.documents):
            path = self.folder / f"block-{i}.ids"
            encoded: list[Encoded] = []
            for ids in block:
                learnt = min(self.loss_from, len(ids))
                encoded.append(Encoded(number, np.array(ids, np.int64), 0, loss_from=learnt))
                number += 1
            counts = blocks.write(path, encoded, vocab=60_000)
            made.append(Block(path, f"source{i}", counts.tokens, counts.wide))
        stream = Stream(tuple(made))
        bounds = pieces.groups(stream.lengths, 0, self.settings)
        counted = fitted_rows.count(stream, bounds, self.settings)
        self.fitted = merged(stream, bounds, self.settings, [asdict(counted)])
        for number, (first, last) in enumerate(shards_of(self.fitted.rows, self.settings)):
            groups, place = self.fitted.groups_of(first, last)
            near = stream.part(groups[0], groups[-1] + 1)
            out = self.folder / shards.name(number)
            fitted_rows.pack(near, groups, place, Shape(self.settings, self.pad, (self.pad,)), out)

    @property
    def flat(self) -> list[list[int]]:
        return [ids for block in self.documents for ids in block]

    def data(self) -> shards.Rows:
        parts = [shards.read(path) for path in shards.folder(self.folder)]
        return np.concatenate([np.empty((0, 3, self.settings.msl), np.int32), *parts])

    def spans(self) -> list[dict[str, Any]]:
        """Spans of all shards, rows counted over all of them."""
        size, lines = self.settings.rows_per_shard, list[dict[str, Any]]()
        for number, path in enumerate(shards.folder(self.folder)):
            table = spans.read(spans.path_of(path))
            assert table.schema == spans.SPANS
            lines += [{**line, "row": line["row"] + number * size} for line in table.to_pylist()]
        return lines


sizes = st.lists(st.lists(st.integers(0, 30), max_size=6), min_size=1, max_size=3)


def documents_of(drawn: list[list[int]]) -> list[list[list[int]]]:
    """Return ids that are of one document each: document d has 1000 + 50 d, ... ."""
    numbers = count(1000, 50)
    return [[[*range(first := next(numbers), first + size)] for size in block] for block in drawn]


ways = st.builds(
    PackSettings,
    msl=st.integers(1, 12),
    pack=st.just("best_fit"),
    group_tokens=st.integers(1, 80),
    rows_per_shard=st.integers(1, 6),
    too_long=st.sampled_from(["split", "truncate", "drop"]),
    loss_across=st.booleans(),
)


def kept(ids: list[int], settings: PackSettings) -> list[int]:
    if settings.too_long == "split" or len(ids) <= settings.msl:
        return ids
    return ids[: settings.msl] if settings.too_long == "truncate" else []


@given(drawn=sizes, settings=ways, loss_from=st.sampled_from([0, 0, 4]))
@hypothesis_settings(max_examples=120)
def test_rows_hold_every_id_once_with_labels_of_its_own(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[list[int]],
    settings: PackSettings,
    loss_from: int,
) -> None:
    """Packing invariants 1, 2 and 7."""
    case = Case(tmp_path_factory.mktemp("rows"), documents_of(drawn), settings, loss_from)
    data, lines = case.data(), case.spans()
    held = [kept(ids, settings) for ids in case.flat]
    found: dict[int, list[tuple[int, list[int]]]] = {}
    starts: dict[int, set[int]] = {}
    learnt = 0
    for line in lines:
        row, start, stop = line["row"], line["start"], line["stop"]
        ids, mask, labels = data[row, :, start:stop]
        found.setdefault(line["document"], []).append((line["offset"], ids.tolist()))
        starts.setdefault(row, set()).add(start)
        document, offset = held[line["document"]], line["offset"]
        for place in range(stop - start):
            follows = offset + place + 1
            if follows < len(document):
                assert labels[place] == document[follows]
                assert mask[place] == (follows >= loss_from)
            elif not settings.loss_across:
                assert (mask[place], labels[place]) == (0, PAD)
            learnt += int(mask[place])
    for number, document in enumerate(held):
        parts = sorted(found.get(number, []))
        assert [i for _, ids in parts for i in ids] == document
        assert len(parts) == -(-len(document) // settings.msl)
        assert [offset for offset, _ in parts] == [
            0,
            *accumulate(len(ids) for _, ids in parts[:-1]),
        ][: len(parts)]
    for row in range(len(data)):  # spans adjoin from 0; padding behind them says nothing
        here = sorted((line["start"], line["stop"]) for line in lines if line["row"] == row)
        assert here[0][0] == 0
        assert all(a[1] == b[0] for a, b in pairwise(here))
        rest = data[row, :, here[-1][1] :]
        assert rest.tolist() == [[PAD] * rest.shape[1], [0] * rest.shape[1], [PAD] * rest.shape[1]]
    if not settings.loss_across and not loss_from:
        assert learnt == int(data[:, 1].sum()) == sum(max(0, len(ids) - 1) for ids in held)


@given(drawn=sizes, settings=ways, cuts=st.lists(st.integers(0, 18), max_size=4))
@hypothesis_settings(max_examples=60)
def test_rows_are_the_same_for_any_blocks(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[list[int]],
    settings: PackSettings,
    cuts: list[int],
) -> None:
    """Packing invariant 3."""
    documents = [ids for block in documents_of(drawn) for ids in block]
    edges = [0, *sorted(cuts), len(documents)]
    blocked = [documents[a:b] for a, b in pairwise(edges)]
    whole, parts = (
        Case(tmp_path_factory.mktemp("rows"), blocks, settings) for blocks in ([documents], blocked)
    )
    assert np.array_equal(whole.data(), parts.data())
    kept = ("row", "start", "stop", "document", "offset")
    assert [[line[key] for key in kept] for line in whole.spans()] == [
        [line[key] for key in kept] for line in parts.spans()
    ]


def test_rows_are_those_of_any_numpy(tmp_path: Path) -> None:
    """Packing invariant 3: many equal lengths, whose order a sort that is not stable changes."""
    lengths = [[1 + (i * i + 3 * i) % 23 for i in range(1_000)]]
    settings = PackSettings(msl=16, pack="best_fit", group_tokens=9_000, rows_per_shard=10_000)
    case = Case(tmp_path, documents_of(lengths), settings)
    digest = hashlib.sha256(case.data().astype("<i4").tobytes()).hexdigest()
    assert digest == "3abd026f1a0ffd29bfa3c7dc196194535627977e092d4c6f8f3eebf349895572"


@given(drawn=sizes, settings=ways)
@hypothesis_settings(max_examples=40)
def test_across_documents_the_label_is_the_next_input(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[list[int]], settings: PackSettings
) -> None:
    case = Case(
        tmp_path_factory.mktemp("rows"), documents_of(drawn), replace(settings, loss_across=True)
    )
    data = case.data()
    inner = data[:, 1, :-1] == 1
    following = (data[:, 0, 1:] != PAD) | ~inner
    assert following.all()
    assert (data[:, 2, :-1] == data[:, 0, 1:])[inner].all()


WORKED = """
41 42 43 44 45 46 47 48 | 21 22 23 24  2 11 12  0 | 31 0 0 0 0 0 0 0
 1  1  1  1  1  1  1  1 |  1  1  1  1  1  1  1  0 |  1 0 0 0 0 0 0 0
42 43 44 45 46 47 48  2 | 22 23 24  2 11 12  2  0 |  2 0 0 0 0 0 0 0
"""


def test_next_fit_gives_the_rows_of_model_zoo(tmp_path: Path) -> None:
    """Packing invariant 8."""
    documents = [[11, 12, 2], [21, 22, 23, 24, 2], [31, 2], [*range(41, 49), 2]]
    settings = PackSettings(msl=8, pack="next_fit")
    case = Case(tmp_path, [documents], settings, pad=0)
    lines = [
        [list(map(int, row.split())) for row in line.split("|")]
        for line in WORKED.strip().splitlines()
    ]
    assert case.data().tolist() == [list(channels) for channels in zip(*lines, strict=True)]
    assert [(s["row"], s["start"], s["stop"], s["document"]) for s in case.spans()] == [
        (0, 0, 8, 3),
        (1, 0, 5, 1),
        (1, 5, 7, 0),
        (2, 0, 1, 2),
    ]


def test_next_fit_puts_eos_over_the_last_id_of_a_full_piece(tmp_path: Path) -> None:
    documents = [[*range(41, 50), 2], [*range(51, 60), *range(61, 70), 2]]  # 9 and 18 ids of text
    case = Case(tmp_path, [documents], PackSettings(msl=8, pack="next_fit"))
    rows = [[*ids.tolist(), int(labels[-1])] for ids, _, labels in case.data()]
    assert sorted(rows) == [[*range(41, 49), 2], [*range(51, 60)], [*range(61, 69), 2]]


def test_a_group_at_a_time_gives_the_spans_of_its_documents(tmp_path: Path) -> None:
    case = Case(tmp_path, documents_of([[5, 9, 3], [20, 1]]), PackSettings(msl=8, pack="best_fit"))
    assert pa.Table.from_pylist(case.spans()).num_rows == case.fitted.counts.pieces == 8
    assert (case.fitted.counts.cut, case.fitted.counts.shortest) == (2, 1)
