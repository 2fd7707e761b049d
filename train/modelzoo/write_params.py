"""A params.yaml for Model Zoo's GPT runner: a run's settings over a manifest, in two dialects.

`1.9` is the dialect of the published files (train_input, model, optimizer, runconfig), `trainer`
that of Model Zoo 2.x (`trainer: {init, fit}`), whose keys are those of 1.9 in other places: see
`convert_legacy_params_to_trainer_params` of Model Zoo. What a run file says beside what we use
(cluster, logging, evaluation) is passed on as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, Literal, get_args

from ruamel.yaml import YAML

from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.modelzoo.train_input import Place, train_input
from crystalmix.prep.runtime import yaml_settings
from crystalmix.prep.runtime.atomic_files import write_atomic
from crystalmix.prep.runtime.errors import DamageError, UsageError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.model.crystal import CUT, ModelSettings
from crystalmix.train.model.optimizer import Cosine, Linear, OptimSettings
from crystalmix.train.modelzoo.write_params_2x import trainer
from crystalmix.train.record import run_folder
from crystalmix.train.runfile import run_file
from crystalmix.train.runfile.settings import Run, RunSettings

Dialect = Literal["1.9", "trainer"]
LOADER: Json = {  # keys of the loader that have no say in its rows, where a run file has none
    "num_workers": 1,
    "persistent_workers": True,
    "prefetch_factor": 10,
    "repeat": True,
    "use_worker_cache": False,
}
FABRICS = ("cs2", "cs3")
HERE = Place()
OURS = {"attention", "glu_bias_quirk"}  # settings of the model that Model Zoo has no key for


@dataclass(frozen=True)
class Source:
    """A run's settings for a phase, and the whole of its run file where there is one."""

    run: Run
    raw: Json


def dialect_of(name: str) -> Dialect:
    """Return a dialect by its name."""
    for dialect in get_args(Dialect):
        if name == dialect:
            return dialect
    raise UsageError(f"--dialect: must be {' or '.join(get_args(Dialect))}, got {name!r}")


def write(
    run: str, manifest: Manifest, out: Path, dialect: Dialect = "1.9", place: Place = HERE
) -> Json:
    """Write a params.yaml of a run (a run file, a preset or a run's folder); return its content.

    Raises RefusalError where Model Zoo can't consume the manifest in its order.
    """
    if place.reader is None and dialect == "trainer":
        place = replace(place, reader="2.0.3")  # all that read this dialect
    content = sections(source(run, manifest.phase), manifest, place)
    if dialect == "trainer":
        content = trainer(content)
    text = StringIO()
    yaml = YAML(typ="rt")
    yaml.width = 4096
    yaml.representer.add_representer(float, _float)
    yaml.dump(content, text)
    head = f"# phase {manifest.phase} of {manifest.name}, manifest {manifest.digest}\n"
    write_atomic(out, (head + text.getvalue()).encode())
    return content


def _float(representer: Any, value: float) -> Any:  # noqa: ANN401  as ruamel has it
    """Write 1e-09 as 1.0e-09: YAML 1.1, which Model Zoo reads, takes the other for a text."""
    text = repr(value)
    mantissa, e, exponent = text.partition("e")
    dotted = f"{mantissa}.0e{exponent}" if e and "." not in mantissa else text
    return representer.represent_scalar("tag:yaml.org,2002:float", dotted)


def source(run: str, phase: str) -> Source:
    """Read a run's settings: of a run file or preset, or of a run's folder."""
    claim = (folder := run_folder.PhaseFolder(Path(run) / phase)).claim
    if not claim.exists():
        path = run_file.find(run)
        return Source(run_file.load(path, phase), _raw(path, phase))
    content = run_folder.read_claim(folder, "give its run file").run or {}
    try:
        model, optimizer = ModelSettings(**content["model"]), dict(content["optimizer"])
        lines = tuple(Linear.of(piece) for piece in optimizer.pop("learning_rate"))
        rates = OptimSettings(learning_rate=lines, **optimizer)
        return Source(Run(model, rates, RunSettings(**content["settings"])), {})
    except (KeyError, TypeError, ValueError) as error:
        raise DamageError(f"{claim}: tells no run ({error}); give its run file") from None


def _raw(path: Path, phase: str) -> Json:
    """Return what a run file says, with the overrides of a phase."""
    content = yaml_settings.plain(yaml_settings.load(path))
    over = ((content.pop("phases", None) or {}).get(phase)) or {}
    for section, values in over.items():
        content[section] = {**(content.get(section) or {}), **(values or {})}
    return content


def sections(source: Source, manifest: Manifest, place: Place) -> Json:
    """Return the content of a params.yaml in the dialect of 1.9."""
    run, raw = source.run, source.raw
    loader: Json = {**LOADER, **(raw.get("train_input") or {})}
    for key in ("data_dir", "mixture", "data_subset"):
        loader.pop(key, None)
    if run.settings.micro_batch is not None:
        loader["micro_batch_size"] = run.settings.micro_batch
    content: Json = {
        "train_input": {**loader, **train_input(manifest, place)},
        "model": {**_model(run, manifest.msl), **_unused_keys(raw, "model")},
        "optimizer": {**_optimizer(run.optimizer), **_unused_keys(raw, "optimizer")},
        "runconfig": {
            **_machine(raw),
            "max_steps": manifest.steps,
            "seed": run.settings.seed,
            "checkpoint_steps": run.settings.checkpoint_steps,
        },
    }
    extra = {name: raw[name] for name in ("cerebras", "eval_input") if raw.get(name)}
    return {**extra, **content}


def _unused_keys(raw: Json, section: str) -> Json:
    """Return the keys of a run file that this trainer does not use but Model Zoo may."""
    keys = run_file.UNUSED[section].split()
    return {key: value for key, value in (raw.get(section) or {}).items() if key in keys}


def _machine(raw: Json) -> Json:
    """Return what a run file says of the machine, in `runconfig`: all that is not of the run."""
    machine: Json = {
        key: value
        for key, value in (raw.get("runconfig") or {}).items()
        if key not in RunSettings.__dataclass_fields__
    }
    if fabric := machine.pop("fabric", None):
        machine["fabric_type_blacklist"] = [kind for kind in FABRICS if kind != fabric]
    return machine


def _model(run: Run, msl: int) -> Json:
    settings = run.model
    half = run.settings.dtype == "bfloat16"
    values: Json = {
        key: value
        for key, value in vars(settings).items()
        if key not in OURS and key not in run_file.STDS.values()
    }
    for key, name in run_file.STDS.items():
        std = getattr(settings, name)
        cut = {"a": -CUT * std, "b": CUT * std}
        values[key] = {"name": "truncated_normal", "mean": 0.0, "std": std, **cut}
    fixed = {"boundary_casting": False, "scale_glu_initialization": True}
    return {
        **run_file.FIXED["model"],
        **values,
        **fixed,
        "attention_softmax_fp32": True,
        "loss_scaling": run.settings.loss_scaling,
        "loss_weight": 1 / msl if run.settings.loss_scaling == "batch_size" else 1.0,
        "mixed_precision": half,
        "use_bfloat16": half,
        "weight_initialization_seed": run.settings.seed,
    }


def _optimizer(settings: OptimSettings) -> Json:
    lines = [
        {
            "scheduler": "CosineDecay" if isinstance(line, Cosine) else "Linear",
            "initial_learning_rate": line.start,
            "end_learning_rate": line.end,
            "steps": line.steps,
            "decay_steps": line.steps,
        }
        for line in settings.learning_rate
    ]
    names = ("beta1", "beta2", "eps", "weight_decay_rate", "max_gradient_norm")
    return {
        **run_file.FIXED["optimizer"],
        **{name: getattr(settings, name) for name in names},
        "loss_scaling_factor": 1.0,
        "learning_rate": lines,
        "adjust_learning_rate": {"decoder_kernel": settings.decoder_kernel},
    }


def notes(manifest: Manifest, content: Json) -> list[str]:
    """Return notes on the Model Zoo that reads a params.yaml, a line each."""
    old = "trainer" not in content
    lines: list[str] = []
    if old:
        lines.append(
            "the public Model Zoo 1.9.1 reads the files of a folder in the file system's order; "
            "the rows follow only where it is that of their names (2.0.2 and later sort them)"
        )
    mixture = [] if not old else content["train_input"]["mixture"]
    cut = [line for line in mixture if "data_subset" in line]
    if cut and manifest.cerebras is not None and manifest.cerebras.subset == "2.0.3":
        lines.append(
            "data_subset is written for 2.0.2 and later; the public 1.9.1 would take other rows: "
            "--reader 1.9.1 tells whether it can be told at all"
        )
    return lines


def shared_differences(content: object, published: object, where: str = "") -> list[str]:
    """Return where two params.yaml differ in keys that both have, one line for each."""
    if isinstance(content, dict) and isinstance(published, dict):
        keys = [key for key in published if key in content]
        pairs: Sequence[tuple[Any, Any, Any]] = [
            (key, content[key], published[key]) for key in keys
        ]
    elif isinstance(content, list) and isinstance(published, list):
        pairs = [(i, *both) for i, both in enumerate(zip(content, published, strict=False))]
        if len(content) != len(published):
            return [f"{where}: has {len(content)} entries, the other {len(published)}"]
    else:
        return [] if content == published else [f"{where}: {content!r}, the other {published!r}"]
    return [
        line
        for key, own, other in pairs
        for line in shared_differences(own, other, f"{where}.{key}".lstrip("."))
    ]
