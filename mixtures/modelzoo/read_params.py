"""What a Model Zoo params.yaml says of the rows that a run consumed, and where those rows are.

Of a published file only the mixture is read: its folders, weights, subsets, batch, seed and steps.
Its folders are paths of another machine; they are found again below a folder of this one by their
last components, or where the user says.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path, PurePosixPath
from typing import Any

from crystalmix.prep.rows import shards
from crystalmix.prep.runtime import yaml_settings
from crystalmix.prep.runtime.errors import InputError, RecipeError, UsageError
from crystalmix.prep.runtime.types import Strict

PROCESSOR = "GptHDF5MapDataProcessor"
RANGE = re.compile(r"(\d*\.?\d+)-(\d*\.?\d+)")
# Keys of `train_input` that have no say in which rows a step consumes.
SILENT = {
    *("repeat", "use_worker_cache", "num_workers", "prefetch_factor", "persistent_workers"),
    *("micro_batch_size", "drop_last", "max_sequence_length", "mixed_precision", "use_bfloat16"),
    "sort_files",
}


@dataclass(frozen=True)
class Drawn(Strict):
    """One line of the mixture, as published."""

    data_dir: str
    weight: float
    data_subset: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.weight < inf:
            raise ValueError(f"weight: must be a number, 0 at least, got {self.weight}")
        if self.data_subset is not None and not RANGE.fullmatch(self.data_subset.strip()):
            raise ValueError(
                f"data_subset: must be one range such as 0.0-0.1, got {self.data_subset}"
            )

    @property
    def subset(self) -> tuple[float, float] | None:
        """The range of `data_subset`."""
        if self.data_subset is None:
            return None
        low, _, high = self.data_subset.strip().partition("-")
        return float(low), float(high)


@dataclass(frozen=True)
class TrainInput:
    """The section `train_input`, as far as rows follow from it."""

    batch_size: int
    vocab_size: int
    shuffle_seed: int
    mixture: tuple[Drawn, ...]
    data_processor: str = PROCESSOR
    shuffle: bool = False

    def __post_init__(self) -> None:
        if self.data_processor != PROCESSOR:
            raise ValueError(
                f"data_processor: only the order of {PROCESSOR} is known, got {self.data_processor}"
            )
        if self.shuffle:
            raise ValueError(
                "shuffle: only the interleaved order (shuffle: False) is known, got True"
            )
        if not self.mixture:
            raise ValueError("mixture: must list at least one data_dir, got none")


@dataclass(frozen=True)
class RunConfig:
    """The section `runconfig`, of which the steps are read."""

    max_steps: int


@dataclass(frozen=True)
class ZooParams:
    """A params.yaml, as far as rows follow from it."""

    train_input: TrainInput
    runconfig: RunConfig


def read(path: Path) -> ZooParams:
    """Read a params.yaml of 1.9 or 2.x; RecipeError names file, line and key.

    What is not used is noted.
    """
    content = yaml_settings.load(path)
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: must hold the sections train_input and runconfig")
    if "trainer" in content:
        content = _of_trainer(path, content["trainer"])
    params = yaml_settings.check(path, content, ZooParams)
    keys = {*SILENT, *TrainInput.__dataclass_fields__}
    unknown = sorted(str(key) for key in content["train_input"] if key not in keys)
    if unknown:
        logging.getLogger("crystalmix").warning(
            "%s: train_input: not used: %s", path, ", ".join(unknown)
        )
    return params


def _of_trainer(path: Path, trainer: Any) -> dict[str, Any]:  # noqa: ANN401  as YAML has it
    """Return the two sections of the dialect of 2.x (`trainer:`) under their names of 1.9."""
    try:
        loop, model = trainer["init"]["loop"], trainer["init"]["model"]
        loader = trainer["fit"]["train_dataloader"]
        loader.setdefault("vocab_size", model["vocab_size"])
        return {"train_input": loader, "runconfig": {"max_steps": loop["max_steps"]}}
    except (KeyError, TypeError, AttributeError) as error:
        raise RecipeError(
            f"{path}: trainer: must have init.loop.max_steps, init.model.vocab_size and "
            f"fit.train_dataloader ({error} is missing)"
        ) from None


def place(
    data_dirs: Sequence[str], root: Path, maps: Sequence[str]
) -> dict[str, tuple[str, list[Path]]]:
    """Return for each data_dir the name of its domain and its shards below `root`, in order.

    maps: DATA_DIR=FOLDER[,FOLDER...] where names don't match, the folders relative to `root`.
    Folders that are the parts 0of2, 1of2, ... of one that is not there stand for it. Raises
    InputError for a data_dir that is nowhere or in several places.
    """
    root = root.absolute()
    folders = sorted({path.parent for path in root.rglob("*.h5")})
    if not folders:
        raise InputError(f"{root}: holds no .h5 file; give the folder of the published shards")
    mapped = _given(maps, root, data_dirs)
    places_of = {
        data_dir: _find(data_dir, root, folders, mapped) for data_dir in dict.fromkeys(data_dirs)
    }
    names: dict[tuple[Path, ...], str] = {}
    for data_dir, places in places_of.items():
        if places not in names:
            names[places] = _name(data_dir, set(names.values()))
    return {data_dir: (names[places], _files(places)) for data_dir, places in places_of.items()}


def _given(
    maps: Sequence[str], root: Path, data_dirs: Sequence[str]
) -> dict[str, tuple[Path, ...]]:
    """Return the folders that the user gave, by the end of the data_dir."""
    mapped: dict[str, tuple[Path, ...]] = {}
    for entry in maps:
        name, _, value = entry.partition("=")
        if not (name and value):
            raise UsageError(f"--map: must be DATA_DIR=FOLDER[,FOLDER...], got {entry!r}")
        if not any(_ends(data_dir, name) for data_dir in data_dirs):
            raise UsageError(f"--map {entry}: no data_dir of the params ends in {name!r}")
        places = tuple(root / folder for folder in value.split(","))
        for place in places:
            if not shards.folder(place):
                raise UsageError(f"--map {entry}: {place} holds no .h5 file")
        mapped[name] = places
    return mapped


def _find(
    data_dir: str, root: Path, folders: Sequence[Path], mapped: Mapping[str, tuple[Path, ...]]
) -> tuple[Path, ...]:
    """Return the folders that a data_dir stands for."""
    named = [name for name in mapped if _ends(data_dir, name)]
    if named:
        return mapped[max(named, key=len)]
    remedy = f"say where it is: --map {PurePosixPath(data_dir).name}=FOLDER"
    shared = [_shared(data_dir, folder.as_posix()) for folder in folders]
    best = [f for f, n in zip(folders, shared, strict=True) if n and n == max(shared)]
    if len(best) == 1:
        return (best[0],)
    if best:
        places = ", ".join(str(folder.relative_to(root)) for folder in best[:3])
        raise InputError(
            f"data_dir {data_dir}: {len(best)} folders below {root} match ({places}); {remedy}"
        )
    pieces = _pieces(PurePosixPath(data_dir).name, folders)
    if not pieces:
        raise InputError(f"data_dir {data_dir}: no folder below {root} has its name; {remedy}")
    logging.getLogger("crystalmix").warning(
        "data_dir %s: taken to be %s together, their files sorted by name",
        data_dir,
        " and ".join(str(folder.relative_to(root)) for folder in pieces),
    )
    return pieces


def _pieces(name: str, folders: Sequence[Path]) -> tuple[Path, ...]:
    """Return the folders NAME_part0ofN ... NAME_part(N-1)ofN if all are there, once each."""
    pattern = re.compile(rf"{re.escape(name)}_part(\d+)of(\d+)")
    pieces = {folder: match for folder in folders if (match := pattern.fullmatch(folder.name))}
    numbers = sorted((int(match[1]), int(match[2])) for match in pieces.values())
    if numbers != [(i, len(numbers)) for i in range(len(numbers))]:
        return ()
    return tuple(pieces)


def _files(places: Sequence[Path]) -> list[Path]:
    """Return the shards of folders, sorted by name: InputError where a name stands twice."""
    files = sorted((p for place in places for p in shards.folder(place)), key=lambda p: p.name)
    for left, right in pairwise(files):
        if left.name == right.name:
            raise InputError(
                f"{left} and {right} have one name, but would stand in one domain; "
                "map the data_dir to folders that share no name"
            )
    return files


def _name(data_dir: str, taken: set[str]) -> str:
    """Return a domain's name: the last components of a data_dir, as few as tell it apart."""
    parts = [part for part in PurePosixPath(data_dir).parts if part != "/"]
    ends = ["-".join(parts[-count:]) for count in range(1, len(parts) + 1)]
    names = [re.sub(r"[^\w.+-]", "_", end).lstrip(".") or "_" for end in ends]
    return next((name for name in names if name not in taken), f"{names[-1]}-{len(taken)}")


def _ends(data_dir: str, name: str) -> bool:
    return _shared(data_dir, name) == len(PurePosixPath(name).parts)


def _shared(path: str, other: str) -> int:
    """Return how many of their last components two paths share."""
    pairs = zip(
        reversed(PurePosixPath(path).parts), reversed(PurePosixPath(other).parts), strict=False
    )
    count = 0
    for left, right in pairs:
        if left != right:
            break
        count += 1
    return count
