"""Claims: the settings that a phase's training follows from, written before its first step.

A folder begun with others is refused, and so are weights and rows that don't fit the model.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import torch

from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import RecipeError, RefusalError, StaleError, UsageError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.model.processes import World, fast_dtype
from crystalmix.train.record import run_folder
from crystalmix.train.record.run_folder import Claim, PhaseFolder
from crystalmix.train.record.seal import seal_run
from crystalmix.train.runfile.settings import Run


def claim(
    out: Path, root: Path, run: Run, manifest: Manifest, start: Path | None, kind: str | None = None
) -> None:
    """Write the claim of a phase's folder; StaleError where it was begun with another one.

    start: the checkpoint whose weights it begins with. A phase that has a checkpoint of its own
    goes on without one. kind: of its checkpoints, where they are not torch's.
    """
    weights = None
    if start is not None:
        state = run_folder.read_state(start)
        weights = state.weights
        if state.model is None:
            raise StaleError(
                f"{start}: has no weights of ours; begin from a checkpoint that `train` or "
                "`import-weights` wrote"
            )
        _check_model(start, state.model, run)
    phase, remedy = PhaseFolder(out), f"remove {out} and train this phase again"
    if phase.claim.exists() and start is None and phase.newest is not None:
        weights = run_folder.read_claim(phase, remedy).init
    own = Claim(manifest.digest, run.content(), weights, kind)
    otherwise = "was begun otherwise ({}); train into another --out"
    run_folder.write_claim(phase, own, otherwise, remedy)
    run_folder.remember(out.parent, root)
    seal_run(out.parent, out.name)


def settled(run: Run, out: Path, world: World, device: torch.device | None = None) -> Run:
    """Return a run whose dtype is one that it can be trained in.

    `auto` becomes what this phase was begun with, else what another phase of the run was, else
    what the device does fast. out: the phase's folder. device: the process's own if None.
    """
    if run.settings.dtype != "auto":
        return run
    place = world.device if device is None else device
    dtype = world.on_first(lambda: _recorded_dtype(out) or fast_dtype(place))
    return replace(run, settings=replace(run.settings, dtype=dtype))


def _recorded_dtype(out: Path) -> Literal["float32", "bfloat16"] | None:
    """Return the dtype that a phase, or else any phase of its run, was begun with."""
    for phase in (PhaseFolder(out), *run_folder.phases(out.parent)):
        if phase.claim.exists():
            remedy = f"remove {phase.path} and train this phase again"
            if (run := run_folder.read_claim(phase, remedy).run) is not None:
                return run["settings"]["dtype"]
    return None


def check_fit(run: Run, manifest: Manifest, processes: int) -> None:
    """Refuse a model too small for the manifest's rows or tokens, and batches that can't be cut."""
    if manifest.tokenizer.vocab > run.model.vocab_size:
        raise RecipeError(
            f"model.vocab_size: must be at least {manifest.tokenizer.vocab} for phase "
            f"{manifest.phase}'s tokenizer, got {run.model.vocab_size}"
        )
    if manifest.msl > run.model.max_position_embeddings:
        raise RecipeError(
            f"model.max_position_embeddings: must be at least {manifest.msl} for phase "
            f"{manifest.phase}'s rows, got {run.model.max_position_embeddings}"
        )
    if processes > 1 and run.settings.parallel == "none":
        raise UsageError(
            f"runconfig.parallel: must be ddp or fsdp for {processes} processes, got none"
        )
    if manifest.batch % processes:
        raise RefusalError(
            f"phase {manifest.phase}: its batch of {manifest.batch} rows can't be shared evenly "
            f"by {processes} processes; start a number that divides it"
        )
    share, size = manifest.batch // processes, run.settings.micro_batch
    if size is not None and share % size:
        whose = f" that each of {processes} processes has" if processes > 1 else ""
        raise RefusalError(
            f"runconfig.micro_batch: must divide the batch of {share}{whose}, got {size}"
        )


def _check_model(init_from: Path, before: Json, run: Run) -> None:
    """Refuse to go on with the weights of another model."""
    # attention names a path to the same function
    now = {**asdict(run.model), "attention": before.get("attention")}
    lines = receipts.differences(before, now, "model")
    if lines:
        raise StaleError(
            f"{init_from}: holds another model ({'; '.join(lines[:3])}); "
            "train with its run file, or all phases into another --out"
        )
