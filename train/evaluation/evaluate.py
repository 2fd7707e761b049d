"""Evaluation in the loop: held-out loss per part and kind, and samples, every so many steps.

It changes nothing in the training: no draw, no gradient, no parameter. Every process evaluates
its share of the batches and all add up the same numbers, however many they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import nn

from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.runtime.constraints import Count
from crystalmix.prep.runtime.errors import RecipeError, RefusalError
from crystalmix.prep.tokenizer.tokenizer import Tokenizer, TokenizerSettings, load
from crystalmix.train.evaluation import held_out
from crystalmix.train.evaluation.harness import TaskSettings
from crystalmix.train.evaluation.held_out import HeldOut
from crystalmix.train.evaluation.losses import held_out_losses
from crystalmix.train.evaluation.sampling import Forward, Prompt, prompt_ids, samples
from crystalmix.train.evaluation.spelling import Spelling
from crystalmix.train.model.crystal import ModelSettings
from crystalmix.train.model.processes import World
from crystalmix.train.record import metrics
from crystalmix.train.record.metrics import HeldOutLoss, SampledText
from crystalmix.train.record.run_folder import PhaseFolder


@checked_dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is evaluated, and when: after every `steps` steps and after a phase's last one.

    phase: a phase of held-out documents, which is not trained on; needed but for tasks alone.
    build: another build that has it, beside the run file. rows: the first so many of its order
    (all of them if None). batch: rows per forward pass. prompts: texts to continue, `{prefix,
    suffix}` for FIM. new_tokens: of each sample at most. tasks: of lm-evaluation-harness, at
    checkpoints.
    """

    phase: str | None = None
    build: str | None = None
    steps: Count = 100
    rows: Count | None = None
    batch: Count = 8
    prompts: tuple[str | Prompt, ...] = ()
    new_tokens: Count = 64
    tasks: TaskSettings | None = None

    def __post_init__(self) -> None:
        if self.phase is None and (self.tasks is None or self.prompts):
            need = "prompts" if self.prompts else "held-out loss"
            raise ValueError(f"phase: is needed for {need}; name a phase of held-out documents")

    @property
    def all_prompts(self) -> tuple[Prompt, ...]:
        """The prompts, plain texts as prompts without a suffix."""
        return tuple(Prompt(p) if isinstance(p, str) else p for p in self.prompts)

    def root(self, build: Path) -> Path:
        """Return the build that holds the phase."""
        return build if self.build is None else Path(self.build)


class Evaluator:
    """Evaluates the model of one phase; without settings, never.

    manifest: of the phase that is trained, root: its build, out: its folder in the run.
    """

    def __init__(
        self,
        settings: EvaluationSettings | None,
        manifest: Manifest,
        root: Path,
        out: Path,
        model: ModelSettings,
    ) -> None:
        self.manifest, self.out = manifest, out
        self.job = None if settings is None else _job(settings, manifest, root, model)

    def due(self, finished: int) -> bool:
        """Tell whether to evaluate after this many steps."""
        if self.job is None:
            return False
        return finished % self.job.settings.steps == 0 or finished == self.manifest.steps

    def after(self, finished: int, model: nn.Module, world: World, dtype: str) -> list[HeldOutLoss]:
        """Evaluate where it is due, and write it down; return an entry per part and kind.

        dtype: of the run. All processes must call it: each returns the same, the first writes.
        """
        if self.job is None or not self.due(finished):
            return []
        device = next(model.parameters()).device
        with (
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"),
        ):
            losses = self.job.losses(model, world, finished)
            texts = self.job.samples(lambda ids: model(ids.to(device)), finished)
        if world.first:
            folder = PhaseFolder(self.out)
            metrics.append(folder.samples, texts)
            metrics.append(folder.evaluation, losses, flush=True)
        return losses


@dataclass(frozen=True)
class _Job:
    """What is evaluated: rows, and prompts with their ids.

    tokenizer: of the build, None where it has none.
    """

    settings: EvaluationSettings
    held: HeldOut
    tokenizer: Tokenizer | None
    prompts: list[list[int]]

    @cached_property
    def spelling(self) -> Spelling | None:
        """What ids spell; None without the tokenizer that the manifest names."""
        named = self.held.manifest.tokenizer
        if self.tokenizer is None or self.tokenizer.fingerprint != named.fingerprint:
            return None
        return Spelling(self.tokenizer, named.special)

    def losses(self, model: nn.Module, world: World, step: int) -> list[HeldOutLoss]:
        return held_out_losses(model, self.held, self.settings.batch, world, step, self.spelling)

    def samples(self, forward: Forward, step: int) -> list[SampledText]:
        if self.tokenizer is None or not self.prompts:
            return []
        prompts, new = self.settings.all_prompts, self.settings.new_tokens
        return samples(forward, prompts, self.prompts, new, self.tokenizer, step)


def _job(
    settings: EvaluationSettings, trained: Manifest, build: Path, model: ModelSettings
) -> _Job | None:
    """Read what is evaluated, and refuse what the model can't take; None for tasks alone."""
    if settings.phase is None:
        return None
    root, most = settings.root(build), model.max_position_embeddings
    held = held_out.hold_out(root, settings.phase, settings.rows)
    _check_fit(held.manifest, trained, most)
    file = BuildFolder(root).tokenizer
    if not settings.prompts:
        tokenizer = load(TokenizerSettings(str(file))) if file.exists() else None
        return _Job(settings, held, tokenizer, [])
    tokenizer = load(TokenizerSettings(str(file)))
    bos = held_out.begins_with_bos(root, held.manifest)
    special = held.manifest.tokenizer.special
    ids = [prompt_ids(prompt, tokenizer, special, bos=bos) for prompt in settings.all_prompts]
    longest = max(map(len, ids)) + settings.new_tokens
    if longest > most:
        raise RefusalError(
            f"evaluation.prompts: the longest and its new_tokens take {longest} positions, "
            f"the model has {most}; shorten one of them"
        )
    return _Job(settings, held, tokenizer, ids)


def prepare(settings: EvaluationSettings | None, trained: Sequence[Manifest], build: Path) -> None:
    """Refuse what can't be evaluated beside phases of training, before the first of them begins."""
    if settings is not None and settings.phase is not None:
        held = held_out.hold_out(settings.root(build), settings.phase, settings.rows)
        held_out.check_apart(held, build, trained)


def _check_fit(held: Manifest, trained: Manifest, positions: int) -> None:
    """Refuse held-out rows that the model can't read."""
    if held.tokenizer != trained.tokenizer:
        raise RefusalError(
            f"evaluation.phase: {held.phase} was made with another tokenizer than {trained.phase}; "
            "build it with the same"
        )
    if held.msl > positions:
        raise RecipeError(
            f"model.max_position_embeddings: must be at least {held.msl} for the rows of "
            f"evaluation.phase {held.phase}, got {positions}"
        )
