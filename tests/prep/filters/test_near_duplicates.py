"""Near-duplicates: variants of a text are found, unrelated texts never, the first stays."""

from __future__ import annotations

from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.filters import near_duplicates as near
from crystalmix.prep.filters import near_pairs, sorted_lists
from crystalmix.prep.filters.near_duplicates import Near
from crystalmix.prep.filters.near_pairs import Bands
from crystalmix.prep.filters.sorted_lists import KeyRange
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.prep.runtime.workers import Fanout
from helpers.materials import shared

if TYPE_CHECKING:
    from crystalmix.prep.filters.near_duplicates import Signatures

pytest.importorskip("datasketch")
RNG = np.random.Generator(np.random.Philox(11))
USUAL = Near()
LEXICON = [f"word{i}" for i in range(2000)]


def found(
    folder: Path, texts: list[str], asked: Near = USUAL, cuts: tuple[int, ...] = ()
) -> dict[int, int]:
    """Return which texts are near-duplicates, and of which; cuts: where files end."""
    return among(folder, near.signatures(texts, asked), asked, cuts)


def among(
    folder: Path,
    signatures: Signatures,
    asked: Near = USUAL,
    cuts: tuple[int, ...] = (),
    skipped: tuple[int, ...] = (),
) -> dict[int, int]:
    passing = Path(mkdtemp(dir=folder))
    files: list[Path] = []
    bands: list[Bands] = []
    for number, part in enumerate(np.split(signatures, cuts)):
        files.append(passing / f"{number}.near")
        files[-1].write_bytes(part.astype("<u4").tobytes())
        bands.append(Bands(passing / f"{number}.bands", ([0, *cuts])[number]))
        near_pairs.write_bands(files[-1], None, bands[-1].path, asked)
    skips = np.array(skipped, np.int64)
    rows, firsts = near_pairs.alike(Fanout(), passing, bands, files, skips, asked)
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
    members, first = near_pairs.clusters(rows, firsts)
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
    members, first = near_pairs.clusters(*sides)
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
    signatures = near.signatures([prose(100)] * 4, Near())
    assert among(tmp_path, signatures, skipped=(0, 2)) == {3: 1}


def naive(rows: Signatures, asked: Near, skipped: tuple[int, ...]) -> dict[int, int]:
    """Find what is alike text by text: the first text of each band is who it is compared with."""
    count, width = near.bands(asked.threshold, asked.permutations)
    links: dict[int, set[int]] = {i: {i} for i in range(len(rows))}
    first: dict[tuple[int, bytes], int] = {}
    for i, row in enumerate(rows):
        if i in skipped or (row == near.EMPTY).all():
            continue
        for band in range(count):
            key = band, row[band * width : (band + 1) * width].tobytes()
            other = first.setdefault(key, i)
            if (rows[other] == row).mean() >= asked.threshold:
                links[i].add(other)
                links[other].add(i)
    kept: dict[int, int] = {}
    for i in links:
        group, more = {i}, {i}
        while more:
            more = {k for j in more for k in links[j]} - group
            group |= more
        if min(group) != i:
            kept[i] = min(group)
    return kept


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30), st.sampled_from((1, 2, 7, 64)))
def test_items_find_what_a_walk_over_all_texts_finds(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, items: int
) -> None:
    rng = np.random.Generator(np.random.Philox(seed))
    asked = Near(permutations=16, threshold=0.5)
    numbers = rng.integers(0, 2**31, 4, np.uint32)
    rows = rng.choice(numbers, (5, 16))[rng.integers(0, 5, count)]
    changed = rng.random(rows.shape) < 0.15
    rows[changed] = rng.choice(numbers, np.count_nonzero(changed))
    rows[rng.random(count) < 0.05] = near.EMPTY
    skipped = tuple(np.flatnonzero(rng.random(count) < 0.1).tolist())
    cuts = tuple(sorted(rng.integers(0, count + 1, 3).tolist()))
    with pytest.MonkeyPatch.context() as patch:
        every = [KeyRange(number, items) for number in range(items)]
        patch.setattr(sorted_lists, "ranges", lambda *_: every)
        patch.setattr(sorted_lists, "SEGMENT", 5)
        patch.setattr(sorted_lists, "RANGE", 6)
        patch.setattr(near_pairs, "RUN", 1 + items)
        patch.setattr(near_pairs, "SLICE", 4)
        patch.setattr(near, "SLICE", 3)
        told = among(tmp_path_factory.mktemp("walk"), rows, asked, cuts, skipped)
    assert told == naive(rows, asked, skipped)


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
