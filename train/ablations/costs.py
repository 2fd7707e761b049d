"""Cost of an ablation before anything is trained: runs, tokens and hours."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from crystalmix.mixtures.ablations.pool_of_build import reuse
from crystalmix.mixtures.ablations.spec import Ablation, find, load
from crystalmix.mixtures.ablations.trials import CHECKED
from crystalmix.prep.runtime.tables import table
from crystalmix.prep.runtime.types import Content
from crystalmix.train.ablations.conclusions import RunNoise, difference
from crystalmix.train.ablations.measure import answers_of
from crystalmix.train.ablations.proxies import proxy_device
from crystalmix.train.ablations.proxy_sizes import seconds_a_step
from crystalmix.train.model.processes import fast_dtype

SD_OF_A_PAIR = 0.0152  # nats of valued loss, of two runs of one seed
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
class Power:
    """What paired runs of one question let be seen, if they stray as SD_OF_A_PAIR says.

    questions: of a table, whose intervals hold together. half_width: of the interval, nats.
    detectable: the difference that is seen with probability 0.8; None where nothing estimates the
    noise.
    """

    question: str
    pairs: int
    questions: int
    half_width: float | None
    detectable: float | None


@dataclass(frozen=True)
class Cost:
    """Runs of each kind; hours: of this machine with that many workers, training alone."""

    lines_: tuple[Line, ...]
    workers: int
    dtype: str = "float32"
    power: tuple[Power, ...] = ()

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
            "power": [asdict(one) for one in self.power],
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
            *self._power_lines(),
        ]

    def _power_lines(self) -> Iterator[str]:
        if not self.power:
            return
        rows = [
            [
                x.question,
                x.pairs,
                *("-" if n is None else f"{n:.4f}" for n in (x.half_width, x.detectable)),
            ]
            for x in self.power
        ]
        yield ""
        yield from table(rows, ["question", "pairs", "half width", "seen with probability .8"])
        yield (
            f"nats of valued loss, if a paired difference strays by {SD_OF_A_PAIR:g} (SD, "
            "proxies of 0.2 M parameters and 0.3 M tokens); the report goes by the noise that it "
            "measures"
        )


def cost(name: str, workers: int) -> Cost:
    """Count an ablation's runs and time a few steps of each size on this machine."""
    spec, recipe = load(name)
    answers_of(spec, find(name).parent)
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
    return Cost(tuple(lines), workers, dtype, tuple(_power(spec)))


def _power(spec: Ablation) -> Iterator[Power]:
    """Yield what checks, and each factor's levels against its first, let be seen."""
    swarm, seeds = spec.swarm, spec.factors.seeds
    counts = {name: count for name, count in _levels(spec) if count > 1}
    freedom = (seeds - 1) * sum(count - 1 for count in counts.values())
    asked = [(f"factor {name}", seeds, count - 1, freedom) for name, count in counts.items()]
    if spec.checks.seeds:
        seen = swarm.replicates * swarm.anchors + 2 * (spec.checks.seeds - 1)
        asked.insert(0, ("checks", spec.checks.seeds, 2, seen))
    for question, pairs, questions, freedom in asked:
        noise = RunNoise(None, 0, SD_OF_A_PAIR / 2**0.5, freedom)
        judged = difference([0.0] * pairs, noise, spec.checks.delta, questions)
        yield Power(question, pairs, questions, judged.half_width, judged.detectable)


def _levels(spec: Ablation) -> list[tuple[str, int]]:
    """Return how many levels each factor has."""
    names = ("fim_rate", "order", "replay", "epochs")
    third = [("third_phase", 2)] if spec.factors.third_phase else []
    return [*((name, len(getattr(spec.factors, name))) for name in names), *third]


def _runs(spec: Ablation) -> list[tuple[str, int, str, int]]:
    """Return the runs of each kind, size and steps, those kinds left out that have none."""
    size, checks, factors = spec.proxy.size, spec.checks, spec.factors
    pareto = int(checks.pareto and bool(spec.of_kind("language")))
    lines = [
        ("design", spec.swarm.count, size),
        ("replicates", spec.swarm.replicates, size),
        ("anchors", spec.swarm.replicates * spec.swarm.anchors, size),
        ("checks", checks.seeds * (CHECKED + pareto), size),
        *((f"checks at {other}", checks.seeds * CHECKED, other) for other in checks.sizes),
        *(
            (f"factor {name}", factors.seeds * count, other)
            for other in factors.sizes or (size,)
            for name, count in _levels(spec)
        ),
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
