"""Trackers: where a training's metrics go for people to watch, beside their lines.

Tensorboard, Weights & Biases and MLflow behind three calls. They get what `Metrics` has and nothing
else. They keep one run for a phase over all resumes; a step that is done again is sent again. A
tracker that fails is left out from there on, which is told: the training goes on.
"""

import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import time
from typing import Any, Literal

from crystalmix.prep.runtime.atomic_files import write_atomic
from crystalmix.prep.runtime.errors import UsageError

Name = Literal["tensorboard", "wandb", "mlflow"]
FOLDER = "trackers"  # of a run: what trackers keep there
Scalars = Mapping[str, float]


class Tracker:
    """Takes the numbers of a step."""

    def scalars(self, step: int, values: Scalars) -> None:
        """Take numbers, by their names."""

    def flush(self) -> None:
        """Write out what was taken, where that is not done already."""

    def close(self) -> None:
        """End the tracker's run."""


class Tensorboard(Tracker):
    """Events in the phase's folder; those of steps from `first` on are purged."""

    def __init__(self, folder: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=first)

    def scalars(self, step: int, values: Scalars) -> None:
        """Write numbers as events."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Flush the events."""
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


class Wandb(Tracker):
    """A run of Weights & Biases, as its own environment variables say (WANDB_MODE=offline)."""

    def __init__(self, folder: Path, project: str, title: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        identity = _kept(folder / f"{title}.wandb", lambda: secrets.token_hex(8))
        module: Any = import_module("wandb")
        self.run: Any = module.init(
            project=project,
            id=identity,
            name=f"{folder.resolve().parent.name}/{title}",
            dir=str(folder),
            resume="allow",
        )
        self.run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Scalars) -> None:
        """Log numbers, against a step of their own: wandb's own never goes back."""
        self.run.log({"step": step, **values})

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class Mlflow(Tracker):
    """A run of MLflow, at MLFLOW_TRACKING_URI; else files in the run's folder."""

    def __init__(self, folder: Path, project: str, title: str) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # asked since version 3
            uri = (folder.resolve() / "mlruns").as_uri()
        folder.mkdir(parents=True, exist_ok=True)
        self.client: Any = import_module("mlflow").MlflowClient(tracking_uri=uri)
        self.metric: Any = import_module("mlflow.entities").Metric

        def begin() -> str:
            experiment = self.client.get_experiment_by_name(project)
            own = experiment.experiment_id if experiment else self.client.create_experiment(project)
            name = f"{folder.resolve().parent.name}/{title}"
            return self.client.create_run(own, run_name=name).info.run_id

        self.run = _kept(folder / f"{title}.mlflow", begin)
        self.client.update_run(self.run, status="RUNNING")

    def scalars(self, step: int, values: Scalars) -> None:
        """Log numbers in one request, dots for slashes: a file can't be a folder, too."""
        now = int(time() * 1000)
        named = {name.replace("/", "."): value for name, value in values.items()}
        batch = [self.metric(name, value, now, step) for name, value in named.items()]
        self.client.log_batch(self.run, metrics=batch)

    def close(self) -> None:
        """Mark the run as finished."""
        self.client.set_terminated(self.run)


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self.trackers = dict(trackers)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Send numbers to all trackers; values that are None are left out."""
        numbers = {name: value for name, value in values.items() if value is not None}
        self._each(lambda tracker: tracker.scalars(step, numbers))

    def flush(self) -> None:
        """Flush all of them."""
        self._each(lambda tracker: tracker.flush())

    def close(self) -> None:
        """Close all of them."""
        self._each(lambda tracker: tracker.close())

    def _each(self, work: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                work(tracker)
            except Exception as error:  # noqa: BLE001  others' code, on others' networks
                del self.trackers[name]
                logging.getLogger("crystalmix").warning(
                    "metrics.trackers: %s failed and gets no more of this run: %s",
                    name,
                    _brief(error),
                )


def begin(names: Sequence[Name], project: str, phase: Path, first: int) -> Trackers:
    """Begin the trackers of a phase's folder; first: the step that comes next.

    Raises UsageError for one that can't be begun: no network, no login.
    """
    folder, title = phase.parent / FOLDER, phase.name
    makers: dict[Name, Callable[[], Tracker]] = {
        "tensorboard": lambda: Tensorboard(phase / "tensorboard", first),
        "wandb": lambda: Wandb(folder, project, title),
        "mlflow": lambda: Mlflow(folder, project, title),
    }
    begun: dict[str, Tracker] = {}
    for name in names:
        try:
            begun[name] = makers[name]()
        except Exception as error:  # noqa: BLE001  others' code, on others' networks
            message = f"metrics.trackers: {name} can't be begun: {_brief(error)}"
            raise UsageError(message) from None
    return Trackers(begun)


def check(names: Sequence[Name]) -> None:
    """Raise UsageError where a tracker is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise UsageError(
                f"metrics.trackers: {name} is not installed; install crystalmix with its extra "
                f"`{name}`"
            )


def _brief(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _kept(path: Path, make: Callable[[], str]) -> str:
    """Return the identity of a tracker's run, made once and kept in a file."""
    if not path.exists():
        write_atomic(path, make().encode())
    return path.read_text("utf-8")
