"""What run files say of their data: each unused key by name, each contradiction in one line."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.runtime import yaml_settings
from crystalmix.train.runfile import data_sections as inputs
from crystalmix.train.runfile import run_file as params
from helpers.parameters import published
from helpers.runs import manifest, write_run

# Keys of the published files that steer the training, or that are held to the only value they have.
USED = {
    f"model.{params.SCALING}",
    *(f"model.{key}" for key in params.FIXED["model"]),
    *(f"optimizer.{key}" for key in params.FIXED["optimizer"]),
    *(f"model.{key}" for key in params.ModelSettings.__dataclass_fields__),
    *(f"model.{key}.{name}" for key in params.STDS for name in ("a", "b", "mean", "name", "std")),
    *(f"optimizer.{key}" for key in params.OptimSettings.__dataclass_fields__),
    *(
        f"optimizer.learning_rate.{key}"
        for key in (*params.LINE_KEYS, "scheduler", "steps", "decay_steps")
    ),
    "optimizer.adjust_learning_rate.decoder_kernel",
    *(f"runconfig.{key}" for key in params.RunSettings.__dataclass_fields__),
}
HELD = {
    *(f"{section}.{key}" for section, keys in inputs.HELD.items() for key in keys),
    *(f"train_input.{key}" for key in inputs.MIXTURE),
}


def leaves(content: Any, before: str = "") -> Iterator[str]:
    """Yield the path of every key that holds no mapping itself, list entries as one."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from leaves(value, f"{before}.{key}" if before else key)
    elif isinstance(content, list) and any(isinstance(each, dict) for each in content):
        for each in content:
            yield from leaves(each, before)
    else:
        yield before


def told_unused(path: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the paths of all keys that loading a file warns of."""
    params._warn_once.cache_clear()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "crystalmix"):
        params.load(path)
    told: list[str] = []
    for message in caplog.messages:
        place, section, kind, keys = message.split(": ", 3)
        assert place == str(path)
        assert kind in {"not used", "for --backend csx alone"}
        told += [f"{section}.{key}" for key in keys.split(", ")]
    return told


@pytest.mark.golden
@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_key_of_the_published_files_is_used_or_held_or_told_by_name(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = published(number)
    every = set(leaves(yaml_settings.plain(yaml_settings.load(path))))
    told = told_unused(path, caplog)
    assert len(told) == len(set(told))
    assert set(told) == every - USED - HELD
    assert {"train_input.shuffle_seed", "eval_input.data_dir", "runconfig.wrk_memory_gi"} & every
    assert {"train_input.shuffle_seed", "eval_input.batch_size"} <= set(told)


def test_nested_keys_are_named_with_dots(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mixture = [{"data_dir": "a", "weight": 1, "data_subset": "0-1"}, {"data_dir": "b", "extra": 2}]
    data = {"train_input": {"mixture": mixture, "deep": {"er": {"x": 1, "y": 2}}, "empty": {}}}
    path = write_run(tmp_path / "run.yaml", **data, eval_input={"data_dir": ["a", "b"]})
    assert told_unused(path, caplog) == [
        *("train_input.mixture.data_subset", "train_input.mixture.extra"),
        *("train_input.deep.er.x", "train_input.deep.er.y", "train_input.empty"),
        "eval_input.data_dir",
    ]


def test_a_repeated_rate_of_a_piece_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = {"initial_learning_rate": 0.0, "end_learning_rate": 0.1, "steps": 4, "base_lr": 0.0}
    path = write_run(tmp_path / "run.yaml", optimizer={"learning_rate": [line]})
    assert told_unused(path, caplog) == ["optimizer.learning_rate.base_lr"]


def zoo(tmp_path: Path, phase: Manifest, **changes: Any) -> Path:
    """Write a run file that says of its data what a manifest says, with changes."""
    mixture = [
        {"data_dir": f"/path/to/{part.domain}", "weight": 3 * part.asked} for part in phase.parts
    ]
    data = {"batch_size": phase.batch, "max_sequence_length": phase.msl, "mixture": mixture}
    steps = {"max_steps": changes.pop("max_steps", phase.steps)}
    content = {"train_input": {**data, **changes}, "runconfig": steps}
    return write_run(tmp_path / "run.yaml", **content)


def contradictions(path: Path, phase: Manifest) -> list[str]:
    """Return what is told, each one line that begins with file and phase."""
    told = inputs.contradictions(path, phase)
    head = f"{path}: phase {phase.phase}: "
    assert all(line.startswith(head) and "\n" not in line for line in told)
    return [line.removeprefix(head) for line in told]


def test_a_file_that_agrees_with_its_manifest_is_silent(tmp_path: Path) -> None:
    for name in ("prose", "code"):
        phase = manifest(name)
        assert contradictions(zoo(tmp_path, phase), phase) == []
    assert contradictions(write_run(tmp_path / "plain.yaml"), manifest("prose")) == []


def test_each_contradiction_is_one_line_that_names_both_values(tmp_path: Path) -> None:
    phase = manifest("prose")  # wiki 0.3, book 0.2, web 0.5
    path = zoo(tmp_path, phase, batch_size=8, max_sequence_length=2048, max_steps=99)
    assert contradictions(path, phase) == [
        "train_input.batch_size is 8, the manifest's batch 4",
        "train_input.max_sequence_length is 2048, the manifest's msl 64",
        f"runconfig.max_steps is 99, the manifest's steps {phase.steps}",
    ]
    mixture = [
        {"data_dir": "/data/web", "weight": 0.5},
        {"data_dir": "/data/wiki/", "weight": 0.25},
        {"data_dir": "/data/book", "weight": 0.25},
    ]
    assert contradictions(zoo(tmp_path, phase, mixture=mixture), phase) == [
        "train_input.mixture.1: /data/wiki/ has share 0.250000, "
        f"the manifest's part {phase.parts[0].name} 0.300000",
        "train_input.mixture.2: /data/book has share 0.250000, the manifest's part book 0.200000",
    ]
    assert contradictions(zoo(tmp_path, phase, mixture=mixture[:2]), phase) == [
        "train_input.mixture lists 2 data_dir, the manifest 3 parts"
    ]


def test_folders_of_other_names_are_held_to_the_parts_in_their_order(tmp_path: Path) -> None:
    phase = manifest("prose")
    mixture = [{"data_dir": f"x{i}", "weight": part.asked} for i, part in enumerate(phase.parts)]
    assert contradictions(zoo(tmp_path, phase, mixture=mixture), phase) == []
    told = contradictions(zoo(tmp_path, phase, mixture=mixture[1:] + mixture[:1]), phase)
    assert [line.split(" has ")[0] for line in told] == [
        "train_input.mixture.0: x1",
        "train_input.mixture.1: x2",
        "train_input.mixture.2: x0",
    ]


def test_odd_data_sections_are_no_fault_here(tmp_path: Path) -> None:
    phase = replace(manifest("prose"), steps=7)
    for odd in ("word", [], None, {"mixture": "word"}, {"mixture": ["word", 3]}):
        path = write_run(tmp_path / "run.yaml", train_input=odd or {})
        assert len(contradictions(path, phase)) == (odd == {"mixture": ["word", 3]})
