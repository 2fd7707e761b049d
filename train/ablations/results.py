"""Insight: an ablation's folder as the arrays that its notebooks draw."""

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.ablations.spec import POOL, of_folder
from crystalmix.mixtures.ablations.trials import Ground
from crystalmix.mixtures.laws.fit import Fit
from crystalmix.mixtures.laws.recommend import RecommendSettings, recommend
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.prep.runtime.atomic_files import read_json
from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.ablations import tables as evidence
from crystalmix.train.ablations.ablate import fitted
from crystalmix.train.ablations.export_recipe import read_report
from crystalmix.train.figures import ternary
from crystalmix.train.record import ledger
from crystalmix.train.record.run_folder import PhaseFolder

Floats = NDArray[np.float64]
SMOOTHED = 15  # steps of a training loss that are averaged
WEIGHTS = (0.02, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.98)  # of language against code, in a front
DRAWS = 20
SWARM = "role IN ('centre', 'design', 'replicate')"


class Insight:
    """A finished ablation: report, spec, tables, and the law fitted anew from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.report = read_report(folder)
        self.tables = evidence.connect(folder)
        claimed = read_json(folder / evidence.SPEC)["spec"]
        self.spec = of_folder(folder / evidence.SPEC, claimed)
        self.domains = list(self.spec.domains)
        self.roles = [row["role"] for row in self._rows("SELECT DISTINCT role", "ORDER BY role")]

    @cached_property
    def ground(self) -> Ground:
        """What the trials stood on."""
        pool = manifests.read(BuildFolder(self.folder / "build").phase(POOL))
        return Ground(self.spec, pool)

    @cached_property
    def fit(self) -> Fit:
        """The law, fitted to the swarm's runs without those that spiked."""
        runs = self.tables.rows(f"SELECT * FROM runs WHERE {SWARM} AND NOT outlier ORDER BY run")
        names = [run["run"] for run in runs]
        return fitted(self.ground, self._shares(runs), self.losses(names), self.spec.law)

    def shares(self, role: str) -> Floats:
        """Return the asked shares of the runs of a role: (runs, domains)."""
        return self._shares(self.tables.rows("SELECT * FROM runs WHERE role = ?", [role]))

    def losses(self, names: list[str]) -> Floats:
        """Return the last held-out losses of runs: (runs, domains), nats per token."""
        rows = self.tables.rows("SELECT run, domain, nll FROM losses WHERE last")
        found = {(row["run"], row["domain"]): row["nll"] for row in rows}
        return np.array([[found[name, domain] for domain in self.domains] for name in names])

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

    def left_out(self) -> dict[str, Json]:
        """Return each run as the others predict it, with the law's interval, by domain."""
        mean, low, high = self.fit.predict(self.fit.shares)
        told: dict[str, Json] = {}
        for i, domain in enumerate(self.domains):
            predicted = self.fit.left_out[:, i]
            told[domain] = {
                "measured": self.fit.losses[:, i],
                "predicted": predicted,
                "low": predicted - (mean - low)[:, i],
                "high": predicted + (high - mean)[:, i],
                "rho": float(self.fit.rho[i]),
            }
        return told

    def heat(self) -> tuple[Floats, Floats, NDArray[np.bool_], dict[str, Floats]]:
        """Return a lattice over the groups, valued losses, what is as good as the best, and marks.

        Within a group domains stand as in the recommended mixture.
        """
        groups, told = self.groups(), self.report["recommendation"]
        grid = np.clip(ternary.lattice(), 0.004, None)
        grid /= grid.sum(axis=1, keepdims=True)
        shares = np.zeros((len(grid), len(self.domains)))
        for k, names in enumerate(groups.values()):
            total = sum(told["shares"][name] for name in names)
            for name in names:
                within = told["shares"][name] / total if total else 1 / len(names)
                shares[:, self.domains.index(name)] = grid[:, k] * within
        values = self.fit.mean(shares) @ self._value
        caps = np.array([self.report["caps"][name] for name in self.domains])
        allowed = (shares <= caps + 1e-6).all(axis=1)
        least = values[allowed].min() if allowed.any() else values.min()
        flat = allowed & (values <= least + told["sigma"])
        chosen = {"recommended": told["shares"], "current": told["current"]}
        marked = {
            name: ternary.grouped(self._vector(one)[None], self.domains, groups)[0]
            for name, one in chosen.items()
        }
        return grid, values, flat, marked

    def front(self) -> list[Json]:
        """Return the losses on language and code of the best mixture for each weight of the two."""
        points: list[Json] = []
        for weight in WEIGHTS:
            value = self._weighed(weight)
            settings = RecommendSettings(minimum=self.spec.swarm.minimum, draws=DRAWS)
            best = recommend(self.fit, value, self.ground.caps, self.ground.current, settings)
            losses = self.fit.mean(self._vector(best.shares)[None])[0]
            code = sum(best.shares[name] for name in self.spec.of_kind("code"))
            points.append(self._point(losses, f"{code:.0%} code", measured=False))
        size = self.spec.proxy.size
        for run in self.tables.rows(
            "SELECT * FROM runs WHERE role = 'check' AND size = ? ORDER BY run", [size]
        ):
            losses = self.losses([run["run"]])[0]
            points.append(self._point(losses, run["level"], measured=True))
        return points

    @property
    def _value(self) -> Floats:
        return np.array([self.spec.value[name] for name in self.domains])

    def _weighed(self, language: float) -> dict[str, float]:
        """Return values of which language has a given part, each kind within as the spec says."""
        value = dict(self.spec.value)
        for kind, weight in (("language", language), ("code", 1 - language)):
            names = self.spec.of_kind(kind)
            total = sum(value[name] for name in names)
            value |= {name: weight * value[name] / total for name in names if total}
        return value

    def _point(self, losses: Floats, text: str, *, measured: bool) -> Json:
        told: Json = {"text": text, "measured": measured}
        for key, kind in (("x", "language"), ("y", "code")):
            at = [self.domains.index(name) for name in self.spec.of_kind(kind)]
            told[key] = float(np.average(losses[at], weights=self._value[at]))
        return told

    def _vector(self, shares: dict[str, float]) -> Floats:
        return np.array([shares[name] for name in self.domains])

    def _shares(self, runs: list[Json]) -> Floats:
        asked = [dict(run["asked"]) for run in runs]
        return np.array([[one.get(name, 0.0) for name in self.domains] for one in asked])

    def _rows(self, select: str, more: str) -> list[Json]:
        return self.tables.rows(f"{select} FROM runs WHERE role <> 'factor' {more}")
