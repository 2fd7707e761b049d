"""Weights from outside: Hugging Face CrystalCoder files as a checkpoint to begin a phase from.

Reads what `export` writes and what is published: safetensors or PyTorch's own files, one or several
with an index, with or without a copy of the tied head and the stored masks. Numbers in bfloat16 and
float16 become the float32 that equals them.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from crystalmix.prep.runtime.atomic_files import read_json, refuse_taken, replacing_folder
from crystalmix.prep.runtime.errors import DamageError, InputError
from crystalmix.prep.runtime.machine import machine_error
from crystalmix.prep.runtime.receipts import FileEntry
from crystalmix.prep.runtime.types import Json
from crystalmix.train.model.crystal import Crystal, ModelSettings
from crystalmix.train.record import run_folder
from crystalmix.train.record.run_folder import CheckpointState
from crystalmix.train.runfile import run_file as run_files
from crystalmix.train.trainer import checkpoint
from crystalmix.train.weights import hf_config
from crystalmix.train.weights.hf_export import CONFIG, INDEX, PROVENANCE, WEIGHTS
from crystalmix.train.weights.hf_names import (
    BUFFERS,
    EMBEDDING,
    HEAD,
    State,
    from_huggingface,
    to_huggingface,
)

PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHOWN = 3  # names in a message


def import_weights(
    source: Path, out: Path, run_file: str | None = None
) -> run_folder.CheckpointState:
    """Write the weights of a folder or file as the checkpoint `out`; return its state.

    run_file: whose model they must fit; without one, the model that `export` wrote down. Raises
    InputError, in one line, for tensors that are missing, unknown or of another shape.
    """
    refuse_taken(out)
    settings, origin = _settings(source, run_file)
    with torch.device("meta"):
        model = Crystal(settings)
    state = _checked(source, read_tensors(source), to_huggingface(model.state_dict()))
    model.load_state_dict(state, assign=True)
    with replacing_folder(out) as place:
        checkpoint.write_files(place, {"model": get_model_state_dict(model)})
        written = CheckpointState(
            0,
            files=tuple(FileEntry.of(file) for file in sorted(place.iterdir())),
            manifest=origin.get("manifest"),
            model=asdict(settings),
            weights=checkpoint.weights_digest(model),
            imported={"from": source.name, "step": origin.get("step")},
        )
        run_folder.write_state(place, written)
    return written


def _settings(source: Path, run_file: str | None) -> tuple[ModelSettings, Json]:
    """Return the model that weights are for, and what is known of where they are from."""
    place = source if source.is_dir() else source.parent
    origin: Json = {}
    if (place / PROVENANCE).exists():
        origin = read_json(place / PROVENANCE, "export again, or remove it and give --run")
    if run_file is not None:
        settings = run_files.load(run_files.find(run_file)).model
    elif isinstance(model := origin.get("model"), dict):
        settings = _made(place / PROVENANCE, model)
    else:
        raise InputError(f"{source}: no {PROVENANCE} tells its model; give its run file with --run")
    if (place / CONFIG).exists():
        config = read_json(place / CONFIG, "restore it")
        lines = hf_config.contradictions(settings, config)
        if lines:
            raise InputError(f"{place / CONFIG}: is of another model: {'; '.join(lines[:SHOWN])}")
    return settings, origin


def _made(path: Path, model: Json) -> ModelSettings:
    try:
        return ModelSettings(**model)
    except (TypeError, ValueError) as error:
        raise DamageError(f"{path}: model: {error}; give the run file with --run") from None


def read_tensors(source: Path) -> State:
    """Read every tensor of a file, of a folder's one file, or of the files in its index."""
    if not source.is_dir():
        return _file(source)
    for index in (source / INDEX, source / PICKLED_INDEX):
        if index.exists():
            return _indexed(index)
    for name in (WEIGHTS, PICKLED):
        if (source / name).exists():
            return _file(source / name)
    raise InputError(f"{source}: holds no {WEIGHTS}, {INDEX}, {PICKLED} or {PICKLED_INDEX}")


def _indexed(index: Path) -> State:
    where = read_json(index, "restore it").get("weight_map")
    if not isinstance(where, dict) or not where:
        raise DamageError(f"{index}: has no weight_map; restore it")
    state: State = {}
    for file in sorted(set(where.values())):
        tensors = _file(index.parent / str(file))
        names = {name for name, place in where.items() if place == file}
        if lacking := sorted(names - tensors.keys()):
            raise DamageError(f"{index.parent / file}: lacks {_some(lacking)}, says {index.name}")
        state |= {name: tensor for name, tensor in tensors.items() if name in names}
    return state


def _file(path: Path) -> State:
    """Read a file of tensors; they stay on disk until they are used."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    pickled = path.suffix in {".bin", ".pt", ".pth"}
    read: Callable[[Path], State] = _unpickled if pickled else _safe
    try:
        return read(path)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError) as error:
        if trouble := machine_error(error, path):
            raise trouble from None
        brief = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamageError(f"{path}: can't be read ({brief}); get it again") from None


def _safe(path: Path) -> State:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping


def _unpickled(path: Path) -> State:
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    tensors = isinstance(content, Mapping) and all(isinstance(x, Tensor) for x in content.values())
    if not tensors:
        raise RuntimeError("it holds something else than named tensors")
    return dict(content)


def _checked(source: Path, theirs: State, expected: State) -> State:
    """Return tensors in our names as float32; InputError where they are not those of the model."""
    tensors = {name: x for name, x in theirs.items() if not BUFFERS.fullmatch(name)}
    _check_head(source, tensors)
    if missing := sorted(expected.keys() - tensors.keys()):
        raise InputError(f"{source}: lacks {_some(missing)} of the model")
    if extra := sorted(tensors.keys() - expected.keys()):
        raise InputError(f"{source}: holds {_some(extra)}, which the model does not have")
    for name, tensor in tensors.items():
        size, shape = tuple(tensor.shape), tuple(expected[name].shape)
        if size != shape:
            raise InputError(f"{source}: {name} has shape {size}, the model's has {shape}")
        if tensor.dtype not in DTYPES:
            kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise InputError(f"{source}: {name} is {tensor.dtype}, must be one of {kinds}")
    ours = from_huggingface(tensors)
    return {name: tensor.to(torch.float32).contiguous() for name, tensor in ours.items()}


def _check_head(source: Path, state: State) -> None:
    """Take out a copy of the tied head; InputError where it is no copy."""
    head = state.pop(HEAD, None)
    if head is not None and EMBEDDING in state and not torch.equal(head, state[EMBEDDING]):
        raise InputError(f"{source}: {HEAD} differs from {EMBEDDING}, to which the model ties it")


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
