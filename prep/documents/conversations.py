"""Conversations of records: the public layouts, told apart by their columns.

`messages` as OpenAI has them, `conversations` as ShareGPT, columns as Alpaca, prompt and
completion, flat rows of OASST's trees, and plain text. What can't be read for certain (two layouts
that fit, an unknown role, a part that is no text) is an error with file and record.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from typing import Any, Literal, TypeVar

import orjson

from crystalmix.prep.documents.conversation_text import ROLES, Message, as_text
from crystalmix.prep.readers.batch import (
    BATCH_BYTES,
    RECORD,
    TEXT,
    Batch,
    Steps,
    place,
    value_name,
)
from crystalmix.prep.runtime.errors import BrokenFile
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Strict, frozen

with imported_later(__name__):
    import pyarrow as pa

Layout = Literal["messages", "sharegpt", "alpaca", "completion", "tree", "text"]
KNOWN_ROLES = {
    **{role: role for role in ROLES if role != "text"},
    **dict.fromkeys(("developer",), "system"),
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "model"), "assistant"),
    **dict.fromkeys(("function", "observation"), "tool"),
    "function_call": "tool_call",
}
# Of each layout the columns that tell it; a record fits where all of one group have a value.
TOLD_BY: dict[Layout, tuple[tuple[str, ...], ...]] = {
    "messages": (("messages",),),
    "sharegpt": (("conversations",),),
    "alpaca": (("instruction", "output"),),
    "completion": (("prompt", "completion"), ("prompt", "response")),
    "tree": (("message_id", "role", "text"),),
}
BESIDE_REPLIES = ("parent_id", "rank", "deleted", "tree_state")
REPLY = (*TOLD_BY["tree"][0], *BESIDE_REPLIES)
BESIDE = ("system", "input", "history", *BESIDE_REPLIES)
COLUMNS = tuple(dict.fromkeys([c for g in TOLD_BY.values() for names in g for c in names])) + BESIDE
# Of all paths of a file's trees: messages, each counted on every path; an OASST row is on three.
MOST_OF_PATHS, MOST_A_ROW = 2_000_000, 100
MOST_MESSAGES = 100_000  # of a conversation, which a worker holds whole
MOST_TREE_BYTES, REPLY_BYTES = 384 << 20, 600  # of a file's trees, held whole; beside a text
READY = "ready_for_export"  # of a tree
LEARN = ("train", "weight")  # of a message: whether it is learnt
Record = dict[str, Any]
Entry = TypeVar("Entry")


@frozen
class ConversationSettings(Strict):
    """How records hold conversations.

    layout: by the columns, where it is auto. roles: names of roles -> system, user, assistant,
    tool or tool_call, beside those that are known. replies: of a tree of replies, the path of the
    lowest ranks or all paths.
    """

    layout: Literal["auto", "messages", "sharegpt", "alpaca", "completion", "tree", "text"] = "auto"
    roles: dict[str, str] = field(default_factory=dict[str, str])
    replies: Literal["best", "all"] = "best"

    def __post_init__(self) -> None:
        for name, role in self.roles.items():
            if role not in ROLES:
                raise ValueError(f"roles.{name}: must be one of {', '.join(ROLES)}, got {role!r}")


@frozen
class Paths:
    """The paths to take of some rows of trees of replies.

    places: of each message, by its id, in `rows`. leaves: of each path its last row -> how many
    rows it has. cut: rows whose parent is not among them, so that no path leads to them.
    """

    rows: Sequence[Record]
    places: Mapping[str, int]
    leaves: Mapping[int, int]
    cut: frozenset[int]

    def to(self, leaf: int) -> list[int]:
        """Return the rows from the root to a leaf, each a place in `rows`."""
        steps = [leaf]
        while (parent := self.rows[steps[-1]]["parent_id"]) is not None:
            steps.append(self.places[parent])
        return steps[::-1]


@frozen
class Reader:
    """Reads the conversations of one block.

    source, block: for messages. text: the column of plain text. named: the paths that the SQL
    names, whose values come first in a batch; those of COLUMNS follow, then the text's.
    """

    source: str
    block: str
    settings: ConversationSettings
    text: str
    named: tuple[Steps, ...] = ()

    @property
    def paths(self) -> tuple[Steps, ...]:
        """The columns to read beside those of the SQL."""
        return (*((name,) for name in COLUMNS), tuple(self.text.split(".")))

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the records of a block, the text of each its conversation (null: it has none).

        Of trees the records are the last messages of the paths that are taken, and replies to what
        is not in the block, which have no text.
        """
        trees: list[tuple[Batch, list[Record]]] = []
        fitting, size = False, 0
        for whole in batches:
            batch = replace(whole, absent=whole.absent & {*self.named})
            records = self._records(batch)
            layouts: list[Layout | None] = [
                self._layout(record, batch, row) for row, record in enumerate(records)
            ]
            fitting = fitting or any(layouts) or not records
            if "tree" in layouts:
                if set(layouts) - {"tree"}:
                    raise self._fault(batch, layouts.index(None), "is no row of a tree", "layout")
                slim = [{key: record[key] for key in REPLY} for record in records]
                trees.append((self._named(batch), slim))
                size += sum(REPLY_BYTES + sys.getsizeof(row["text"]) for row in slim)
                if size > MOST_TREE_BYTES:
                    rows = sum(len(records) for _, records in trees)
                    raise self._too_many(
                        f"its trees are read whole, and {rows:,} replies or more take too much "
                        "memory; cut the file between trees"
                    )
                continue
            texts = [
                None if layout is None else self._text(layout, record, batch, row)
                for row, (layout, record) in enumerate(zip(layouts, records, strict=True))
            ]
            yield _with_texts(batch, range(len(batch)), texts)
        if not fitting:
            columns = "; ".join(" and ".join(names) for g in TOLD_BY.values() for names in g)
            raise BrokenFile(
                f"source {self.source}: {self.block} has no column of a conversation ({columns}; "
                f"{self.text}); name them by `columns`, or set `on_error: skip`",
                "no_conversation",
            )
        yield from self._of_trees(trees)

    def _records(self, batch: Batch) -> list[Record]:
        names = [*COLUMNS, TEXT]
        columns: list[list[Any]] = []
        for number in range(len(names)):
            values: Any = batch.columns[value_name(len(self.named) + number)]
            columns.append(values.to_pylist() if isinstance(batch.columns, pa.Table) else values)
        return [
            {name: _plain(value) for name, value in zip(names, row, strict=True)}
            for row in zip(*columns, strict=True)
        ]

    def _named(self, batch: Batch) -> Batch:
        """Return a batch without the columns that conversations alone are made of."""
        own = [value_name(len(self.named) + number) for number in range(len(COLUMNS))]
        if isinstance(batch.columns, pa.Table):
            return replace(batch, columns=batch.columns.drop_columns(own))
        kept = {name: values for name, values in batch.columns.items() if name not in own}
        return replace(batch, columns=kept)

    def _layout(self, record: Record, batch: Batch, row: int) -> Layout | None:
        """Return the one layout that a record fits, None where it has no conversation."""
        text: Layout = "text"
        if self.settings.layout != "auto":
            return self.settings.layout
        fits: list[Layout] = [
            layout
            for layout, groups in TOLD_BY.items()
            if any(all(record[name] is not None for name in names) for names in groups)
        ]
        if len(fits) > 1:
            fault = f"fits the layouts {' and '.join(fits)}"
            raise self._fault(batch, row, fault, "layout", "set `conversations.layout`")
        return fits[0] if fits else text if record[TEXT] is not None else None

    def _text(self, layout: Layout, record: Record, batch: Batch, row: int) -> str | None:
        try:
            messages = _bounded(_MESSAGES[layout](record, self.settings))
        except ValueError as error:
            raise self._fault(batch, row, str(error), "conversation") from None
        return as_text(messages) if messages else None

    def _of_trees(self, trees: list[tuple[Batch, list[Record]]]) -> Iterator[Batch]:
        """Yield the paths of the trees of a block, batch by batch, as records of their leaves."""
        every = [record for _, records in trees for record in records]
        if not every:
            return
        rows = [is_tree_row(record) for record in every]
        if not all(rows):
            raise self._fault_of_row(trees, rows.index(False), "is no row of a tree", "layout")
        ids: set[str] = set()
        for number, record in enumerate(every):
            if (name := record["message_id"]) in ids:
                fault = f"its message_id {name!r} is another row's too"
                raise self._fault_of_row(trees, number, fault, "conversation")
            ids.add(name)
        paths = best_paths(every, every_path=self.settings.replies == "all")
        messages = sum(paths.leaves.values())
        if messages > max(MOST_OF_PATHS, MOST_A_ROW * len(every)):
            raise self._too_many(
                f"all paths of its {len(every):,} replies have {messages:,} messages; "
                "take `conversations.replies: best`, or cut the trees"
            )
        first = 0
        for batch, records in trees:
            yield from self._of_leaves(batch, range(first, first + len(records)), paths)
            first += len(records)

    def _fault_of_row(
        self, trees: list[tuple[Batch, list[Record]]], number: int, fault: str, reason: str
    ) -> BrokenFile:
        """Return the fault of a row; number: among all rows of the trees."""
        for batch, records in trees:
            if number < len(records):
                return self._fault(batch, number, fault, reason)
            number -= len(records)
        raise AssertionError(number)

    def _of_leaves(self, batch: Batch, places: range, paths: Paths) -> Iterator[Batch]:
        """Yield the paths that end in a batch, in pieces of about BATCH_BYTES."""
        rows: list[int] = []
        texts: list[str | None] = []
        size = 0
        for row, leaf in enumerate(places):
            if leaf in paths.cut:
                rows.append(row)
                texts.append(None)
            if leaf not in paths.leaves:
                continue
            try:
                groups = [
                    _message(paths.rows[i], self.settings, "role", "text")
                    for i in _bounded(paths.to(leaf))
                ]
            except ValueError as error:
                raise self._fault(batch, row, str(error), "conversation") from None
            text = as_text([message for group in groups for message in group])
            rows.append(row)
            texts.append(text)
            size += len(text)
            if size >= BATCH_BYTES:
                yield _with_texts(batch, rows, texts)
                batch = replace(batch, bad=(), blank_lines=0, fault=None)
                rows, texts, size = [], [], 0
        yield _with_texts(batch, rows, texts)

    def _too_many(self, fault: str) -> BrokenFile:
        return BrokenFile(f"source {self.source}: {self.block}: {fault}", "too_many_messages")

    def _fault(
        self, batch: Batch, row: int, fault: str, reason: str, remedy: str = ""
    ) -> BrokenFile:
        where = place(self.block, int(batch.records[row]))
        remedy = remedy or "mend it, map roles by `conversations.roles`"
        return BrokenFile(
            f"{where}: {fault}; {remedy} of source {self.source}, or set `on_error: skip` to "
            "leave such files out",
            reason,
        )


def _bounded(messages: list[Entry]) -> list[Entry]:
    """Return messages, or the rows of them; ValueError where they are more than a worker holds."""
    if len(messages) > MOST_MESSAGES:
        raise ValueError(f"has {len(messages):,} messages, more than {MOST_MESSAGES:,}")
    return messages


def _with_texts(batch: Batch, rows: Sequence[int], texts: list[str | None]) -> Batch:
    """Return some records of a batch with these texts."""
    if isinstance(batch.columns, pa.Table):
        table = batch.columns.take(pa.array(rows, pa.int64()))
        at = table.column_names.index(TEXT)
        return replace(
            batch, columns=table.set_column(at, TEXT, pa.array(texts, pa.large_string()))
        )
    columns = {name: [values[row] for row in rows] for name, values in batch.columns.items()}
    return replace(batch, columns={**columns, TEXT: list(texts), RECORD: columns[RECORD]})


def _plain(value: Any) -> Any:  # noqa: ANN401  of JSON or Arrow
    return orjson.loads(value) if isinstance(value, bytes) else value


def _listed(messages: Any, settings: ConversationSettings) -> list[Message]:  # noqa: ANN401
    """Return the messages of a list as OpenAI or ShareGPT has them."""
    if not isinstance(messages, list):
        raise ValueError(f"its messages are a {type(messages).__name__}, expected a list")
    turns: list[Message] = []
    for number, entry in enumerate(messages, 1):
        if not isinstance(entry, Mapping):
            raise ValueError(f"message {number} is a {type(entry).__name__}, expected a mapping")
        role, text = ("from", "value") if entry.get("role") is None else ("role", "content")
        try:
            turns += _message(dict(entry), settings, role, text)
        except ValueError as error:
            raise ValueError(f"message {number}: {error}") from None
    return turns


def _message(
    entry: Record, settings: ConversationSettings, role_key: str, text_key: str
) -> list[Message]:
    """Return a message, and the calls of tools that it makes as one more."""
    name = entry.get(role_key)
    role = settings.roles.get(str(name)) or KNOWN_ROLES.get(str(name))
    if role is None:
        raise ValueError(f"role {name!r} is not known")
    learn = _learn(entry)
    calls = entry.get("tool_calls")
    text = _content(entry.get(text_key))
    learnt = None if text_key == "text" else learn
    messages = [Message(role, text, learnt)] if text or not calls else []
    if calls:
        messages.append(Message("tool_call", orjson.dumps(calls).decode(), learnt))
    return messages


def _learn(entry: Record) -> bool | None:
    """Return whether a message says that it is learnt, None where it says nothing."""
    for key in LEARN:
        if (value := entry.get(key)) is not None:
            if value not in (0, 1):
                raise ValueError(f"its {key} must be true, false, 0 or 1, got {value!r}")
            return bool(value)
    return None


def _content(content: Any) -> str:  # noqa: ANN401
    """Return a content as text: a string, null, or parts that are texts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"its text is a {type(content).__name__}")
    texts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"it has a part of type {kind!r}, of which only text can be learnt")
        texts.append(part["text"])
    return "".join(texts)


def _with_system(record: Record, messages: list[Message]) -> list[Message]:
    system = record.get("system")
    return [Message("system", _content(system)), *messages] if system else messages


def _of_messages(record: Record, settings: ConversationSettings) -> list[Message]:
    return _with_system(record, _listed(record["messages"], settings))


def _of_sharegpt(record: Record, settings: ConversationSettings) -> list[Message]:
    return _with_system(record, _listed(record["conversations"], settings))


def _of_alpaca(record: Record, settings: ConversationSettings) -> list[Message]:
    del settings
    turns: list[Message] = []
    for pair in record["history"] or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("history must list pairs of question and answer")
        turns += [Message("user", _content(pair[0])), Message("assistant", _content(pair[1]))]
    question = [_content(record[key]) for key in ("instruction", "input")]
    turns.append(Message("user", "\n".join(text for text in question if text)))
    return _with_system(record, [*turns, Message("assistant", _content(record["output"]))])


def _of_completion(record: Record, settings: ConversationSettings) -> list[Message]:
    answer = record["completion"] if record["completion"] is not None else record["response"]
    messages: list[Message] = []
    for role, value in (("user", record["prompt"]), ("assistant", answer)):
        listed = isinstance(value, list)
        messages += _listed(value, settings) if listed else [Message(role, _content(value))]
    return _with_system(record, messages)


def _of_text(record: Record, settings: ConversationSettings) -> list[Message]:
    del settings
    text = record[TEXT]
    return [Message("text", _content(text))] if text else []


_MESSAGES = {
    "messages": _of_messages,
    "sharegpt": _of_sharegpt,
    "alpaca": _of_alpaca,
    "completion": _of_completion,
    "text": _of_text,
}


def is_tree_row(record: Record) -> bool:
    """Tell whether a record is a message of a tree."""
    return isinstance(record["message_id"], str) and isinstance(record["role"], str)


def best_paths(rows: Sequence[Record], *, every_path: bool) -> Paths:
    """Return the paths of trees to take, in a time that grows with the rows alone.

    Of the replies to a message the one of the lowest rank is taken (one without a rank last, then
    by place in the file); rows that are deleted, and trees that are not ready to be used, are left
    out. every_path: all paths of a tree, not the best alone.
    """
    places = {row["message_id"]: place for place, row in enumerate(rows)}
    replies: dict[int, list[int]] = {}
    roots: list[int] = []
    cut: set[int] = set()
    for number, row in enumerate(rows):
        if row["deleted"] or row["tree_state"] not in (None, READY):
            continue
        parent = row["parent_id"]
        if parent is None:
            roots.append(number)
        elif parent in places:
            replies.setdefault(places[parent], []).append(number)
        else:
            cut.add(number)
    for below in replies.values():
        below.sort(key=lambda place: (_rank(rows[place]), place))
    leaves: dict[int, int] = {}
    waiting = [(root, 1) for root in roots]
    while waiting:  # no row comes twice: each has one parent, and no ring of replies has a root
        number, count = waiting.pop()
        below = replies.get(number, [])
        if not below:
            leaves[number] = count
        waiting += [(reply, count + 1) for reply in (below if every_path else below[:1])]
    return Paths(rows, places, leaves, frozenset(cut))


def _rank(row: Record) -> float:
    return float("inf") if row["rank"] is None else float(row["rank"])
