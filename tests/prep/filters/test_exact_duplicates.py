"""Exact duplicates: the first by source, block and record stays, whoever searches which range."""

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import process_time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.filters import exact_duplicates as duplicates
from crystalmix.prep.filters import sorted_lists
from crystalmix.prep.filters.exact_duplicates import KEPT, OWN, RECORDS, Duplicates, Sides
from crystalmix.prep.filters.near_duplicates import Near
from crystalmix.prep.filters.sample import Split
from crystalmix.prep.filters.sorted_lists import KeyRange
from crystalmix.prep.runtime.database import NAME, scratch
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.prep.runtime.workers import Fanout

DOCUMENTS = 1_000_000
ITEMS = (1, 2, 7, 64)
# A process of its own: one range of a million digests, a hundredth of them one text.
BIG = """
import sys
from pathlib import Path
from crystalmix.prep.filters import exact_duplicates, sorted_lists
from crystalmix.prep.filters.exact_duplicates import Search
from crystalmix.prep.filters.sorted_lists import KeyRange
folder, of = Path(sys.argv[1]), int(sys.argv[2])
sorted_lists.RANGE = 250_000 // of
def peak():  # what getrusage tells begins with the parent's
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
before = peak()
item = Search(folder / "lists.json", KeyRange(0, of), folder / f"out-{of}")
print(exact_duplicates.search(item)["repeated"], peak() - before)
"""
Digest = tuple[int, int]


def columns(digests: Sequence[Digest]) -> list[np.ndarray]:
    both = np.array(digests, np.uint64).reshape(-1, 2)
    return [both[:, 0], both[:, 1]]


def own(path: Path, digests: Sequence[Digest]) -> Path:
    """Write the list of a block whose records are every third."""
    rows = np.arange(len(digests))
    OWN.write(path, [[*columns(digests), rows * 3, rows]] if digests else [])
    return path


def kept(path: Path, digests: Sequence[Digest]) -> Path:
    KEPT.write(path, [columns(digests)] if digests else [])
    return path


# few texts, over all keys; some have a high half in common, some a low one
texts = st.integers(0, 11).map(lambda i: ((i // 2) * (2**64 // 6) + 5, [7, 2**64 - 1, 0][i % 3]))
blocks = st.lists(st.lists(texts, max_size=8), max_size=4)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let few entries be many: segments of 3, and searches that hold 4."""
    monkeypatch.setattr(sorted_lists, "SEGMENT", 3)
    monkeypatch.setattr(sorted_lists, "RANGE", 4)


@settings(max_examples=40, deadline=None)
@given(blocks, blocks, st.sampled_from(ITEMS))
@pytest.mark.usefixtures("small")
def test_the_first_of_each_text_stays(
    tmp_path_factory: pytest.TempPathFactory,
    earlier: list[list[Digest]],
    mine: list[list[Digest]],
    items: int,
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    before = [[kept(folder / f"before-{i}", block)] for i, block in enumerate(earlier)]
    parts = [own(folder / f"own-{i}", block) for i, block in enumerate(mine)]
    seen: dict[Digest, int] = {}
    for number, block in enumerate(earlier):
        for value in block:
            seen.setdefault(value, number - len(earlier))
    with pytest.MonkeyPatch.context() as patch:
        every = [KeyRange(number, items) for number in range(items)]
        patch.setattr(sorted_lists, "ranges", lambda _: every)
        found = duplicates.find(Fanout(), folder, before, parts)
    for number, block in enumerate(mine):
        expected: list[tuple[int, int, int]] = []
        for row, value in enumerate(block):
            place = number * RECORDS + 3 * row
            if seen.setdefault(value, place) != place:
                expected.append((place, seen[value], row))
        assert sorted(found.between(number, number + 1).tolist()) == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(texts), min_size=1, max_size=4), st.sampled_from(ITEMS))
@pytest.mark.usefixtures("small")
def test_texts_are_counted_by_the_sources_that_have_them(
    tmp_path_factory: pytest.TempPathFactory, sources: list[list[Digest]], items: int
) -> None:
    folder = tmp_path_factory.mktemp("owners")
    lists = [
        [kept(folder / f"{i}-0", some[:3]), kept(folder / f"{i}-1", some[3:])]
        for i, some in enumerate(sources)
    ]
    wanted: dict[tuple[int, ...], int] = {}
    for text in {text for some in sources for text in some}:
        who = tuple(i for i, some in enumerate(sources) if text in some)
        wanted[who] = wanted.get(who, 0) + 1
    split = Split(5, 0.4, "valid")
    ends = frozenset({0}), frozenset({len(sources) - 1})
    both = set(sources[0]) & set(sources[-1])
    with pytest.MonkeyPatch.context() as patch:
        every = [KeyRange(number, items) for number in range(items)]
        patch.setattr(sorted_lists, "ranges", lambda _: every)
        pairs = [Sides(ends), Sides(ends, (split, None))]
        shared = duplicates.shared(Fanout(), folder, lists, pairs)
    assert shared.owners == wanted
    assert shared.pairs == (len(both), sum(split.takes(low) for _, low in both))


def test_a_quarter_of_the_digests_takes_less_memory(tmp_path: Path) -> None:
    rng = np.random.Generator(np.random.Philox(2))
    values = rng.integers(0, 2**63, (DOCUMENTS, 2), np.uint64)
    values[rng.random(DOCUMENTS) < 0.01] = 0
    paths = [tmp_path / str(number) for number in range(4)]
    for path, some in zip(paths, np.split(values, 4), strict=True):
        rows = np.arange(len(some))
        OWN.write(path, [[some[:, 0], some[:, 1], rows, rows]])
    names = {"earlier": [], "own": [*map(str, paths)]}
    sorted_lists.write_catalogue(tmp_path / "lists.json", names)
    kilobytes: dict[int, int] = {}
    for of in (1, 16):
        command = [sys.executable, "-c", BIG, str(tmp_path), str(of)]
        told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path.cwd())
        found, kilobytes[of] = map(int, told.stdout.split())
        assert found == np.count_nonzero(values[:, 0] == 0) - 1  # of the text that repeats
    assert kilobytes[1] < 200_000
    assert kilobytes[16] < 40_000


def test_halves_are_those_of_the_digest() -> None:
    digests = [bytes(range(i, i + 16)) for i in range(5)]
    column = pa.chunked_array(
        [pa.array(digests[:2], pa.binary(16)), pa.array(digests[2:], pa.binary(16))]
    )
    found = duplicates.halves(column)
    assert found.tolist() == [
        [int.from_bytes(d[:8], "big"), int.from_bytes(d[8:], "big")] for d in digests
    ]
    assert duplicates.halves(pa.array(digests, pa.binary(16))[2:4]).tolist() == found[2:4].tolist()
    assert duplicates.halves(pa.array([], pa.binary(16))).shape == (0, 2)


def test_a_scratch_leaves_nothing_and_clears_what_was_left(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "scratch.duckdb").write_bytes(b"half a file")
    with scratch(tmp_path) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS a")
        assert (tmp_path / NAME).is_dir()
    assert not (tmp_path / NAME).exists()


def test_a_scratch_that_runs_out_of_room_is_told(tmp_path: Path) -> None:
    def sort() -> None:
        with scratch(tmp_path, memory="8MB", max_temp_directory_size="1MB") as connection:
            query = "SELECT DISTINCT hash(range) FROM range(9000000) ORDER BY 1"
            connection.execute(query).fetchall()

    with pytest.raises(RefusalError, match="make room on that disk and build again"):
        sort()
    assert not (tmp_path / NAME).exists()


def test_across_tells_whether_sources_depend_on_each_other() -> None:
    assert not Duplicates().across
    assert not Duplicates("source", Near()).across
    assert Duplicates("recipe").across
    assert Duplicates("none", Near(scope="recipe")).across


def test_pairs_of_many_domains_are_counted_by_those_that_share() -> None:
    """200 domains to validate on and 200 to train on once looked at all owners for each."""
    chance = random.Random(4)
    one, other = ([frozenset(chance.sample(range(400), 2)) for _ in range(200)] for _ in range(2))
    pairs = [Sides((a, b)) for a in one for b in other]
    owners = [tuple(sorted(chance.sample(range(400), size))) for size in [0, 1, 2, 3] * 100]
    before = process_time()
    found = duplicates._of_both(pairs, owners)
    assert process_time() - before < 2
    for number in range(0, len(pairs), 997):
        sides = pairs[number].sides
        both = [place for place, who in enumerate(owners) if all(side & {*who} for side in sides)]
        assert found.get(number, []) == both
