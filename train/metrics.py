"""Metrics: one line of JSON for each step, to watch a training; never more than what was done."""

from pathlib import Path
from typing import Any, Self

import orjson

from prep import receipts
from prep.fanout import progress
from train.ledger import Step

METRICS = "metrics.jsonl"


class Metrics:
    """Writes the lines of a phase from a step on, and shows them in a progress bar."""

    def __init__(self, out: Path, label: str, first: int, steps: int) -> None:
        self.path = out / METRICS
        self.first, self.steps, self.label = first, steps, label

    def __enter__(self) -> Self:
        _cut(self.path, self.first)
        self.bar: Any = progress(self.steps, self.label, "step")
        self.bar.update(self.first)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def step(self, step: Step, tokens_per_second: float) -> None:
        """Write the line of a finished step."""
        line = {
            "step": step.step,
            "loss": step.loss,
            "gradient_norm": step.gradient_norm,
            "learning_rate": step.learning_rate,
            "tokens_per_second": round(tokens_per_second),
            "parts": {part["part"]: part["loss"] for part in step.parts},
        }
        with self.path.open("ab") as file:
            file.write(orjson.dumps(line) + b"\n")
        self.bar.update()
        self.bar.set_postfix(loss=f"{step.loss:.3f}", lr=f"{step.learning_rate:.2e}", refresh=False)


def _cut(path: Path, step: int) -> None:
    """Drop the metrics of steps that are done again, and a line that a crash left half-written."""
    if not path.exists():
        return
    kept: list[bytes] = []
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n") or _step_of(line) not in range(step):
            break
        kept.append(line)
    receipts.write_atomic(path, b"".join(kept))


def _step_of(line: bytes) -> int | None:
    """Return the step of a metrics line, or None for a line that a crash garbled."""
    try:
        return int(orjson.loads(line)["step"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
