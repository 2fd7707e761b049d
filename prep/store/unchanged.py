"""What a build saw and said, so that the same command over the same files says it again at once.

Recipe and tokenizer are the same by their bytes; files of the data by sizes, times and inodes;
files of the build by sizes and times (it may be moved and linked); code and installed packages by
their times. Where anything differs, is new or gone, the build looks at everything, as ever.
Importing what a build needs costs more than this.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

NAME = "store/files/unchanged.json"  # of a build: with what else is remembered
VERSION = 1
MOST_FILES = 200_000  # of data or of a build: of more, the build looks at everything
CODE = Path(__file__).parents[2]
FLOORS = "prep", "mixtures", "train"
ELSEWHERE = re.compile(rb'"(/|~|[\w+.-]+:/)|["/]\.\./')  # a text that begins as another place
File = tuple[str, tuple[object, ...]]  # name in a folder, what it looks like


class Unchanged:
    """A build's command before it runs: what it would see, and what it said of that before.

    words: what else is asked, as texts.
    """

    def __init__(self, recipe: Path, root: Path, out: Path, words: Sequence[str]) -> None:
        self.recipe, self.root, self.out = recipe.absolute(), root.absolute(), out.absolute()
        self.kept = self.out / NAME
        self._words = [str(VERSION), sys.version, str(self.recipe), str(self.root), *words]
        try:
            self._recipe = _digest(self.recipe)
            self._code = [*_code()]
            self._data = [*_files(self.root, self.out, is_data=True)]
        except (OSError, ValueError):
            self._words = []

    def said(self) -> tuple[list[str], list[str]] | None:
        """Return the notes and lines of the command before, None where anything differs."""
        try:
            known = json.loads(self.kept.read_bytes())
            tokenizer = Path(known["tokenizer"])
            same = bool(self._words) and known["asked"] == self._asked(
                tokenizer, _digest(tokenizer)
            )
            if same and known["built"] == self._built():
                return known["notes"], known["lines"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def keep(
        self, tokenizer: Path, inputs: object, notes: Sequence[str], lines: Sequence[str]
    ) -> None:
        """Keep what the command said of the state that it found.

        tokenizer: the recipe's file. inputs: its settings that may name files, which are looked at
        where they lie below the data's folder; nothing is kept where one may lie elsewhere.
        """
        import orjson

        from crystalmix.prep.runtime.atomic_files import write_atomic

        if ELSEWHERE.search(orjson.dumps(inputs, default=str)):
            return
        tokenizer = tokenizer.absolute()
        try:
            self.kept.unlink(missing_ok=True)
            if self._words and tokenizer.is_file():
                asked = self._asked(tokenizer, _digest(self.out / "tokenizer.json"))
                known = {"asked": asked, "built": self._built(), "tokenizer": str(tokenizer)}
                text = json.dumps({**known, "notes": [*notes], "lines": [*lines]})
                write_atomic(self.kept, text.encode())
        except (OSError, ValueError):
            pass  # such as a disk that is read-only: the next command looks at everything

    def _asked(self, tokenizer: Path, digest: str) -> str:
        by_bytes = {_name(self.root, path) for path in (self.recipe, tokenizer)}
        data = [file for file in self._data if file[0] not in by_bytes]
        return _digest_of([self._words, self._recipe, digest, self._code, data])

    def _built(self) -> str:
        return _digest_of([*_files(self.out, self.kept)])


def _digest_of(state: object) -> str:
    return sha256(repr(state).encode("utf-8", "surrogateescape")).hexdigest()


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _name(root: Path, path: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else ""


def _code() -> Iterator[File]:
    """Yield the files of this package and the folders of installed ones."""
    for floor in FLOORS:
        files = _files(CODE / floor, None)
        yield from ((name, looks) for name, looks in files if not name.endswith((".pyc", ".tmp")))
    for place in sys.path:
        if place.endswith("-packages"):
            yield place, (Path(place).stat().st_mtime_ns,)


def _files(folder: Path, without: Path | None, *, is_data: bool = False) -> Iterator[File]:
    """Yield what lies below a folder, sorted; ValueError where it can't be told in short.

    without: what is left out. Data are looked at behind links, of a build links are read.
    """
    waiting, count, skipped = [""], 0, str(without)
    while waiting:
        place = waiting.pop()
        with os.scandir(folder / place) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                name = f"{place}{entry.name}"
                if entry.path == skipped:
                    continue
                if (count := count + 1) > MOST_FILES:
                    raise ValueError(folder)
                if entry.is_dir(follow_symlinks=is_data):
                    waiting.append(f"{name}/")
                elif entry.is_symlink() and not is_data:
                    link = str(Path(entry.path).readlink())
                    if link.startswith("/") or os.path.normpath(place + link).startswith(".."):
                        raise ValueError(name)  # another's files
                    yield name, (link,)
                else:
                    stat = entry.stat()
                    own = (stat.st_ctime_ns, stat.st_ino) if is_data else ()
                    yield name, (stat.st_size, stat.st_mtime_ns, *own)
