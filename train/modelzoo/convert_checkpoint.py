"""Conversion of checkpoints: .mdl of Cerebras, our folders, Hugging Face safetensors.

All become the same parameters in our names, with AdamW's moments where there are any. Numbers are
only moved, so every way there and back is exact; bfloat16 becomes the float32 that equals it where
a folder of ours needs float32.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import replacing
from crystalmix.prep.runtime.errors import DamageError, InputError, RefusalError, UsageError
from crystalmix.prep.runtime.machine import machine, machine_error
from crystalmix.prep.runtime.types import Content, Json
from crystalmix.train.model.crystal import Crystal
from crystalmix.train.model.optimizer import AdamW, groups
from crystalmix.train.modelzoo import parameter_names, write_params
from crystalmix.train.record import run_folder
from crystalmix.train.runfile.run_file import find, load
from crystalmix.train.runfile.settings import Run
from crystalmix.train.trainer import checkpoint
from crystalmix.train.weights import hf_names, mdl

State = dict[str, Tensor]
MDL, SAFE = ".mdl", ".safetensors"
CSTORCH = "model.mdl"  # in a checkpoint of our cstorch backend
MOMENTS = ("exp_avg", "exp_avg_sq")
SHOWN = 3


@dataclass(frozen=True)
class Weights:
    """A model's parameters in our names and layout, and what its optimiser keeps of each.

    moments: m and v by parameter, none where there is no optimiser. step: optimiser steps done.
    """

    state: State
    moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    step: int | None = None


def convert(source: Path, out: Path, run_file: str | None = None) -> Weights:
    """Write a checkpoint as the kind that `out` names (`.mdl`, `.safetensors`, a folder).

    run_file: settings of model and optimiser, where a folder of ours is read or written. Raises
    InputError for what is no checkpoint of this model, RefusalError for an `out` that is there.
    """
    if out.exists():
        raise RefusalError(f"{out}: is there already; remove it or give another --out")
    run = _run_of_source(source) if run_file is None else load(find(run_file))
    readers: dict[str, Callable[[Path], Weights]] = {MDL: read_mdl, SAFE: read_safetensors}
    weights = readers[source.suffix](source) if source.suffix in readers else _folder(source, run)
    if out.suffix == MDL:
        write_mdl(out, weights, run)
    elif out.suffix == SAFE:
        write_safetensors(out, weights)
    else:
        write_checkpoint(out, weights, _required_run(run, out))
    return weights


def read_mdl(path: Path) -> Weights:
    """Read an .mdl of Model Zoo, of any release since 1.7, or of our own cstorch backend."""
    with mdl.opened(path) as file:
        named = file.below("model")
        kind = parameter_names.kind_of(named)
        if kind is None:
            raise InputError(f"{path}: holds no Crystal model: {_some(sorted(named))}")
        state: State = {}
        for name, whole in named.items():
            ours = parameter_names.our_name(name) if kind == "zoo" else name
            if ours is None:
                raise InputError(f"{path}: {whole} is no parameter of Crystal")
            if ours in state and kind == "zoo":
                _check_alias(path, file, whole, state[ours])
            elif (value := file.value(whole)) is not None:  # some releases save an alias as None
                state[ours] = file.tensor(whole) if isinstance(value, Tensor) else _not(path, whole)
        step = file.value("global_step") if "global_step" in file.names else None
        moments = _moments(path, file, kind, state)
    return Weights(state, moments, None if step is None else int(float(step)))  # type: ignore[arg-type]


def _not(path: Path, name: str) -> Tensor:
    raise DamageError(f"{path}: {name} is no tensor")


def _check_alias(path: Path, file: mdl.Mdl, name: str, tensor: Tensor) -> None:
    alias = file.value(name)
    if isinstance(alias, Tensor) and not torch.equal(alias, tensor):
        raise InputError(
            f"{path}: {name} differs from what it is tied to; Crystal has one tensor for both"
        )


def _moments(
    path: Path, file: mdl.Mdl, kind: parameter_names.Kind, state: State
) -> dict[str, tuple[Tensor, Tensor]]:
    """Read AdamW's moments by the numbers of Model Zoo's groups; none where there are none."""
    names = file.below("optimizer.state")
    if not names:
        return {}
    sizes: dict[int, int] = {}
    for name in file.below("optimizer.param_groups"):
        number, key, *rest = name.split(".")
        if key == "params" and rest:
            sizes[int(number)] = sizes.get(int(number), 0) + 1
    counts = [sizes[number] for number in sorted(sizes)]
    try:
        order = parameter_names.numbered(kind, parameter_names.layers_of(state), counts)
    except DamageError as error:
        raise DamageError(f"{path}: {error}") from None
    moments: dict[str, tuple[Tensor, Tensor]] = {}
    for number, name in enumerate(order):
        m, v = (file.tensor(f"optimizer.state.{number}.{moment}") for moment in MOMENTS)
        if m.shape != state[name].shape:
            raise DamageError(
                f"{path}: optimizer.state.{number} has shape {tuple(m.shape)}, {name} "
                f"{tuple(state[name].shape)}"
            )
        moments[name] = (m, v)
    return moments


def write_mdl(path: Path, weights: Weights, run: Run | None = None) -> None:
    """Write an .mdl that Model Zoo 2.x loads: model, optimiser where there is one, global_step.

    run: the optimiser's settings, which its state is saved with.
    """
    tree: Content = {"model": parameter_names.to_zoo(weights.state)}
    if weights.moments:
        if run is None or weights.step is None:
            raise UsageError(f"{path}: an optimiser's state needs its settings: give --run")
        tree["optimizer"] = _optimizer(weights, run)
    if weights.step is not None:
        tree["global_step"] = weights.step
    mdl.write(path, tree)


def _optimizer(weights: Weights, run: Run) -> Json:
    settings, step = run.optimizer, weights.step or 0
    betas = (settings.beta1, settings.beta2)
    powers = [_power(beta, step) for beta in betas]
    parts = parameter_names.groups_of(parameter_names.layers_of(weights.state))
    content: Json = {"state": {}, "param_groups": []}
    shared = {
        "lr": torch.tensor(0.0),
        "betas": betas,
        "eps": settings.eps,
        "l2_regularization_rate": 0.0,
        "correct_bias": True,
        "amsgrad": False,
    }
    decays = (settings.weight_decay_rate, settings.weight_decay_rate, 0.0)
    factors = (settings.decoder_kernel, 1.0, 1.0)
    number = 0
    for members, decay, factor in zip(parts, decays, factors, strict=True):
        numbers = list(range(number, number + len(members)))
        head = {"weight_decay": decay, "adjust_learning_rate": factor}
        content["param_groups"].append({**head, **shared, "params": numbers})
        for place, name in zip(numbers, members, strict=True):
            m, v = weights.moments[name]
            first, second = (torch.tensor(power) for power in powers)
            moments = dict(zip(MOMENTS, (m, v), strict=True))
            content["state"][place] = {**moments, "beta1_power": first, "beta2_power": second}
        number += len(members)
    return content


def _power(beta: float, step: int) -> np.float32:
    """Return beta^(step + 1) as cstorch has it: multiplied step by step in float32."""
    factor = power = np.float32(beta)
    for _ in range(step):
        power = power * factor
        if power == 0:
            break
    return np.float32(power)


def read_safetensors(path: Path) -> Weights:
    """Read one file of Hugging Face CrystalCoder weights."""
    safe = _safetensors()
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return Weights(hf_names.from_huggingface(safe.load_file(path)))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:
        if trouble := machine_error(error, path):
            raise trouble from None
        if type(error).__name__ != "SafetensorError":
            raise
        raise DamageError(f"{path}: can't be read ({error}); get it again") from None


def write_safetensors(path: Path, weights: Weights) -> None:
    """Write weights as one file in the public names; moments have no place there."""
    safe = _safetensors()
    tensors = {n: t.contiguous() for n, t in hf_names.to_huggingface(weights.state).items()}
    with machine(path), replacing(path) as temporary:
        safe.save_file(tensors, temporary, metadata={"format": "pt"})


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ModuleNotFoundError:
        raise UsageError(
            ".safetensors needs safetensors; install crystalmix with its extra `mdl`"
        ) from None
    return safetensors.torch


def _required_run(run: Run | None, place: Path) -> Run:
    if run is None:
        raise UsageError(f"{place}: a checkpoint folder needs its model's settings: give --run")
    return run


def _folder(source: Path, run: Run | None) -> Weights:
    if not (source / run_folder.STATE).exists():
        raise InputError(f"{source}: is no .mdl, no .safetensors, and no checkpoint of ours")
    if (source / CSTORCH).exists():
        return read_mdl(source / CSTORCH)
    return read_checkpoint(source, _required_run(run, source))


def _run_of_source(source: Path) -> Run | None:
    """Return the settings in the claim of a checkpoint's run, None without one."""
    phase = source.absolute().parents[1]
    has_run = (source / run_folder.STATE).exists() and run_folder.PhaseFolder(phase).claim.exists()
    return write_params.source(str(phase.parent), phase.name).run if has_run else None


def read_checkpoint(path: Path, run: Run) -> Weights:
    """Read a checkpoint folder of ours; run: what it was trained with."""
    model, optimizer = _model_and_optimizer(run)
    if run_folder.read_state(path).moments is False:
        state = checkpoint.load_weights(path, model)
    else:
        state = checkpoint.load(path, model, optimizer)
    parameters = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    moments: dict[str, tuple[Tensor, Tensor]] = {}
    for name, parameter in model.named_parameters():
        if own := optimizer.state.get(parameter):
            moments[name] = (own[MOMENTS[0]], own[MOMENTS[1]])
    return Weights(parameters, moments, state.step)


def write_checkpoint(out: Path, weights: Weights, run: Run) -> None:
    """Write a checkpoint folder of ours: weights and moments in float32, and `state.json`."""
    model, optimizer = _model_and_optimizer(run)
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.state.items()}
    lines = receipts.differences(_listed(shapes), _listed(expected), "weights")
    if lines:
        raise InputError(f"{out}: the run file's model is another ({'; '.join(lines[:SHOWN])})")
    model.load_state_dict({n: t.to(torch.float32) for n, t in weights.state.items()})
    step = weights.step or 0
    for name, parameter in model.named_parameters():
        if name in weights.moments:
            m, v = (x.to(torch.float32).clone() for x in weights.moments[name])
            own: Content = {"step": torch.tensor(float(step)), MOMENTS[0]: m, MOMENTS[1]: v}
            optimizer.state[parameter] = own
    for group in optimizer.param_groups:
        group["finished_steps"] = step if weights.moments else 0
        correction = 1 - group["betas"][1] ** max(step, 1)
        group["eps"] = group["uncorrected_eps"] / math.sqrt(correction)
    moments = bool(weights.moments)
    state = run_folder.CheckpointState(step, model=asdict(run.model), moments=moments)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent) as place:
        checkpoint.save(Path(place), state, model, optimizer).rename(out)


def _model_and_optimizer(run: Run) -> tuple[Crystal, AdamW]:
    model = Crystal(run.model)
    return model, AdamW(groups(model, run.optimizer), run.optimizer)


def _listed(shapes: dict[str, tuple[int, ...]]) -> Content:
    return {name: list(shape) for name, shape in shapes.items()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "") or "nothing"
