"""A finished ablation as arrays for figures."""

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.ablations.spec import POOL, of_folder
from crystalmix.mixtures.ablations.trials import Ground
from crystalmix.mixtures.laws.across_scales import without_largest
from crystalmix.mixtures.laws.distributions import spearman, student
from crystalmix.mixtures.laws.fit import KINDS, Fit
from crystalmix.mixtures.laws.recommend import RecommendSettings, recommend
from crystalmix.mixtures.laws.resample import draw
from crystalmix.mixtures.laws.scale import Scales
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import read
from crystalmix.prep.runtime.atomic_files import read_json
from crystalmix.prep.runtime.errors import InputError, UsageError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.ablations.ablate import fitted
from crystalmix.train.ablations.report import read_report
from crystalmix.train.ablations.tables import SPEC, connect
from crystalmix.train.figures import ternary
from crystalmix.train.figures.charts import FrontPoint, Panel
from crystalmix.train.record import ledger
from crystalmix.train.record.run_folder import PhaseFolder

Floats = NDArray[np.float64]
SMOOTHED = 15  # steps of a training loss that are averaged
WEIGHTS = (0.02, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.98)  # of language against code, in a front
DRAWS = 20
RESAMPLED = 200  # fits, for a band
SWARM = "role IN ('centre', 'design', 'replicate', 'anchor')"


class Insight:
    """A finished ablation: report, spec, tables, and the law fitted anew from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.report = read_report(folder)
        self.tables = connect(folder)
        claimed = read_json(folder / SPEC)["spec"]
        self.spec = of_folder(folder / SPEC, claimed)
        self.domains = list(self.spec.domains)
        self.roles = [row["role"] for row in self._rows("SELECT DISTINCT role", "ORDER BY role")]

    @cached_property
    def ground(self) -> Ground:
        """What the trials stood on."""
        pool = read(BuildFolder(self.folder / "build").phase(POOL))
        return Ground(self.spec, pool)

    @cached_property
    def fits(self) -> dict[str, Fit]:
        """Each law, fitted to the swarm's runs without those that spiked."""
        runs = self.tables.rows(f"SELECT * FROM runs WHERE {SWARM} AND NOT outlier ORDER BY run")
        names = [run["run"] for run in runs]
        draws = np.array([run["draw"] for run in runs])
        shares, losses = self._shares(runs), self.losses(names)
        return {kind: fitted(self.ground, shares, losses, kind, draws) for kind in KINDS}

    @cached_property
    def fit(self) -> Fit:
        """The law of the spec."""
        return self.fits[self.spec.law]

    def ledgers(self) -> list[tuple[Path, int]]:
        """Return the ledgers of the swarm's runs without those that spiked, and their draws."""
        runs = self.tables.rows(f"SELECT * FROM runs WHERE {SWARM} AND NOT outlier ORDER BY run")
        places = [(self.folder / "runs" / run["run"] / run["run"], run["draw"]) for run in runs]
        return [(PhaseFolder(place).ledger, draw) for place, draw in places]

    def mixture(self, name: str) -> dict[str, float]:
        """Return the recommended, current or uniform mixture."""
        best = self.report.recommendation
        known = {
            "current": best.current,
            "uniform": self.ground.uniform,
            "recommended": best.shares,
        }
        if name not in known:
            raise UsageError(f"start: must be one of {', '.join(known)}, got {name}")
        return known[name]

    def advantage(
        self, shares: Floats, plays: Floats, other: dict[str, float]
    ) -> tuple[float, float, float]:
        """Return by how much less a mixture loses than another, nats, by the law, with 90 % ends.

        shares: (domains,); plays: (n, domains), what the mixture may turn out to be.
        """
        every = np.concatenate([draw(self.fit, len(plays), 1), self.fit.theta[None]])
        place = self._vector(other)
        points = np.stack([np.vstack([plays, shares]), np.tile(place, (len(plays) + 1, 1))], 1)
        losses = np.einsum("stn,t->sn", self.fit.law.value(every, points[:, None]), self._value)
        gains = losses[:, 1] - losses[:, 0]
        low, high = np.quantile(gains[:-1], (0.05, 0.95))
        return float(gains[-1]), float(low), float(high)

    def shares(self, role: str) -> Floats:
        """Return the asked shares of the runs of a role: (runs, domains)."""
        return self._shares(self.tables.rows("SELECT * FROM runs WHERE role = ?", [role]))

    def losses(self, names: list[str]) -> Floats:
        """Return the last losses of runs: (runs, targets), nats per token or bits per byte."""
        rows = self.tables.rows("SELECT run, domain, loss FROM losses WHERE last")
        found = {(row["run"], row["domain"]): row["loss"] for row in rows}
        return np.array([[found[name, target] for target in self.spec.targets] for name in names])

    def groups(self) -> dict[str, list[str]]:
        """Add the domains up to three groups: language, the most valued code, other code."""
        if len(self.domains) < 3:
            raise InputError(f"{self.folder}: a triangle needs three domains at least")
        if len(self.domains) == 3:
            return {name: [name] for name in self.domains}
        language = self.spec.of_kind("language") or self.domains[:1]
        code = [name for name in self.domains if name not in language]
        first = max(code, key=lambda name: (self.spec.value[name], name == "python"))
        rest = [name for name in code if name != first]
        return {" + ".join(language): language, first: [first], " + ".join(rest): rest}

    def curves(self) -> tuple[dict[str, tuple[Floats, Floats]], dict[str, float]]:
        """Return the smoothed training loss of each mixture, and its share of code."""
        code = [self.domains.index(name) for name in self.spec.of_kind("code")]
        lines: dict[str, tuple[Floats, Floats]] = {}
        strength: dict[str, float] = {}
        for run in self.tables.rows(f"SELECT * FROM runs WHERE {SWARM} ORDER BY run"):
            name = run["run"]
            steps = ledger.read(PhaseFolder(self.folder / "runs" / name / name).ledger, "steps")
            losses = np.asarray(steps["loss"].to_numpy())
            size = min(SMOOTHED, len(losses))
            smooth = np.convolve(losses, np.ones(size) / size, "valid")
            lines[name] = np.arange(size - 1, len(losses), dtype=np.float64), smooth
            strength[name] = float(self._shares([run])[0, code].sum())
        return lines, strength

    def left_out(self) -> dict[str, Panel]:
        """Return each run as the others predict it, with the law's interval, by target."""
        mean, low, high = self.fit.predict(self.fit.shares)
        panels: dict[str, Panel] = {}
        for i, target in enumerate(self.spec.targets):
            predicted = self.fit.left_out[:, i]
            low_, high_ = predicted - (mean - low)[:, i], predicted + (high - mean)[:, i]
            rho = float(self.fit.rho[i])
            panels[target] = Panel(self.fit.losses[:, i], predicted, low_, high_, rho)
        return panels

    def largest(self) -> tuple[list[str], dict[str, Panel]]:
        """Return the runs of the largest scale, and their losses as the others predict them."""
        runs = self.tables.rows(
            "SELECT * FROM runs WHERE role NOT IN ('factor', 'check') AND NOT outlier ORDER BY run"
        )
        sizes = Scales(
            *(np.array([float(run[k]) for run in runs]) for k in ("parameters", "tokens"))
        )
        draws = np.array([run["draw"] for run in runs])
        losses = self.losses([run["run"] for run in runs])
        found = None
        if sizes.vary:
            joint = fitted(self.ground, self._shares(runs), losses, "joint", draws, sizes)
            found = without_largest(joint)
        if found is None:
            raise InputError(f"{self.folder}: has fewer than three scales; add some to `scales`")
        others, held = found
        mean, low, high = others.predict(self._shares(runs)[held])
        panels = {
            target: Panel(
                losses[held, k],
                mean[:, k],
                low[:, k],
                high[:, k],
                spearman(mean[:, k], losses[held, k]),
            )
            for k, target in enumerate(self.spec.targets)
        }
        return [run["run"] for run, kept in zip(runs, held, strict=True) if kept], panels

    def heat(self) -> tuple[Floats, Floats, NDArray[np.bool_], dict[str, Floats]]:
        """Return a lattice over the groups, valued losses, what is as good as the best, and marks.

        Within a group domains stand as in the recommended mixture.
        """
        groups, best = self.groups(), self.report.recommendation
        grid = np.clip(ternary.lattice(), 0.004, None)
        grid /= grid.sum(axis=1, keepdims=True)
        shares = np.zeros((len(grid), len(self.domains)))
        for k, names in enumerate(groups.values()):
            total = sum(best.shares[name] for name in names)
            for name in names:
                within = best.shares[name] / total if total else 1 / len(names)
                shares[:, self.domains.index(name)] = grid[:, k] * within
        values = self.fit.mean(shares) @ self._value
        caps = np.array([self.report.caps[name] for name in self.domains])
        allowed = (shares <= caps + 1e-6).all(axis=1)
        least = values[allowed].min() if allowed.any() else values.min()
        flat = allowed & (values <= least + best.sigma)
        chosen = {"recommended": best.shares, "current": best.current}
        marked = {
            name: ternary.grouped(self._vector(one)[None], self.domains, groups)[0]
            for name, one in chosen.items()
        }
        return grid, values, flat, marked

    def front(self) -> list[FrontPoint]:
        """Return the losses on language and code of the best mixture for each weight of the two.

        Intervals: of the law for predicted points, of a run under a new seed for measured ones.
        """
        points: list[FrontPoint] = []
        for weight in WEIGHTS:
            value = self._weighed(weight)
            settings = RecommendSettings(minimum=self.spec.swarm.minimum, draws=DRAWS)
            best = recommend(self.fit, value, self.ground.caps, self.ground.current, settings)
            code = sum(best.shares[name] for name in self.spec.of_kind("code"))
            losses, low, _ = self.fit.predict(self._vector(best.shares), run=False)
            points.append(self._point(losses[0], (losses - low)[0], f"{code:.0%} code"))
        size = self.spec.proxy.size
        for run in self.tables.rows(
            "SELECT * FROM runs WHERE role = 'check' AND size = ? ORDER BY run", [size]
        ):
            variance, freedom = self.fit.run_variance
            half = np.sqrt(variance) * [student(free, self.fit.level) for free in freedom]
            losses = self.losses([run["run"]])[0]
            points.append(self._point(losses, half, run["level"], measured=True))
        return points

    def by_code_share(self) -> tuple[Floats, dict[str, Floats]]:
        """Return shares of code (n,), and losses over them as (3, n): law, low, high.

        Of the valued loss, and of each kind. Within a kind domains stand as in the recommended
        mixture; shares beyond the caps are left out. The band is of the law, by resampled fits.
        """
        code = [self.domains.index(name) for name in self.spec.of_kind("code")]
        best = self._vector(self.report.recommendation.shares)
        rest = [k for k in range(len(best)) if k not in code]
        if not code or not rest:
            raise InputError(f"{self.folder}: needs domains of both kinds, language and code")
        grid = np.linspace(0.01, 0.99, 99)
        shares = np.zeros((len(grid), len(best)))
        for part, at in ((grid, code), (1 - grid, rest)):
            within = best[at] / best[at].sum() if best[at].sum() else np.full(len(at), 1 / len(at))
            shares[:, at] = part[:, None] * within
        caps = np.array([self.report.caps[name] for name in self.domains])
        kept = (shares <= caps + 1e-6).all(axis=1)
        weights = {"valued": self._value}
        for kind in ("language", "code"):
            names = self.spec.of_kind(kind)
            weights[kind] = self._value * [name in names for name in self.spec.targets]
        every = np.concatenate([draw(self.fit, RESAMPLED, 0), self.fit.theta[None]])
        losses = self.fit.law.value(every, shares[kept])  # (samples + 1, targets, n)
        curves: dict[str, Floats] = {}
        for name, weight in weights.items():
            if weight.sum():
                one = np.einsum("stn,t->sn", losses, weight / weight.sum())
                curves[name] = np.vstack([one[-1], np.quantile(one[:-1], (0.05, 0.95), axis=0)])
        return grid[kept], curves

    @property
    def _value(self) -> Floats:
        return np.array(list(self.spec.value.values()))

    def _weighed(self, language: float) -> dict[str, float]:
        """Return values of which language has a given part, each kind within as the spec says."""
        value = {name: self.spec.value[name] for name in self.domains}
        for kind, weight in (("language", language), ("code", 1 - language)):
            names = self.spec.of_kind(kind)
            total = sum(value[name] for name in names)
            value |= {name: weight * value[name] / total for name in names if total}
        return value

    def _point(
        self, losses: Floats, half: Floats, text: str, *, measured: bool = False
    ) -> FrontPoint:
        numbers: list[float] = []
        for kind in ("language", "code"):
            at = [self.domains.index(name) for name in self.spec.of_kind(kind)]
            weights = self._value[at]
            numbers += [float(np.average(losses[at], weights=weights))]
            numbers += [float(np.average(half[at], weights=weights))]  # domains stray together
        x, x_half, y, y_half = numbers
        return FrontPoint(x, y, text, measured, x_half, y_half)

    def _vector(self, shares: dict[str, float]) -> Floats:
        return np.array([shares[name] for name in self.domains])

    def _shares(self, runs: list[Json]) -> Floats:
        asked = [dict(run["asked"]) for run in runs]
        return np.array([[one.get(name, 0.0) for name in self.domains] for one in asked])

    def _rows(self, select: str, more: str) -> list[Json]:
        return self.tables.rows(f"{select} FROM runs WHERE role NOT IN ('factor', 'scale') {more}")
