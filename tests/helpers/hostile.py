"""Inputs made to do harm, by mutation of good ones: bytes, settings, and queries that write."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

HUGE: list[Any] = [2**62, 2**63, 2**64, -(2**70), 10**30, 1e300, 1e308, 5e-324, -1, 0, 10**8 + 1]
ODD: list[Any] = [None, [], {}, "", True, "x" * 300, [[]], {"a": 1}, "\x00", "../../up", "s3://a/b"]


def injections(canary: Path) -> list[str]:
    """Return SQL that would write or read at a path, were it run."""
    place = str(canary / "written")
    return [
        f"TRUE); COPY (SELECT 1) TO '{place}'; SELECT (1",
        f"TRUE; ATTACH '{place}' AS other",
        f"(SELECT count(*) FROM read_text('{place}')) > 0",
        "TRUE USING SAMPLE 1",
        "TRUE LIMIT 1",
        f"getenv('HOME') != '{place}'",
        "random() < 0.5",
    ]


def paths(content: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value of a JSON object or list."""
    steps = content.items() if isinstance(content, dict) else enumerate(content)
    every: list[tuple[Any, ...]] = []
    for step, value in steps:
        every.append((*above, step))
        if isinstance(value, (dict, list)):
            every += paths(value, (*above, step))
    return every


def settings(content: Any, rng: Random, canary: Path) -> str:
    """Return a settings file with some values replaced, or its text with some bytes changed."""
    content = deepcopy(content)
    queries = injections(canary)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(paths(content))
        place: Any = content
        for step in path[:-1]:
            place = place[step]
        value = rng.choice([*HUGE, *ODD, *queries])
        if rng.random() < 0.2 and isinstance(place, dict):
            place[rng.choice(["where", "identity", "format", "select", "extra"])] = value
        else:
            place[path[-1]] = deepcopy(value)
    text = json.dumps(content, indent=2)
    return text if rng.random() < 0.8 else damaged(text.encode(), rng).decode("utf-8", "replace")


def damaged(content: bytes, rng: Random) -> bytes:
    """Return bytes with one to three changes of kinds that disks, networks and strangers make."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        rng.choice(KINDS)(changed, rng)
    return bytes(changed)


def _place(content: bytearray, rng: Random) -> int:
    """Return a place, in one of three cases near the beginning or the end, where headers lie."""
    near = rng.randrange(min(64, len(content) or 1))
    return rng.choice([near, max(0, len(content) - 1 - near), rng.randrange(len(content) or 1)])


def _flip(content: bytearray, rng: Random) -> None:
    if content:
        content[_place(content, rng)] ^= 1 << rng.randrange(8)


def _cut(content: bytearray, rng: Random) -> None:
    del content[_place(content, rng) :]


def _zeros(content: bytearray, rng: Random) -> None:
    place, size = _place(content, rng), rng.choice([4, 16, 512, 4096])
    size = min(size, len(content) - place)
    content[place : place + size] = bytes(size)


def _ones(content: bytearray, rng: Random) -> None:
    place = _place(content, rng)
    size = min(rng.choice([1, 4, 8]), len(content) - place)
    content[place : place + size] = b"\xff" * size


def _noise(content: bytearray, rng: Random) -> None:
    place = _place(content, rng)
    content[place:place] = rng.randbytes(rng.choice([1, 7, 300]))


def _again(content: bytearray, rng: Random) -> None:
    place, size = _place(content, rng), rng.choice([8, 100, 2000])
    content[place:place] = content[place : place + size]


KINDS: tuple[Callable[[bytearray, Random], None], ...] = (
    *(_flip, _flip, _flip),
    *(_cut, _zeros, _ones, _noise, _again),
)
