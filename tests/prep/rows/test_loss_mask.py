"""The loss mask: labels count from a document's middle on, EOS too, and of other documents all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.fim.document_fim import PSM, DocumentFim, FimSettings
from crystalmix.prep.fim.row_fim import RowFim
from crystalmix.prep.fim.row_spans import Packed
from crystalmix.prep.rows import pack, shards, spans
from crystalmix.prep.rows import token_blocks as blocks
from crystalmix.prep.rows.pack import Controls, PackSettings, Shape
from crystalmix.prep.rows.shards import Rows
from crystalmix.prep.rows.token_blocks import Block, Encoded, Stream
from helpers.materials import crystal, document, texts, whole

MIDDLE = 32001


def packed(
    folder: Path, framed: list[Encoded], msl: int, rows_per_shard: int, **chosen: Any
) -> tuple[Rows, list[int]]:
    """Pack documents to shards; return their rows together, and the stream."""
    account = blocks.write(folder / "block.ids", framed, vocab=crystal().vocab)
    stream = Stream((Block(folder / "block.ids", "code", account.tokens, account.wide),))
    kept = PackSettings(msl=msl, rows_per_shard=rows_per_shard, **chosen)
    made = []
    for i, bounds in enumerate(pack.shards_of(pack.rows_of(stream, kept), kept)):
        path = folder / shards.name(i)
        pack.pack(stream, bounds, Shape(kept, crystal().pad, ()), path)
        made.append(shards.read(path))
    ids = [i for each in framed for i in whole(each)]
    return np.concatenate(made), ids


@settings(max_examples=80, deadline=None)
@given(
    given=st.lists(texts, min_size=1, max_size=6),
    msl=st.integers(1, 40),
    size=st.integers(1, 4),
    form=st.sampled_from([0.0, 1.0]),
)
def test_labels_of_documents_count_from_their_middles_on(
    tmp_path_factory: pytest.TempPathFactory, given: list[str], msl: int, size: int, form: float
) -> None:
    chosen = FimSettings(0.7, form, loss="middle")
    encode = DocumentFim(crystal(), chosen, 3, "code", 0)
    plain = DocumentFim(crystal(), FimSettings(0.7, form), 3, "code", 0)
    controls = Controls(1, 2, crystal().pad)
    counted: list[bool] = []
    framed = []
    for i, text in enumerate(given):
        made, same = encode(document(text, i)), plain(document(text, i))
        assert made.ids.tolist() == same.ids.tolist()
        assert (same.loss_from, made.loss_from > 0) == (0, made.fim > 0)
        middle = crystal().encode_piece(text[slice(*made.cuts)]) if made.fim else made.ids
        framed.append(pack.frame(made, controls))
        before = len(made.ids) - len(middle) + 1 if made.fim else 0
        counted += [j >= before for j in range(len(whole(framed[-1])))]
    rows, ids = packed(tmp_path_factory.mktemp("rows"), framed, msl, size)
    labels = rows[:, 2].reshape(-1)
    for place, on in enumerate(rows[:, 1].reshape(-1).tolist()):
        follows = place + 1 < len(ids)
        assert bool(on) == (follows and counted[place + 1])
        if follows:
            assert labels[place] == ids[place + 1]


@settings(max_examples=80, deadline=None)
@given(
    given=st.lists(texts, min_size=1, max_size=6),
    msl=st.integers(2, 40),
    form=st.sampled_from([0.0, 1.0]),
    cut=st.sampled_from(["token", "character"]),
)
def test_labels_of_row_segments_count_from_their_middles_on(
    tmp_path_factory: pytest.TempPathFactory, given: list[str], msl: int, form: float, cut: str
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    controls = Controls(1, 2, crystal().pad)
    framed = [
        pack.frame(Encoded(i, crystal().encode(text), 0), controls) for i, text in enumerate(given)
    ]
    packed(folder, framed, msl, 10**6)
    made: dict[str, Rows] = {}
    for loss in ("all", "middle"):
        chosen = FimSettings(0.7, form, "row", cut, loss)  # type: ignore[arg-type]
        out = folder / loss / shards.name(0)
        RowFim(crystal(), chosen, 3, "code", 0).apply(Packed.of(folder / shards.name(0)), 0, out)
        made[loss] = shards.read(out)
    assert np.array_equal(made["all"][:, [0, 2]], made["middle"][:, [0, 2]])
    assert (made["middle"][:, 1] <= made["all"][:, 1]).all()
    off = made["all"][:, 1] > made["middle"][:, 1]
    for span in spans.read(spans.path_of(folder / "middle" / shards.name(0))).to_pylist():
        row, start, stop = span["row"], span["start"], span["stop"]
        ids = made["all"][row, 0, start:stop].tolist()
        # Position t - 1 predicts id t of the row.
        told = [bool(off[row, t - 1]) for t in range(max(start, 1), stop)]
        if span["fim"] == 0:
            assert not any(told)
        elif span["fim"] == PSM and MIDDLE in ids:
            first = start + ids.index(MIDDLE) + 1
            assert told == [t < first for t in range(max(start, 1), stop)]
        else:  # off up to the sentinel at least, then on once and for all
            known = ids.index(MIDDLE) + 1 if MIDDLE in ids else len(ids)
            assert all(told[: known - (start < 1)])
            assert told == sorted(told, reverse=True)
