"""Masked phases are refused, in one line, where nothing masks: cstorch, and Model Zoo's params."""

from dataclasses import replace

import pytest

from crystalmix.mixtures.modelzoo.train_input import Place, train_input
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.train.cerebras.backend import Target
from crystalmix.train.cerebras.phase import check_fit
from crystalmix.train.model.optimizer import Cosine
from crystalmix.train.runfile.cluster import Cluster
from crystalmix.train.runfile.run_file import load
from helpers.masked import masked_build, phase
from helpers.runs import manifest, run_file

TARGET = Target("CPU", Cluster(), None, (masked_build(),))


def test_cstorch_is_refused_what_its_step_does_not_do() -> None:
    run = load(run_file(), "prose")
    with pytest.raises(RefusalError, match="masks attention between documents") as caught:
        check_fit(run, phase(), TARGET)
    assert "\n" not in str(caught.value)
    check_fit(run, manifest("prose"), TARGET)
    cosine = replace(run.optimizer, learning_rate=(Cosine(0.1, 0.0, 9),))
    with pytest.raises(RefusalError, match="CosineDecay is not in the step"):
        check_fit(replace(run, optimizer=cosine), manifest("prose"), TARGET)
    scaled = replace(run, settings=replace(run.settings, loss_scaling="num_tokens"))
    with pytest.raises(RefusalError, match="loss_scaling: must be batch_size"):
        check_fit(scaled, manifest("prose"), TARGET)


def test_model_zoo_is_not_given_rows_that_it_would_not_mask() -> None:
    ordered = replace(phase(), cerebras={"subset": "2.0.3", "seed": 1})
    with pytest.raises(RefusalError, match="export its rows to vsl"):
        train_input(ordered, Place())
