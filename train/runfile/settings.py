"""Settings of a phase's training besides its manifest: model, optimiser and run settings."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from crystalmix.prep.runtime.constraints import Count
from crystalmix.prep.runtime.types import Content
from crystalmix.train.evaluation.evaluate import EvaluationSettings
from crystalmix.train.model.crystal import ModelSettings
from crystalmix.train.model.optimizer import OptimSettings
from crystalmix.train.record.metrics import MetricsSettings

DECISIVE = ("seed", "dtype")  # the settings that numbers follow from; others say how they are got
Threads = Annotated[int, Field(gt=0, le=4096)]


@checked_dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run goes: seed, checkpoints, numbers, memory, processes.

    keep_checkpoints: how many of the newest stay; keep_every: so do those whose step it divides.
    async_checkpoints: write them beside the steps, from a copy in memory. dtype: of products; auto
    is what the processor does fast, recorded in the run and held on resume. micro_batch: rows per
    forward pass of a process (all of its rows if None). threads: of torch on the CPU. parallel:
    how several processes share the work; with one process neither does anything. compile: each
    layer by torch.compile. recompute: activations of each layer again in the backward pass, to
    spare memory. prefetch: batches read ahead, by as many threads as `readers`. loss_scaling: what
    a step's summed loss is divided by, all places of the whole batch or the labels of it that count
    (a key of `model`, as Model Zoo has it); how processes and passes share the batch has no say.
    """

    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = 1
    checkpoint_steps: Count = 100
    keep_checkpoints: Count = 2
    keep_every: Count | None = None
    async_checkpoints: bool = False
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    micro_batch: Count | None = None
    threads: Threads | None = None
    parallel: Literal["none", "ddp", "fsdp"] = "ddp"
    compile: bool = False
    recompute: bool = False
    prefetch: Threads = 2
    readers: Threads = 1
    loss_scaling: Literal["batch_size", "num_tokens"] = "batch_size"


@dataclass(frozen=True)
class Run:
    """Everything a phase's training follows from besides its manifest."""

    model: ModelSettings
    optimizer: OptimSettings
    settings: RunSettings
    evaluation: EvaluationSettings | None = None
    metrics: MetricsSettings = field(default_factory=MetricsSettings)

    def content(self) -> Content:
        """Return as JSON what the numbers follow from; how they are got may change on a resume."""
        settings = {key: getattr(self.settings, key) for key in DECISIVE}
        if self.settings.loss_scaling != "batch_size":  # what was always done
            settings["loss_scaling"] = self.settings.loss_scaling
        rates = [piece.content() for piece in self.optimizer.learning_rate]
        optimizer = {**asdict(self.optimizer), "learning_rate": rates}
        return {"model": asdict(self.model), "optimizer": optimizer, "settings": settings}
