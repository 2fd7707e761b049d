"""What a phase's training follows from besides its manifest: model, optimiser and run settings."""

from dataclasses import asdict, dataclass, field
from typing import Literal

from crystalmix.prep.runtime.types import Json
from crystalmix.train.evaluation.evaluate import EvaluationSettings
from crystalmix.train.model.crystal import ModelSettings
from crystalmix.train.model.optimizer import OptimSettings
from crystalmix.train.record.metrics import MetricsSettings

DECISIVE = ("seed", "dtype")  # the settings that numbers follow from; others say how they are got
DTYPES = ("float32", "bfloat16")
PARALLEL = ("none", "ddp", "fsdp")
COUNTS = ("checkpoint_steps", "keep_checkpoints", "keep_every", "micro_batch", "threads")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run goes: seed, checkpoints, numbers, memory, processes.

    keep_checkpoints: how many of the newest stay; keep_every: so do those whose step it divides.
    async_checkpoints: write them beside the steps, from a copy in memory. micro_batch: rows per
    forward pass of a process (all of its rows if None). threads: of torch on the CPU. parallel:
    how several processes share the work; with one process neither does anything. compile: each
    layer by torch.compile. recompute: activations of each layer again in the backward pass, to
    spare memory. prefetch: batches read ahead, by as many threads as `readers`.
    """

    seed: int = 1
    checkpoint_steps: int = 100
    keep_checkpoints: int = 2
    keep_every: int | None = None
    async_checkpoints: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    micro_batch: int | None = None
    threads: int | None = None
    parallel: Literal["none", "ddp", "fsdp"] = "ddp"
    compile: bool = False
    recompute: bool = False
    prefetch: int = 2
    readers: int = 1

    def __post_init__(self) -> None:
        for key in (*COUNTS, "prefetch", "readers"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}: must be positive, got {value}")
        for key, known in (("dtype", DTYPES), ("parallel", PARALLEL)):
            value = getattr(self, key)
            if value not in known:
                told = f"{', '.join(known[:-1])} or {known[-1]}"
                raise ValueError(f"{key}: must be {told}, got {value}")


@dataclass(frozen=True)
class Run:
    """Everything a phase's training follows from besides its manifest."""

    model: ModelSettings
    optimizer: OptimSettings
    settings: RunSettings
    evaluation: EvaluationSettings | None = None
    metrics: MetricsSettings = field(default_factory=MetricsSettings)

    def content(self) -> Json:
        """Return as JSON what the numbers follow from; how they are got may change on a resume."""
        settings = {key: getattr(self.settings, key) for key in DECISIVE}
        told = {"model": asdict(self.model), "optimizer": asdict(self.optimizer)}
        return {**told, "settings": settings}
