"""The original's text of segments: decoded with its faults, and encoded locally as plainly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.crystalcoder.original_row_text import Text, byte_ids, decode, facts
from crystalmix.prep.fim.segments import PSM, Piece, Plans, Segments
from helpers.materials import byte_level, crystal, made, small, texts
from helpers.originals import library, tokenizer

SPELT = ("<filename>", "<reponame>", "<gh_stars>", "<fim_prefix>", "<s>", "</s>", "<unk>")
words = st.sampled_from([" ", "  ", "      ", " " * 17, " " * 40, "x", "(", "\n", "<", ">", "a b"])
documents = st.lists(
    st.one_of(texts, st.sampled_from(SPELT), words, words), min_size=1, max_size=14
).map("".join)


def pieces_of(text: str, size: int) -> list[str]:
    """Cut a text as the original did before tokenising: at the first space after `size`."""
    made: list[str] = []
    while text:
        place = text.find(" ", size)
        piece, text = (text, "") if place < 0 else (text[:place], text[place:])
        made.append(piece)
    return made


def segments(ids: list[int], msl: int) -> Segments:
    """Cut ids at EOS and at rows of msl tokens, EOS left out of the segments."""
    flat = np.array(ids[: len(ids) // msl * msl], dtype=np.int32)
    edges = sorted({*range(0, len(flat) + 1, msl), *(np.flatnonzero(flat == 2) + 1).tolist()})
    edges = [edge for edge in edges if edge <= len(flat)]
    start, stop = np.array(edges[:-1], np.int64), np.array(edges[1:], np.int64)
    stop = stop - (flat[stop - 1] == 2)
    begins = np.zeros(len(start), dtype=np.bool_)
    return Segments(flat, len(flat) // msl, start // msl, start, stop, begins)


def told(pieces: list[Piece], ids: np.ndarray) -> list[int]:
    made: list[int] = []
    for head, (start, stop), tail in pieces:
        made += [*head, *ids[start:stop].tolist(), *tail]
    return made


@settings(max_examples=400, deadline=None)
@given(
    given=st.lists(documents, min_size=1, max_size=3),
    size=st.integers(1, 30),
    msl=st.integers(1, 60),
    seed=st.integers(0, 999),
)
def test_local_pieces_are_those_of_decoding_and_encoding(
    given: list[str], size: int, msl: int, seed: int
) -> None:
    use = tokenizer()
    ids = [
        i
        for text in given
        for i in (1, *(i for p in pieces_of(text, size) for i in use.encode(p).tolist()), 2)
    ]
    found = segments(ids, msl)
    if not found.rows:
        return
    local, plain = Text(use, found), Text(use, found, local=False)
    assert local.facts is not None
    assert local.lengths.tolist() == plain.lengths.tolist()
    random = np.random.default_rng(seed)
    cuts = np.sort(random.integers(0, plain.lengths[:, None] + 1, (len(found.row), 2)), axis=1)
    form = random.integers(0, 2, len(found.row)).astype(np.int8) * PSM
    plans = Plans(form, cuts[:, 0], cuts[:, 1])
    for (i, one), (j, other) in zip(local.pieces(plans), plain.pieces(plans), strict=True):
        assert i == j
        assert [told(p, found.ids) for p in one] == [told(p, found.ids) for p in other]


@settings(max_examples=100, deadline=None)
@given(text=documents, data=st.data())
def test_decoding_is_that_of_the_tokenizers_of_the_time(text: str, data: st.DataObject) -> None:
    use = tokenizer()
    ids = use.encode(text).tolist()
    ids = ids[: data.draw(st.integers(0, len(ids)))]  # it may end within a character
    assert decode(use, ids) == library().decode(ids)  # alike still, where no added id stands
    assert decode(use, [1, *ids]).removeprefix("<s>").removeprefix(" ") == decode(use, ids)


def test_a_run_of_bytes_that_is_no_text_is_one_mark_a_byte() -> None:
    use = tokenizer()
    byte = use.json["model"]["vocab"]
    ids = [byte["<0x0A>"], byte["<0xE6>"], byte["<0x97>"], *use.encode_piece("x").tolist()]
    assert decode(use, ids) == "\ufffd\ufffd\ufffdx"
    assert sum(byte_ids(use)) == 256


def test_the_local_way_is_only_taken_where_it_is_proven() -> None:
    assert facts(tokenizer()) is not None
    assert facts(crystal()) is not None
    assert facts(byte_level()) is None
    assert facts(small()) is None  # it merges `<s>`: no joints in its spelling
    assert facts(made({**crystal().json, "added_tokens": []})) is None


@pytest.mark.parametrize("ids", [[], [1], [29871], [1, 29871]])
def test_little_is_as_plain_as_much(ids: list[int]) -> None:
    use = tokenizer()
    found = segments([*ids, 2], len(ids) + 1)
    for local in (True, False):
        text = Text(use, found, local=local)
        size = int(text.lengths[0])
        assert size == len(decode(use, ids))
        for first in range(size + 1):
            plans = Plans(np.array([PSM], np.int8), np.array([first]), np.array([size]))
            [(_, pieces)] = text.pieces(plans)
            encode = use.encode_matched
            parts = decode(use, ids)[:first], decode(use, ids)[first:], ""
            assert [told(p, found.ids) for p in pieces] == [encode(p).tolist() for p in parts]
