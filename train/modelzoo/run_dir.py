"""What a Model Zoo run left behind: its checkpoints, and where its loader stood at each of them.

2.x keeps the loader's state in the checkpoint (`samples_streamed` over all workers, since 2.3 with
what the dataset was told), 1.9 in text files of its workers, our cstorch backend as the manifest's
digest and the next position. All of them must tell the same: step x batch rows.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.runtime.errors import DamageError, InputError, RefusalError, StaleError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.weights import mdl

LONG = 60  # characters of a value in a message
NAME = re.compile(r"checkpoint_(\d+)(?:_(\d{8}_\d{6}))?\.mdl")
OURS = re.compile(r"step-(\d+)")
GLOBAL = "data_iter_checkpoint_state_file_global"
WORKER = re.compile(r"data_iter_state_file_worker_(\d+)_step_(\d+)\.txt")


@dataclass(frozen=True)
class Left:
    """A checkpoint: steps done, and its loader's state, flat; none where nothing tells it."""

    step: int
    path: Path
    loader: Json


def checkpoints(model_dir: Path, state: Path | None = None) -> list[Left]:
    """Return a run's checkpoints, oldest first; InputError where there are none.

    state: the folder of 1.9's loader state (`save_iter_state_path`), if it is not the run's.
    """
    if not model_dir.is_dir():
        raise InputError(f"{model_dir}: is no folder; give the model_dir of a Model Zoo run")
    named = [(m, path) for path in model_dir.glob("*.mdl") if (m := NAME.fullmatch(path.name))]
    paths = [(int(m[1]), m[2] or "", path) for m, path in named]
    for path in (*model_dir.glob("step-*/model.mdl"), *model_dir.glob("checkpoints/*/model.mdl")):
        if match := OURS.fullmatch(path.parent.name):
            paths.append((int(match[1]), "", path))
    if not paths:
        raise InputError(
            f"{model_dir}: holds no checkpoint_N.mdl; give the model_dir of a Model Zoo run that "
            "has saved one"
        )
    streamed = _streamed(model_dir if state is None else state, state is not None)
    return [_left(step, path, streamed) for step, _, path in sorted(paths)]


def _left(step: int, path: Path, streamed: dict[int, int]) -> Left:
    with mdl.opened(path) as file:
        saved = file.value("global_step") if "global_step" in file.names else step
        if int(float(saved)) != step:  # type: ignore[arg-type]
            raise DamageError(f"{path}: is named after step {step}, but was saved at step {saved}")
        loader: Json = {n: file.value(whole) for n, whole in file.below("dataloader").items()}
    if not loader and step in streamed:
        loader = {"samples_streamed": streamed[step]}
    return Left(step, path, loader)


def _streamed(folder: Path, needed: bool) -> dict[int, int]:
    """Return how many rows all workers of a 1.9 run had streamed at each of its steps."""
    rows: dict[int, int] = {}
    for path in sorted(folder.glob("data_iter_state_file_worker_*.txt")):
        if match := WORKER.fullmatch(path.name):
            text = path.read_text("utf-8").splitlines()[:1]
            if not text or not text[0].strip().isdecimal():
                raise DamageError(f"{path}: tells no number of rows; take another --state")
            rows[int(match[2])] = rows.get(int(match[2]), 0) + int(text[0])
    if needed and not rows:
        raise InputError(f"{folder}: holds no {GLOBAL} and no state of workers")
    return rows


def check(checkpoints: Sequence[Left], manifest: Manifest) -> list[str]:
    """Hold checkpoints against a manifest; return what they leave open, one line for each.

    Raises StaleError for the state of another manifest, RefusalError for steps beyond its plan,
    DamageError for a loader that stood somewhere else.
    """
    silent: list[str] = []
    for left in checkpoints:
        where = f"{left.path.name} of phase {manifest.phase}"
        if left.step > manifest.steps:
            raise RefusalError(
                f"{left.path}: was saved after {left.step} steps, the plan of phase "
                f"{manifest.phase} has {manifest.steps}; give the build it was trained on"
            )
        _check_manifest(left, manifest)
        position = left.step * manifest.batch
        streamed = left.loader.get("samples_streamed", left.loader.get("next"))
        if streamed is None:
            silent.append(
                f"{where}: tells no state of its loader; taken to be at {position} rows, which is "
                f"{left.step} steps of {manifest.batch}"
            )
        elif int(streamed) != position:
            raise DamageError(
                f"{left.path}: its loader had streamed {streamed} rows, but {left.step} steps of "
                f"{manifest.batch} are {position}; it was begun elsewhere, or with another batch"
            )
    return silent


def _check_manifest(left: Left, manifest: Manifest) -> None:
    """Hold what a loader was told against a manifest."""
    state, order = left.loader, manifest.cerebras
    if (digest := state.get("manifest")) is not None:
        if digest != manifest.digest:
            raise _other(left, "manifest", str(digest)[:12], manifest.digest[:12])
        return
    if order is None:
        raise RefusalError(
            f"phase {manifest.phase}: its order is `exact`, which Model Zoo's loader lacks, so no "
            f"run of Model Zoo can have followed it; give the build that {left.path} was trained on"
        )
    weights = _listed(state, "weight")
    loader: Json = {
        "seed": state.get("seed", state.get("dataset.shuffle_seed")),
        "batch size": state.get("dataset.batch_size"),
        "shuffle": state.get("dataset.shuffle"),
        "weights": weights or None,
        "number of samples": state.get("dataset.num_samples"),
    }
    planned: Json = {
        "seed": order["seed"],
        "batch size": manifest.batch,
        "shuffle": False,
        "weights": [part.budget.get("weight", part.asked) for part in manifest.parts],
        "number of samples": None,
    }
    for key, value in loader.items():
        if value is not None and value != planned[key]:
            raise _other(left, key, value, planned[key])


def _listed(state: Json, key: str) -> list[Any]:
    """Return a key of every line of the mixture that a dataset was told."""
    values: list[Any] = []
    while (name := f"dataset.mixture_params.{len(values)}.{key}") in state:
        values.append(state[name])
    return values


def _other(left: Left, key: str, value: object, expected: object) -> StaleError:
    has, needs = (t if len(t) < LONG else f"{t[:LONG]}..." for t in map(str, (value, expected)))
    return StaleError(
        f"{left.path}: its loader followed another manifest ({key} {has}, this one has {needs}); "
        "give the build and --phase that it was trained on"
    )
