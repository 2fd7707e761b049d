"""Run files: Model Zoo's dialect, the published files, overrides by phase, faults in one line."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from crystalmix.prep.runtime.errors import RecipeError, UsageError
from crystalmix.train.model.crystal import parameters_count
from crystalmix.train.model.optimizer import Linear
from crystalmix.train.runfile import run_file as params
from helpers.crystals import PUBLISHED
from helpers.parameters import published
from helpers.runs import write_run

LINE = {"initial_learning_rate": 0.0, "end_learning_rate": 0.012, "steps": 4}


def fault(path: Path, phase: str | None = None) -> str:
    """Load a faulty file and return its one line."""
    with pytest.raises(RecipeError) as told:
        params.load(path, phase)
    line = str(told.value)
    assert "\n" not in line
    assert line.startswith(f"{path}")
    return line.removeprefix(str(path))


def line_with(path: Path, text: str) -> int:
    """Return the number of the first line that has a text."""
    lines = path.read_text("utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("number", "peak", "last", "steps", "checkpoint_steps"),
    [
        (1, 0.012, 0.00012408, 86 + 294337, 1500),
        (2, 0.0087825, 0.00013679, 86 + 214301, 1500),
        (3, 0.002, 0.0002, 276 + 27452, 1000),
    ],
)
def test_the_published_files_load_as_they_are(
    number: int, peak: float, last: float, steps: int, checkpoint_steps: int
) -> None:
    run = params.load(published(number))
    assert parameters_count(run.model) == 6_575_278_720
    assert run.model == PUBLISHED
    warmup, decay = run.optimizer.learning_rate
    assert (warmup.start, warmup.end, decay.start, decay.end) == (0.0, peak, peak, last)
    assert warmup.steps + decay.steps == steps
    optimizer = run.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps) == (0.9, 0.95, 1e-9)
    assert (optimizer.decoder_kernel, optimizer.weight_decay_rate) == (0.0625, 0.1)
    assert (run.settings.seed, run.settings.checkpoint_steps) == (1, checkpoint_steps)


@pytest.mark.golden
def test_what_is_not_used_of_them_is_told_by_name(caplog: pytest.LogCaptureFixture) -> None:
    path = published(1)
    params._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "crystalmix"):
        params.load(path, "phase1")
        params.load(path, "phase2")
    *others, cluster = caplog.messages
    assert "runconfig: for --backend csx alone: " in cluster
    assert "num_csx" in cluster
    told = {message.split(": ")[1]: message for message in others}
    data = {"cerebras", "train_input", "eval_input"}
    assert set(told) == {"model", "optimizer", "optimizer.learning_rate", "runconfig"} | data
    assert len(told) == 7  # once, though the file is read for each phase
    assert "weight_initialization_seed" in told["model"]
    assert "loss_scaling_factor" in told["optimizer"]
    assert "num_epochs" in told["runconfig"]
    assert "hidden_size" not in told["model"]


def test_the_bundled_preset_loads_and_differs_in_phase_three(
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = params.find("mini")
    first, third = params.load(path, "phase1"), params.load(path, "phase3")
    assert first.model == third.model
    assert first.settings == third.settings
    assert third.optimizer.learning_rate[0].end == 0.002 != first.optimizer.learning_rate[0].end
    assert caplog.messages == []


def test_a_run_file_is_a_path_or_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert params.find("any/where.yaml") == Path("any/where.yaml")
    (tmp_path / "mini").mkdir()  # a folder of that name is no run file
    (tmp_path / "settings").write_text("")
    monkeypatch.chdir(tmp_path)
    assert params.find("mini") == params.PRESETS / "mini.yaml"
    assert params.find("settings") == Path("settings")
    with pytest.raises(UsageError, match=r"no bundled preset \(there are crystalchat, mini\)"):
        params.find("maxi")


def test_both_names_of_a_pieces_length_are_read(tmp_path: Path) -> None:
    pieces = [LINE, {**LINE, "decay_steps": 4}, {**LINE, "steps": None, "decay_steps": 9}]
    pieces[2].pop("steps")
    path = write_run(tmp_path / "run.yaml", optimizer={"learning_rate": pieces})
    told = params.load(path).optimizer.learning_rate
    assert told == (Linear(0.0, 0.012, 4), Linear(0.0, 0.012, 4), Linear(0.0, 0.012, 9))


def test_a_phase_overrides_optimizer_and_runconfig(tmp_path: Path) -> None:
    over = {"optimizer": {"learning_rate": [LINE], "beta2": 0.99}, "runconfig": {"seed": 5}}
    path = write_run(tmp_path / "run.yaml", phases={"late": over})
    plain, late = params.load(path, "early"), params.load(path, "late")
    assert plain == params.load(path)
    assert late.model == plain.model
    assert late.optimizer.learning_rate == (Linear(0.0, 0.012, 4),)
    assert (late.optimizer.beta2, plain.optimizer.beta2) == (0.99, 0.95)
    assert (late.settings.seed, plain.settings.seed) == (5, 1)
    assert late.settings.checkpoint_steps == plain.settings.checkpoint_steps


def test_an_override_of_a_phase_that_is_not_there_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_run(tmp_path / "run.yaml", phases={"phse3": {"runconfig": {"seed": 5}}})
    params.load(path, "phase1", ["phase1", "phase3"])
    assert [message.removeprefix(f"{path}: ") for message in caplog.messages] == [
        "phases: not used: phse3"
    ]


FIXED = [(section, key) for section, keys in params.FIXED.items() for key in keys]


@pytest.mark.parametrize(("section", "key"), FIXED, ids=[key for _, key in FIXED])
def test_a_fixed_key_takes_its_one_value_and_no_other(
    section: str, key: str, tmp_path: Path
) -> None:
    only = params.FIXED[section][key]
    path = write_run(tmp_path / "run.yaml", **{section: {key: only}})
    assert params.load(path) == params.load(write_run(tmp_path / "plain.yaml"))
    other = (not only) if isinstance(only, bool) else "other" if isinstance(only, str) else 0.1
    path = write_run(tmp_path / "run.yaml", **{section: {key: other}})
    line = line_with(path, f"{key}:")
    assert fault(path) == f":{line}: {section}.{key}: must be {only!r} here, got {other!r}"


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown section": ({"modle": {}}, r"modle: is no known section"),
    "unknown model key": ({"model": {"hiden_size": 1}}, r"model.hiden_size: is no known key"),
    "unknown optimizer key": ({"optimizer": {"beta3": 1}}, r"optimizer.beta3: is no known key"),
    "unknown runconfig key": ({"runconfig": {"sed": 1}}, r"runconfig.sed: is no known key"),
    "our own name of a key": (
        {"model": {"initializer_std": 0.1}},
        r"model.initializer_std: is no known key",
    ),
    "our own name of a factor": (
        {"optimizer": {"decoder_kernel": 2}},
        r"optimizer.decoder_kernel: is no known key",
    ),
    "a key that is nearly one": ({"runconfig": {"sead": 1}}, r"known key; did you mean seed\?"),
    "nearly a key of Model Zoo": (
        {"model": {"loss_weigth": 1}},
        r"model.loss_weigth: is no known key; did you mean loss_weight\?",
    ),
    "a key like none": ({"metrics": {"x": 1}}, r"metrics.x: is no known key \(there are trackers"),
    "nearly a section": ({"runconfg": {}}, r"runconfg: is no known section; did you mean runc"),
    "a million layers": (
        {"model": {"num_hidden_layers": 10**6}},
        r"model.num_hidden_layers: must be at most 10000, got 1000000",
    ),
    "a width of a billion": ({"model": {"hidden_size": 10**9}}, r"model.hidden_size: must be at m"),
    "steps that no ledger counts": (
        {"optimizer": {"learning_rate": [{**LINE, "steps": 2**40}]}},
        r"learning_rate.0.steps: must be below 2147483648, got 1099511627776",
    ),
    "unknown factor": (
        {"optimizer": {"adjust_learning_rate": {"embedding": 2}}},
        r"optimizer.adjust_learning_rate.embedding: is no known key",
    ),
    "negative factor": (
        {"optimizer": {"adjust_learning_rate": {"decoder_kernel": -1}}},
        r"optimizer.adjust_learning_rate: must be positive, got -1",
    ),
    "a word for a number": ({"model": {"hidden_size": "big"}}, r"model.hidden_size: .*got 'big'"),
    "half a token": ({"model": {"vocab_size": 64.5}}, r"model.vocab_size: .*got 64.5"),
    "a list for a number": ({"optimizer": {"eps": [1]}}, r"optimizer.eps: .*got \[1\]"),
    "half a thread": ({"runconfig": {"threads": 1.5}}, r"runconfig.threads: .*got 1.5"),
    "no threads": ({"runconfig": {"threads": 0}}, r"runconfig.threads: must be positive, got 0"),
    "odd dtype": ({"runconfig": {"dtype": "float8"}}, r"runconfig.dtype: .*got 'float8'"),
    "heads that do not divide": (
        {"model": {"num_heads": 3}},
        r"model.hidden_size: must be a multiple of num_heads \(3\), got 16",
    ),
    "beta out of range": ({"optimizer": {"beta1": 1.0}}, r"optimizer.beta1: must lie in"),
    "no pieces": ({"optimizer": {"learning_rate": []}}, r"optimizer.learning_rate: must hold a"),
    "one number": ({"optimizer": {"learning_rate": 0.1}}, r"optimizer.learning_rate: must list"),
    "a number as piece": ({"optimizer": {"learning_rate": [3]}}, r"learning_rate.0: must be a map"),
    "another scheduler": (
        {"optimizer": {"learning_rate": [LINE, {**LINE, "scheduler": "Polynomial"}]}},
        r"optimizer.learning_rate.1.scheduler: must be Linear, CosineDecay or WSD, got Polynomial",
    ),
    "a piece without length": (
        {"optimizer": {"learning_rate": [{k: v for k, v in LINE.items() if k != "steps"}]}},
        r"optimizer.learning_rate.0.steps: is missing",
    ),
    "a piece of two lengths": (
        {"optimizer": {"learning_rate": [{**LINE, "decay_steps": 5}]}},
        r"learning_rate.0.decay_steps: must be equal to steps \(4\), got 5",
    ),
    "a piece with a typo": (
        {"optimizer": {"learning_rate": [{**LINE, "stesp": 5}]}},
        r"optimizer.learning_rate.0.stesp: is no known key",
    ),
    "a negative rate": (
        {"optimizer": {"learning_rate": [{**LINE, "end_learning_rate": -1}]}},
        r"optimizer.learning_rate.0.end_learning_rate: must be finite and at least 0, got -1",
    ),
    "an initialiser of another kind": (
        {"model": {"initializer": {"name": "uniform"}}},
        r"model.initializer.name: must be 'truncated_normal' here, got 'uniform'",
    ),
    "an initialiser cut elsewhere": (
        {"model": {"initializer": {"b": 0.3}}},
        r"model.initializer.b: must be 0.146 here, got 0.3",
    ),
    "an initialiser without width": (
        {"model": {"initializer": {"std": None, "mean": 0.0}}},
        r"model.initializer.std: must be a number",
    ),
    "a bare initialiser": ({"model": {"initializer": 0.07}}, r"model.initializer: must be a map"),
    "a section that is a list": ({"runconfig": [1]}, r"runconfig: must be a mapping, got \[1\]"),
    "phases that are a list": ({"phases": ["late"]}, r"phases: must be a mapping"),
    "a phase that is a number": ({"phases": {"late": 3}}, r"phases.late: must be a mapping, got 3"),
    "a phase with its own model": (
        {"phases": {"late": {"model": {"num_heads": 4}}}},
        r"phases.late.model: can't differ by phase \(only optimizer, runconfig\)",
    ),
    "an override that is a number": (
        {"phases": {"late": {"optimizer": 3}}},
        r"phases.late.optimizer: must be a mapping, got 3",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_with_its_place(name: str, tmp_path: Path) -> None:
    changes, wanted = FAULTS[name]
    told = fault(write_run(tmp_path / "run.yaml", **changes))
    assert re.match(rf":\d+: .*{wanted}", told), told


def test_the_line_is_the_one_where_the_value_stands(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.yaml", runconfig={"keep_checkpoints": 0})
    line = line_with(path, "keep_checkpoints:")
    assert fault(path) == f":{line}: runconfig.keep_checkpoints: must be positive, got 0"


def test_a_fault_in_an_override_is_told_where_it_stands(tmp_path: Path) -> None:
    over = {"optimizer": {"learning_rate": [{**LINE, "scheduler": "Cosine"}], "beta1": 7}}
    path = write_run(tmp_path / "run.yaml", phases={"late": over})
    params.load(path, "early")
    where = "phases.late.optimizer.learning_rate.0.scheduler"
    assert fault(path, "late") == (
        f":{line_with(path, 'Cosine')}: {where}: must be Linear, CosineDecay or WSD, got Cosine"
    )
    over["optimizer"]["learning_rate"] = [LINE]
    write_run(path, phases={"late": over})
    line = line_with(path, "beta1: 7")
    told = fault(path, "late")
    assert told == f":{line}: phases.late.optimizer.beta1: must lie in [0, 1), got 7.0"


@pytest.mark.parametrize("section", ["model", "optimizer"])
def test_a_missing_section_is_told(section: str, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.yaml", **{section: None})
    assert fault(path) == f": section {section} is missing"


def test_a_missing_value_is_told_by_the_files_own_name(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.yaml", model={"initializer": None})
    assert fault(path).endswith(": model.initializer: is missing")
    path = write_run(tmp_path / "run.yaml", model={"vocab_size": None})
    assert fault(path).endswith(": model.vocab_size: is missing")


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("", ": must hold the sections model, optimizer, runconfig"),
        ("- 1", ": must hold the sections model, optimizer, runconfig"),
        ("model: {", ":1: is no YAML: .*"),
        ("model:\noptimizer:", ":2: optimizer.learning_rate: must list Linear pieces|:1: model.*"),
        ("model: {vocab_size: }\noptimizer: {}", ":1: model.vocab_size: .*got None"),
    ],
)
def test_a_file_of_another_kind_is_one_line(content: str, wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content, "utf-8")
    assert re.fullmatch(wanted, fault(path))


def test_no_file_is_one_line(tmp_path: Path) -> None:
    assert fault(tmp_path / "run.yaml") == ": no such file"


def test_assignments_change_a_run_file_as_if_they_stood_in_it(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.yaml")
    first = "optimizer.learning_rate.0.end_learning_rate"
    run = params.load(path, overrides=["runconfig.seed=7", f"{first}=0.5", "runconfig.dtype=auto"])
    assert (run.settings.seed, run.settings.dtype) == (7, "auto")
    assert run.optimizer.learning_rate[0].end == 0.5
    assert params.load(path).settings.seed != 7
    late = params.load(path, "late", overrides=["phases.late.runconfig.seed=9"])
    assert late.settings.seed == 9


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("runconfig.sead=1", r"runconfig.sead: is no known key; did you mean seed\?"),
        ("runconfig.seed=many", r"run.yaml:\d+: runconfig.seed: must be a valid integer.*'many'"),
        ("runconfig.seed", r"--set: must be KEY=VALUE such as runconfig.seed=2, got 'runconfig.se"),
        ("runconfig..seed=1", r"--set: must be KEY=VALUE"),
        ("runconfig.seed={", r"--set runconfig.seed: is no YAML: '{'"),
        ("model.vocab_size.x=1", r"--set model.vocab_size.x: x can't be set: \d+ holds no keys"),
        ("optimizer.learning_rate.9.steps=1", r"9 must be a place in a list of \d, from 0"),
    ],
)
def test_an_assignment_that_leads_nowhere_is_one_line(
    assignment: str, message: str, tmp_path: Path
) -> None:
    path = write_run(tmp_path / "run.yaml")
    with pytest.raises(UsageError, match=message) as error:
        params.load(path, overrides=[assignment])
    assert "\n" not in str(error.value)
