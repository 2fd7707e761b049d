"""What `--plot` draws: of a plan, a build, a run, an ablation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from crystalmix.mixtures.build.accounts import PackAccount
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest, read_manifests
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import InputError, UsageError
from crystalmix.train.api.ablations import Ablation, is_ablation
from crystalmix.train.figures import mixture_plot, run_plot
from crystalmix.train.figures.mixture_plot import Copies, Lengths
from crystalmix.train.record.run_folder import WHERE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from crystalmix.mixtures.plan.copies import CopiesPlan
    from crystalmix.mixtures.plan.outlook import Outlook


def plot(path: Path, file: Path, build: Path | None = None) -> str:
    """Draw a build, a run or an ablation into a file; return what was drawn, in words.

    A run: losses and shares of parts over steps; a build: shares asked and got, and lengths of
    documents; an ablation: the mixture. Raises InputError where there is none of them.
    """
    mixture_plot.checked(file)
    if (path / WHERE).exists():
        return run_plot.draw(path, build, file)
    if not (path / "phases").exists() and is_ablation(path):
        return mixture_plot.saved(_mixture(Ablation(path)), file)
    manifests = read_manifests(path) if path.exists() else []
    if not manifests:
        raise InputError(f"{path}: is no build, run or ablation; give the --out of one to --plot")
    phases = {m.phase: [(p.name, p.asked, p.got) for p in m.parts] for m in manifests}
    title = f"{manifests[0].name}: shares of rows asked and got"
    return mixture_plot.saved(mixture_plot.shares(title, phases, _lengths(path, manifests)), file)


def plot_plan(outlook: Outlook, name: str, file: Path) -> str:
    """Draw the shares that a plan's phases ask and get into a file; return so, in words.

    Phases of which nobody knows how many rows they take are left out, and named. Raises UsageError
    where nothing is left to draw.
    """
    mixture_plot.checked(file)
    phases = {
        phase.name: [(part.name, part.asked, part.got) for part in phase.parts]
        for phase in outlook.phases
        if phase.steps
    }
    if not phases and not outlook.copies:
        raise UsageError(
            "--plot: nobody knows how many rows the phases take; give --data, or declare `tokens`"
        )
    unknown = ", ".join(phase.name for phase in outlook.phases if not phase.steps)
    title = f"{name}: shares of rows as planned{f' (not known: {unknown})' if unknown else ''}"
    copies = [bars for plan in outlook.copies for bars in _copies(plan)]
    return mixture_plot.saved(mixture_plot.shares(title, phases, copies=copies), file)


def _copies(plan: CopiesPlan) -> list[Copies]:
    """Return the epochs of a domain's documents: asked by the curve, or of each source got."""
    label = f"{plan.domain}: epochs by {plan.upsample.by}"
    if plan.sources is None:
        return [Copies(label, plan.asked, None)]
    return [
        Copies(
            f"{label}, source {name}",
            tuple(bucket.asked for bucket in counts.buckets),
            tuple(bucket.copies / bucket.documents for bucket in counts.buckets),
        )
        for name, counts in plan.sources.items()
        if counts.buckets
    ]


def _mixture(ablation: Ablation) -> Figure:
    report = ablation.report
    word = "refused" if report.recommendation.refusal else "recommended"
    return mixture_plot.recommended(f"{report.name}: best mixture, {word}", report.recommendation)


def _lengths(path: Path, manifests: list[Manifest]) -> list[Lengths]:
    """Return the lengths of documents of each source in each domain, as receipts have them."""
    folder = BuildFolder(path)
    domains = dict.fromkeys(part.domain for manifest in manifests for part in manifest.parts)
    rows: list[Lengths] = []
    for domain in domains:
        packed = folder.packed(domain)
        if not (packed / receipts.NAME).exists():
            continue
        receipt = receipts.read(packed)
        sources = PackAccount.of(receipt).sources if receipt.stage == "pack" else {}
        for source, account in sources.items():
            if lengths := account.lengths:
                three = (lengths[key] for key in ("p10", "p50", "p90"))
                rows.append(Lengths(f"{domain} / {source}", *three))
    return rows
