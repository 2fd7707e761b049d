"""The original's row FIM as a stage: seeds, turns of epochs, faults where they belong, counts."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.crystalcoder.original_row_fim import LegacyFim, Turn, seed_of
from crystalmix.prep.fim.document_fim import LEFT_TO_RIGHT, FimSettings
from crystalmix.prep.fim.row_spans import Account, Packed
from crystalmix.prep.rows import pack, shards, spans
from crystalmix.prep.rows import token_blocks as blocks
from crystalmix.prep.rows.pack import Controls, PackSettings, Shape
from crystalmix.prep.rows.shards import Rows
from crystalmix.prep.rows.token_blocks import Block, Encoded, Stream
from crystalmix.prep.tokenizer.tokenizer import Tokenizer
from helpers.materials import crystal, texts
from helpers.originals import tokenizer

CHOSEN: dict[str, Any] = {"level": "row", "dialect": "cerebras"}


def packed(folder: Path, use: Tokenizer, given: list[str], **chosen: Any) -> Path:
    """Pack documents to one shard."""
    controls = Controls(1, 2, use.pad)
    framed = [pack.frame(Encoded(i, use.encode(text), 0), controls) for i, text in enumerate(given)]
    account = blocks.write(folder / "block.ids", framed, vocab=use.vocab)
    stream = Stream((Block(folder / "block.ids", "code", account.tokens, account.wide),))
    kept = PackSettings(**{"msl": 64, **chosen})
    path = folder / "in" / shards.name(0)
    pack.pack(stream, (0, pack.rows_of(stream, kept)), Shape(kept, use.pad, ()), path)
    return path


def permuted(
    path: Path, use: Tokenizer, turn: Turn, *, local: bool = True, rate: float = 0.9
) -> tuple[Rows, list[dict[str, Any]], Account]:
    out = path.parent.parent / "out" / path.name
    work = LegacyFim(use, FimSettings(rate, **CHOSEN), turn, local=local)
    _, account = work.apply(Packed.of(path), out)
    return shards.read(out), spans.read(spans.path_of(out)).to_pylist(), account


def original(rows: Rows, use: Tokenizer, turn: Turn, rate: float) -> Rows:
    """Permute full rows as the original's script does, row by row, id by id, of one epoch's."""
    random = np.random.RandomState(turn.seed)
    model = use.encode_matched
    made = np.empty_like(rows)

    def part(ids: list[int]) -> list[int]:
        if not random.binomial(1, rate):
            return ids
        text = b"".join(use.bytes_of[i] for i in ids).decode().removeprefix(" ")
        a, b = sorted(random.randint(0, len(text) + 1, size=2))
        pieces = [model(piece).tolist() for piece in (text[:a], text[a:b], text[b:])]
        if random.binomial(1, 0.5):
            return [32000, 32002, *pieces[2], 32001, *pieces[0], *pieces[1]]
        return [32000, *pieces[0], 32002, *pieces[2], 32001, *pieces[1]]

    for number, row in enumerate(rows):
        for epoch in range(turn.epochs):
            ids: list[int] = []
            inner: list[int] = []
            for token in row[0].tolist():
                if token != 2:
                    inner.append(token)
                elif inner:
                    ids += [*part(inner), 2]
                    inner = []
            ids += part(inner)
            msl = len(row[0])
            labels = [*ids[1:], 2]
            fill = [use.pad] * (msl - len(ids))
            mask = [1] * min(msl, len(ids)) + [0] * len(fill)
            if epoch == turn.epoch:
                made[number] = [[*ids, *fill][:msl], mask, [*labels, *fill][:msl]]
    return made


ascii_texts = st.lists(
    st.one_of(texts.filter(str.isascii), st.just(""), st.just("x" * 90)), min_size=1, max_size=6
)


@settings(max_examples=60, deadline=None)
@given(given=ascii_texts, seed=st.integers(0, 2**32 - 1), epochs=st.integers(1, 3))
def test_rows_are_those_of_the_script(
    tmp_path_factory: pytest.TempPathFactory, given: list[str], seed: int, epochs: int
) -> None:
    use = tokenizer()
    folder = tmp_path_factory.mktemp("fim")
    path = packed(folder, use, [*given, "y" * 40, "z = 1\n" * 30], tail="drop", msl=16)
    for epoch in range(epochs):
        turn = Turn(seed, epochs, epoch)
        made, table, account = permuted(path, use, turn, rate=0.6)
        assert np.array_equal(made, original(shards.read(path), use, turn, 0.6))
        given_tokens = spans.tokens(spans.path_of(path))
        grown = account.sentinels + account.recut - account.overflow - account.ends
        assert sum(s["stop"] - s["start"] for s in table) == given_tokens + grown
        assert account.sentinels == 3 * account.permuted


def test_epochs_take_turns_in_one_stream(tmp_path: Path) -> None:
    path = packed(tmp_path, crystal(), ["def f(x):\n    return x\n" * 60], tail="drop")
    rows = [permuted(path, crystal(), Turn(5, 3, epoch))[0] for epoch in range(3)]
    assert not np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[1], rows[2])
    [alone] = [permuted(path, crystal(), Turn(5, 1, 0))[0]]
    assert np.array_equal(alone[0], rows[0][0])  # the first row's draws come first
    assert not np.array_equal(alone, rows[0])
    assert not np.array_equal(permuted(path, crystal(), Turn(6, 3, 0))[0], rows[0])


@pytest.mark.parametrize(
    ("processes", "seeds"),
    [(1, [3] * 5), (2, [3, 3, 3, 4, 4]), (4, [3, 3, 4, 4, 5]), (None, [3, 4, 5, 6, 7])],
)
def test_a_shards_seed_is_its_process(processes: int | None, seeds: list[int]) -> None:
    chosen = FimSettings(0.9, **CHOSEN, processes=processes, first_seed=3)
    assert [seed_of(chosen, number, 5) for number in range(5)] == seeds


def test_spans_tell_where_each_document_lies(tmp_path: Path) -> None:
    use = crystal()
    documents = ["alpha " * 8, "", "beta " * 30, "gamma"]
    path = packed(tmp_path, use, documents, tail="drop", msl=32)
    made, table, account = permuted(path, use, Turn(0, 1, 0), rate=1.0)
    given = {(s["document"], s["offset"]) for s in spans.read(spans.path_of(path)).to_pylist()}
    assert account.permuted > 2
    for span in table:
        assert (span["document"], span["offset"]) in given
        ids = made[span["row"], 0, span["start"] : span["stop"]].tolist()
        text = b"".join(use.bytes_of[i] for i in ids).decode("utf-8", "replace")
        names = [word for word in ("alpha", "beta", "gamma") if word in text]
        assert names in ([], [documents[span["document"]].split(" ")[0]])
        assert (span["fim"] != LEFT_TO_RIGHT) == (span["cut1"] >= 0)
    for row in range(len(made)):
        bounds = [(s["start"], s["stop"]) for s in table if s["row"] == row]
        assert bounds[0][0] == 0
        assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
        assert bounds[-1][1] == 32 - int((made[row, 0] == use.pad).sum())


def test_eos_that_nothing_stands_before_is_left_out_and_counted(tmp_path: Path) -> None:
    use = crystal()
    # The first document is as long as a row but for its EOS, which then begins the second.
    text = "x 1" * 40
    length = len(use.encode(text)) + 1
    path = packed(tmp_path, use, [text, "y" * 200 + " 1 2 3" * 90], tail="drop", msl=length)
    assert shards.read(path)[1, 0, 0] == 2
    _, _, account = permuted(path, use, Turn(0, 1, 0), rate=0.0)
    assert account == Account(ends=1)


def test_a_padded_row_is_permuted_up_to_its_padding(tmp_path: Path) -> None:
    use = crystal()
    path = packed(tmp_path, use, ["a few words in one row"])
    made, table, account = permuted(path, use, Turn(1, 1, 0), rate=1.0)
    used = max(span["stop"] for span in table)
    assert (made[0, [0, 2], used:] == use.pad).all()
    assert made[0, 1].tolist() == [1] * used + [0] * (64 - used)
    assert account.permuted == 2  # the document, and the nothing after its EOS
    assert (made[0, 0] == 32000).sum() == 2
