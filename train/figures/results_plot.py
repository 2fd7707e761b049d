"""Results of a run against tokens, by part and by phase, and what each phase changed.

One row a measure: bits per byte of held-out parts, FIM's middles, tasks. On the left its values
over the tokens of all phases; on the right the change within each phase, from the last value of the
phase before to its own last (from its own first where none is before). Read there whether the last
phase helped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalmix.mixtures.manifest.manifest import read_manifests
from crystalmix.prep.runtime.errors import InputError
from crystalmix.train.figures.charts import palette
from crystalmix.train.figures.mixture_plot import checked, saved
from crystalmix.train.record import metrics
from crystalmix.train.record.metrics import MIDDLE
from crystalmix.train.record.run_folder import WHERE, PhaseFolder, build_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BITS, MIDDLES, EXACT = "bits per byte", "middles: bits per byte", "middles: exact"
LOWER = {BITS, MIDDLES}  # measures that are better where they are lower; of tasks it is not known
WIDTH, HEIGHT, DOTS = 13.0, 3.2, 150
MOST = 9  # lines of a measure that get colours of their own


@dataclass(frozen=True)
class Result:
    """A value of a measure after `tokens` tokens of all phases; line: the part or the task."""

    measure: str
    line: str
    phase: str
    tokens: int
    value: float


@dataclass(frozen=True)
class Change:
    """What a phase changed in a line of a measure: its value before and after."""

    measure: str
    line: str
    phase: str
    before: float
    after: float


def results(run: Path, build: Path | None = None) -> list[Result]:
    """Return all results of a run, in order of its build's phases and of tokens."""
    if not (run / WHERE).exists():
        raise InputError(f"{run}: is no run; give the --out of `crystalmix train` to --plot")
    done = 0
    results: list[Result] = []
    for manifest in read_manifests(build_of(run, build)):
        folder, size = PhaseFolder(run / manifest.phase), manifest.batch * manifest.msl
        if not folder.path.exists():
            continue
        values = sorted(_values(folder), key=lambda value: value[2])
        results += [
            Result(measure, line, manifest.phase, done + step * size, value)
            for measure, line, step, value in values
        ]
        done += manifest.steps * size
    return results


def changes(values: Sequence[Result]) -> list[Change]:
    """Return what each phase changed, line by line, nothing for a single value with none before."""
    last: dict[tuple[str, str], Result] = {}
    whole: dict[tuple[str, str, str], Change] = {}
    for value in values:
        before = last.get((value.measure, value.line))
        key = value.measure, value.line, value.phase
        if key in whole:
            whole[key] = replace(whole[key], after=value.value)
        elif before is not None:
            whole[key] = Change(*key, before.value, value.value)
        last[value.measure, value.line] = value
    return list(whole.values())


def figure(results: Sequence[Result]) -> "Figure":
    """Draw results: one row a measure."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(result.measure for result in results))
    drawn = Figure(figsize=(WIDTH, HEIGHT * len(names)), dpi=DOTS, layout="constrained")
    axes: Any = drawn.subplots(len(names), 2, squeeze=False, width_ratios=(3, 2))
    for (left, right), name in zip(axes, names, strict=True):
        own = [result for result in results if result.measure == name]
        colours = palette([result.line for result in own])
        _over_tokens(left, name, own, colours)
        _by_phase(right, name, changes(own), colours)
    return drawn


def draw(run: Path, build: Path | None, file: Path) -> str:
    """Draw a run's results into a file (PNG, SVG or PDF), and say so."""
    checked(file)
    values = results(run, build)
    if not values:
        raise InputError(
            f"{run}: has no results to draw; add `evaluation` to the run file, or name --tasks"
        )
    return saved(figure(values), file)


def _values(folder: PhaseFolder) -> list[tuple[str, str, int, float]]:
    """Return measure, line, step and value of all results of a phase."""
    losses = metrics.evaluations(folder)
    values = [
        (BITS, bits.part, bits.step, bits.bits_per_byte) for bits in metrics.bits_of_parts(losses)
    ]
    for loss in losses:
        if loss.kind == MIDDLE and loss.bits_per_byte is not None:
            values.append((MIDDLES, loss.part, loss.step, loss.bits_per_byte))
        if loss.exact_match is not None:
            values.append((EXACT, loss.part, loss.step, loss.exact_match))
    tasks = metrics.tasks(folder)
    settings = {(task.task, task.digest): None for task in tasks}
    several = {name for name, _ in settings if sum(task == name for task, _ in settings) > 1}
    for result in tasks:  # one task with other examples or data is another line
        name = f"{result.task} ({result.digest[:6]})" if result.task in several else result.task
        values.append((f"tasks: {result.metric}", name, result.step, result.value))
    return values


def _over_tokens(
    axis: "Axes", name: str, values: Sequence[Result], colours: Mapping[str, Any]
) -> None:
    """Draw a measure over the tokens of all phases, a mark where each phase's results begin."""
    for line, colour in colours.items():
        own = [value for value in values if value.line == line]
        x, y = [value.tokens for value in own], [value.value for value in own]
        axis.plot(x, y, color=colour, linewidth=1.2, marker=".", label=line)
    ends: dict[str, int] = {}
    for value in values:
        ends[value.phase] = max(value.tokens, ends.get(value.phase, 0))
    for phase, end in ends.items():
        axis.axvline(end, color="0.7", linewidth=0.8)
        axis.annotate(f"{phase} ", (end, 1.01), xycoords=("data", "axes fraction"), ha="right")
    axis.set_xlim(left=0)
    axis.set_xlabel("tokens (phases one after the other)")
    axis.set_ylabel(name)
    axis.grid(visible=True, color="0.92")
    axis.legend(fontsize="small", frameon=False, ncols=1 + len(colours) // (MOST + 1))


def _by_phase(axis: "Axes", name: str, steps: Sequence[Change], colours: Mapping[str, Any]) -> None:
    """Draw what each phase changed, a bar a line."""
    phases = list(dict.fromkeys(step.phase for step in steps))
    wide = 0.8 / max(1, len(colours))
    for place, (line, colour) in enumerate(colours.items()):
        own = {step.phase: step.after - step.before for step in steps if step.line == line}
        x = [phases.index(phase) + (place + 0.5) * wide - 0.4 for phase in own]
        axis.bar(x, list(own.values()), wide, color=colour)
    axis.axhline(0, color="0.3", linewidth=0.8)
    axis.set_xticks(range(len(phases)), phases)
    better = " (lower is better)" if name in LOWER else ""
    axis.set_ylabel(f"change within the phase{better}", fontsize="small")
    axis.grid(visible=True, axis="y", color="0.92")
    axis.set_axisbelow(True)
