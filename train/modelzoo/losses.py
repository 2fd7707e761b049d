"""Losses that a Model Zoo run left: in TensorBoard's event files, or in its logs.

Event files hold them as they were (float32), logs to five places, so events win. Steps count from
1 there: the loss logged at step n is that of the n-th step done.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from crystalmix.prep.runtime.errors import UsageError

EVENTS = "events.out.tfevents.*"
TAGS = ("loss", "train/loss", "train_loss")
LOGGED = re.compile(r"\| Train [^|]*?Step=(\d+),.*?Loss=([-+.\dinfaNe]+)")


def losses(model_dir: Path) -> dict[int, float]:
    """Return the loss of each finished step (counted from 1) that a run's folder holds.

    Of several runs in one folder the last says what a step's loss was.
    """
    losses: dict[int, float] = {}
    for path in sorted(model_dir.rglob("*.log"), key=_age):
        for line in path.read_text("utf-8", errors="replace").splitlines():
            if match := LOGGED.search(line):
                losses[int(match[1])] = float(match[2])
    for path in sorted(model_dir.rglob(EVENTS), key=_age):
        if "eval" not in path.relative_to(model_dir).parts:
            losses.update(_event_losses(path))
    return losses


def _age(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, path.as_posix()


def _event_losses(path: Path) -> Iterator[tuple[int, float]]:
    """Yield step and loss of each event; a file that is still written ends where it ends."""
    for event in _loader()(str(path)).Load():
        for value in event.summary.value:
            if event.step and value.tag in TAGS and value.HasField("simple_value"):
                yield event.step, value.simple_value


def _loader() -> Callable[[str], Any]:
    """Return tensorboard's reader of event files, which checks each record's checksum."""
    try:
        from tensorboard.backend.event_processing import event_file_loader
    except ModuleNotFoundError:
        raise UsageError(
            "event files need tensorboard; install crystalmix with its extra `mdl`"
        ) from None
    return event_file_loader.LegacyEventFileLoader
