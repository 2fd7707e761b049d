"""Cost of an ablation before anything is trained: runs, tokens and hours."""

from dataclasses import asdict, dataclass

from crystalmix.mixtures.ablations.pool_of_build import reuse
from crystalmix.mixtures.ablations.spec import Ablation, find, load
from crystalmix.mixtures.ablations.trials import CHECKED
from crystalmix.prep.runtime.tables import table
from crystalmix.prep.runtime.types import Content
from crystalmix.train.ablations.proxies import proxy_device
from crystalmix.train.ablations.proxy_sizes import seconds_a_step
from crystalmix.train.model.processes import fast_dtype

VOCAB = 32_032  # assumed where the proxies take the recipe's own tokenizer


@dataclass(frozen=True)
class Line:
    """Runs of one kind: how many, of which size, tokens of all, core-hours of all."""

    kind: str
    runs: int
    size: str
    tokens: int
    hours: float


@dataclass(frozen=True)
class Cost:
    """Runs of each kind; hours: of this machine with that many workers, training alone."""

    lines_: tuple[Line, ...]
    workers: int
    dtype: str = "float32"

    @property
    def hours(self) -> float:
        """Hours from the first run to the last."""
        return sum(line.hours for line in self.lines_) / self.workers

    def content(self) -> Content:
        """Return it as JSON."""
        return {
            "runs": [asdict(line) for line in self.lines_],
            "tokens": sum(line.tokens for line in self.lines_),
            "workers": self.workers,
            "hours": self.hours,
            "dtype": self.dtype,
        }

    def lines(self) -> list[str]:
        """Return it as a table."""
        rows = [[x.kind, x.runs, x.size, f"{x.tokens:,}", f"{x.hours:.3f}"] for x in self.lines_]
        tokens = sum(line.tokens for line in self.lines_)
        return [
            *table(rows, ["runs of", "runs", "size", "tokens", "core-hours"]),
            "",
            f"{sum(line.runs for line in self.lines_)} runs, {tokens:,} tokens, about "
            f"{self.hours:.2f} hours on {self.workers} cores in {self.dtype}, without the build",
        ]


def cost(name: str, workers: int) -> Cost:
    """Count an ablation's runs and time a few steps of each size on this machine."""
    spec, recipe = load(name)
    vocab = spec.proxy.vocab or VOCAB
    if spec.build is not None:
        vocab = reuse(find(name), spec, recipe).pool.tokenizer.vocab
    seconds: dict[str, float] = {}
    lines: list[Line] = []
    dtype = fast_dtype(proxy_device())
    for kind, runs, size, steps in _runs(spec):
        if size not in seconds:
            seconds[size] = seconds_a_step(size, vocab, spec.proxy.batch, spec.proxy.msl, dtype)
        hours = runs * steps * seconds[size] / 3600
        tokens = steps * spec.proxy.batch * spec.proxy.msl
        lines.append(Line(kind, runs, size, runs * tokens, hours))
    return Cost(tuple(lines), workers, dtype)


def _runs(spec: Ablation) -> list[tuple[str, int, str, int]]:
    """Return the runs of each kind, size and steps, those kinds left out that have none."""
    size, checks, factors = spec.proxy.size, spec.checks, spec.factors
    pareto = int(checks.pareto and bool(spec.of_kind("language")))
    levels = {
        name: len(getattr(factors, name)) for name in ("fim_rate", "order", "replay", "epochs")
    }
    lines = [
        ("design", spec.swarm.count, size),
        ("replicates", spec.swarm.replicates, size),
        ("anchors", spec.swarm.replicates * spec.swarm.anchors, size),
        ("checks", checks.seeds * (CHECKED + pareto), size),
        *((f"checks at {other}", checks.seeds * CHECKED, other) for other in checks.sizes),
        *((f"factor {name}", factors.seeds * count, size) for name, count in levels.items()),
    ]
    more = [
        (f"scale {scale.size}", scale.count + scale.replicates, scale.size, scale.steps)
        for scale in spec.scales
    ]
    plain = [(*line, None) for line in lines]
    return [
        (kind, runs, size, steps or spec.proxy.steps)
        for kind, runs, size, steps in [*plain[:3], *more, *plain[3:]]
        if runs
    ]
