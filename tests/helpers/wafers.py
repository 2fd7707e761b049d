"""What the tests of CS systems share: workers that stream for real, and a stand-in for the rest.

The workers run cstorch's own streamer code on the loader that a run would send them. The stand-in
takes the place of the appliance that compiles and computes: rows and loaders' states are those of
the workers, weights stay as they were and losses are made up, so all but the numbers is real.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.manifest import (
    Manifest,
    ManifestPart,
    PackedAs,
    PartShard,
    TokenizerIdentity,
    read,
)
from crystalmix.prep.rows import shards
from crystalmix.prep.rows.scattered_rows import gather
from crystalmix.prep.runtime import randomness
from crystalmix.prep.runtime.types import Json
from crystalmix.train.cerebras.backend import module
from crystalmix.train.cerebras.loader import loader
from crystalmix.train.cerebras.own_process import apart
from crystalmix.train.cerebras.proof import agreed, row_digests
from crystalmix.train.model.optimizer import Linear, schedule

NEEDS_CSTORCH = pytest.mark.skipif(
    find_spec("cerebras") is None, reason="cerebras-pytorch is not installed: `make csx` has it"
)
Rows = dict[int, NDArray[np.int32]]  # step of the run -> the (B, 2) rows that were streamed
States = dict[int, list[Any]]  # steps done -> what each worker's loader said


@dataclass(frozen=True)
class Topology:
    """Systems, workers for each, and sub-batches of each where they are not even."""

    num_csx: int = 1
    workers: int = 1
    subbatches: tuple[tuple[int, ...], ...] | None = None

    def sizes(self, batch: int) -> list[list[int]]:
        """Return the sub-batches of each system."""
        if self.subbatches is not None:
            return [list(sizes) for sizes in self.subbatches]
        count = self.num_csx
        return [[batch // count + (number < batch % count)] for number in range(count)]


@dataclass(frozen=True)
class Work:
    """What workers are sent: the serialised loader, its arguments and state, and the steps."""

    builder: str
    inputs: str
    state: str
    batch: int
    msl: int
    steps: int
    checkpoints: tuple[int, ...]


@dataclass(frozen=True)
class Walk:
    """Some steps of a plan on a topology, from where a walk before it stood at a checkpoint."""

    plan: Path
    topology: Topology
    steps: int
    checkpoint: int
    after: "Walk | None" = None


def plan(root: Path, steps: int, batch: int, msl: int = 8, rows: int = 60) -> Manifest:
    """Write a build of one phase, `root/phases/plan`: shards of random rows and their manifest."""
    files: list[PartShard] = []
    for number in range(2):
        rng = randomness.stream(3, "plan", number)
        content = rng.integers(0, 99, (rows, 3, msl), dtype=np.int32)
        content[:, 1] %= 2
        shards.write(root / f"data-{number:05d}.h5", rows, [content])
        counted = int(content[:, 1].sum())
        files.append(PartShard(f"data-{number:05d}.h5", rows, str(number), 0, rows, counted))
    part = ManifestPart(
        "only", "only", {"weight": 1}, 1.0, 1, steps * batch, steps * batch * msl, None,
        1.0, 2 * rows,
        steps * batch / 2 / rows, None, 1, tuple(files), manifests.part_digest(files),
        PackedAs(held_out=False, split=None, packing={"msl": msl, "bos": True}, documents=""),
    )  # fmt: skip
    sealed = manifests.sealed(
        Manifest("m", "plan", steps, batch, msl, 1, "exact-1", None, TokenizerIdentity(99),
                 (part,), None, None)
    )  # fmt: skip
    manifests.write(root / "phases" / "plan" / "manifest.json", sealed)
    return manifests.read(root / "phases" / "plan")


def walked(walks: Sequence[Walk]) -> list[tuple[Rows, Json]]:
    """Return what the workers of each walk stream and the state they agree on at its checkpoint.

    In a process that may do nothing else.
    """
    serialise = module("cerebras.appliance.appliance_client").fw_user_serialize
    known: dict[Walk, tuple[Rows, Json]] = {}
    for walk in walks:
        sealed = manifests.read(walk.plan / "phases" / "plan")
        given = ((str(sealed.folder), sealed.digest, str(walk.plan)), {})
        state = (known[walk.after][1], {"strict": True}) if walk.after else None
        work = Work(
            serialise(loader, name="builder", recurse=True),
            serialise(given, name="inputs", recurse=True),
            serialise(state, name="state") if state else "",
            sealed.batch,
            sealed.msl,
            walk.steps,
            (walk.checkpoint,),
        )
        rows, states = stream(work, walk.topology)
        said = [state.user_state_dict for state in states[walk.checkpoint]]
        known[walk] = (rows, agreed(said))
    return [known[walk] for walk in walks]


def stream(work: Work, topology: Topology) -> tuple[Rows, States]:
    """Run every worker of a topology in turn, in a process that may do nothing else."""
    appliance = module("cerebras.appliance.appliance_client")
    resolver = module(
        "cerebras.pytorch.distributed.cluster_resolver"
    ).ApplianceWorkerClusterResolver
    generator = module(
        "cerebras.pytorch.utils.data.streamer.pytorch_generator"
    ).InputGeneratorPyTorch
    sizes, streamed, states = topology.sizes(work.batch), {}, {}
    state = appliance.fw_user_deserialize(work.state, name="state") if work.state else None
    with TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        for rank in range(topology.num_csx * topology.workers):
            count = topology.num_csx * topology.workers
            resolver.configure(rank, count, topology.num_csx, topology.workers)
            build = appliance.fw_user_deserialize(work.builder, name="builder")
            given, named = appliance.fw_user_deserialize(work.inputs, name="inputs")
            system, local = divmod(rank, topology.workers)
            spec = _spec(sum(sizes[system]), work.msl)
            source = generator(
                lambda b=build, g=given, n=named: b(*g, **n),
                spec,
                sizes,
                checkpoint_schedule=[0, *work.checkpoints],
                state_dict=state,
            )
            blocks = iter(source)
            for step in range(local, work.steps, topology.workers):
                share = np.concatenate([next(blocks)[3][:size] for size in sizes[system]])
                streamed.setdefault(step, {})[system] = share
            for step in work.checkpoints:
                states.setdefault(step, []).append(source.state_dict(step))
    rows = {k: np.concatenate([v[s] for s in sorted(v)]) for k, v in streamed.items()}
    return rows, states


def _spec(rows: int, msl: int) -> Any:
    kind = module("cerebras.pytorch.utils.data.streamer.data_pipe").SampleSpec
    names = ("input_ids", "attention_mask", "labels", "rows")
    return kind(
        [
            kind.TensorSpec(
                f"input_{name}", np.dtype("int32"), (rows, 2 if name == "rows" else msl), i
            )
            for i, name in enumerate(names)
        ]
    )


Lie = Callable[[int, NDArray[np.int32]], NDArray[np.int32]]
StateLie = Callable[[int], Sequence[Any]]


@dataclass
class Wafers:
    """A stand-in cluster: its topology, what it makes up, and how it lies."""

    topology: Topology
    msl: int
    batch: int
    rates: tuple[Linear, ...]
    first: int = 0
    lie: Lie | None = None
    state_lie: StateLie | None = None
    rows: Rows | None = None  # of each step of the run, where no workers are to stream them
    asked: list[Any] = field(default_factory=list)  # the run requests
    fetched: list[tuple[int, str]] = field(default_factory=list)

    def install(self) -> None:
        """Take the appliance's place in this process."""
        module("cerebras.pytorch.backend.ltc_backend").ApplianceMode = _appliance(self)


def _appliance(wafers: Wafers) -> type:
    """Return a class that stands for cstorch's ApplianceMode (2.10.0: its interface is private)."""
    api = module("cerebras.pytorch")
    mode = module("cerebras.pytorch.core.appliance").ApplianceMode
    native = module("cerebras.pytorch.lib").cerebras_pytorch_lib
    messages = module("cerebras.appliance.pb.framework.appliance_service_pb2")
    stored = module("cerebras.pytorch.storage.utils").lazy_tensor_data_wrapper

    class Appliance(mode):  # type: ignore[misc, valid-type]
        """Compiles nothing and computes nothing, but streams and remembers."""

        def build_worker_image(self, **given: Any) -> Any:
            del given
            return contextlib.nullcontext()

        def compile(self, *given: Any, **named: Any) -> Any:
            del given, named
            return messages.CompileResponse()

        def execute(self, run_request: Any, *given: Any, **named: Any) -> None:
            weights = given[1] if len(given) > 1 else named["initial_state_dict"]
            self._skipped_weights: set[str] = set()
            self.weights = {name: _array(api, value) for name, value in weights.items()}
            wafers.asked.append(run_request)
            if wafers.rows is not None:
                self.rows, self.states = wafers.rows, {}
                return
            steps = run_request.num_iterations
            checkpoints = sorted({steps, *_steps(run_request.checkpoint_schedule.intervals)})
            loader = run_request.dataloader
            work = Work(
                loader.builder,
                loader.builder_inputs,
                loader.initial_state,
                wafers.batch,
                wafers.msl,
                steps,
                tuple(checkpoints),
            )
            self.rows, self.states = apart(stream, work, wafers.topology)

        @property
        def grpc_client(self) -> "Appliance":
            return self

        def fetch_dataloader_state(self, step: int) -> Sequence[Any]:
            if wafers.state_lie is not None:
                return wafers.state_lie(step)
            return self.states[step]

        def receive_output(self, iteration: int, name: str) -> NDArray[Any]:
            wafers.fetched.append((iteration, name))
            if name in self.weights:
                return self.weights[name].copy()
            rows = self.rows[iteration]
            if name.endswith("output_rows"):
                step = wafers.first + iteration
                return rows if wafers.lie is None else wafers.lie(step, rows)
            if name.endswith("row_losses"):
                return np.ones(len(rows), dtype=np.float32)
            if name.endswith("loss") or name.endswith("gradient_norm"):
                return np.array(1 / (1 + iteration), dtype=np.float32)
            return np.array(schedule(wafers.rates, wafers.first + iteration), dtype=np.float32)

        def recv_weight(self, tensor: Any, iteration: int) -> Any:
            del iteration
            if not isinstance(tensor, torch.Tensor) or tensor.device.type != "lazy":
                return tensor
            name = native.get_tensor_name(tensor)
            return self.weights[name].copy() if name in self.weights else stored(tensor)

        def move_to_ptr(self, name: str, uid: int) -> None:
            del name, uid

        def delete_from_ptr(self, *given: Any, **named: Any) -> None:
            del given, named

        def finalize(self) -> Any:
            return messages.FinalizeResponse()

    return Appliance


def _steps(intervals: Sequence[Any]) -> Iterator[int]:
    """Yield the steps that have a checkpoint after them, counted from 1."""
    for interval in intervals:
        yield from range(interval.start + 1, interval.end + 1, interval.step)
        if interval.include_last:
            yield interval.end


def _array(api: Any, value: Any) -> NDArray[Any]:
    tensor = getattr(value, "tensor", value)
    if isinstance(tensor, torch.Tensor):
        tensor = tensor.to("cpu") if type(tensor) is not torch.Tensor else tensor
        return np.array(api.to_numpy(tensor.detach()))
    return np.array(tensor)


def planned(root: Path, first: int, steps: int) -> Rows:
    """The rows of some steps by the manifest alone, as they should come back."""
    sealed = read(root / "phases" / "plan")
    told: Rows = {}
    for step in range(first, first + steps):
        refs = sealed.step(step)
        content = gather([root / path for path in sealed.paths], refs.shard, refs.row)
        positions = np.arange(step * sealed.batch, (step + 1) * sealed.batch, dtype=np.int32)
        told[step - first] = np.stack([positions, row_digests(content)], axis=1)
    return told
