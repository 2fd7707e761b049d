"""Trees of replies: paths of the lowest ranks or all, in a time that grows with the messages."""

import random
from pathlib import Path
from time import process_time
from typing import Any

import pytest

from crystalmix.prep.documents import conversations
from crystalmix.prep.documents.conversation_text import messages_of
from crystalmix.prep.documents.conversations import ConversationSettings, best_paths
from crystalmix.prep.documents.source import Source, read
from crystalmix.prep.readers.batch import RECORD, TEXT
from crystalmix.prep.runtime.errors import BrokenFile
from helpers.materials import raw


def row(number: int, parent: int | None, rank: int | None = None, **more: Any) -> dict[str, Any]:
    role = "prompter" if parent is None else "assistant"
    names = {"message_id": f"m{number}", "parent_id": None if parent is None else f"m{parent}"}
    usual = {"role": role, "text": f"t{number}", "rank": rank, "deleted": None, "tree_state": None}
    return {**names, **usual, **more}


def chain(length: int) -> list[dict[str, Any]]:
    return [row(i, i - 1 if i else None) for i in range(length)]


def test_the_paths_are_those_of_a_walk_along_the_parents() -> None:
    chance = random.Random(5)
    for _ in range(60):
        count = chance.randint(1, 30)
        parents = [None if chance.random() < 0.2 or i == 0 else chance.randrange(i)
                   for i in range(count)]  # fmt: skip
        rows = [row(i, p, chance.choice([None, 0, 1]), deleted=chance.random() < 0.1)
                for i, p in enumerate(parents)]  # fmt: skip
        walks = {}
        for leaf in range(count):
            walk, place = [leaf], parents[leaf]
            while place is not None:
                walk, place = [place, *walk], parents[place]
            if not any(rows[i]["deleted"] for i in walk):
                walks[leaf] = walk
        inner = {i for walk in walks.values() for i in walk[:-1]}
        expected = {leaf: walk for leaf, walk in walks.items() if leaf not in inner}
        paths = best_paths(rows, every_path=True)
        assert {leaf: paths.to(leaf) for leaf in paths.leaves} == expected
        assert paths.leaves == {leaf: len(walk) for leaf, walk in expected.items()}
        best = best_paths(rows, every_path=False)
        assert best.leaves.items() <= paths.leaves.items()
        assert len(best.leaves) == sum(1 for walk in walks.values() if len(walk) == 1)


def test_a_reply_to_what_is_not_in_the_file_is_a_record_without_a_text(tmp_path: Path) -> None:
    rows = [row(0, None), row(1, 0), row(2, 9), row(3, 2), row(4, 9, deleted=True)]
    raw(tmp_path / "talk.jsonl", rows)
    batches = list(read(source(), tmp_path, "talk.jsonl"))
    texts = [text for batch in batches for text in batch.table[TEXT].to_pylist()]
    assert [text is None for text in texts] == [False, True]
    records = [number for batch in batches for number in batch.table[RECORD].to_pylist()]
    assert records == [1, 2]


def test_an_id_of_two_messages_is_refused_with_its_place(tmp_path: Path) -> None:
    raw(tmp_path / "talk.jsonl", [row(0, None), row(1, 0), {**row(0, None), "text": "other"}])
    with pytest.raises(BrokenFile, match="talk.jsonl:3: its message_id 'm0' is another row's too"):
        list(read(source(), tmp_path, "talk.jsonl"))


def test_a_ring_of_replies_has_no_path() -> None:
    rows = [row(0, 1), row(1, 0), row(2, 2), row(3, None)]
    assert best_paths(rows, every_path=True).leaves == {3: 1}


def test_a_long_chain_costs_what_its_messages_cost() -> None:
    """A chain of 200,000 once took over 250 s: each step copied the path so far."""
    rows = chain(200_000)
    before = process_time()
    paths = best_paths(rows, every_path=True)
    assert paths.to(199_999) == list(range(200_000))
    assert process_time() - before < 3


def source(**settings: Any) -> Source:
    return Source("talk", files=("talk.jsonl",), format="chat",
                  conversations=ConversationSettings(**settings))  # fmt: skip


def test_all_paths_that_come_to_more_than_their_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply at each step of a chain: half as many paths as messages, each half as long."""
    monkeypatch.setattr(conversations, "MOST_OF_PATHS", 1000)
    comb = chain(1000) + [row(1000 + i, i) for i in range(999)]
    raw(tmp_path / "talk.jsonl", comb)
    with pytest.raises(BrokenFile, match="all paths of its 1,999 replies have 501,499 messages; t"):
        list(read(source(replies="all"), tmp_path, "talk.jsonl"))
    [batch] = [b for b in read(source(), tmp_path, "talk.jsonl") if len(b)]
    assert len(batch) == 1


def test_paths_that_share_a_long_message_are_given_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "BATCH_BYTES", 5000)
    rows = [row(0, None, text="x" * 2000), *(row(i, 0) for i in range(1, 8))]
    raw(tmp_path / "talk.jsonl", [*rows[:4], {"n": 1}, *rows[4:]])
    with pytest.raises(BrokenFile, match="is no row of a tree"):
        list(read(source(replies="all"), tmp_path, "talk.jsonl"))
    raw(tmp_path / "talk.jsonl", rows)
    batches = list(read(source(replies="all"), tmp_path, "talk.jsonl"))
    assert max(len(batch) for batch in batches) == 3
    texts = [text or "" for batch in batches for text in batch.texts]
    assert [messages_of(text)[1].text for text in texts] == [f"t{i}" for i in range(1, 8)]
    assert [n for batch in batches for n in batch.records.tolist()] == list(range(1, 8))


@pytest.mark.parametrize("is_tree", [True, False])
def test_a_conversation_of_more_messages_than_a_worker_can_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_tree: bool
) -> None:
    monkeypatch.setattr(conversations, "MOST_MESSAGES", 1000)
    talk = [{"role": "user", "content": "a"}] * 1001
    for more in (False, True):
        rows = chain(1000 + more) if is_tree else [{"messages": talk[: 1000 + more]}]
        raw(tmp_path / "talk.jsonl", rows)
        if more:
            with pytest.raises(BrokenFile, match="has 1,001 messages, more than 1,000; mend it"):
                list(read(source(), tmp_path, "talk.jsonl"))
        else:
            [text] = [t for b in read(source(), tmp_path, "talk.jsonl") for t in b.texts]
            assert len(messages_of(text or "")) == 1000


def test_trees_that_a_worker_cannot_hold_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "MOST_TREE_BYTES", 1 << 20)
    raw(tmp_path / "talk.jsonl", [row(i, None) for i in range(1500)])
    assert sum(map(len, read(source(), tmp_path, "talk.jsonl"))) == 1500
    raw(tmp_path / "talk.jsonl", [row(i, None, text="x" * 200) for i in range(1500)])
    with pytest.raises(BrokenFile, match=r"1,500 replies or more take .*; cut the file between"):
        list(read(source(), tmp_path, "talk.jsonl"))
