"""Run files: model, optimiser and run settings in Model Zoo's params.yaml dialect.

The published params.yaml of CrystalCoder are read as they are; our own are the same dialect with
smaller numbers. A key that Model Zoo knows and this trainer does not use is told by name; a key
that nobody knows, or a value this trainer can't do, is an error. A `phases` section may override
`optimizer` and `runconfig` for a phase.
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mixtures import yamlfile
from prep.errors import RecipeError, UsageError
from train.model import ModelSettings
from train.optim import Linear, OptimSettings

PRESETS = Path(__file__).parent / "presets"
Json = dict[str, Any]

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
        "loss_scaling": "batch_size",
    },
    "optimizer": {"optimizer_type": "AdamW", "correct_bias": True},
}
# Model Zoo's keys that say nothing to this trainer (hardware, logging, data, what follows anyway).
UNUSED: dict[str, str] = {
    "model": "attention_kernel attention_softmax_fp32 boundary_casting loss_weight mixed_precision "
    "scale_glu_initialization use_bfloat16 weight_initialization_seed",
    "optimizer": "log_summaries loss_scaling_factor",
    "runconfig": "checkpoint_path compile_dir compile_only credentials_path debug_args_path "
    "disable_version_check dist_addr dist_backend enable_distributed eval_steps experimental_api "
    "init_method is_pretrained_checkpoint job_labels job_time_sec log_steps logging max_steps "
    "mgmt_address mgmt_namespace mode model_dir mount_dirs num_act_servers num_csx num_epochs "
    "num_steps num_wgt_servers num_workers_per_csx precision_opt_level python_paths "
    "save_initial_checkpoint save_losses service_dir target_device use_appliance_data "
    "use_cs_grad_accum validate_only wrk_memory_gi",
}
SECTIONS = ("model", "optimizer", "runconfig", "phases")
UNUSED_SECTIONS = ("cerebras", "train_input", "eval_input")
STDS = {
    "embedding_initializer": "embedding_std",
    "initializer": "initializer_std",
    "output_layer_initializer": "output_initializer_std",
}
MODEL_KEYS = set(ModelSettings.__dataclass_fields__) - set(STDS.values())
OPTIM_KEYS = {"beta1", "beta2", "eps", "weight_decay_rate", "max_gradient_norm"}


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run goes: seed, checkpoints, numbers, memory.

    micro_batch: rows per forward pass (all of them if None). threads: of torch on the CPU.
    """

    seed: int = 1
    checkpoint_steps: int = 100
    keep_checkpoints: int = 2
    dtype: Literal["float32", "bfloat16"] = "float32"
    micro_batch: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for key in ("checkpoint_steps", "keep_checkpoints", "micro_batch", "threads"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}: must be positive, got {value}")
        if self.dtype not in {"float32", "bfloat16"}:
            raise ValueError(f"dtype: must be float32 or bfloat16, got {self.dtype}")


@dataclass(frozen=True)
class Run:
    """Everything a phase's training follows from besides its manifest."""

    model: ModelSettings
    optimizer: OptimSettings
    settings: RunSettings

    def content(self) -> Json:
        """Return the run as JSON."""
        return asdict(self)


def find(name: str) -> Path:
    """Return a run file: a path, or the name of a bundled preset."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.exists():
        return path
    if (preset := PRESETS / f"{name}.yaml").exists():
        return preset
    names = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
    raise UsageError(f"{name}: no such run file, and no bundled preset (there are {names})")


def load(path: Path, phase: str | None = None) -> Run:
    """Read a run file for one phase; RecipeError names line, key, rule and value."""
    return _Reader(path, phase).run()


class _Reader:
    """Reads one run file, remembering where things stand for its messages."""

    def __init__(self, path: Path, phase: str | None) -> None:
        self.path = path
        self.content: Any = yamlfile.load(path)
        if not isinstance(self.content, dict):
            raise RecipeError(f"{path}: must hold the sections {', '.join(SECTIONS[:3])}")
        for section in self.content:
            if section not in SECTIONS + UNUSED_SECTIONS:
                raise self._fault((section,), "is no known section")
        for section in SECTIONS[:2]:
            if section not in self.content:
                raise RecipeError(f"{path}: section {section} is missing")
        self.over: Any = (self.content.get("phases") or {}).get(phase) or {}
        for section in self.over:
            if section not in SECTIONS[1:3]:
                steps = ("phases", str(phase), section)
                raise self._fault(steps, f"can't differ by phase (only {', '.join(SECTIONS[1:3])})")

    def run(self) -> Run:
        return Run(self._model(), self._optimizer(), self._settings())

    def _model(self) -> ModelSettings:
        values = self._section("model")
        stds = {STDS[k]: values.pop(k)["std"] for k in STDS if isinstance(values.get(k), dict)}
        return self._make("model", ModelSettings, {**values, **stds}, MODEL_KEYS | set(stds))

    def _optimizer(self) -> OptimSettings:
        values = self._section("optimizer")
        pieces = values.pop("learning_rate", None)
        if not isinstance(pieces, list):
            raise self._fault(("optimizer", "learning_rate"), "must list Linear pieces")
        lines = tuple(self._line(i, piece) for i, piece in enumerate(pieces))
        scale = (values.pop("adjust_learning_rate", None) or {}).get("decoder_kernel", 1.0)
        known = {**values, "learning_rate": lines, "decoder_kernel": scale}
        return self._make(
            "optimizer", OptimSettings, known, OPTIM_KEYS | {"learning_rate", "decoder_kernel"}
        )

    def _line(self, number: int, piece: Any) -> Linear:  # noqa: ANN401
        steps = ("optimizer", "learning_rate", number)
        if piece.get("scheduler", "Linear") != "Linear":
            raise self._fault((*steps, "scheduler"), f"must be Linear, got {piece['scheduler']}")
        try:
            length = piece.get("decay_steps", piece.get("steps"))
            start, end = piece["initial_learning_rate"], piece["end_learning_rate"]
            return Linear(float(start), float(end), int(length))
        except (KeyError, TypeError) as error:
            raise self._fault(steps, f"lacks {error}") from None
        except ValueError as error:
            raise self._fault(steps, str(error)) from None

    def _settings(self) -> RunSettings:
        known = set(RunSettings.__dataclass_fields__)
        return self._make("runconfig", RunSettings, self._section("runconfig"), known)

    def _section(self, name: str) -> Json:
        """Return a section with the phase's overrides, fixed keys checked and unused ones told."""
        given = yamlfile.plain({**(self.content.get(name) or {}), **(self.over.get(name) or {})})
        for key, only in FIXED.get(name, {}).items():
            if (found := given.pop(key, only)) != only:
                raise self._fault((name, key), f"must be {only!r} here, got {found!r}")
        unused = [key for key in UNUSED.get(name, "").split() if key in given]
        if unused:
            logging.getLogger("crystalmix").info(
                "%s: %s: not used: %s", self.path, name, ", ".join(unused)
            )
        return {key: value for key, value in given.items() if key not in unused}

    def _make(self, section: str, kind: Any, values: Json, known: set[str]) -> Any:  # noqa: ANN401
        for key in values:
            if key not in known:
                raise self._fault((section, key), "is no known key")
        try:
            return kind(**values)
        except (TypeError, ValueError) as error:
            key, _, rest = str(error).partition(": ")
            if not rest:
                raise self._fault(
                    (section,), str(error).replace(f"{kind.__name__}.__init__() ", "")
                ) from None
            raise self._fault((section, key), rest) from None

    def _fault(self, steps: tuple[str | int, ...], message: str) -> RecipeError:
        where = ".".join(map(str, steps))
        return RecipeError(
            f"{self.path}:{yamlfile.line_of(self.content, steps)}: {where}: {message}"
        )
