"""Export: a checkpoint as a folder that an unmodified transformers loads, in the public names.

    model.safetensors            weights in Hugging Face names, or shards of them with
    model.safetensors.index.json   an index, where they are large
    config.json                  as the public code reads it, and generation_config.json
    configuration_crystalcoder.py, modeling_crystalcoder.py   the model, for trust_remote_code
    tokenizer.json               the build's, byte for byte, and tokenizer_config.json
    crystalmix.json              manifest, phase, step and digest of the weights
    README.md                    the model card: the same in words, and what it was trained on

The tied head is not stored; the code computes logits from the embedding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from shutil import copyfile

import orjson
import torch
from safetensors.torch import save_file
from torch import Tensor

from crystalmix.mixtures.manifest.build_folder import TOKENIZER
from crystalmix.mixtures.manifest.manifest import Manifest, read_manifests
from crystalmix.prep.chat import jinja
from crystalmix.prep.runtime.atomic_files import (
    canonical,
    refuse_taken,
    replacing_folder,
    write_atomic,
)
from crystalmix.prep.runtime.errors import CrystalmixError, InputError, UsageError
from crystalmix.prep.runtime.machine import machine
from crystalmix.prep.runtime.types import Json
from crystalmix.train.evaluation.chat_answer import chat_of
from crystalmix.train.model.crystal import Crystal, ModelSettings, parameters_count
from crystalmix.train.record import later, run_folder
from crystalmix.train.trainer import checkpoint
from crystalmix.train.weights import hf_config
from crystalmix.train.weights.hf_names import HEAD, LAYER, State, to_huggingface

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
PROVENANCE = "crystalmix.json"
CARD = "README.md"
CODE = Path(__file__).parent / "hf_code"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
USE = (
    "## Use",
    "",
    "```python",
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "",
    'model = AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)',
    'tokenizer = AutoTokenizer.from_pretrained("FOLDER", trust_remote_code=True)',
    'ids = tokenizer("def ", return_tensors="pt").input_ids',
    "print(tokenizer.decode(model.generate(ids, max_new_tokens=20)[0]))",
    "```",
    "",
)


@dataclass(frozen=True)
class ExportSettings:
    """How weights are written: their numbers, and the greatest size of a file in bytes.

    published: also what the published files have beside the parameters: a copy of the tied head,
    and each layer's causal mask.
    """

    dtype: str = "float32"
    shard_bytes: int = 5_000_000_000
    published: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"--dtype: must be {' or '.join(DTYPES)}, got {self.dtype}")


@dataclass(frozen=True)
class Exported:
    """What an export wrote; notes: what it could not know."""

    provenance: Json
    files: tuple[str, ...]
    notes: tuple[str, ...]


def export(
    source: Path, out: Path, settings: ExportSettings, build: Path | None = None
) -> Exported:
    """Write a checkpoint to the folder `out`, whole or not at all.

    build: where the tokenizer is, by default the build that the checkpoint's run remembers. Raises
    InputError where `out` holds something, DamageError for a checkpoint that is not what it was.
    """
    refuse_taken(out)
    model = loaded(source)
    state = run_folder.read_state(source)
    manifest, build, notes = origin(source, build)
    with replacing_folder(out) as place:
        weights = _write_weights(place, model, settings)
        special = {} if manifest is None else manifest.tokenizer.special
        width = _width_scale(source)
        config = hf_config.config(model.settings, settings.dtype, special, width)
        _write_json(place / CONFIG, config)
        ids = {key: config[key] for key in config if key.endswith("_token_id")}
        _write_json(place / GENERATION_CONFIG, ids)
        for path in sorted(CODE.glob("*.py")):
            copyfile(path, place / path.name)
        if build is not None and manifest is not None:
            _copy_tokenizer(build, place, manifest)
            _add_chat_template(build, place, manifest)
        provenance = {
            "manifest": state.manifest,
            "phase": None if manifest is None else manifest.phase,
            "step": state.step,
            "weights": state.weights,
            "dtype": settings.dtype,
            "model": state.model,
        }
        write_atomic(place / PROVENANCE, canonical(provenance))
        (place / CARD).write_text(card(model.settings, provenance, manifest), "utf-8")
        if state.ledger is not None and later.is_of_run(source):
            later.bind(place, source, "export", {"dtype": settings.dtype})
    return Exported(provenance, tuple(weights), tuple(notes))


def card(settings: ModelSettings, provenance: Json, manifest: Manifest | None) -> str:
    """Return a model card: what the checkpoint is, and what its last phase was trained on."""
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [crystalmix, crystalcoder]",
        "---",
        "",
        "# A CrystalCoder model trained with crystalmix",
        "",
        f"- parameters: {parameters_count(settings):,} ({settings.num_hidden_layers} layers, width "
        f"{settings.hidden_size}, {settings.num_heads} heads)",
        f"- longest row: {settings.max_position_embeddings:,} tokens",
        f"- numbers: {provenance['dtype']}",
        f"- weights: `{provenance['weights']}`",
        "",
    ]
    if manifest is not None:
        tokens = provenance["step"] * manifest.batch * manifest.msl
        lines += [
            "## Training data of the last phase",
            "",
            f"After step {provenance['step']:,} of {manifest.steps:,} of phase `{manifest.phase}`: "
            f"{tokens:,} tokens in rows of {manifest.msl:,}.",
            "",
            "| part | share | rows in the phase |",
            "|---|---|---|",
            *(f"| {p.name} | {p.asked:.6f} | {p.rows:,} |" for p in manifest.parts),
            "",
            f"Manifest `{manifest.digest}` predicts every row of every step; the run's ledger "
            "records what was consumed.",
            "",
        ]
    return "\n".join([*lines, *USE])


def find(path: Path, phase: str | None, step: int | None, build: Path | None = None) -> Path:
    """Return the checkpoint that is meant: `path` itself, or of a run the newest of a phase.

    Without a phase it is the last one that has a checkpoint, in the order of the build.
    """
    if (path / run_folder.STATE).exists():
        if phase is not None or step is not None:
            raise UsageError(f"{path}: is one checkpoint; leave out --phase and --step")
        return path
    held = {
        phase_folder.name: checkpoints
        for phase_folder in run_folder.phases(path)
        if (checkpoints := run_folder.checkpoints(phase_folder.checkpoints))
    }
    if not held:
        raise InputError(f"{path}: holds no checkpoint; give a run or a folder step-*")
    if phase is None:
        phase = next(iter(held)) if len(held) == 1 else _last_phase(path, build, held)
    if phase not in held:
        raise UsageError(f"{path}: no checkpoint of phase {phase} (of {', '.join(held)} there is)")
    if step is None:
        return held[phase][-1]
    step_folder = run_folder.PhaseFolder(path / phase).checkpoint(step)
    if step_folder not in held[phase]:
        steps = ", ".join(str(int(path.name.removeprefix("step-"))) for path in held[phase])
        raise UsageError(f"{path}: phase {phase} has no checkpoint of step {step} (of {steps})")
    return step_folder


def _last_phase(run: Path, build: Path | None, held: Json) -> str:
    names = [manifest.phase for manifest in read_manifests(run_folder.build_of(run, build))]
    trained = [name for name in names if name in held]
    if not trained:
        raise UsageError(f"{run}: say which of its phases with --phase ({', '.join(held)})")
    return trained[-1]


def loaded(source: Path) -> Crystal:
    """Return the model of a checkpoint, on the CPU; InputError for one without weights of ours."""
    state = run_folder.read_state(source)
    if state.model is None:
        raise InputError(
            f"{source}: has no weights of ours; take a checkpoint that `train` or `import-weights` "
            "wrote"
        )
    with torch.device("meta"):
        model = Crystal(ModelSettings(**state.model))
    model.to_empty(device="cpu")
    checkpoint.load_weights(source, model)
    return model


def origin(source: Path, build: Path | None) -> tuple[Manifest | None, Path | None, list[str]]:
    """Return the manifest a checkpoint was trained on and the build that holds it, if any."""
    state = run_folder.read_state(source)
    try:
        build = run_folder.build_of(source.absolute().parents[2], build)
        manifests = [m for m in read_manifests(build) if m.digest == state.manifest]
    except (CrystalmixError, IndexError):
        manifests = []
    if manifests and build is not None:
        return manifests[0], build, []
    digest = str(state.manifest)[:12]
    return None, None, [f"no build with manifest {digest} is known (--build): no tokenizer written"]


def _width_scale(source: Path) -> float:
    """Return muP's width scale, which the run of a checkpoint knows, or 1."""
    phase = run_folder.PhaseFolder(source.absolute().parent.parent)
    if not phase.claim.exists():
        return 1.0
    claim = run_folder.read_claim(phase, "restore it")
    return float(claim.setting("optimizer", "decoder_kernel", 1.0))


def _pieces(state: State, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield weights in Hugging Face names, a layer at a time, so that few are held twice."""
    groups: dict[str, State] = {}
    for name, tensor in state.items():
        match = LAYER.match(name)
        groups.setdefault(match[0] if match else name, {})[name] = tensor
    for group in groups.values():
        for name, tensor in to_huggingface(group).items():
            yield name, tensor.to(dtype).contiguous()


def _copies(model: Crystal, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield what the published files have beside the parameters; no code needs it."""
    settings = model.settings
    length = settings.max_position_embeddings
    for layer in range(settings.num_hidden_layers):
        causal = torch.ones((1, 1, length, length), dtype=torch.bool).tril()
        yield f"transformer.h.{layer}.attn.bias", causal
        yield f"transformer.h.{layer}.attn.masked_bias", torch.tensor(-1e4)
    yield HEAD, model.embedding.weight.detach().to(dtype, copy=True)


def _write_weights(place: Path, model: Crystal, settings: ExportSettings) -> list[str]:
    """Write weights to one file, or to several with an index; return their names."""
    shards: list[list[str]] = []
    shard: State = {}
    total = 0
    dtype = DTYPES[settings.dtype]
    copies = _copies(model, dtype) if settings.published else iter(())
    for name, tensor in chain(_pieces(model.state_dict(), dtype), copies):
        size = sum(x.nbytes for x in shard.values())
        if shard and size + tensor.nbytes > settings.shard_bytes:
            shards.append(_write_shard(place, len(shards), shard))
            shard = {}
        shard[name] = tensor
        total += tensor.nbytes
    shards.append(_write_shard(place, len(shards), shard))
    if len(shards) == 1:
        (place / _shard(0)).rename(place / WEIGHTS)
        return [WEIGHTS]
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for i, name in enumerate(names):
        (place / _shard(i)).rename(place / name)
    where = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": where}
    write_atomic(place / INDEX, canonical(index))
    return names


def _write_shard(place: Path, number: int, tensors: State) -> list[str]:
    with machine(place / _shard(number)):
        save_file(tensors, place / _shard(number), metadata={"format": "pt"})
    return list(tensors)


def _shard(number: int) -> str:
    return f"shard-{number}"


def _copy_tokenizer(build: Path, place: Path, manifest: Manifest) -> None:
    """Copy the build's tokenizer, and its config or one that tells what the manifest knows."""
    if not (build / TOKENIZER).exists():  # an import has none
        return
    copyfile(build / TOKENIZER, place / TOKENIZER)
    if (build / TOKENIZER_CONFIG).exists():
        copyfile(build / TOKENIZER_CONFIG, place / TOKENIZER_CONFIG)
        return
    content = orjson.loads((build / TOKENIZER).read_bytes())
    pieces = {number: piece for piece, number in dict(content["model"]["vocab"]).items()}
    pieces |= {token["id"]: token["content"] for token in content.get("added_tokens") or []}
    special = manifest.tokenizer.special
    tokens = {
        f"{name}_token": pieces[special[name]]
        for name in ("bos", "eos", "pad")
        if special.get(name) in pieces
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": manifest.msl}
    _write_json(place / TOKENIZER_CONFIG, {**config, **tokens})


def _add_chat_template(build: Path, place: Path, manifest: Manifest) -> None:
    """Put the template that a phase of chat trained on into the tokenizer's config."""
    path, chat = place / TOKENIZER_CONFIG, chat_of(build, manifest)
    if chat is None or not path.exists():
        return
    config = orjson.loads(path.read_bytes())
    _write_json(path, {**config, "chat_template": jinja.jinja(chat)})


def _write_json(path: Path, content: Json) -> None:
    path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
