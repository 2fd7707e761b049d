"""What Model Zoo's loader must be told to consume a manifest's rows in the manifest's order.

That is `train_input` of a params.yaml. Model Zoo knows folders and fractions: a part that draws
from a run of a folder's rows gets `data_subset`, one that draws from some of its shards a folder of
links. `read_params` and `cerebras_order` read it back; so tests prove the rows of every step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Literal, get_args

from crystalmix.mixtures.manifest.cerebras_order import subset_bounds
from crystalmix.mixtures.manifest.manifest import Manifest, ManifestPart
from crystalmix.mixtures.modelzoo.read_params import PROCESSOR
from crystalmix.prep.rows import shards
from crystalmix.prep.runtime.errors import DamageError, RefusalError, UsageError
from crystalmix.prep.runtime.types import Content

Reader = Literal["1.9.1", "2.0.3"]
PLACES = 17  # decimal places that tell any two floats below 1 apart


@dataclass(frozen=True)
class Place:
    """How the machine that trains finds the rows.

    mounts: HERE=THERE, folders that have another path there. links: a folder to make links in where
    a part draws from some shards of a folder only. reader: whose meaning of `data_subset` is to be
    served, 1.9.1's or that of 2.0.3 and later; the manifest's own if None.
    """

    mounts: tuple[str, ...] = ()
    links: Path | None = None
    reader: Reader | None = None

    def __post_init__(self) -> None:
        for mount in self.mounts:
            here, _, there = mount.partition("=")
            if not (here and there):
                raise UsageError(f"--mount: must be HERE=THERE, got {mount!r}")
        if self.reader not in {None, *get_args(Reader)}:
            raise UsageError(f"--reader: must be 1.9.1 or 2.0.3, got {self.reader!r}")

    def there(self, path: Path) -> str:
        """Return a path as the machine that trains has it."""
        absolute = path.absolute()
        pairs = (mount.partition("=") for mount in self.mounts)
        mounts = {Path(here).absolute(): Path(there) for here, _, there in pairs}
        holding = [here for here in mounts if absolute.is_relative_to(here)]
        if not holding:
            return absolute.as_posix()
        here = max(holding, key=lambda folder: len(folder.parts))
        return (mounts[here] / absolute.relative_to(here)).as_posix()


def train_input(manifest: Manifest, place: Place) -> Content:
    """Return `train_input` of a manifest, without the keys that have no say in its rows.

    Raises RefusalError for a manifest in another order than Model Zoo's, or for rows that its
    reader can't be told.
    """
    if manifest.cerebras is None:
        raise RefusalError(
            f"phase {manifest.phase}: its order is `exact`, which Model Zoo's loader lacks; build "
            "the phase with `cerebras: {}`, or train it with `crystalmix train`"
        )
    if any(manifest.masked):
        raise RefusalError(
            f"phase {manifest.phase}: masks attention between documents, which its shards do not "
            "say to Model Zoo; export its rows to vsl, or build it with rows.documents: open"
        )
    reader: Reader = place.reader or manifest.cerebras.subset
    return {
        "data_processor": PROCESSOR,
        "batch_size": manifest.batch,
        "shuffle": False,
        "shuffle_seed": manifest.cerebras.seed,
        "vocab_size": manifest.tokenizer.vocab,
        "mixture": [_line(manifest, part, place, reader) for part in manifest.parts],
    }


def _line(manifest: Manifest, part: ManifestPart, place: Place, reader: Reader) -> Content:
    """Return a part's line of `mixture`."""
    weight = part.budget.get("weight", part.asked)
    files = [_root(manifest) / shard.path for shard in part.shards]
    present = shards.folder(files[0].parent)
    rows = {file: shard.rows for file, shard in zip(files, part.shards, strict=True)}
    absent = [file for file in files if file not in present]
    if absent:
        raise DamageError(f"{absent[0]}: is missing, though the manifest lists it; restore it")
    subset = _subset(part, files, present, rows, reader)
    folder = _real(files[0].parent, present)
    if subset is None:
        subset = _subset(part, files, files, rows, reader)
        if subset is None:
            raise _untold(part, reader)
        folder = _linked(manifest, part, files, place)
    line: Content = {"data_dir": place.there(folder), "weight": weight}
    return {**line, "data_subset": subset} if subset else line


def _root(manifest: Manifest) -> Path:
    if manifest.folder is None:
        raise UsageError(f"manifest {manifest.name}: give the one in its build, beside its shards")
    return manifest.folder.absolute().parents[1]


def _subset(
    part: ManifestPart,
    files: Sequence[Path],
    present: Sequence[Path],
    rows: dict[Path, int],
    reader: Reader,
) -> str | None:
    """Return the `data_subset` of the present files that gives a part's rows.

    Nothing for all of them, None where no range does.
    """
    start = present.index(files[0])
    if list(present[start : start + len(files)]) != list(files):
        return None
    inner = all(s.last == s.rows for s in part.shards[:-1])
    if not inner or any(shard.first for shard in part.shards[1:]):
        return None
    counts = [rows[file] if file in rows else shards.shape(file)[0] for file in present]
    first = sum(counts[:start]) + part.shards[0].first
    last = sum(counts[: start + len(files) - 1]) + part.shards[-1].last
    total = sum(counts)
    if (first, last) == (0, total):
        return ""
    # 1.9.1 takes the size of the range for its first row: of 0.0-0.1 the second tenth
    low, high = (first, last) if reader == "2.0.3" else (0, first)
    if reader == "1.9.1" and last != 2 * first:
        return None
    text = f"{_decimal(total, low)}-{_decimal(total, high)}"
    ends = tuple(float(end) for end in text.split("-"))
    right = subset_bounds(total, (ends[0], ends[1]), reader) == (first, last)
    return text if right else None


def _decimal(total: int, rows: int) -> str:
    """Return the shortest decimal x with int(total * x) == rows, at least one place long."""
    for places in range(1, PLACES + 1):
        scale = 10**places
        least = ceil(rows * scale / total)
        for units in (least - 1, least, least + 1):
            text = f"{units // scale}.{units % scale:0{places}d}"
            if 0 <= units <= scale and int(total * float(text)) == rows:
                return text
    return repr(rows / total)


def _real(folder: Path, present: Sequence[Path]) -> Path:
    """Return the folder that a folder's links lead to if it holds those files alone."""
    parents = {path.resolve().parent for path in present}
    if len(parents) != 1:
        return folder
    [real] = parents
    return real if [p.name for p in shards.folder(real)] == [p.name for p in present] else folder


def _linked(manifest: Manifest, part: ManifestPart, files: Sequence[Path], place: Place) -> Path:
    """Make a folder of links to a part's shards and return it."""
    if place.links is None:
        raise RefusalError(
            f"part {part.name}: draws from {len(files)} of the shards of {files[0].parent}, and "
            "Model Zoo reads whole folders; give a folder for links to them: --links FOLDER"
        )
    folder = place.links / manifest.phase / part.name
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.h5"):
        if not path.is_symlink():
            raise RefusalError(f"{path}: is a file, no link; give another folder for --links")
        path.unlink()
    for file in files:
        (folder / file.name).symlink_to(file.resolve())
    return folder


def _untold(part: ManifestPart, reader: Reader) -> RefusalError:
    first, last = part.shards[0], part.shards[-1]
    return RefusalError(
        f"part {part.name}: no data_subset of Model Zoo {reader} gives rows {first.first} of "
        f"{first.path} to {last.last} of {last.path}; "
        + ("give --reader 2.0.3" if reader == "1.9.1" else "build it from whole shards")
    )
