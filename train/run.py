"""What a phase's training follows from besides its manifest: model, optimiser and run settings."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from train.evaluate import EvaluationSettings
from train.metrics import MetricsSettings
from train.model import ModelSettings
from train.optim import OptimSettings

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run goes: seed, checkpoints, numbers, memory.

    micro_batch: rows per forward pass (all of them if None). threads: of torch on the CPU.
    """

    seed: int = 1
    checkpoint_steps: int = 100
    keep_checkpoints: int = 2
    dtype: Literal["float32", "bfloat16"] = "float32"
    micro_batch: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for key in ("checkpoint_steps", "keep_checkpoints", "micro_batch", "threads"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}: must be positive, got {value}")
        if self.dtype not in {"float32", "bfloat16"}:
            raise ValueError(f"dtype: must be float32 or bfloat16, got {self.dtype}")


@dataclass(frozen=True)
class Run:
    """Everything a phase's training follows from besides its manifest."""

    model: ModelSettings
    optimizer: OptimSettings
    settings: RunSettings
    evaluation: EvaluationSettings | None = None
    metrics: MetricsSettings = field(default_factory=MetricsSettings)

    def content(self) -> Json:
        """Return the run as JSON, without what only looks at it."""
        told = asdict(self)
        return {key: told[key] for key in ("model", "optimizer", "settings")}
