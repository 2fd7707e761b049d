"""Lower a whole training step to CIRH without a cluster, and check what comes out.

cstorch traces the step and its compiler's front end turns it into CIRH: what a cluster would be
sent. That a CS system has a kernel for each operation and room for them is seen there only.
"""

import resource
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from crystalmix.mixtures.manifest.manifest import Manifest, read_manifests
from crystalmix.prep.runtime import yaml_settings
from crystalmix.prep.runtime.errors import InputError, RefusalError, UsageError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.cerebras.backend import Target, bring_up, cstorch, demand
from crystalmix.train.cerebras.lowered_step import findings, signature, wanted
from crystalmix.train.cerebras.own_process import apart
from crystalmix.train.cerebras.step import CsxStep, matmul
from crystalmix.train.model.crystal import Crystal, parameters_count
from crystalmix.train.record import run_folder
from crystalmix.train.runfile import run_file
from crystalmix.train.runfile.cluster import Cluster
from crystalmix.train.runfile.settings import Run


@dataclass(frozen=True)
class Question:
    """A step to lower: its run, rows of a batch, tokens of a row, and the cluster it is for."""

    run: Run
    batch: int
    msl: int
    cluster: Cluster


@dataclass(frozen=True)
class Lowered:
    """What lowering gave; findings: what is wrong with it, nothing in a sound step."""

    parameters: int
    batch: int
    msl: int
    num_csx: int
    states: int
    cirh_bytes: int
    seconds: float
    cpu_seconds: float
    memory_bytes: int  # the peak of the process that lowered
    findings: tuple[str, ...]

    def lines(self) -> list[str]:
        """Tell it in lines."""
        return [
            f"{self.parameters:,} parameters, a batch of {self.batch:,} rows of {self.msl:,} "
            f"tokens on {self.num_csx} CS systems",
            f"lowered to {self.cirh_bytes / 1e6:.1f} MB of CIRH with {self.states:,} states in "
            f"{self.seconds:.0f} s and {self.memory_bytes / 1e9:.2f} GB",
            *(self.findings or ("sound: every parameter, optimiser state and output is there",)),
        ]


def validate(name: str, phase: str | None, batch: int | None, msl: int | None) -> Lowered:
    """Lower the step of a run folder, a run file or a preset; raise RefusalError where it can't be.

    batch, msl: in place of the run's own.
    """
    demand()
    request = question(name, phase, batch, msl)
    return apart(lower, request)


def question(name: str, phase: str | None, batch: int | None, msl: int | None) -> Question:
    """Return what to lower for a run folder, a run file or a preset."""
    if run_folder.phases(Path(name)):
        request = _of_run(Path(name), phase)
    else:
        request = _of_file(run_file.find(name), phase, batch)
    return replace(request, batch=batch or request.batch, msl=msl or request.msl)


def lower(request: Question) -> Lowered:
    """Lower a step in this process, which may not have used cstorch yet."""
    began = monotonic()
    settings = request.run.settings
    target = Target("CSX", request.cluster, settings.micro_batch)
    # cstorch leaves a graph where it is when it fails
    with TemporaryDirectory(prefix="crystalmix-csx-") as scratch, chdir(scratch):
        backend = bring_up(target, Path(scratch), validate_only=True)
        with backend.device:  # nothing is drawn or held: the device drops all values
            model = Crystal(matmul(request.run.model))
        step = CsxStep(model, request.run.optimizer, "bfloat16")
        try:
            _trace(step, request)
        except Exception as error:  # cstorch raises whatever its compiler says
            raise RefusalError(_reason(error)) from error
        written = sorted(Path(scratch).glob("executors/0*/cirh.mlir"))
        text = written[-1].read_text("utf-8") if written else ""
        left = sorted(Path(scratch).glob("executors/0*/traceback_*.json"))
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    listed = [tensor for group in step.optimizer.param_groups for tensor in group["params"]]
    shapes = {names[id(tensor)]: tuple(tensor.shape) for tensor in listed}
    whole = wanted(shapes, request.batch, request.msl, len(request.run.optimizer.learning_rate))
    lines = findings(text, whole) + [f"the compiler left {path.name}" for path in left]
    lowered = signature(text)
    return Lowered(
        parameters_count(request.run.model),
        request.batch,
        request.msl,
        request.cluster.num_csx,
        len(lowered.states) if lowered else 0,
        len(text.encode()),
        monotonic() - began,
        sum(_spent(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)),
        max(_peak(resource.RUSAGE_SELF), _peak(resource.RUSAGE_CHILDREN)),
        tuple(lines),
    )


def _spent(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def _peak(who: int) -> int:
    return resource.getrusage(who).ru_maxrss * 1024


def _trace(step: CsxStep, request: Question) -> None:
    api = cstorch()
    executor = api.utils.data.DataExecutor(
        api.utils.data.DataLoader(Zeros, request.batch, request.msl), num_steps=1
    )

    @api.step_closure
    def gave(**outputs: Any) -> None:
        del outputs  # being asked for makes them outputs

    @api.trace
    def traced(batch: Json) -> None:
        gave(**vars(step(batch)))

    for batch in executor:
        traced(batch)


class Zeros:
    """A loader of empty batches in the shape of `train.cerebras.loader`'s."""

    def __init__(self, batch: int, msl: int) -> None:
        self.batch, self.msl = batch, msl

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield batches without end."""
        names = ("input_ids", "attention_mask", "labels", "rows")
        shapes = {name: (self.batch, 2 if name == "rows" else self.msl) for name in names}
        while True:
            yield {name: torch.zeros(shape, dtype=torch.int32) for name, shape in shapes.items()}


def _reason(error: Exception) -> str:
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return (
        f"the step can't be lowered: {first.strip().rstrip('.')}; use operations that cstorch has"
    )


def _of_run(run: Path, phase: str | None) -> Question:
    names = [path.name for path in run_folder.phases(run)]
    chosen = names[0] if phase is None else phase
    if chosen not in names:
        raise UsageError(f"no phase is called {chosen!r} in {run} (there are {', '.join(names)})")
    claim = run_folder.read_claim(run_folder.PhaseFolder(run / chosen))
    manifest = _manifest(run_folder.build_of(run, None), chosen)
    made = TypeAdapter(Run).validate_python(claim.run)
    return Question(made, manifest.batch, manifest.msl, Cluster())


def _manifest(build: Path, phase: str) -> Manifest:
    for manifest in read_manifests(build):
        if manifest.phase == phase:
            return manifest
    raise InputError(f"{build}: holds no phase {phase}; give the build that the run was trained on")


def _of_file(path: Path, phase: str | None, batch: int | None) -> Question:
    run, cluster = run_file.load(path, phase), run_file.cluster(path, phase)
    section = yaml_settings.plain(yaml_settings.load(path)).get("train_input") or {}
    rows = batch or section.get("batch_size")
    if not isinstance(rows, int):
        raise UsageError(f"{path}: says nothing of a batch (train_input.batch_size); give --batch")
    return Question(run, rows, run.model.max_position_embeddings, cluster)
