"""Lowering without a cluster: the whole step comes out, and what can't be lowered fails loudly."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crystalmix.prep.runtime.errors import RefusalError, UsageError
from crystalmix.train.cerebras import backend as csxbackend
from crystalmix.train.cerebras import lower as csxlower
from crystalmix.train.cerebras import step as csxstep
from crystalmix.train.cerebras.lower import Lowered, lower, question, validate
from crystalmix.train.cerebras.own_process import apart
from crystalmix.train.model.crystal import batch_loss, parameters_count
from crystalmix.train.model.optimizer import Linear, OptimSettings
from crystalmix.train.runfile.cluster import Cluster
from crystalmix.train.runfile.settings import Run, RunSettings
from helpers.crystals import TINY
from helpers.parameters import published
from helpers.runs import write_run
from helpers.wafers import NEEDS_CSTORCH

pytestmark = NEEDS_CSTORCH
GIB = 1 << 30


def tiny() -> csxlower.Question:
    lines = (Linear(0.0, 0.01, 4), Linear(0.01, 0.001, 9), Linear(0.001, 0.0, 9))
    optimizer = OptimSettings(learning_rate=lines, decoder_kernel=0.5)
    return csxlower.Question(Run(TINY, optimizer, RunSettings()), 10, 40, Cluster(num_csx=3))


def test_the_tiny_step_lowers_whole_on_uneven_systems() -> None:
    told = apart(lower, tiny())
    assert told.findings == ()
    parameters = sum(1 for _ in csxstep.Crystal(TINY).named_parameters())
    assert told.states == parameters * 5 + 2 + 3  # 2 moments, 2 powers; a clock for each schedule
    assert told.parameters == parameters_count(TINY)
    assert (told.batch, told.msl, told.num_csx) == (10, 40, 3)
    assert told.lines()[-1].startswith("sound: every parameter")


@pytest.mark.golden
def test_the_published_shape_lowers_whole_in_two_minutes_and_two_gigabytes() -> None:
    told = validate(str(published(1)), None, None, None)
    assert told.findings == ()
    assert told.parameters == 6_575_278_720
    assert (told.batch, told.msl, told.num_csx) == (2112, 2048, 16)
    assert told.states == (32 * 18 + 3) * 5 + 2 + 2
    assert told.cpu_seconds < 120  # one thread: on a core of its own as many seconds pass
    assert told.memory_bytes < 2 * GIB


def with_erfinv(*given: Any) -> Tensor:
    """A loss with an operation that CIRH does not have."""
    return batch_loss(*given) + torch.erfinv(given[0].sum() * 0.0)


def lower_with_erfinv() -> Lowered:
    csxstep.batch_loss = with_erfinv
    return lower(tiny())


def lower_with_erfinv_and_the_console_script() -> Lowered:
    """As cstorch finds its compiler by itself: by a script that drops the exit code."""
    scripts = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([scripts, os.environ["PATH"]])
    csxbackend.compiler_first = lambda: None
    return lower_with_erfinv()


def lower_with_item() -> Lowered:
    csxstep.batch_loss = lambda nll: batch_loss(nll) * nll.sum().item()
    return lower(tiny())


def test_an_operation_that_cirh_lacks_fails_loudly() -> None:
    with pytest.raises(RefusalError, match="can't be lowered: .*failed to legalize.*erfinv"):
        apart(lower_with_erfinv)


def test_the_false_success_of_the_console_script_is_found() -> None:
    told = apart(lower_with_erfinv_and_the_console_script)
    assert told.findings[0] == "the lowered step is empty: an operation was not lowered"
    assert told.findings[1].startswith("the compiler left traceback_")


def test_a_value_that_python_looks_at_fails_loudly() -> None:
    with pytest.raises(RefusalError, match="can't be lowered: .*_local_scalar_dense"):
        apart(lower_with_item)


def test_the_verb_tells_a_sound_step_and_a_missing_batch(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.yaml", runconfig={"num_csx": 2})
    words = [
        sys.executable,
        str(Path(__file__).parents[3] / "cli.py"),
        "csx",
        "validate",
        str(path),
    ]
    done = subprocess.run([*words, "--batch", "4"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith("a batch of 4 rows of 64 tokens on 2 CS systems")
    assert lines[-1] == "sound: every parameter, optimiser state and output is there"
    with pytest.raises(UsageError, match="says nothing of a batch .* give --batch"):
        question(str(path), None, None, None)
