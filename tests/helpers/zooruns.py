"""What the tests of harvests share: a build in Model Zoo's order, and what its runs leave."""

from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.runtime.types import Json
from crystalmix.train.weights import mdl
from helpers.corpora import built, write_corpus, write_recipe

PHASES: dict[str, Json] = {
    "prose": {"cerebras": {"seed": 5}},
    "mixed": {"cerebras": {}},
    "code": {"cerebras": {}},
}


def in_model_zoos_order(folder: Path) -> Path:
    """Build the small corpus with every phase in Model Zoo's order."""
    write_corpus(folder)
    recipe, yaml = write_recipe(folder), YAML(typ="rt")
    content = yaml.load(recipe.read_text())
    for name, told in PHASES.items():
        content["phases"][name].update(told)
        for part in content["phases"][name]["parts"]:
            part["max_epochs"] = 1000
    with recipe.open("w") as file:
        yaml.dump(content, file)
    return built(folder)


def current(manifest: Manifest, step: int, **changes: Any) -> Json:
    """Return the loader state of 2.3 and later: rows streamed, and what the dataset was told."""
    mixture = [
        {"data_dir": f"/there/{part.name}", "weight": part.budget["weight"]}
        for part in manifest.parts
    ]
    dataset = {
        **{"use_worker_cache": False, "max_sequence_length": None, "shuffle": False},
        **{"shuffle_seed": manifest.cerebras.seed, "data_dir": None},
        **{"mixture_params": mixture, "batch_size": manifest.batch, "drop_last": True},
        **{"num_samples": None, "sort_files": True, "use_vsl": False, "pad_last": False},
        **changes,
    }
    return {"samples_streamed": step * manifest.batch, "__version__": 1, "dataset": dataset}


def first(manifest: Manifest, step: int) -> Json:
    """Return the loader state of 2.0: rows streamed, and the seed."""
    return {"samples_streamed": step * manifest.batch, "seed": manifest.cerebras.seed}


def ours(manifest: Manifest, step: int) -> Json:
    """Return the loader state of our cstorch backend."""
    return {"manifest": manifest.digest, "next": step * manifest.batch, "workers": 1}


def save(folder: Path, step: int, loader: Json | None, name: str = "") -> Path:
    """Save a checkpoint of a step, without a model: nobody looks at it here."""
    path = folder / (name or f"checkpoint_{step}.mdl")
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {} if loader is None else {"dataloader": loader}
    mdl.write(path, {"model": {"w": torch.zeros(1)}, "global_step": step, **state})
    return path


def texts(folder: Path, step: int, rows: list[int]) -> None:
    """Write the loader state of 1.9: a text file of each worker, and the step of the last ones."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data_iter_checkpoint_state_file_global").write_text(f"{step}\n")
    for worker, count in enumerate(rows):
        path = folder / f"data_iter_state_file_worker_{worker}_step_{step}.txt"
        path.write_text(f"{count}\nmore\n")


def log(path: Path, losses: dict[int, float]) -> None:
    """Write a run's log, with lines of an evaluation among them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        f"2026-01-01 00:00:00,000 INFO:   | Train Device=CSX, Step={step}, Loss={loss:.5f}, "
        f"Rate=1.00 samples/sec, GlobalRate=1.00 samples/sec\n"
        f"2026-01-01 00:00:00,000 INFO:   | Eval Device=CSX, Step={step}, Loss=99.00000, Rate=1.0"
        for step, loss in losses.items()
    ]
    path.write_text("\n".join(lines) + "\n")


def events(path: Path, scalars: list[tuple[int, str, float]]) -> None:
    """Write an event file record by record, as TensorBoard's writer does."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=1.0, file_version="brain.Event:2").SerializeToString())
        for step, tag, number in scalars:
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=number)])
            writer.write(Event(wall_time=1.0, step=step, summary=summary).SerializeToString())
