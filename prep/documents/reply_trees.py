"""Trees of replies, as OASST publishes them: flat rows of messages with their parents' ids.

A path leads from a root to a leaf. Of the replies to a message the one of the lowest rank is taken
(one without a rank last, then by place in the file); rows that are deleted, and trees that are not
ready to be used, are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
READY = "ready_for_export"


def is_tree_row(record: Record) -> bool:
    """Tell whether a record is a message of a tree."""
    return isinstance(record["message_id"], str) and isinstance(record["role"], str)


@dataclass(frozen=True)
class Paths:
    """The paths to take of some rows.

    places: of each message, by its id, in `rows`. leaves: of each path its last row -> how many
    rows it has.
    """

    rows: Sequence[Record]
    places: Mapping[str, int]
    leaves: Mapping[int, int]

    def to(self, leaf: int) -> list[int]:
        """Return the rows from the root to a leaf, each a place in `rows`."""
        steps = [leaf]
        while (parent := self.rows[steps[-1]]["parent_id"]) is not None:
            steps.append(self.places[parent])
        return steps[::-1]


def best_paths(rows: Sequence[Record], *, every_path: bool) -> Paths:
    """Return the paths to take, in a time that grows with the rows, however long the paths are.

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
    leaves: dict[int, int] = {}
    waiting = [(root, 1) for root in roots]
    while waiting:  # no row comes twice: each has one parent, and no ring of replies has a root
        place, count = waiting.pop()
        below = replies.get(place, [])
        if not below:
            leaves[place] = count
        waiting += [(reply, count + 1) for reply in (below if every_path else below[:1])]
    return Paths(rows, places, leaves)


def _rank(row: Record) -> float:
    return float("inf") if row["rank"] is None else float(row["rank"])
