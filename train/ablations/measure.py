"""Losses of a proxy with their standard errors: of domains held out, and of answers to prompts."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from crystalmix.mixtures.ablations.small_manifest import strata
from crystalmix.mixtures.ablations.spec import HELD, INFILL, Ablation
from crystalmix.mixtures.ablations.trials import Ground
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import read
from crystalmix.prep.rows.scattered_rows import gather
from crystalmix.prep.runtime.atomic_files import file_digest
from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings, load
from crystalmix.train.evaluation.harness import log_likelihoods
from crystalmix.train.model.crystal import Crystal, row_losses

EVALUATED_ROWS = 32  # per forward pass


@dataclass(frozen=True)
class Held:
    """Held-out rows of one domain: the first ones of a part of the pool's HELD_OUT phase.

    strata: of a stratified pool, the held-out part of each source and its share of the domain's
    rows; the loss is of sources in these shares, whatever each has held out.
    """

    domain: str
    part: str
    rows: int
    strata: tuple[tuple[str, float], ...] = ()

    @property
    def parts(self) -> list[tuple[str, float, int]]:
        """Name, share and rows of each part; rows in proportion, one at least."""
        strata = self.strata or ((self.part, 1.0),)
        return [(part, share, max(1, round(self.rows * share))) for part, share in strata]


def held_of(ground: Ground, domain: str, infilled: bool = False) -> Held:
    """Return the held-out rows of a domain, or of its middles (the target `DOMAIN.infill`)."""
    last = INFILL if infilled else ""
    part, parts = domain + HELD + last, strata(ground.pool)[domain]
    shares = tuple(
        (part + one.domain.removeprefix(domain), one.available / ground.rows[domain])
        for one in (parts if len(parts) > 1 else ())
    )
    return Held(domain + last, part, ground.spec.proxy.held_out_rows, shares)


@dataclass(frozen=True)
class Answers:
    """Lines of JSON with a prompt and its answer; digest: of the file."""

    name: str
    file: str
    prompt: str
    answer: str
    digest: str


@dataclass(frozen=True)
class HeldOutLoss:
    """The loss on a domain's held-out rows, or on a task's answers (`domain` its name).

    nll: nats per token. sem: standard error of `loss`, of a ratio of sums over independent rows.
    tokens, bytes: that the labels hold. stage: how many phases were done. in_bits: whether the loss
    is taken in bits per byte.
    """

    domain: str
    nll: float
    sem: float
    bits_per_byte: float
    tokens: int
    bytes: int
    rows: int
    stage: int
    in_bits: bool = False

    @property
    def loss(self) -> float:
        """What laws are fitted to."""
        return self.bits_per_byte if self.in_bits else self.nll


def measure(model: Crystal, build: Path, phase: str, held: Held, stage: int) -> HeldOutLoss:
    """Measure a model's loss on the held-out rows of a domain, its sources in their shares."""
    every: list[_Stratum] = []
    for part, share, count in held.parts:
        rows, sizes = held_rows(build, phase, replace(held, part=part, rows=count))
        every.append(_Stratum(*_sums(model, rows, sizes), share))
    whole = sum(len(one.nll) for one in every)
    # the weight of a row is 1 where rows are in proportion
    pairs = [(one.share * (whole / len(one.nll)), one) for one in every]
    tokens = float(sum(w * one.tokens.sum() for w, one in pairs))
    nll = float(sum(w * one.nll.sum() for w, one in pairs))
    variance = sum(w**2 * one.variance for w, one in pairs)
    return HeldOutLoss(
        domain=held.domain,
        nll=nll / tokens,
        sem=float(np.sqrt(variance) / tokens),
        bits_per_byte=float(nll / np.log(2) / sum(w * one.bytes for w, one in pairs)),
        tokens=int(sum(one.tokens.sum() for one in every)),
        bytes=sum(one.bytes for one in every),
        rows=whole,
        stage=stage,
    )


@dataclass(frozen=True)
class _Stratum:
    """Sums of nll and of labels of each row, (rows,), bytes of all labels, share of the domain."""

    nll: NDArray[np.float64]
    tokens: NDArray[np.float64]
    bytes: int
    share: float

    @property
    def variance(self) -> float:
        """The variance of the sum of nll, given the labels, over rows drawn again."""
        n = len(self.nll)
        spread = self.nll - float(self.nll.sum() / self.tokens.sum()) * self.tokens
        return float((spread**2).sum() * n / max(1, n - 1))


def _sums(
    model: Crystal, rows: NDArray[np.int32], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Return the nll and the labels that count of each row, and the bytes of all these labels."""
    sums: list[NDArray[np.float64]] = []
    counts: list[NDArray[np.float64]] = []
    device = next(model.parameters()).device
    with torch.no_grad():
        for first in range(0, len(rows), EVALUATED_ROWS):
            ids, mask, labels = (
                torch.from_numpy(np.ascontiguousarray(rows[first : first + EVALUATED_ROWS, k])).to(
                    device
                )
                for k in range(3)
            )
            nll = row_losses(model(ids), labels, mask).double().sum(1)
            sums.append(nll.cpu().numpy())
            counts.append(mask.sum(1).double().cpu().numpy())
    size = int(sizes[rows[:, 2]][rows[:, 1] > 0].sum())
    return np.concatenate(sums), np.concatenate(counts), size


def read_answers(path: Path, prompt: str, answer: str) -> list[tuple[str, str]]:
    """Return the prompts and answers of a file; InputError names the line that lacks one."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; `tasks` of the spec names it")
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            content = json.loads(line)
        except ValueError:
            raise InputError(f"{path}:{number}: is no JSON; give one object a line") from None
        texts = [
            content.get(key) if isinstance(content, dict) else None for key in (prompt, answer)
        ]
        if not isinstance(texts[0], str) or not isinstance(texts[1], str) or not texts[1]:
            raise InputError(
                f"{path}:{number}: needs texts `{prompt}` and `{answer}`; name its keys in the spec"
            )
        pairs.append((texts[0], texts[1]))
    if not pairs:
        raise InputError(f"{path}: holds no line; give one object a line")
    return pairs


def answers_of(spec: Ablation, folder: Path) -> tuple[Answers, ...]:
    """Return the tasks of a spec in a folder, each read once: a fault shows before any run."""
    found: list[Answers] = []
    for name, task in spec.tasks.items():
        path = folder / task.file
        read_answers(path, task.prompt, task.answer)
        digest = file_digest(path)
        found.append(Answers(name, str(path.resolve()), task.prompt, task.answer, digest))
    return tuple(found)


def measure_answers(
    model: Crystal, build: Path, phase: str, answers: Answers, stage: int
) -> HeldOutLoss:
    """Measure the bits per byte of answers after their prompts.

    Answers that don't fit in a row are read in pieces, each after as much as fits.
    """
    tokenizer = load(TokenizerSettings(str(BuildFolder(build).tokenizer)))
    most, bos = read(BuildFolder(build).phase(phase)).msl, tokenizer.id_of("bos")
    piece = max(1, most // 2)
    pairs: list[tuple[list[int], list[int]]] = []
    owner: list[int] = []
    sizes: list[int] = []
    for number, (prompt, answer) in enumerate(
        read_answers(Path(answers.file), answers.prompt, answers.answer)
    ):
        head = [bos, *tokenizer.encode(prompt).tolist()]
        ids = [bos, *tokenizer.encode(prompt + answer).tolist()]
        first = max(1, min(len(head), len(ids) - 1))
        sizes.append(len(answer.encode()))
        for start in range(first, len(ids), piece):
            pairs.append((ids[:start], ids[start : start + piece]))
            owner.append(number)
    scores = [-score for score, _ in log_likelihoods(model, most, pairs)]
    total = np.bincount(owner, scores, len(sizes))
    tokens = sum(len(labels) for _, labels in pairs)
    bits, sem = _ratio(total / np.log(2), np.array(sizes, np.float64))
    nll = float(total.sum()) / tokens
    where = (tokens, sum(sizes), len(sizes), stage)
    return HeldOutLoss(answers.name, nll, sem, bits, *where, in_bits=True)


def _ratio(sums: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[float, float]:
    """Return sums over weights, and the standard error over independent rows."""
    mean, n = float(sums.sum() / weights.sum()), len(sums)
    spread = sums - mean * weights
    return mean, float(np.sqrt((spread**2).sum() * n / max(1, n - 1)) / weights.sum())


def held_rows(build: Path, phase: str, held: Held) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the first held-out rows of a domain, (rows, 3, msl), and how many bytes each id has.

    Control ids stand for no byte of a text.
    """
    manifest = read(BuildFolder(build).phase(phase))
    part = next(part for part in manifest.parts if part.name == held.part)
    which: list[int] = []
    where: list[int] = []
    for number, shard in enumerate(part.shards):
        for row in range(shard.first, shard.last):
            if len(where) < held.rows:
                which.append(number)
                where.append(row)
    paths = [build / shard.path for shard in part.shards]
    rows = gather(paths, np.array(which, np.int64), np.array(where, np.int64))
    tokenizer = load(TokenizerSettings(str(BuildFolder(build).tokenizer)))
    sizes = np.array([len(data) for data in tokenizer.bytes_of], np.int64)
    sizes[tokenizer.controls.astype(np.int64)] = 0
    return rows, sizes
