"""Evaluate checkpoints of a run on tasks, later or as they are written, beside the ledger.

`<phase>/tasks.jsonl` has a line per step, task and metric; a checkpoint that has a task's results
already, over the same settings and data, is not evaluated on it again. A checkpoint's lines stand
in `<run>/later/tasks-<phase>-<checkpoint>/` too, bound to the head of the ledger's chain there.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from shutil import rmtree

import orjson
import torch
from torch import nn

from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest, read_manifests
from crystalmix.prep.runtime.atomic_files import replacing_folder, write_atomic
from crystalmix.prep.runtime.errors import InputError, RecipeError
from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings, load
from crystalmix.train.evaluation import code_tasks, harness, held_out
from crystalmix.train.evaluation.code_tasks import CodeTask
from crystalmix.train.evaluation.evaluate import EvaluationSettings
from crystalmix.train.evaluation.harness import Task, TaskSettings, Texts
from crystalmix.train.model.crystal import Crystal, ModelSettings
from crystalmix.train.model.processes import World
from crystalmix.train.record import later, metrics, run_folder
from crystalmix.train.record.metrics import TaskResult
from crystalmix.train.record.run_folder import PhaseFolder
from crystalmix.train.runfile.settings import Run
from crystalmix.train.trainer import checkpoint

RESULTS = "results.jsonl"
AnyTask = Task | CodeTask


def evaluate_run(
    run: Path,
    build: Path,
    tasks: Sequence[AnyTask],
    *,
    phase: str | None = None,
    every: int | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> list[tuple[str, TaskResult]]:
    """Evaluate the kept checkpoints of a run; return the results of all of them, by phase.

    Without tasks nothing is evaluated, and all results that are there are returned. phase: only
    this. every: only checkpoints of so many steps, and the newest of each phase.
    """
    manifests = {manifest.phase: manifest for manifest in read_manifests(build)}
    folders = [p for p in run_folder.phases(run) if phase in {None, p.name} and p.name in manifests]
    results: list[tuple[str, TaskResult]] = []
    evaluated = 0
    folders.sort(key=lambda folder: list(manifests).index(folder.name))
    if not tasks:
        return [(folder.name, result) for folder in folders for result in metrics.tasks(folder)]
    for folder in folders:
        for place in _chosen(folder, every):
            evaluated += 1
            say(f"{folder.name} {place.name}")
            results += [(folder.name, r) for r in _once(folder, place, build, manifests, tasks)]
    if not evaluated:
        raise InputError(f"{run}: holds no such checkpoint; train first, or name another phase")
    return results


def _chosen(folder: PhaseFolder, every: int | None) -> list[Path]:
    checkpoints = run_folder.checkpoints(folder.checkpoints)
    return [
        path
        for path in checkpoints
        if every is None or run_folder.step_of(path) % every == 0 or path == checkpoints[-1]
    ]


def _once(
    folder: PhaseFolder,
    place: Path,
    build: Path,
    manifests: dict[str, Manifest],
    tasks: Sequence[AnyTask],
) -> list[TaskResult]:
    """Return a checkpoint's results; evaluate it on tasks that it has no result of."""
    step = run_folder.step_of(place)
    missing = _missing(folder, step, tasks)
    if missing:
        state = run_folder.read_state(place)
        if state.model is None:
            raise InputError(f"{place}: has no weights of ours; evaluate a run that `train` wrote")
        with torch.device("meta"):
            model = Crystal(ModelSettings(**state.model))
        model.to_empty(device="cpu")
        checkpoint.load_weights(place, model)
        most = model.settings.max_position_embeddings
        texts = _texts(build, manifests[folder.name])
        _append(folder, evaluate(model.eval(), most, texts, missing, step))
    bind(folder, place)
    digests = {task.digest for task in tasks}
    return [r for r in metrics.tasks(folder) if r.step == step and r.digest in digests]


def _missing(folder: PhaseFolder, step: int, tasks: Sequence[AnyTask]) -> list[AnyTask]:
    """Return the tasks that a step has no results of."""
    there = {result.digest for result in metrics.tasks(folder) if result.step == step}
    return [task for task in tasks if task.digest not in there]


def _append(folder: PhaseFolder, results: Sequence[TaskResult]) -> None:
    metrics.append(folder.tasks, map(asdict, results), flush=True)


def bind(folder: PhaseFolder, place: Path) -> None:
    """Write a checkpoint's results to `<run>/later`, bound to the ledger's chain head there.

    A checkpoint that seals no ledger is left out.
    """
    step = run_folder.step_of(place)
    own = [result for result in metrics.tasks(folder) if result.step == step]
    lines = b"".join(orjson.dumps(result) + b"\n" for result in own)
    bound = folder.path.parent / later.LATER / f"tasks-{folder.name}-{place.name}"
    results = bound / RESULTS
    done = (bound / later.NAME).exists() and results.exists() and results.read_bytes() == lines
    if done or not later.is_of_run(place) or run_folder.read_state(place).ledger is None:
        return
    rmtree(bound, ignore_errors=True)
    with replacing_folder(bound) as temporary:
        write_atomic(temporary / RESULTS, lines)
        later.bind(temporary, place, "tasks", {"tasks": sorted({r.digest for r in own})})


class CheckpointTasks:
    """The tasks of a run file on the checkpoints of a phase; without such settings none.

    root: the build, out: the phase's folder in the run.
    """

    def __init__(
        self, settings: EvaluationSettings | None, manifest: Manifest, root: Path, out: Path
    ) -> None:
        self.settings = None if settings is None else settings.tasks
        self.manifest, self.folder = manifest, PhaseFolder(out)
        self.tasks = [] if self.settings is None else read_tasks(self.settings)
        self.texts = _texts(root, manifest) if self.tasks else None

    def due(self, step: int) -> bool:
        """Tell whether the checkpoint of a step is to be evaluated."""
        if self.settings is None or step == 0:
            return False
        return step % self.settings.every == 0 or step == self.manifest.steps

    def after(self, step: int, model: nn.Module, most: int, world: World) -> list[TaskResult]:
        """Evaluate the model of a step's checkpoint where that is due and not done yet.

        All processes must call it: each evaluates alike, the first writes. most: positions of the
        model.
        """
        if not self.due(step) or self.texts is None:
            return []
        digests = world.on_first(
            lambda: [task.digest for task in _missing(self.folder, step, self.tasks)]
        )
        missing = [task for task in self.tasks if task.digest in digests]
        results = evaluate(model, most, self.texts, missing, step) if missing else []
        if world.first:
            _append(self.folder, results)
            bind(self.folder, self.folder.checkpoint(step))
        return results


def read_tasks(settings: TaskSettings) -> list[AnyTask]:
    """Read the files of settings."""
    shots, limit, run_code = settings.few_shot, settings.limit, settings.run_code
    return [code_tasks.read(Path(f), shots, limit, run_code=run_code) for f in settings.files]


def evaluate(
    model: nn.Module, most: int, texts: Texts, tasks: Sequence[AnyTask], step: int
) -> list[TaskResult]:
    """Return every metric of tasks of both kinds; most: positions of the model."""
    harnessed = [task for task in tasks if isinstance(task, Task)]
    results = harness.evaluate(model, most, texts, harnessed, step) if harnessed else []
    coded = [task for task in tasks if not isinstance(task, Task)]
    return results + [code_tasks.evaluate(model, most, texts, task, step) for task in coded]


def prepare(runs: Sequence[Run]) -> None:
    """Refuse tasks that can't be evaluated, before the first phase begins.

    Raises UsageError without lm_eval, RecipeError where `every` is no step of a checkpoint.
    """
    for run in runs:
        settings = None if run.evaluation is None else run.evaluation.tasks
        if settings is None:
            continue
        if any(isinstance(task, Task) for task in read_tasks(settings)):
            harness.check_installed()
        if settings.every % run.settings.checkpoint_steps:
            raise RecipeError(
                "evaluation.tasks.every: must be a multiple of runconfig.checkpoint_steps "
                f"({run.settings.checkpoint_steps}), got {settings.every}"
            )


def _texts(build: Path, manifest: Manifest) -> Texts:
    tokenizer = load(TokenizerSettings(str(BuildFolder(build).tokenizer)))
    special = manifest.tokenizer.special
    begins = held_out.begins_with_bos(build, manifest) and special.get("bos") is not None
    prefix = special.get("bos") if begins else special.get("eos", special.get("bos"))
    if prefix is None:
        raise InputError(f"{build}: its tokenizer has neither BOS nor EOS, which a text follows")
    return Texts(lambda text: tokenizer.encode(text).tolist(), tokenizer.decode, prefix, begins)
