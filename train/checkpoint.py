"""Checkpoints: model, optimiser and state of a step, whole or not there at all.

`step-00001500/` holds torch.distributed.checkpoint's files and `state.json` (step, manifest digest,
ledger, digest of the weights). It is written under a temporary name, flushed, and renamed; the name
alone makes it a checkpoint.
"""

import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from prep import receipts
from prep.errors import DamageError
from train import folder as folders

Json = dict[str, Any]


def save(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: Json
) -> Path:
    """Write the checkpoint of a step and return its path."""
    path = folder / folders.checkpoint_name(step)
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"
    rmtree(temporary, ignore_errors=True)
    weights, moments = get_state_dict(model, optimizer)
    with _single_process():
        save_state({"model": weights, "optimizer": moments}, checkpoint_id=temporary)
    files = [receipts.describe(file) for file in sorted(temporary.iterdir())]
    content = {**state, "step": step, "weights": weights_digest(model), "files": files}
    folders.write_state(temporary, content)
    rmtree(path, ignore_errors=True)
    temporary.rename(path)
    return path


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Json:
    """Load model and optimiser from a checkpoint; return its state."""
    state = read_state(path)
    weights, moments = get_state_dict(model, optimizer)
    whole: dict[str, Any] = {"model": weights, "optimizer": moments}
    with _single_process():
        load_state(whole, checkpoint_id=path)
    set_state_dict(
        model, optimizer, model_state_dict=whole["model"], optim_state_dict=whole["optimizer"]
    )
    _check_weights(path, model, state)
    return state


def load_weights(path: Path, model: nn.Module) -> Json:
    """Load the weights alone, to begin a next phase; return the checkpoint's state."""
    state = read_state(path)
    whole = {"model": get_model_state_dict(model)}
    with _single_process():
        load_state(whole, checkpoint_id=path)
    set_model_state_dict(model, whole["model"])
    _check_weights(path, model, state)
    return state


def read_state(path: Path) -> Json:
    """Read a checkpoint's state and check the bytes of its files."""
    state = folders.read_state(path)
    folders.check_files(path, state, "remove this checkpoint to go on from the one before")
    return state


def keep_last(folder: Path, count: int) -> None:
    """Remove all but the newest checkpoints, and what is left of removing others."""
    kept = folders.checkpoints(folder)[-count:]
    for path in folder.glob("step-*"):
        if path not in kept:
            rmtree(path, ignore_errors=True)


def weights_digest(model: nn.Module) -> str:
    """Return the sha256 over all parameters, by name."""
    content = sha256()
    for key, tensor in sorted(model.state_dict().items()):
        content.update(key.encode())
        content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


def _check_weights(path: Path, model: nn.Module, state: Json) -> None:
    if weights_digest(model) != state["weights"]:
        raise DamageError(f"{path}: its weights are not those that were saved; remove it")


@contextmanager
def _single_process() -> Generator[None]:
    with warnings.catch_warnings():
        # Without a process group torch.distributed.checkpoint warns that it assumes one process.
        warnings.filterwarnings("ignore", message=".*single process.*|.*torch.distributed.*")
        yield
