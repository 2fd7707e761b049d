"""Peaks: what a device can compute a second, by its name, to hold a training's speed against.

Dense products, as the makers' data sheets have them: (bfloat16, float32), None where a device has
no fast way for a dtype. A device that is not named here is not guessed at: `metrics.peak_flops`.
"""

import re

import torch

from crystalmix.train.model.crystal import flops_per_row
from crystalmix.train.model.processes import World
from crystalmix.train.record.metrics import Work
from crystalmix.train.runfile.settings import Run

TERA = 1e12
PEAKS: dict[tuple[str, ...], tuple[float | None, float]] = {  # the first whose words are all there
    ("H100", "PCIE"): (756, 51),
    ("H100", "HBM3"): (989, 67),
    ("H200",): (989, 67),
    ("A100",): (312, 19.5),
    ("L40S",): (362, 91.6),
    ("L4",): (121, 30.3),
    ("A10",): (125, 31.2),
    ("RTX", "4090"): (165.2, 82.6),
    ("V100", "SXM2"): (None, 15.7),
    ("T4",): (None, 8.1),
}


def work(run: Run, msl: int, world: World) -> Work:
    """Return what a run computes a token, and the peak of all its devices where it is known."""
    own = run.metrics.peak_flops
    peak = own if own is not None else known_peak(device_name(world.device), run.settings.dtype)
    whole = None if peak is None else peak * world.size
    return Work(flops_per_row(run.model, msl) / msl, whole)


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, nothing for a processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def known_peak(name: str, dtype: str) -> float | None:
    """Return the floating-point operations a second of a device that is known by name.

    >>> known_peak("NVIDIA A100-SXM4-80GB", "bfloat16"), known_peak("NVIDIA A1000", "bfloat16")
    (312000000000000.0, None)
    """
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    for model, (short, wide) in PEAKS.items():
        if words.issuperset(model):
            value = short if dtype == "bfloat16" else wide
            return None if value is None else value * TERA
    return None
