"""Evaluate kept checkpoints of a run on tasks, and write the results beside the ledger.

`<phase>/tasks.jsonl` has a line per step, task and metric; a checkpoint that has a task's results
already, over the same settings and data, is not evaluated on it again.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import orjson
import torch
from pydantic import TypeAdapter, ValidationError

from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest, read_manifests
from crystalmix.prep.runtime.errors import DamageError, InputError
from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings, load
from crystalmix.train.evaluation import held_out
from crystalmix.train.evaluation.harness import Task, TaskResult, Texts, evaluate
from crystalmix.train.model.crystal import Crystal, ModelSettings
from crystalmix.train.record import run_folder
from crystalmix.train.record.run_folder import PhaseFolder
from crystalmix.train.trainer import checkpoint


def evaluate_run(
    run: Path,
    build: Path,
    tasks: Sequence[Task],
    *,
    phase: str | None = None,
    every: int | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> list[tuple[str, TaskResult]]:
    """Evaluate the kept checkpoints of a run; return the results of all of them, by phase.

    phase: only this. every: only checkpoints of so many steps, and the newest of each phase.
    """
    known = {manifest.phase: manifest for manifest in read_manifests(build)}
    folders = [p for p in run_folder.phases(run) if phase in {None, p.name} and p.name in known]
    results: list[tuple[str, TaskResult]] = []
    evaluated = 0
    for folder in sorted(folders, key=lambda each: list(known).index(each.name)):
        for place in _chosen(folder, every):
            evaluated += 1
            say(f"{folder.name} {place.name}")
            results += [(folder.name, r) for r in _once(folder, place, build, known, tasks)]
    if not evaluated:
        raise InputError(f"{run}: holds no such checkpoint; train first, or name another phase")
    return results


def read(folder: PhaseFolder) -> list[TaskResult]:
    """Read the results of a phase."""
    if not folder.tasks.exists():
        return []
    adapter = TypeAdapter(TaskResult)
    try:
        return [adapter.validate_json(line) for line in folder.tasks.read_bytes().splitlines()]
    except ValidationError as error:
        raise DamageError(
            f"{folder.tasks}: is no list of results ({error.errors()[0]['msg']}); "
            "remove it and evaluate again"
        ) from None


def _chosen(folder: PhaseFolder, every: int | None) -> list[Path]:
    kept = run_folder.checkpoints(folder.checkpoints)
    return [
        path
        for path in kept
        if every is None or run_folder.step_of(path) % every == 0 or path == kept[-1]
    ]


def _once(
    folder: PhaseFolder,
    place: Path,
    build: Path,
    known: dict[str, Manifest],
    tasks: Sequence[Task],
) -> list[TaskResult]:
    """Return a checkpoint's results, evaluating it on tasks that it has none of."""
    step = run_folder.step_of(place)
    digests = {task.digest for task in tasks}
    before = [r for r in read(folder) if r.step == step and r.digest in digests]
    missing = [task for task in tasks if task.digest not in {result.digest for result in before}]
    if not missing:
        return before
    state = run_folder.read_state(place)
    if state.model is None:
        raise InputError(f"{place}: has no weights of ours; evaluate a run that `train` wrote")
    with torch.device("meta"):
        model = Crystal(ModelSettings(**state.model))
    model.to_empty(device="cpu")
    checkpoint.load_weights(place, model)
    most = model.settings.max_position_embeddings
    texts = _texts(build, known[folder.name])
    results = evaluate(model.eval(), most, texts, missing, step)
    with folder.tasks.open("ab") as file:
        file.write(b"".join(orjson.dumps(asdict(result)) + b"\n" for result in results))
    return [*before, *results]


def _texts(build: Path, manifest: Manifest) -> Texts:
    tokenizer = load(TokenizerSettings(str(BuildFolder(build).tokenizer)))
    special = manifest.tokenizer.special
    begins = held_out.begins_with_bos(build, manifest) and special.get("bos") is not None
    prefix = special.get("bos") if begins else special.get("eos", special.get("bos"))
    if prefix is None:
        raise InputError(f"{build}: its tokenizer has neither BOS nor EOS, which a text follows")
    return Texts(lambda text: tokenizer.encode(text).tolist(), tokenizer.decode, prefix, begins)
