"""Drop notes: one line on stderr for what a source loses that nobody asked it to.

What a setting chooses (`where`, `sample`, `limit`) is as asked and told by no note. What lists and
duplicates take is told where it is more than what stays.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from crystalmix.mixtures.recipes.recipe import Recipe
from crystalmix.prep.documents import source as sources
from crystalmix.prep.documents.source import Source
from crystalmix.prep.readers.listing import Listing
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import CrystalmixError
from crystalmix.prep.runtime.types import Json

CHOSEN = ("where", "sample", "limit")
REMOVED = ("opt_out", "contaminated", "duplicate", "near_duplicate")
SHOWN = 3


def tell_dropped(source: Source, account: Json, out: Path) -> None:
    """Note the records of a source that were dropped, and the files that were left out."""
    broken: Mapping[str, int] = account["broken_files"]
    told = _dropped(account["records"], account["documents"], account["dropped"], broken)
    if told:
        _note(f"source {source.name}: {told}; crystalmix show {out} tells more")


def tell_sampled(source: Source, found: Sequence[Json]) -> None:
    """Note what was dropped of the blocks that an estimate looked at: their accounts."""
    dropped: Counter[str] = Counter()
    for each in found:
        dropped.update(each["dropped"])
    broken = Counter(each["broken"]["reason"] for each in found if each["broken"])
    records, kept = (sum(each[key] for each in found) for key in ("records", "documents"))
    told = _dropped(records, kept, dropped, broken)
    if told:
        _note(f"source {source.name}: {told}, of {_files(len(found))} looked at")


def tell_unread(recipe: Recipe, root: Path, source: Source, found: Listing) -> None:
    """Note the files in a source's folders that neither it nor another source reads."""
    left = [f"{name} {why}" for name, why in found.skipped if not why.startswith("is the same")]
    if left:
        _note(f"source {source.name}: {_files(len(left))} left out ({_first(left)})")
    read = _read(recipe, root) if found.others else set[str]()
    others = (name for name in found.others if name.rpartition("/")[2] != receipts.NAME)
    unread = [name for name in others if name not in read]
    if unread:
        verb = "is" if len(unread) == 1 else "are"
        told = f"{_files(len(unread))} of other kinds {verb} not read ({_first(unread)})"
        _note(f"source {source.name}: {told}")


def _dropped(records: int, kept: int, dropped: Mapping[str, int], broken: Mapping[str, int]) -> str:
    """Return what was dropped unasked, or '' if nothing was."""
    removed = sum(dropped.get(reason, 0) for reason in REMOVED)
    quiet = (*CHOSEN, *REMOVED) if removed <= kept else CHOSEN
    counts = {reason: n for reason, n in dropped.items() if n and reason not in quiet}
    told: list[str] = []
    if counts:
        lost = f"{sum(counts.values()):,} of {records:,} records dropped"
        told.append(f"{lost} ({_counts(counts)})")
    if broken:
        told.append(f"{_files(sum(broken.values()))} broken ({_counts(broken)})")
    return ", ".join(told)


def _read(recipe: Recipe, root: Path) -> set[str]:
    """Return the files that a recipe's sources read, as far as they are there, and its lists."""
    told: set[str] = set()
    for source in recipe.sources.values():
        told |= {each.file for each in source.select.opt_out}
        if source.hub is not None:
            continue
        try:
            for block in sources.listing(source, root).names:
                told.update(sources.files(root, block) if source.format == "text" else [block])
        except CrystalmixError:
            continue  # it is told where the source is built
    return told


def _counts(counts: Mapping[str, int]) -> str:
    most = sorted(counts.items(), key=lambda each: -each[1])
    return ", ".join(f"{reason} {n:,}" for reason, n in most)


def _files(count: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}"


def _first(names: Sequence[str]) -> str:
    return ", ".join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])])


def _note(line: str) -> None:
    logging.getLogger("crystalmix").warning("%s", line)
