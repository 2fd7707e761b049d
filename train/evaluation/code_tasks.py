"""Tasks that a model answers with code: it is run on unit tests, and pass@1 is counted.

A task is a YAML file beside a file of problems, a line of JSON each with `prompt`, `test` and,
as HumanEval has it, `entry_point`:

    task: sums
    problems: sums.jsonl
    new_tokens: 256
    stop: ["\\ndef ", "\\nclass ", "\\nif ", "\\nprint"]

The answer is greedy, one for each problem, so that pass@1 is the share of problems whose tests
pass. Nothing is run unless that is asked for.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import nn

from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import file_digest
from crystalmix.prep.runtime.constraints import Count
from crystalmix.prep.runtime.errors import InputError, RefusalError
from crystalmix.train.evaluation.code_runner import Limits, is_offline, run
from crystalmix.train.evaluation.harness import Task, Texts, load_yaml, read_task, until
from crystalmix.train.record.metrics import TaskResult

REMEDY = "see Tasks in the documentation of training"


@checked_dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class CodeSettings:
    """What a task's file says. seconds: of processor, for each problem."""

    task: str
    problems: str
    new_tokens: Count = 256
    stop: tuple[str, ...] = ("\ndef ", "\nclass ", "\nif ", "\nprint")
    seconds: Annotated[int, Field(gt=0, le=3600)] = 10


@dataclass(frozen=True)
class Problem:
    """A prompt, and the program that tests what follows it."""

    prompt: str
    test: str
    entry_point: str | None = None

    def program(self, answer: str) -> str:
        """Return the program that an answer passes by coming to its end."""
        call = f"\ncheck({self.entry_point})" if self.entry_point else ""
        return f"{self.prompt}{answer}\n{self.test}{call}"


@dataclass(frozen=True)
class CodeTask:
    """A task, its problems, and the digest of both."""

    settings: CodeSettings
    problems: tuple[Problem, ...]
    digest: str

    @property
    def name(self) -> str:
        """The task's name."""
        return self.settings.task


def read(
    path: Path, few_shot: int | None = None, limit: int | None = None, *, run_code: bool = False
) -> Task | CodeTask:
    """Read a task's file, of the harness or of problems; RefusalError unless code may be run."""
    content = load_yaml(path)
    if not isinstance(content, dict) or "problems" not in content:
        return read_task(path, few_shot, limit)
    try:
        settings = TypeAdapter(CodeSettings).validate_python(content)
    except ValidationError as error:
        raise InputError(f"{path}: {_fault(error)}; {REMEDY}") from None
    if not run_code:
        raise RefusalError(
            f"{path}: runs code that the model writes; ask for it with --run-code (in a run file "
            "evaluation.tasks.run_code: true), or leave the task out"
        )
    file = path.parent / settings.problems
    if not file.is_file():
        raise InputError(f"{file}: no such file; {path} names it")
    problems = _problems(file)[:limit]
    digest = receipts.digest([content, file_digest(file), {"limit": limit}])
    if not is_offline():
        logging.getLogger("crystalmix").warning(
            "%s: the code is run with limits, but with a network: this system lets no process "
            "leave it",
            path,
        )
    return CodeTask(settings, problems, digest)


def evaluate(model: nn.Module, most: int, texts: Texts, task: CodeTask, step: int) -> TaskResult:
    """Return pass@1 of a task; most: positions of the model."""
    settings = task.settings
    ways: dict[str, Any] = {"max_gen_toks": settings.new_tokens, "until": list(settings.stop)}
    passed = 0
    for problem in task.problems:
        answer = until(model, most, texts, problem.prompt, ways)
        passed += run(problem.program(answer), Limits(settings.seconds)) == "passed"
    count = len(task.problems)
    share = passed / count
    error = (share * (1 - share) / (count - 1)) ** 0.5 if count > 1 else None
    return TaskResult(step, task.name, "pass@1", share, error, count, task.digest)


def _problems(file: Path) -> tuple[Problem, ...]:
    """Read problems; keys that are not used are left out."""
    reader = TypeAdapter(Problem)
    problems: list[Problem] = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            problems.append(reader.validate_json(line))
        except ValidationError as error:
            message = f"{file}:{number}: {_fault(error)}; give a prompt and a test"
            raise InputError(message) from None
    if not problems:
        raise InputError(f"{file}: holds no problem; write one a line")
    return tuple(problems)


def _fault(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"
