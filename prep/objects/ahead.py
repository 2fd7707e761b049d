"""Shards brought ahead of the reader of a mirror, who reads a part's shards one after another."""

import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from crystalmix.prep.objects.waiting import bring

THREADS = 2


class Ahead:
    """Brings shards in threads while others are read; one that fails is left to its reader."""

    def __init__(self) -> None:
        self._process = 0
        self._asked: dict[Path, Future[bool]] = {}

    def __reduce__(self) -> "tuple[type[Ahead], tuple[()]]":
        """Be handed to another process without threads."""
        return Ahead, ()

    def want(self, paths: Iterable[Path]) -> None:
        """Begin to bring what is not there and not on its way."""
        if self._process != os.getpid():  # threads do not live on in a forked process
            self._process, self._asked = os.getpid(), {}
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ahead")
        for path in paths:
            on_its_way = self._asked.get(path)
            if on_its_way is not None and not on_its_way.done():
                continue
            if not path.exists():
                self._asked[path] = self._pool.submit(bring, path)
