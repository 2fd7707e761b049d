"""What the tests of training share: a build made once, a small run file, runs and their copies."""

import atexit
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from shutil import copytree, rmtree
from tempfile import mkdtemp
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from crystalmix.mixtures.manifest.manifest import Manifest, read
from crystalmix.prep.runtime.atomic_files import read_json
from crystalmix.prep.runtime.records import write_sealed
from crystalmix.prep.runtime.types import Json
from crystalmix.train.record import ledger, seal
from crystalmix.train.record import run_folder as folder
from crystalmix.train.trainer import session
from helpers.corpora import built, merged

PHASES = ("prose", "mixed", "code")
CHECKPOINT_STEPS = 3
RUN: Json = {
    "model": {
        "vocab_size": 424,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_heads": 2,
        "filter_size": 24,
        "max_position_embeddings": 64,
        "rotary_dim": 4,
        "embeddings_scale": 14.6,
        "output_logits_scale": 2.22,
        "initializer": {"std": 0.073},
        "output_layer_initializer": {"std": 0.0365},
    },
    "optimizer": {
        "learning_rate": [
            {
                "scheduler": "Linear",
                "initial_learning_rate": 0.0,
                "end_learning_rate": 0.012,
                "steps": 4,
            },
            {
                "scheduler": "Linear",
                "initial_learning_rate": 0.012,
                "end_learning_rate": 0.002,
                "decay_steps": 20,
            },
        ],
    },
    "runconfig": {"seed": 1, "checkpoint_steps": CHECKPOINT_STEPS, "threads": 1},
}


def write_run(path: Path, **changes: Any) -> Path:
    """Write RUN with changes (merged in, None takes away) as a run file."""
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="rt").dump(merged(RUN, changes), file)
    return path


@lru_cache(maxsize=1)
def small_build() -> Path:
    """Return the build of the small corpus, made once per process; nobody may change it."""
    return built(scratch())


@lru_cache(maxsize=1)
def run_file() -> Path:
    """Return the run file RUN."""
    return write_run(scratch() / "run.yaml")


@lru_cache(maxsize=1)
def undisturbed() -> Path:
    """Return a run of all three phases that nothing stopped; nobody may change it."""
    out = scratch() / "run"
    train(out)
    return out


def manifest(phase: str) -> Manifest:
    """Return a phase's manifest of the small build."""
    return read(small_build() / "phases" / phase)


def train(out: Path, *phases: str, stop: int | None = None, run: Path | None = None) -> list[str]:
    """Train on the small build; return what was said."""
    said: list[str] = []
    path = str(run_file() if run is None else run)
    session.train(small_build(), path, out, phases=phases, stop=stop, say=said.append)
    return said


def copied_run(out: Path) -> Path:
    """Copy the undisturbed run, to do something to it."""
    copytree(undisturbed(), out)
    folder.remember(out, small_build())
    seal.seal_run(out, PHASES[0])
    return out


def copied_corpus(folder: Path) -> Path:
    """Copy the corpus of the small build, its recipe and the build to a folder; return that."""
    return copytree(small_build().parent, folder, symlinks=True)


def copied_build(out: Path) -> Path:
    """Copy the small build, to do something to it."""
    copytree(small_build(), out)
    return out


def recorded(run: Path, phase: str) -> tuple[list[Json], list[Json]]:
    """Return the steps and rows that a ledger holds."""
    steps, rows = (ledger.read(run / phase / "ledger", kind) for kind in ("steps", "rows"))
    return steps.to_pylist(), rows.to_pylist()


def weights(run: Path, phase: str) -> str:
    """Return the digest of the last weights of a phase."""
    newest = folder.latest(run / phase / "checkpoints")
    assert newest is not None
    assert newest.name == folder.checkpoint_name(manifest(phase).steps)
    return folder.read_state(newest).weights


def same_run(one: Path, other: Path, *phases: str) -> bool:
    """Tell whether two runs recorded the same steps and rows and ended in the same weights."""
    return all(
        recorded(one, phase) == recorded(other, phase)
        and weights(one, phase) == weights(other, phase)
        for phase in phases or PHASES
    )


def state_of(checkpoint: Path) -> Json:
    """Return what a checkpoint's state holds, as `write_state` here takes it."""
    state = read_json(checkpoint / folder.STATE)
    state.pop("digest")
    return state


def write_state(checkpoint: Path, content: Json) -> None:
    """Write a checkpoint's state, whatever it says, with a digest that fits."""
    write_sealed(checkpoint / folder.STATE, content)


def json_lines(path: Path) -> list[Json]:
    """Return the whole lines of a file of steps; none where it is not there."""
    entries: list[Json] = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            entries.append(orjson.loads(line))
            whole = line.endswith(b"\n") and "step" in entries[-1]
        except (orjson.JSONDecodeError, TypeError):
            whole = False
        if not whole:
            return [entry for entry in entries if isinstance(entry, dict) and "step" in entry]
    return entries


def leftovers(run: Path) -> list[Path]:
    """Return the temporary files and folders below a run."""
    return [path for path in run.rglob("*") if path.name.endswith(".tmp")]


def segments(run: Path, phase: str, kind: str) -> list[Path]:
    """Return the sealed files of a phase's ledger."""
    return ledger.segments(run / phase / "ledger", kind)


def rewrite(path: Path, **columns: Any) -> None:
    """Write a parquet file again with some columns replaced, in the same types."""
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.column_names.index(name)
        field = table.schema.field(name)
        column = pa.array(values, field.type.value_type if _is_coded(field) else field.type)
        column = column.dictionary_encode() if _is_coded(field) else column
        table = table.set_column(place, field, column.cast(field.type))
    pq.write_table(table, path)


def _is_coded(field: pa.Field) -> bool:
    return pa.types.is_dictionary(field.type)


def lines_of(told: list[str]) -> Iterator[str]:
    """Yield what was told, each of it one line."""
    for line in told:
        assert "\n" not in line
        yield line


def scratch() -> Path:
    """Return a folder of its own that goes with this process."""
    path = Path(mkdtemp(prefix="crystalmix-tests-"))
    atexit.register(rmtree, path, ignore_errors=True)
    return path
