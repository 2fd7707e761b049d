"""Tasks of EleutherAI's lm-evaluation-harness on a model in this process: no export, no network.

A task is a YAML file of the harness over local data (`dataset_path: json`, `data_files` beside it).
The files are read as plain YAML, so that none runs code (`!function` is refused).
"""

# ruff: noqa: ANN401 -- the harness has no types

import logging
import random
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic.dataclasses import dataclass as checked_dataclass
from ruamel.yaml import YAML, YAMLError
from torch import Tensor, nn

from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import file_digest
from crystalmix.prep.runtime.constraints import Count, FromZero
from crystalmix.prep.runtime.errors import InputError, RefusalError, UsageError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.evaluation.sampling import greedy
from crystalmix.train.record.metrics import TaskResult

Ids = list[int]
Encode = Callable[[str], Ids]


@checked_dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Which tasks are evaluated while training, at checkpoints.

    files: task files, beside the run file. every: the checkpoints whose step it divides, and each
    phase's last; a multiple of `checkpoint_steps`.
    few_shot: examples before each question, where it is not the task file's own number. limit: the
    first so many questions of each task (all of them if None). run_code: allow tasks that run what
    the model writes.
    """

    files: tuple[str, ...]
    every: Count
    few_shot: FromZero | None = None
    limit: Count | None = None
    run_code: bool = False


@dataclass(frozen=True)
class Task:
    """A task of the harness: its name, settings, and the digest of these and of its data.

    limit: the first so many questions, all of them if None.
    """

    name: str
    settings: Json
    digest: str
    limit: int | None = None


@dataclass(frozen=True)
class Texts:
    """How texts become ids: encode and decode, the id before a text, and whether texts begin so."""

    encode: Encode
    decode: Callable[[Ids], str]
    prefix: int
    begins: bool


def read_task(path: Path, few_shot: int | None = None, limit: int | None = None) -> Task:
    """Read a task's file; paths of its data are relative to it.

    few_shot: in place of the file's own number of examples. limit: the first so many questions.
    """
    settings = load_yaml(path)
    if not isinstance(settings, dict) or not isinstance(settings.get("task"), str):
        raise InputError(f"{path}: names no task; give a task file of lm-evaluation-harness")
    if settings.get("unsafe_code"):
        raise RefusalError(f"{path}: runs code that the model writes; leave out unsafe_code")
    data: Any = settings.setdefault("dataset_kwargs", {}).get("data_files")
    if settings.get("dataset_path") not in {"json", "parquet", "csv"} or not isinstance(data, dict):
        raise InputError(f"{path}: must read local data: dataset_path json, with data_files")
    files = {split: (path.parent / str(name)).absolute() for split, name in data.items()}
    for file in files.values():
        if not file.is_file():
            raise InputError(f"{file}: no such file; {path} names it")
    if few_shot is not None:
        settings["num_fewshot"] = few_shot
    content: list[object] = [settings, [file_digest(file) for file in files.values()]]
    digest = receipts.digest(content if limit is None else [*content, {"limit": limit}])
    settings["dataset_kwargs"]["data_files"] = {split: str(p) for split, p in files.items()}
    return Task(settings["task"], settings, digest, limit)


def load_yaml(path: Path) -> Any:
    """Read a file as plain YAML, which runs nothing."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; name a task file")
    try:
        return YAML(typ="safe").load(path)
    except YAMLError as error:
        brief = str(error).replace("\n", " ")
        raise InputError(f"{path}: can't be read as plain YAML ({brief})") from None


def check_installed() -> None:
    """Raise UsageError where the harness is not installed."""
    if find_spec("lm_eval") is None:
        raise UsageError("lm_eval is not installed; install crystalmix with its extra `eval`")


def evaluate(
    model: nn.Module, most: int, texts: Texts, tasks: Sequence[Task], step: int
) -> list[TaskResult]:
    """Return every metric of tasks; most: positions of the model.

    The draws of whoever calls are left as they were. Raises UsageError where the harness is not
    installed.
    """
    check_installed()
    with _draws_kept(), _quiet():
        evaluator: Any = import_module("lm_eval.evaluator")
        evaluator.get_git_commit_hash = lambda: None  # else git complains outside of a repository
        manager: Any = import_module("lm_eval.tasks").TaskManager(include_defaults=False)
        adapted = _adapted(model, most, texts)
        results: list[TaskResult] = []
        for task in tasks:
            scores: Json = evaluator.simple_evaluate(
                model=adapted,
                tasks=[dict(task.settings)],
                task_manager=manager,
                limit=task.limit,
                bootstrap_iters=0,
                log_samples=False,
            )
            results += _results(scores, task, step)
    return results


@contextmanager
def _draws_kept() -> Generator[None]:
    """Put the states of all generators back at the end: the harness seeds them."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  what it seeds
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


@contextmanager
def _quiet() -> Generator[None]:
    """Leave out the harness's warnings of defaults that it took."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _results(results: Json, task: Task, step: int) -> list[TaskResult]:
    entry, count = results["results"][task.name], results["n-samples"][task.name]["effective"]
    lines: list[TaskResult] = []
    for key, value in entry.items():
        metric, _, kind = key.partition(",")
        if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = entry.get(f"{metric}_stderr,{kind}")
        stderr = float(error) if isinstance(error, int | float) else None
        lines.append(
            TaskResult(step, task.name, metric, float(value), stderr, int(count), task.digest)
        )
    return lines


def log_likelihoods(
    model: nn.Module, most: int, pairs: Sequence[tuple[Ids, Ids]], batch: int = 16
) -> list[tuple[float, bool]]:
    """Return ln p(continuation | context) of pairs of ids, and whether greedy decoding gives it.

    Of a pair over `most` positions the beginning of its context is cut.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    answers: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    for first in range(0, len(order), batch):
        here = order[first : first + batch]
        rows = [(pairs[i][0] + pairs[i][1])[-most - 1 :] for i in here]
        ids = torch.zeros((len(rows), max(map(len, rows)) - 1), dtype=torch.int64)
        for row, whole in zip(ids, rows, strict=True):
            row[: len(whole) - 1] = torch.tensor(whole[:-1])
        with torch.no_grad():
            logs = model(ids.to(device)).float().log_softmax(-1).cpu()  # (rows, T, V)
        for row, (i, whole) in enumerate(zip(here, rows, strict=True)):
            count = min(len(pairs[i][1]), len(whole) - 1)
            scores: Tensor = logs[row, len(whole) - 1 - count : len(whole) - 1]
            labels = torch.tensor(whole[len(whole) - count :])
            total = scores.double().gather(1, labels[:, None]).sum()
            answers[i] = float(total), bool((scores.argmax(-1) == labels).all())
    return answers


def _adapted(model: nn.Module, most: int, texts: Texts) -> Any:
    """Return the model as the harness asks one."""
    base: Any = import_module("lm_eval.api.model").TemplateLM

    class Adapted(base):
        """The model behind the harness's interface."""

        @property
        def eot_token_id(self) -> int:
            return texts.prefix

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> Ids:
            begins = texts.begins if add_special_tokens is None else add_special_tokens
            return [*([texts.prefix] if begins else []), *texts.encode(string)]

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            return log_likelihoods(model, most, [(context, rest) for _, context, rest in requests])

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            del disable_tqdm
            totals: list[float] = []
            for request in requests:
                ids = [texts.prefix, *texts.encode(request.args[0])]
                starts = range(0, len(ids) - 1, most)  # each window begins with the id before it
                pairs = [(ids[i : i + 1], ids[i + 1 : i + 1 + most]) for i in starts]
                totals.append(sum(score for score, _ in log_likelihoods(model, most, pairs)))
            return totals

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            del disable_tqdm
            return [until(model, most, texts, *request.args) for request in requests]

    return Adapted()


def until(model: nn.Module, most: int, texts: Texts, context: str, settings: Json) -> str:
    """Continue a text greedily up to the first of the texts that end it."""
    device = next(model.parameters()).device
    new = min(int(settings.get("max_gen_toks", 64)), most - 1)
    ids = [texts.prefix, *texts.encode(context)][-(most - new) :]
    with torch.no_grad():
        [continued] = greedy(lambda x: model(x.to(device)), [ids], new, texts.prefix)
    text = texts.decode(continued)
    ends = settings.get("until", [])
    for end in [ends] if isinstance(ends, str) else ends:
        text = text.split(end)[0]
    return text
