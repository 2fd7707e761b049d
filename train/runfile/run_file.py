"""Run files: model, optimiser and run settings in Model Zoo's params.yaml dialect.

The published params.yaml of CrystalCoder are read as they are; our own are the same dialect with
smaller numbers. A key that Model Zoo knows and this trainer does not use is noted by name, nested
ones too; an unknown key, or a value that this trainer can't do, is an error. What the file says of
the data is compared with the manifest by `data_sections`. A `phases` section may override
`optimizer` and `runconfig` for a phase.
"""

import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from crystalmix.prep.runtime import yaml_settings
from crystalmix.prep.runtime.constraints import rule_broken
from crystalmix.prep.runtime.errors import RecipeError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.evaluation.evaluate import EvaluationSettings
from crystalmix.train.model.crystal import CUT, ModelSettings
from crystalmix.train.model.optimizer import Cosine, Linear, OptimSettings, WarmupStableDecay
from crystalmix.train.record.metrics import MetricsSettings
from crystalmix.train.runfile import data_sections
from crystalmix.train.runfile.cluster import KEYS as CLUSTER_KEYS
from crystalmix.train.runfile.cluster import Cluster
from crystalmix.train.runfile.settings import Run, RunSettings

PRESETS = Path(__file__).parents[1] / "presets"
Steps = tuple[str | int, ...]
Settings = TypeVar("Settings")

# Model Zoo's keys whose only value here is the one given; another value is an error.
FIXED: dict[str, Json] = {
    "model": {
        "attention_dropout_rate": 0.0,
        "attention_type": "scaled_dot_product",
        "dropout_rate": 0.0,
        "nonlinearity": "swiglu",
        "position_embedding_type": "rotary",
        "share_embedding_weights": True,
        "use_bias_in_output": False,
        "use_ffn_bias": True,
        "use_ffn_bias_in_attention": True,
        "use_position_embedding": True,
        "use_projection_bias_in_attention": True,
    },
    "optimizer": {"optimizer_type": "AdamW", "correct_bias": True},
}
# Model Zoo's keys that this trainer does not use (hardware, logging, data, what follows anyway).
UNUSED: dict[str, str] = {
    "model": "attention_kernel attention_softmax_fp32 boundary_casting loss_weight mixed_precision "
    "scale_glu_initialization use_bfloat16 weight_initialization_seed",
    "optimizer": "log_summaries loss_scaling_factor",
    "runconfig": "checkpoint_path compile_only debug_args_path disable_version_check dist_addr "
    "dist_backend enable_distributed eval_steps experimental_api init_method "
    "is_pretrained_checkpoint log_steps logging mode model_dir num_act_servers "
    "num_epochs num_steps num_wgt_servers save_initial_checkpoint save_losses service_dir "
    "target_device use_appliance_data use_cs_grad_accum validate_only wrk_memory_gi",
}
SECTIONS = ("model", "optimizer", "runconfig", "phases", "evaluation", "metrics")
STDS = {
    "embedding_initializer": "embedding_std",
    "initializer": "initializer_std",
    "output_layer_initializer": "output_initializer_std",
}
SCALING = "loss_scaling"  # a key of `model`, a setting of how the run goes
SHAPES: dict[str, type[Linear]] = {"Linear": Linear, "CosineDecay": Cosine}
WSD = "WSD"
LINE_KEYS = {"initial_learning_rate": "start", "end_learning_rate": "end"}
REPEATED = ("base_lr", "learning_rate")  # where Model Zoo says initial_learning_rate again
FACTORS = {"adjust_learning_rate": "decoder_kernel"}
# From a dataclass's name of a value back to where the file has it.
YAML_KEYS: dict[str, str] = {v: k for names in (STDS, LINE_KEYS, FACTORS) for k, v in names.items()}


def find(name: str) -> Path:
    """Return a run file: a path, or the name of a bundled preset."""
    return yaml_settings.find(name, PRESETS, "no such run file, and no bundled preset")


def load(
    path: Path, phase: str | None = None, known: Sequence[str] = (), overrides: Sequence[str] = ()
) -> Run:
    """Read a run file for one phase; RecipeError names line, key, rule and value.

    known: the phases there are; settings for others are noted. overrides: `--set` assignments,
    as of `yaml_settings.override`.
    """
    reader = _Reader(path, phase, overrides)
    if known:
        reader.warn_unknown_phases(known)
    return reader.run()


def cluster(path: Path, phase: str | None = None, overrides: Sequence[str] = ()) -> Cluster:
    """Read what a run file says of the Wafer-Scale Cluster for one phase."""
    return _Reader(path, phase, overrides).cluster()


def _missing(names: Sequence[str]) -> str:
    """Return the message for the first of several missing keys."""
    _, *others = names
    if not others:
        return "is missing"
    verb = "so are" if len(others) > 1 else "so is"
    return f"is missing, {verb} {', '.join(others)}; {PRESETS / 'mini.yaml'} has them"


@lru_cache(maxsize=256)
def _warn_once(message: str) -> None:
    # Once, though a file is read for each phase.
    logging.getLogger("crystalmix").warning("%s", message)


class _Reader:
    """Reads one run file, remembering where things stand for its messages."""

    def __init__(self, path: Path, phase: str | None, overrides: Sequence[str] = ()) -> None:
        self.path, self.phase = path, str(phase)
        self.over: Json = {}
        self.content: Any = yaml_settings.load(path)
        if not isinstance(self.content, dict):
            raise RecipeError(f"{path}: must hold the sections {', '.join(SECTIONS[:3])}")
        yaml_settings.override(self.content, overrides)
        known = SECTIONS + data_sections.SECTIONS
        for section in self.content:
            if section not in known:
                others = yaml_settings.like(str(section), known, SECTIONS)
                raise self._fault((section,), f"is no known section{others}")
        for section in SECTIONS[:2]:
            if section not in self.content:
                raise RecipeError(f"{path}: section {section} is missing")
        self.over = self._overrides().get(self.phase, {})
        for section in data_sections.SECTIONS:
            self._warn_unused(section, data_sections.unused(section, self.content.get(section)))

    def warn_unknown_phases(self, known: Sequence[str]) -> None:
        self._warn_unused("phases", [name for name in self._overrides() if name not in known])

    def run(self) -> Run:
        return Run(
            self._model(),
            self._optimizer(),
            self._settings(),
            self._evaluation(),
            self._make(("metrics",), MetricsSettings, self._section("metrics")),
        )

    def _evaluation(self) -> EvaluationSettings | None:
        if "evaluation" not in self.content:
            return None
        settings = self._make(("evaluation",), EvaluationSettings, self._section("evaluation"))
        beside = self.path.parent
        if (tasks := settings.tasks) is not None:
            tasks = replace(tasks, files=tuple(str(beside / file) for file in tasks.files))
            settings = replace(settings, tasks=tasks)
        return (
            settings
            if settings.build is None
            else replace(settings, build=str(beside / settings.build))
        )

    def cluster(self) -> Cluster:
        """Return the cluster that runconfig describes."""
        entries = self._raw_section("runconfig").items()
        values = {k: value for k, value in entries if k in CLUSTER_KEYS and value is not None}
        return self._make(("runconfig",), Cluster, values)

    def _overrides(self) -> Json:
        """Return what each phase overrides, section by section."""
        phases = self._mapping(("phases",), self.content.get("phases"))
        for phase, sections in phases.items():
            for section in self._mapping(("phases", phase), sections):
                steps = ("phases", phase, section)
                if section not in SECTIONS[1:3]:
                    rule = f"can't differ by phase (only {', '.join(SECTIONS[1:3])})"
                    raise self._fault(steps, rule)
                self._mapping(steps, sections[section])
        return {phase: sections or {} for phase, sections in phases.items()}

    def _model(self) -> ModelSettings:
        settings = self._renamed(("model",), self._section("model"), STDS)
        settings.pop(SCALING, None)  # `_settings` reads it
        values = {
            name: self._std(YAML_KEYS[name], value) if name in STDS.values() else value
            for name, value in settings.items()
        }
        return self._make(("model",), ModelSettings, values)

    def _std(self, key: str, initializer: object) -> float:
        """Return an initialiser's std; all else that it may say is what we do anyway."""
        values = self._mapping(("model", key), initializer)
        std = values.pop("std", None)
        if not isinstance(std, int | float):
            raise self._fault(("model", key, "std"), f"must be a number, got {std!r}")
        only = {"name": "truncated_normal", "mean": 0.0, "a": -CUT * std, "b": CUT * std}
        for name, value in values.items():
            if name not in only:
                others = yaml_settings.like(name, ["std", *only])
                raise self._fault(("model", key, name), f"is no known key{others}")
            if value != only[name]:
                steps = ("model", key, name)
                raise self._fault(steps, f"must be {only[name]!r} here, got {value!r}")
        return std

    def _optimizer(self) -> OptimSettings:
        values = self._renamed(("optimizer",), self._section("optimizer"), FACTORS)
        adjusted = ("optimizer", "adjust_learning_rate")
        factors = self._mapping(adjusted, values.pop("decoder_kernel", None))
        for name in factors:
            if name != "decoder_kernel":
                raise self._fault((*adjusted, name), "is no known key (only decoder_kernel)")
        steps = ("optimizer", "learning_rate")
        pieces = values.get("learning_rate")
        if not isinstance(pieces, list):
            raise self._fault(steps, f"must list pieces ({', '.join([*SHAPES, WSD])})")
        every = [self._pieces((*steps, i), piece) for i, piece in enumerate(pieces)]
        lines = tuple(line for some in every for line in some)
        settings = {**values, **factors, "learning_rate": lines}
        return self._make(("optimizer",), OptimSettings, settings)

    def _pieces(self, steps: Steps, piece: object) -> tuple[Linear, ...]:
        """Return the pieces that an entry of `learning_rate` stands for."""
        values = self._mapping(steps, piece)
        name = values.pop("scheduler", "Linear")
        if name == WSD:
            return self._make(steps, WarmupStableDecay, values).pieces
        if name not in SHAPES:
            rule = f"must be {', '.join(SHAPES)} or {WSD}, got {name}"
            raise self._fault((*steps, "scheduler"), rule)
        return (self._line(steps, values, SHAPES[name]),)

    def _line(self, steps: Steps, values: Json, kind: type[Linear]) -> Linear:
        repeated = [key for key in REPEATED if values.pop(key, None) is not None]
        self._warn_unused("optimizer.learning_rate", repeated)
        length = values.pop("decay_steps", None)
        if length is not None and values.setdefault("steps", length) != length:
            rule = f"must be equal to steps ({values['steps']!r}), got {length!r}"
            raise self._fault((*steps, "decay_steps"), rule)
        return self._make(steps, kind, self._renamed(steps, values, LINE_KEYS))

    def _settings(self) -> RunSettings:
        values = self._section("runconfig")
        if SCALING in values:
            raise self._unknown(("runconfig",), SCALING)
        scaling = self._raw_section("model").get(SCALING, RunSettings.loss_scaling)
        if scaling not in {"batch_size", "num_tokens"}:
            rule = f"must be batch_size or num_tokens, got {scaling!r}"
            raise self._fault(("model", SCALING), rule)
        return self._make(("runconfig",), RunSettings, {**values, SCALING: scaling})

    def _raw_section(self, name: str) -> Json:
        base = self._mapping((name,), self.content.get(name))
        return {**base, **self._mapping((name,), self.over.get(name))}

    def _section(self, name: str) -> Json:
        """Return a section with the phase's overrides, fixed keys checked and unused ones noted."""
        settings = self._raw_section(name)
        for key, only in FIXED.get(name, {}).items():
            if (value := settings.pop(key, only)) != only:
                raise self._fault((name, key), f"must be {only!r} here, got {value!r}")
        unused = [key for key in UNUSED.get(name, "").split() if key in settings]
        self._warn_unused(name, unused)
        if name == "runconfig":
            apart = [key for key in settings if key in CLUSTER_KEYS]  # `cluster` reads those
            self._warn_unused(name, apart, "for --backend csx alone")
            unused += apart
        held = data_sections.HELD.get(name, {})
        return {key: value for key, value in settings.items() if key not in {*unused, *held}}

    def _warn_unused(self, where: str, keys: list[str], how: str = "not used") -> None:
        if keys:
            _warn_once(f"{self.path}: {where}: {how}: {', '.join(keys)}")

    def _mapping(self, steps: Steps, content: object) -> Json:
        """Return what a mapping holds, nothing for an empty one; a fault for anything else."""
        if content is not None and not isinstance(content, dict):
            raise self._fault(steps, f"must be a mapping, got {yaml_settings.plain(content)!r}")
        return yaml_settings.plain(content or {})

    def _renamed(self, steps: Steps, values: Json, names: dict[str, str]) -> Json:
        """Return values under the names of our dataclasses, which no file may use itself."""
        for key in values:
            if key in names.values():
                raise self._unknown(steps, key)
        return {names.get(key, key): value for key, value in values.items()}

    def _make(self, steps: Steps, kind: type[Settings], values: Json) -> Settings:
        """Make a settings dataclass; its own faults and wrong types name their line."""
        names = [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType]
        for key in values:
            if key not in names:
                raise self._unknown(steps, key, names)
        try:
            return TypeAdapter(kind).validate_python(values)
        except ValidationError as error:
            faults = error.errors()
        fault = faults[0]
        key = str(fault["loc"][0]) if fault["loc"] else ""
        message = rule_broken(fault)
        if fault["type"] == "value_error":
            key, _, message = str(fault.get("ctx", {})["error"]).partition(": ")
        elif fault["type"] == "missing":
            names = [str(entry["loc"][0]) for entry in faults if entry["type"] == "missing"]
            message = _missing([YAML_KEYS.get(name, name) for name in names])
        raise self._fault((*steps, YAML_KEYS.get(key, key)), message)

    def _unknown(self, steps: Steps, key: str, names: Sequence[str] = ()) -> RecipeError:
        """Return the fault of an unknown key, with the known one that is like it."""
        own = [YAML_KEYS.get(name, name) for name in names]
        section = str(steps[0]) if len(steps) == 1 else ""
        known = [*own, *FIXED.get(section, ()), *UNUSED.get(section, "").split()]
        known += CLUSTER_KEYS if section == "runconfig" else ()
        return self._fault((*steps, key), f"is no known key{yaml_settings.like(key, known, own)}")

    def _fault(self, steps: Steps, message: str) -> RecipeError:
        if self._is_over(steps):
            steps = ("phases", self.phase, *steps)
        where = ".".join(map(str, steps))
        return RecipeError(
            f"{self.path}:{yaml_settings.line_of(self.content, steps)}: {where}: {message}"
        )

    def _is_over(self, steps: Steps) -> bool:
        """Tell whether the phase overrides what stands at a path."""
        section, key = [*map(str, steps), "", ""][:2]
        return key in (self.over.get(section) or {})
