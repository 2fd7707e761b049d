"""Peaks: a device is known by its whole name or not at all; a run file's own number counts."""

from dataclasses import replace

import pytest
import torch

from crystalmix.train.model.processes import World
from crystalmix.train.record.metrics import MetricsSettings
from crystalmix.train.runfile.run_file import load
from crystalmix.train.trainer import peaks
from helpers.runs import run_file


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H200", "float32", 67),
        ("Tesla T4", "bfloat16", None),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
        ("NVIDIA RTX A1000", "bfloat16", None),
        ("NVIDIA L40", "bfloat16", None),
        ("NVIDIA H100 NVL", "bfloat16", None),
        ("", "float32", None),
    ],
)
def test_devices_are_known_by_name(name: str, dtype: str, tera: float | None) -> None:
    peak = peaks.known_peak(name, dtype)
    assert peak == (None if tera is None else pytest.approx(tera * 1e12))


def test_a_given_peak_is_of_each_device_and_work_is_of_the_model() -> None:
    """Six operations for each weight of a product and token, twelve for each pair of positions."""
    run = load(run_file())
    processor = World(device=torch.device("cpu"))
    assert peaks.work(run, 64, processor).peak is None
    given = replace(run, metrics=MetricsSettings(peak_flops=2e9))
    work = peaks.work(given, 64, World(rank=0, size=3, device=torch.device("cpu")))
    assert work.peak == 6e9
    weights = 4 * 16 * 16 + 3 * 16 * 24 + 424 * 16
    assert work.flops_per_token == 6 * weights + 12 * 16 * 64
    assert work.mfu(1000.0) == pytest.approx(work.flops_per_token * 1000 / 6e9)
