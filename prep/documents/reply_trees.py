"""Trees of replies, as OASST publishes them: flat rows of messages with their parents' ids.

A path leads from a root to a leaf. Of the replies to a message the one of the lowest rank is taken
(one without a rank last, then by place in the file); rows that are deleted, and trees that are not
ready to be used, are left out.
"""

from collections.abc import Iterator, Sequence
from typing import Any

Record = dict[str, Any]
READY = "ready_for_export"


def is_tree_row(record: Record) -> bool:
    """Tell whether a record is a message of a tree."""
    return isinstance(record["message_id"], str) and isinstance(record["role"], str)


def best_paths(rows: Sequence[Record], *, every_path: bool) -> dict[int, list[int]]:
    """Return the paths to take: leaf -> rows from the root to it, each a place in `rows`.

    every_path: all paths of a tree, not the best alone.
    """
    places = {row["message_id"]: place for place, row in enumerate(rows)}
    replies: dict[int, list[int]] = {}
    roots: list[int] = []
    for place, row in enumerate(rows):
        if row["deleted"] or row["tree_state"] not in (None, READY):
            continue
        parent = row["parent_id"]
        if parent is None:
            roots.append(place)
        elif parent in places:
            replies.setdefault(places[parent], []).append(place)
    for below in replies.values():
        below.sort(key=lambda place: (_rank(rows[place]), place))
    return {path[-1]: path for root in roots for path in _paths(root, replies, every_path)}


def _rank(row: Record) -> float:
    return float("inf") if row["rank"] is None else float(row["rank"])


def _paths(root: int, replies: dict[int, list[int]], every_path: bool) -> Iterator[list[int]]:
    waiting = [[root]]
    while waiting:
        path = waiting.pop()
        below = [place for place in replies.get(path[-1], []) if place not in path]
        if not below:
            yield path
        waiting += [[*path, place] for place in reversed(below if every_path else below[:1])]
