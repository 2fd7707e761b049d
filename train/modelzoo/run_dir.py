"""Checkpoints of a Model Zoo run, and the position of its loader at each of them.

2.x keeps the loader's state in the checkpoint (`samples_streamed` over all workers, since 2.3 with
the dataset's settings), 1.9 in text files of its workers, our cstorch backend as the manifest's
digest and the next position. All of them must agree: step x batch rows.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.runtime.errors import DamageError, InputError, RefusalError, StaleError
from crystalmix.prep.runtime.types import Content, Json
from crystalmix.train.weights import mdl

LONG = 60  # characters of a value in a message
NAME = re.compile(r"checkpoint_(\d+)(?:_(\d{8}_\d{6}))?\.mdl")
OURS = re.compile(r"step-(\d+)")
GLOBAL = "data_iter_checkpoint_state_file_global"
WORKER = re.compile(r"data_iter_state_file_worker_(\d+)_step_(\d+)\.txt")


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint: steps done, and its loader's state, flat; empty where there is none."""

    step: int
    path: Path
    loader: Json


def checkpoints(model_dir: Path, state: Path | None = None) -> list[SavedCheckpoint]:
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
    return [_read(step, path, streamed) for step, _, path in sorted(paths)]


def _read(step: int, path: Path, streamed: dict[int, int]) -> SavedCheckpoint:
    with mdl.opened(path) as file:
        saved = file.value("global_step") if "global_step" in file.names else step
        if int(float(saved)) != step:  # type: ignore[arg-type]
            raise DamageError(f"{path}: is named after step {step}, but was saved at step {saved}")
        loader: Json = {n: file.value(whole) for n, whole in file.below("dataloader").items()}
    if not loader and step in streamed:
        loader = {"samples_streamed": streamed[step]}
    return SavedCheckpoint(step, path, loader)


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


def check(checkpoints: Sequence[SavedCheckpoint], manifest: Manifest) -> list[str]:
    """Compare checkpoints with a manifest; return a line for each that holds no loader state.

    Raises StaleError for the state of another manifest, RefusalError for steps beyond its plan,
    DamageError for a loader that stood somewhere else.
    """
    silent: list[str] = []
    for saved in checkpoints:
        where = f"{saved.path.name} of phase {manifest.phase}"
        if saved.step > manifest.steps:
            raise RefusalError(
                f"{saved.path}: was saved after {saved.step} steps, the plan of phase "
                f"{manifest.phase} has {manifest.steps}; give the build it was trained on"
            )
        _check_manifest(saved, manifest)
        position = saved.step * manifest.batch
        streamed = saved.loader.get("samples_streamed", saved.loader.get("next"))
        if streamed is None:
            silent.append(
                f"{where}: tells no state of its loader; taken to be at {position} rows, which is "
                f"{saved.step} steps of {manifest.batch}"
            )
        elif int(streamed) != position:
            raise DamageError(
                f"{saved.path}: its loader had streamed {streamed} rows, but {saved.step} steps of "
                f"{manifest.batch} are {position}; it was begun elsewhere, or with another batch"
            )
    return silent


def _check_manifest(saved: SavedCheckpoint, manifest: Manifest) -> None:
    """Compare the settings of a loader with a manifest."""
    state, order = saved.loader, manifest.cerebras
    if (digest := state.get("manifest")) is not None:
        if digest != manifest.digest:
            raise _stale(saved, "manifest", str(digest)[:12], manifest.digest[:12])
        return
    if order is None:
        raise RefusalError(
            f"phase {manifest.phase}: its order is `exact`, which Model Zoo's loader lacks, so no "
            f"run of Model Zoo can have followed it; give the build that {saved.path} was trained "
            "on"
        )
    weights = _mixture_values(state, "weight")
    loader: Content = {
        "seed": state.get("seed", state.get("dataset.shuffle_seed")),
        "batch size": state.get("dataset.batch_size"),
        "shuffle": state.get("dataset.shuffle"),
        "weights": weights or None,
        "number of samples": state.get("dataset.num_samples"),
    }
    planned: Content = {
        "seed": order.seed,
        "batch size": manifest.batch,
        "shuffle": False,
        "weights": [part.budget.get("weight", part.asked) for part in manifest.parts],
        "number of samples": None,
    }
    for key, value in loader.items():
        if value is not None and value != planned[key]:
            raise _stale(saved, key, value, planned[key])


def _mixture_values(state: Json, key: str) -> list[Any]:
    """Return the values of a key in all lines of a dataset's mixture."""
    values: list[Any] = []
    while (name := f"dataset.mixture_params.{len(values)}.{key}") in state:
        values.append(state[name])
    return values


def _stale(saved: SavedCheckpoint, key: str, value: object, expected: object) -> StaleError:
    has, needs = (t if len(t) < LONG else f"{t[:LONG]}..." for t in map(str, (value, expected)))
    return StaleError(
        f"{saved.path}: its loader followed another manifest ({key} {has}, this one has {needs}); "
        "give the build and --phase that it was trained on"
    )
