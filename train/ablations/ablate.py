"""Run of an ablation: design, train, fit, recommend, check, report.

    ablation.json            what the folder follows from: spec, recipe, the rows of a build
    tokenizer.json, build/   rows that all proxies share; over a build: links to it
    runs/<name>/             one run each, like any other: manifests, ledger, checkpoint, losses
    tables/*.parquet         what was measured: `tables`
    report.json              what follows from it: fits, recommendation, checks, factors

Every stage is done once and remembered, so that the same command goes on where a kill stopped it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crystalmix.mixtures.ablations import factor_trials, pool_recipe, proxy_tokenizer, trials
from crystalmix.mixtures.ablations.pool_of_build import Reused, reuse, view
from crystalmix.mixtures.ablations.small_manifest import remix
from crystalmix.mixtures.ablations.spec import (
    HELD_OUT,
    POOL,
    Ablation,
    find,
    load,
    without_removed,
)
from crystalmix.mixtures.ablations.trials import Ground, Trial
from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.laws.across_scales import AcrossScales, across_scales
from crystalmix.mixtures.laws.fit import KINDS, Fit, FitSettings, Floats, fit
from crystalmix.mixtures.laws.noise import Ints
from crystalmix.mixtures.laws.recommend import Recommendation, RecommendSettings, recommend
from crystalmix.mixtures.laws.scale import Scales
from crystalmix.mixtures.manifest.build_folder import TOKENIZER
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.recipes.recipe import Recipe
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import (
    as_url,
    canonical,
    is_url,
    lock_folder,
    read_json,
    write_atomic,
)
from crystalmix.prep.runtime.errors import StaleError
from crystalmix.prep.runtime.types import Content
from crystalmix.prep.runtime.workers import Fanout
from crystalmix.train.ablations import conclusions, tables
from crystalmix.train.ablations.measure import Answers, answers_of, held_of
from crystalmix.train.ablations.proxies import (
    VIEW,
    Dtype,
    ProxyResult,
    ProxyRun,
    proxy_device,
    train,
)
from crystalmix.train.ablations.report import Report
from crystalmix.train.ablations.tables import REPORT, SPEC
from crystalmix.train.model.processes import fast_dtype

Say = Callable[[str], object]
LANGUAGE_TWICE = 2.0


@dataclass
class Session:
    """One ablation under way."""

    spec: Ablation
    recipe: Recipe
    root: Path
    out: Path
    pool: Fanout
    say: Say
    dtype: Dtype
    reused: Reused | None = None
    answers: tuple[Answers, ...] = ()

    @property
    def build(self) -> Path:
        """The build that all proxies share."""
        return self.out / "build"


def run(name: str, data: Path | None, out: Path, *, workers: int, say: Say) -> Report:
    """Run an ablation to its end and return its report.

    data: the raw files (beside the recipe by default). Raises StaleError where `out` holds another
    ablation.
    """
    spec, recipe = load(name)
    reused = None if spec.build is None else reuse(find(name), spec, recipe)
    root = data if data is not None else recipes.find(str(recipe.file)).parent
    out = out.resolve()
    refusal = f"{out}: another ablation runs here; wait for its end or take another --out"
    with lock_folder(out, refusal), Fanout(workers) as pool:
        answers = answers_of(spec, find(name).parent)
        dtype = _claim(out, spec, recipe, reused, answers)
        session = Session(spec, recipe, root, out, pool, say, dtype, reused, answers)
        return _conclude(session, prepare(session))


def prepare(session: Session) -> Ground:
    """Build the rows that all proxies share, or link to those of the build that is named."""
    reused = session.reused
    if reused is None:
        pool = _packed(session)
    else:
        view(reused.build, (reused.pool, reused.held_out), session.build)
        pool = reused.pool
    rows = sum(part.available for part in pool.parts)
    session.say(f"rows that the proxies share: {rows:,} of {pool.msl} tokens")
    return Ground(session.spec, pool, () if reused is None else reused.notes)


def _packed(session: Session) -> Manifest:
    """Pack the pool's rows anew, with a tokenizer of the proxies where the spec asks for one."""
    spec = session.spec
    tokenizer: Path | None = None
    if spec.proxy.vocab is not None:
        names, place = list(spec.domains), session.out / TOKENIZER
        tokenizer = proxy_tokenizer.train(
            session.recipe, session.root, names, spec.proxy.vocab, place
        )
    recipe = pool_recipe.proxy_recipe(spec, session.recipe, tokenizer)
    manifests = build(recipe, session.root, session.build, workers=session.pool.workers)
    return next(manifest for manifest in manifests if manifest.phase == POOL)


def trained(
    session: Session, ground: Ground, chosen: Sequence[Trial], label: str
) -> list[ProxyResult]:
    """Seal the manifests of trials and train them, one core each."""
    proxies = [_proxy(session, ground, trial) for trial in chosen]
    for trial, proxy in zip(chosen, proxies, strict=True):
        sealed: list[Manifest] = []
        for portion in trial.portions:
            sealed.append(remix(ground.pool, portion, sealed[-1].digest if sealed else None))
        view(session.build, sealed, Path(proxy.out) / VIEW)
    session.say(f"{label}: {len(proxies)} runs of {session.spec.proxy.tokens:,} tokens")
    return list(session.pool.map(train, proxies, label))


def _conclude(session: Session, ground: Ground) -> Report:
    """Train, fit, recommend, check; write tables and report."""
    spec = session.spec
    designed = trials.design(ground)
    for line in ground.notes():
        session.say(f"note: {line}")
    results = trained(session, ground, designed, "design")
    further = trials.scales(ground, designed)
    scale_results = trained(session, ground, further, "scales") if further else []
    fits = _fits(ground, designed, results)
    chosen = fits[spec.law]
    joint = _joint(ground, [*designed, *further], [*results, *scale_results]) if further else None
    best = recommended(ground, joint or chosen, spec.value)
    mixtures = {"recommended": best.shares, "current": ground.current, "uniform": ground.uniform}
    if spec.checks.pareto and spec.of_kind("language"):
        mixtures["pareto"] = recommended(ground, chosen, _language_twice(spec)).shares
    checked = trials.checks(ground, mixtures)
    check_results = trained(session, ground, checked, "check")
    varied = factor_trials.factors(ground)
    factor_results = trained(session, ground, varied, "factors") if varied else []
    every = [*designed, *further, *checked, *varied]
    measured = [*results, *scale_results, *check_results, *factor_results]
    tables.write_runs(session.out, every, measured)
    tables.write_fits(session.out, [*fits.values(), *([joint] if joint else [])])
    noise = conclusions.noise_of_trials(
        [*designed, *checked], [*results, *check_results], spec.value, spec.proxy.size
    )
    report = Report(
        name=spec.name,
        target_tokens=ground.target,
        tokens=ground.tokens,
        caps=ground.caps,
        value=spec.value,
        evidence=tables.digest(session.out),
        outliers=tuple(t.name for t, m in zip(every, measured, strict=True) if m.run.spikes),
        notes=tuple(ground.notes()),
        law=spec.law,
        laws=conclusions.laws(list(fits.values())),
        recommendation=best,
        noise=noise,
        checks=conclusions.checks(ground, chosen, checked, check_results, noise),
        factors=conclusions.factors(ground, chosen, varied, factor_results),
        across=None if joint is None else _across(ground, joint),
    )
    write_atomic(session.out / REPORT, canonical(report.content()))
    return report


def _fits(
    ground: Ground, designed: Sequence[Trial], results: Sequence[ProxyResult]
) -> dict[str, Fit]:
    """Fit every law to the runs of the design, those left out whose loss spiked."""
    names, targets = tuple(ground.spec.domains), ground.spec.targets
    kept = np.array([result.run.spikes == 0 for result in results])
    shares = np.array([[trial.shares[name] for name in names] for trial in designed])[kept]
    losses = tables.loss_matrix(results, targets)[kept]
    draws = np.array([trial.draw for trial in designed])[kept]
    return {kind: fitted(ground, shares, losses, kind, draws) for kind in KINDS}


def _joint(ground: Ground, designed: Sequence[Trial], results: Sequence[ProxyResult]) -> Fit:
    """Fit the joint law to runs of all sizes, taken at the scale of the real run where it is known.

    Domains are repeated at every scale as in the real run.
    """
    names = tuple(ground.spec.domains)
    pairs = [(t, r) for t, r in zip(designed, results, strict=True) if r.run.spikes == 0]
    shares = np.array([[trial.shares[name] for name in names] for trial, _ in pairs])
    losses = tables.loss_matrix([result for _, result in pairs], ground.spec.targets)
    draws = np.array([trial.draw for trial, _ in pairs])
    sizes = Scales(
        np.array([float(result.run.parameters) for _, result in pairs]),
        np.array([float(result.run.tokens) for _, result in pairs]),
    )
    joint = fitted(ground, shares, losses, "joint", draws, sizes)
    return joint.at(*_target_scale(ground, sizes))


def _target_scale(ground: Ground, sizes: Scales) -> tuple[float, float]:
    """Return parameters and tokens that a mixture is recommended for.

    The real run's where the spec gives its parameters, else those of the largest proxies.
    """
    if ground.spec.target.parameters is not None:
        return ground.spec.target.parameters, ground.target
    return max(zip(sizes.parameters.tolist(), sizes.tokens.tolist(), strict=True))


def _across(ground: Ground, joint: Fit) -> AcrossScales:
    """Compare the scales that were measured, and find the optimum of each and of the target."""
    assert joint.scales is not None
    settings = RecommendSettings(minimum=ground.spec.swarm.minimum, seed=ground.spec.swarm.seed)
    target = _target_scale(ground, joint.scales)
    return across_scales(joint, ground.spec.value, ground.caps, target, settings)


def fitted(
    ground: Ground,
    shares: Floats,
    losses: Floats,
    kind: str,
    draws: Ints,
    scales: Scales | None = None,
) -> Fit:
    """Fit a law to runs; where domains are repeated, their repeats count less."""
    names = tuple(ground.spec.domains)
    repeats = bool((shares > np.array(ground.once) * 1.01).any())
    once = ground.once if repeats and kind != "linear" else None
    settings = FitSettings(domains=names, targets=ground.spec.targets, once=once)
    return fit(shares, losses, kind, settings, draws, scales)


def recommended(ground: Ground, chosen: Fit, value: dict[str, float]) -> Recommendation:
    """Find the best mixture for a value of each domain, by the law."""
    settings = RecommendSettings(minimum=ground.spec.swarm.minimum, seed=ground.spec.swarm.seed)
    return recommend(chosen, value, ground.caps, ground.current, settings)


def _language_twice(spec: Ablation) -> dict[str, float]:
    """Return values where language counts LANGUAGE_TWICE: another point of the Pareto front."""
    language = spec.of_kind("language")
    value = {n: v * (LANGUAGE_TWICE if n in language else 1.0) for n, v in spec.value.items()}
    return {name: weight / sum(value.values()) for name, weight in value.items()}


def _proxy(session: Session, ground: Ground, trial: Trial) -> ProxyRun:
    spec, proxy = session.spec, session.spec.proxy
    held = [held_of(ground, name) for name in spec.domains]
    if trial.role == "factor":
        held += [held_of(ground, name, infilled=True) for name in spec.infilled]
    return ProxyRun(
        name=trial.name,
        pool=str(session.build),
        out=str(session.out / "runs" / trial.name),
        phases=tuple(portion.name for portion in trial.portions),
        size=trial.size,
        seed=trial.seed,
        learning_rate=proxy.learning_rate,
        warmup=proxy.warmup,
        held_out=HELD_OUT,
        held=tuple(held),
        spike=proxy.spike,
        dtype=session.dtype,
        decay=trial.decay,
        answers=session.answers,
    )


def _claim(
    out: Path, spec: Ablation, recipe: Recipe, reused: Reused | None, answers: Sequence[Answers]
) -> Dtype:
    """Record what this folder follows from, or compare; return the dtype of all its proxies.

    The dtype is what the processor does fast when the ablation begins, and is kept on resume.
    StaleError where the folder follows from something else.
    """
    content = {key: value for key, value in recipe.content().items() if key != "phases"}
    claim: Content = {
        "spec": spec.content(),
        "recipe": content,
        "file": _whole(recipe.file) if recipe.file else None,
    }
    if reused is not None:
        claim["rows"] = {m.phase: m.digest for m in (reused.pool, reused.held_out)}
    if answers:
        claim["tasks"] = {one.name: one.digest for one in answers}
    path = out / SPEC
    if not path.exists():
        dtype = fast_dtype(proxy_device())
        write_atomic(path, canonical({**claim, "dtype": dtype}))
        return dtype
    held = read_json(path)
    held["spec"] = without_removed(held["spec"])
    dtype = held.pop("dtype", "bfloat16")  # folders of before the key
    lines = receipts.differences(held, claim, "ablation")
    if lines:
        raise StaleError(
            f"{path}: holds another ablation ({'; '.join(lines[:3])}); take another --out"
        )
    return dtype


def _whole(file: Path) -> str:
    return as_url(file) if is_url(file) else str(file.resolve())
