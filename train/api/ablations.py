"""`cm.ablate`, `cm.fit_laws` and what `cm.open` gives of an ablation's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from crystalmix.prep.runtime.errors import UsageError
from crystalmix.prep.runtime.types import Content
from crystalmix.train.api.checks import Place, existing, raw_files
from crystalmix.train.trace import sql
from crystalmix.train.trace.answers import Answer, Grid, Lines, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from crystalmix.mixtures.laws.compare import Comparison
    from crystalmix.train.ablations.costs import Cost
    from crystalmix.train.ablations.report import Report
    from crystalmix.train.ablations.results import Insight
    from crystalmix.train.ablations.table_mixture import TableMixture
    from crystalmix.train.adaptive.simulate import Simulation

NLL = "nats per token"


@dataclass(frozen=True)
class Ablation(Answer):
    """An ablation that came to its end: its report, its tables, and pictures of them."""

    path: Path

    @property
    def report(self) -> Report:
        """The report; InputError where the ablation has not come to its end."""
        from crystalmix.train.ablations.report import read_report

        return read_report(self.path)

    def content(self) -> Content:
        """Return the report as JSON."""
        return self.report.content()

    def shown(self) -> Iterator[str | Grid]:
        """Yield the report: laws, mixture, checks, factors."""
        from crystalmix.train.ablations.report import report_lines

        yield from report_lines(self.report)

    @property
    def factors(self) -> Lines:
        """The factors other than shares: each level's valued loss, gain and evidence."""
        from crystalmix.train.ablations.report import factor_lines

        factors = self.report.factors
        lines = tuple(line for factor in factors for line in [*factor_lines(factor), ""])
        return Lines(lines, [asdict(factor) for factor in factors])

    def sql(self, query: str | None = None) -> Table:
        """Run a SELECT over its views (runs, losses, fits ...); without one, list them."""
        return sql.query(sql.connect(self.path), query)

    def export(self, out: Place, *, mixture: str = "recommended", anyway: bool = False) -> Lines:
        """Write a mixture as a recipe that `build` takes; return its comments.

        Raises RefusalError where the report does not recommend it, unless `anyway`.
        """
        from crystalmix.train.ablations.export_recipe import export

        return Lines(tuple(export(self.path, Path(out), mixture=mixture, anyway=anyway)))

    def difference(
        self,
        factor: str,
        level: str,
        other: str,
        what: str,
        questions: int = 1,
        *,
        target: str = "valued",
        size: str | None = None,
    ) -> Lines:
        """Say whether one level of a factor was better than another, draw by draw.

        what: what the level stands for, in words. questions: asked of this ablation, whose
        intervals hold together. target: the loss that decides: `valued`, `language`, `code`,
        `infilling` or one target. size: of the runs (the first one). Raises InputError with fewer
        than two draws.
        """
        from crystalmix.train.ablations import factor_results

        gap = factor_results.difference(
            self.path, factor, level, other, questions, target=target, size=size
        )
        return Lines((factor_results.answer(gap, what),), asdict(gap))

    def plot_design(self) -> Figure:
        """Draw the design: mixtures as points in a triangle of three groups of domains."""
        from crystalmix.train.figures import ternary

        results = self._results
        groups, domains = results.groups(), results.domains
        shares = {role: results.shares(role) for role in results.roles}
        points = {role: ternary.grouped(s, domains, groups) for role, s in shares.items()}
        return ternary.simplex(points, list(groups), "Mixtures of the design and of the checks")

    def plot_curves(self) -> Figure:
        """Draw the smoothed training loss of each mixture, darker with more code."""
        from crystalmix.train.figures import charts

        lines, strength = self._results.curves()
        title = "Training loss of each mixture"
        return charts.curves(lines, "step", f"training loss, {NLL}", strength, title)

    def plot_left_out(self) -> Figure:
        """Draw each run's loss as the law predicts it from all others, with 90 % intervals."""
        from crystalmix.train.figures import charts

        title = "Each run as the law predicts it from the others"
        return charts.agreement(self._results.left_out(), NLL, title)

    def plot_transfer(self) -> Figure:
        """Draw what a token of one domain is worth for the loss on another."""
        from crystalmix.train.figures import charts

        labels = ("held-out loss on", "a token of", "worth, in tokens of the best")
        results, title = self._results, "What a token is worth at the uniform mixture"
        worth, targets = results.fit.transfer(), results.spec.targets
        return charts.matrix(worth, targets, results.domains, labels, title=title)

    @property
    def code_share(self) -> Table:
        """The law's losses over the share of code, with 90 % bands of the law."""
        import pyarrow as pa

        shares, curves = self._results.by_code_share()
        columns = {"share": pa.array(shares)}
        for name, rows in curves.items():
            for suffix, curve in zip(("", " low", " high"), rows, strict=True):
                columns[name + suffix] = pa.array(curve)
        return Table(pa.table(columns))

    @property
    def largest(self) -> Table:
        """The losses of the largest scale, and what the joint law of the smaller ones predicts.

        One line a run and target, with the ends of 90 % intervals of new runs. Raises InputError
        for an ablation of fewer than three scales.
        """
        import pyarrow as pa

        runs, panels = self._results.largest()
        lines = [
            {
                "run": run,
                "target": target,
                "loss": panel.measured[k],
                "predicted": panel.predicted[k],
                "low": panel.low[k],
                "high": panel.high[k],
            }
            for target, panel in panels.items()
            for k, run in enumerate(runs)
        ]
        return Table(pa.Table.from_pylist(lines))

    def plot_loss(self) -> Figure:
        """Draw the valued loss over three groups of domains; a line rings what is as good."""
        from crystalmix.train.figures import ternary

        grid, values, flat, marked = self._results.heat()
        groups, unit = list(self._results.groups()), f"valued loss, {NLL}"
        title = "Valued loss by the law"
        return ternary.heat(grid, values, groups, flat=flat, marked=marked, unit=unit, title=title)

    def plot_front(self) -> Figure:
        """Draw the best mixture for each weight of language against code."""
        from crystalmix.train.figures import charts

        points = self._results.front()
        title = "The best mixture for each weight of language"
        return charts.front(points, f"loss on language, {NLL}", f"loss on code, {NLL}", title)

    def plot_code_share(self) -> Figure:
        """Draw the losses that the law gives over the share of code, with 90 % bands."""
        from crystalmix.train.figures import charts

        shares, curves = self._results.by_code_share()
        return charts.bands(shares, curves, "share of code", f"loss, {NLL}", "Loss by code share")

    def plot_largest(self) -> Figure:
        """Draw the runs of the largest scale as the joint law of the smaller ones predicts them.

        Raises InputError for an ablation of fewer than three scales.
        """
        from crystalmix.train.figures import charts

        title = "The largest scale as the smaller ones predict it, with 90 % intervals"
        return charts.agreement(self._results.largest()[1], NLL, title)

    def plot_forgetting(self, order: str) -> Figure:
        """Draw the held-out loss on each domain after each phase of an order of phases.

        order: of `factors.order`, or `third_phase`: CrystalCoder's three phases.
        """
        from crystalmix.train.ablations import factor_results
        from crystalmix.train.figures import charts

        phases, losses = factor_results.forgetting(self._results, order)
        labels = ("", "held-out domain", f"loss, {NLL}")
        title = f"Held-out loss after each phase, {order}"
        return charts.matrix(losses, phases, self._results.domains, labels, title=title)

    def plot_factors(self) -> Figure:
        """Draw the valued loss of each level of each factor, with standard errors over draws."""
        from crystalmix.train.ablations import factor_results
        from crystalmix.train.figures import charts

        title = "Levels of each factor: mean over draws and its standard error"
        marks = factor_results.levels(self._results)
        return charts.levels(marks, f"valued loss, {NLL}", title)

    def plot_repetition(self, size: str | None = None) -> Figure:
        """Draw the loss against epochs of one domain, and the fit of what repetition is worth.

        size: of the runs (the first one).
        """
        from crystalmix.train.ablations import factor_results
        from crystalmix.train.figures import charts

        return charts.repetition(*factor_results.repeated(self._results, size))

    def simulate(
        self, policy: Place, *, start: str = "current", overrides: Sequence[str] = ()
    ) -> Simulated:
        """Say which shares an adaptive policy would have chosen in runs like the ablation's.

        policy: a YAML file as `adapt` takes it. start: shares of the first window: `current`,
        `uniform` or `recommended`. overrides: KEY=VALUE assignments over the file. Raises
        RefusalError where the policy's windows or bounds leave nothing to choose.
        """
        from crystalmix.train.adaptive import simulate as simulation
        from crystalmix.train.adaptive.policy import read_policy

        chosen, results = read_policy(existing(policy), overrides), self._results
        first, proxy, domains = results.mixture(start), results.spec.proxy, tuple(results.domains)
        stretches = [
            stretch
            for folder, draw in results.ledgers()
            for stretch in simulation.stretches(folder, domains, chosen.steps, draw)
        ]
        laws = simulation.fit_windows(stretches, domains)
        tokens = chosen.steps * proxy.batch * proxy.msl
        played = simulation.simulate(laws, chosen, first, tokens)
        others = {name: results.mixture(name) for name in ("current", "uniform", "recommended")}
        return Simulated(
            played,
            {
                name: results.advantage(played.total, played.totals, other)
                for name, other in others.items()
            },
        )

    @cached_property
    def _results(self) -> Insight:
        from crystalmix.train.ablations.results import Insight

        return Insight(self.path)


@dataclass(frozen=True)
class Simulated(Answer):
    """What a policy would have chosen on an ablation's runs, and what that is worth.

    advantage: by how much less its mixture in all loses than others, nats: estimate, low, high.
    """

    simulation: Simulation
    advantage: dict[str, tuple[float, float, float]]

    def content(self) -> Content:
        """Return it as JSON."""
        return {**self.simulation.content(), "advantage": self.advantage}

    def shown(self) -> Iterator[str | Grid]:
        """Yield shares by window, then the comparison."""
        yield from self.simulation.lines()
        for name, (gain, low, high) in self.advantage.items():
            yield (
                f"valued loss of what it reads in all, below that of the {name} mixture: "
                f"{gain:+.4f} nats [{low:+.4f}, {high:+.4f}]"
            )
        yield "by the law, which knows how much is read of each domain, not in which order"


def is_ablation(path: Path) -> bool:
    """Tell whether a folder is an ablation's."""
    from crystalmix.train.ablations.tables import SPEC

    return (path / SPEC).exists()


def ablate(
    spec: Place,
    out: Place,
    *,
    data: Place | None = None,
    workers: int = 1,
    say: Callable[[str], object] = lambda _: None,
) -> Ablation:
    """Run the ablation of a spec (a file or a bundled name); what is done is not done again.

    data: folder of the raw files (the recipe's by default). say: takes lines of progress. Raises
    RecipeError for a spec that breaks a rule, StaleError where `out` holds another ablation.
    """
    from crystalmix.train.ablations.ablate import run

    run(str(spec), raw_files(data), Path(out), workers=workers, say=say)
    return Ablation(Path(out))


def ablation_cost(spec: Place, *, workers: int = 1) -> Cost:
    """Return runs, tokens and hours of an ablation before anything is trained."""
    from crystalmix.train.ablations.costs import cost

    return cost(str(spec), workers)


@dataclass(frozen=True)
class FittedTable(Answer):
    """Laws fitted to a table of runs and, where it was wanted, the mixture that they recommend."""

    comparison: Comparison
    mixture: TableMixture | None

    def content(self) -> Content:
        """Return fits, predictions and the mixture as JSON has them."""
        content = self.comparison.content()
        return content if self.mixture is None else {**content, "mixture": self.mixture.content()}

    def shown(self) -> Iterator[str | Grid]:
        """Yield the mixture, then the laws beside each other."""
        if self.mixture is not None:
            yield from [*self.mixture.lines(), ""]
        yield from self.comparison.lines()


def fit_laws(
    table: Place,
    *,
    predict: Place | None = None,
    laws: Sequence[str] = (),
    shares: str = "share:",
    losses: str = "loss:",
    recommend: bool = False,
    aims: Place | None = None,
    overrides: Sequence[str] = (),
) -> FittedTable:
    """Fit laws of loss against shares to a CSV of mixtures and their losses; recommend a mixture.

    predict: a second table, to predict and rank. laws: only these (all by default). shares, losses:
    what columns of shares and of losses (nats per token, or bits per byte of any task) begin with.
    recommend: find the best mixture for `aims`, a YAML file of their keys, and KEY=VALUE
    assignments over it. Raises UsageError for names that the table does not have, RefusalError
    where nothing can be recommended.
    """
    from crystalmix.mixtures.laws import loss_table
    from crystalmix.mixtures.laws.compare import compare
    from crystalmix.train.ablations.table_mixture import read_aims, recommend_mixture

    first = loss_table.read(existing(table), shares, losses)
    second = None if predict is None else loss_table.read(existing(predict), shares, losses)
    if not recommend and (aims is not None or overrides):
        raise UsageError("--aims, --set: say what a mixture is for; add --recommend")
    wanted = read_aims(existing(aims), overrides)
    fitted = compare(first, second, laws)
    return FittedTable(fitted, recommend_mixture(fitted.fits, wanted) if recommend else None)
