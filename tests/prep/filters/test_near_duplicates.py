"""Near-duplicates: variants of a text are found, unrelated texts never, the first stays."""

from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.filters import near_duplicates as near
from crystalmix.prep.filters.near_duplicates import Near, Stored
from crystalmix.prep.runtime.database import scratch
from crystalmix.prep.runtime.errors import UsageError
from helpers.materials import shared

pytest.importorskip("datasketch")
RNG = np.random.Generator(np.random.Philox(11))
USUAL = Near()
LEXICON = [f"word{i}" for i in range(2000)]


def found(
    folder: Path, texts: list[str], asked: Near = USUAL, cuts: tuple[int, ...] = ()
) -> dict[int, int]:
    """Return which texts are near-duplicates, and of which; cuts: where files end."""
    signatures = near.signatures(texts, asked)
    files: list[Path] = []
    for number, part in enumerate(np.split(signatures, cuts)):
        files.append(folder / f"{number}.near")
        files[-1].write_bytes(part.astype("<u4").tobytes())
    with scratch(folder) as connection:
        stored = Stored(files, asked)
        rows, firsts = near.alike(connection, stored, [np.empty(0, np.int64)] * len(files), asked)
    return dict(zip(rows.tolist(), firsts.tolist(), strict=True))


def prose(words: int) -> str:
    return " ".join(RNG.choice(LEXICON, words))


def nasty() -> list[str]:
    import tarfile

    path = shared("..", "corpora", "nasty.tar.gz")
    with tarfile.open(path) as archive:
        file = archive.extractfile("nasty/jsonl/near_duplicates.jsonl")
        assert file is not None
        return [orjson.loads(line)["text"] for line in file]


def test_variants_of_a_text_are_its_near_duplicates(tmp_path: Path) -> None:
    texts = nasty()
    assert len(texts) == 45
    told = found(tmp_path, texts)
    assert all(first % 9 == 0 and first == row - row % 9 for row, first in told.items())
    kinds = {kind: sum(row % 9 == kind for row in told) for kind in range(9)}
    # 1 to 4 white space and case; 5 one word in a hundred (of one text shingles share but 0.735)
    assert kinds == {0: 0, 1: 5, 2: 5, 3: 5, 4: 5, 5: 4, 6: 0, 7: 0, 8: 0}
    loose = found(tmp_path, texts, Near(threshold=0.4, words=3))
    assert all(first == row - row % 9 for row, first in loose.items())
    assert sum(row % 9 == 6 for row in loose) == 5  # five words in a hundred
    assert sum(row % 9 == 7 for row in loose) == 0  # three words in ten are another text


def test_the_files_that_texts_stand_in_change_nothing(tmp_path: Path) -> None:
    texts = nasty()
    expected = found(tmp_path, texts)
    assert found(tmp_path, texts, cuts=(0, 7, 7, 30)) == expected


def test_unrelated_texts_are_never_near(tmp_path: Path) -> None:
    texts = [prose(int(RNG.integers(1, 200))) for _ in range(400)]
    texts = list(dict.fromkeys(texts))
    assert found(tmp_path, texts) == {}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_a_cluster_keeps_exactly_its_first(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], draw: object
) -> None:
    family = [i for i, size in enumerate(sizes) for _ in range(size)]
    draw.shuffle(family)  # type: ignore[attr-defined]
    texts = {i: prose(120) for i in set(family)}
    copies = [f"{texts[i].upper()}  {number}" for number, i in enumerate(family)]
    told = found(tmp_path_factory.mktemp("near"), copies)
    expected = {row: family.index(i) for row, i in enumerate(family) if family.index(i) != row}
    assert told == expected


def test_a_chain_of_likenesses_is_one_cluster() -> None:
    pairs = [(2, 1), (3, 2), (9, 8), (4, 3), (12, 4), (8, 7), (12, 9)]
    rows, firsts = (np.array(side, np.int64) for side in zip(*pairs, strict=True))
    members, first = near._clusters(rows, firsts)
    assert members.tolist() == [2, 3, 4, 7, 8, 9, 12]
    assert set(first.tolist()) == {1}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
def test_clusters_are_the_connected_ones(pairs: list[tuple[int, int]]) -> None:
    links = [(max(pair), min(pair)) for pair in pairs if pair[0] != pair[1]]
    parent = list(range(31))

    def root(i: int) -> int:
        return i if parent[i] == i else root(parent[i])

    for one, other in links:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    sides = [np.array([link[i] for link in links], np.int64) for i in (0, 1)]
    members, first = near._clusters(*sides)
    expected = {i: root(i) for i in range(31) if root(i) != i}
    assert dict(zip(members.tolist(), first.tolist(), strict=True)) == expected


def test_texts_without_words_are_like_nothing_and_short_ones_like_themselves(
    tmp_path: Path,
) -> None:
    texts = ["", "...", "!?", "", "two words", "Two, words!", "two others", "one"]
    assert found(tmp_path, texts) == {5: 4}


def test_signatures_do_not_depend_on_what_is_read_together() -> None:
    texts = [*nasty()[:6], "", "short"]
    whole = near.signatures(texts, Near())
    alone = [near.signatures([text], Near())[0] for text in texts]
    assert (whole == np.stack(alone)).all()
    assert (near.signatures(texts, Near(seed=2)) != whole).mean() > 0.7
    assert whole.shape == (8, 128)
    assert (whole[6] == near.EMPTY).all()


def test_rows_that_are_skipped_take_no_part(tmp_path: Path) -> None:
    text = prose(100)
    path = tmp_path / "0.near"
    path.write_bytes(near.signatures([text] * 4, Near()).tobytes())
    with scratch(tmp_path) as connection:
        stored = Stored([path], Near())
        rows, firsts = near.alike(connection, stored, [np.array([0, 2])], Near())
    assert (rows.tolist(), firsts.tolist()) == ([3], [1])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"words": 0}, "words: must be positive, got 0"),
        ({"threshold": 1.2}, r"threshold: must lie in \[0.1, 1\], got 1.2"),
        ({"permutations": 8}, r"permutations: must lie in \[16, 1024\], got 8"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Near(**fields)  # type: ignore[arg-type]


def test_a_library_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    near.check_installed()
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UsageError, match="install crystalmix with its extra `near`"):
        near.check_installed()
