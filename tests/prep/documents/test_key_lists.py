"""Key lists: made once, of what is new; what is chosen does not depend on items or workers."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from crystalmix.prep.filters import near_pairs, sorted_lists
from crystalmix.prep.filters.sorted_lists import KeyRange
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.workers import Fanout
from crystalmix.prep.store.store import Store
from helpers import selections
from helpers.selections import corpus, scan

pytest.importorskip("datasketch")
ACROSS = {"exact": "recipe", "near": {"scope": "recipe"}}


class Counted(Fanout):
    """A pool that counts the items it is given, by label."""

    items: ClassVar[Counter[str]] = Counter()

    def map(self, work: Callable[[Any], Any], items: Sequence[Any], label: str) -> Iterator[Any]:
        self.items[label] += len(items)
        return super().map(work, items, label)


def sources(*names: str) -> dict[str, Any]:
    """Return changes of the recipe to these sources: `late` has the second half of `book`."""
    own = {
        "web": {"files": ["web"]},
        "book": {"files": ["book/b-0.jsonl"]},
        "late": {"files": ["book/b-1.parquet"]},
    }
    every = {name: {**own[name], "where": None, "keep": []} for name in names}
    return {
        "sources": {"web": None, "book": None, **every},
        "domains": {"all": {"sources": list(names)}},
        "duplicates": ACROSS,
    }


def files(build: Path, names: Sequence[str]) -> dict[str, tuple[str, dict[str, bytes]]]:
    """Return the content of sources, and the bytes of their files but for the receipt."""
    folders = {name: build / "sources" / name for name in names}
    return {
        name: (
            receipts.read(folder).content,
            {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"},
        )
        for name, folder in folders.items()
    }


def test_a_new_source_makes_its_own_lists_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selections, "Fanout", Counted)
    corpus(tmp_path)
    made: list[Counter[str]] = []
    for names in (("web",), ("web", "book"), ("web", "book", "late"), ("web", "book", "late")):
        monkeypatch.setattr(Counted, "items", Counter())
        scan(tmp_path, **sources(*names))
        made.append(+Counted.items)
    one = {"duplicates": 1, "near pairs": 1, "near-duplicates": 1}
    kept = {"key lists": 2}  # digests and bands of the source before, in one list each
    assert made[0] == {"raw files": 2, "documents": 2, **one}
    assert made[1] == {"raw files": 1, "documents": 1, **one, **kept}
    none_is_near = {"duplicates": 1, "near pairs": 1}
    again = {"reused": 2}  # those lists, which are looked at
    assert made[2] == {"raw files": 1, "documents": 1, **none_is_near, **kept, **again}
    assert made[3] == {}
    store = Store(tmp_path / "build" / "store")
    named = {key for _, name, _ in store.folders() for key in store.uses(name).get("lists", [])}
    assert named == {key for kind, key, _ in store.files() if kind == "lists"}
    scan(tmp_path, "fresh", **sources("web", "book", "late"))
    every = ("web", "book", "late")
    assert files(tmp_path / "build", every) == files(tmp_path / "fresh", every)


@pytest.mark.parametrize(("items", "workers"), [(2, 3), (7, 2), (64, 1)])
def test_what_is_chosen_is_the_same_for_any_number_of_items_and_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, items: int, workers: int
) -> None:
    corpus(tmp_path)
    scan(tmp_path, "one", duplicates=ACROSS)
    every = [KeyRange(number, items) for number in range(items)]
    monkeypatch.setattr(sorted_lists, "ranges", lambda *_: every)
    monkeypatch.setattr(near_pairs, "RUN", 1)
    scan(tmp_path, "many", workers=workers, duplicates=ACROSS)
    names = ("web", "book")
    assert files(tmp_path / "many", names) == files(tmp_path / "one", names)


def test_blocks_of_before_there_were_lists_get_them(tmp_path: Path) -> None:
    corpus(tmp_path)
    scan(tmp_path, **sources("web", "book"))
    store = tmp_path / "build" / "store"
    left = [*store.glob("blocks/*/*.digests"), *store.glob("blocks/*/*.bands")]
    assert len(left) == 2 * 3
    for path in left:
        path.unlink()
    told = scan(tmp_path, **sources("web", "book", "late"))
    assert told.keys() == {"web", "book", "late"}
