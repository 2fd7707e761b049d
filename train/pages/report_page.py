"""A report as one HTML file: templates filled from evidence, style and script within."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from crystalmix.mixtures.manifest.manifest import read_manifests
from crystalmix.prep.rows.shards import ROW_TOKEN_BYTES
from crystalmix.prep.runtime.atomic_files import write_atomic
from crystalmix.prep.runtime.tables import visible
from crystalmix.prep.runtime.types import Content
from crystalmix.train.figures.flows import Flow, flow
from crystalmix.train.pages import page_parts, refs
from crystalmix.train.pages.curves import Curve, Plot, Point, plot
from crystalmix.train.pages.evidence import Evidence
from crystalmix.train.pages.page_parts import Accounts
from crystalmix.train.pages.refs import Ref
from crystalmix.train.trace.answers import Answer, Grid

SMALL_BYTES = 2**30
TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Report(Answer):
    """A report: its evidence, and the page that shows it."""

    evidence: Evidence

    @property
    def faulty(self) -> bool:
        """Whether `verify` found faults."""
        return self.evidence.verified is not None and bool(self.evidence.verified.faults)

    def content(self) -> Content:
        """Return the evidence as JSON."""
        return asdict(self.evidence)

    def shown(self) -> Iterator[str | Grid]:
        """Yield what the report is of, and how much it shows."""
        page = self.evidence
        if page.kind == "ablation":
            yield f"report of the ablation {page.name}"
            return
        verdict = "not verified"
        if page.verified is not None:
            verdict = f"{len(page.verified.faults)} faults" if self.faulty else "sound"
        yield f"report of the {page.kind} {page.name}: {len(page.rows)} rows shown, {verdict}"

    @property
    def html(self) -> str:
        """The page, which needs no other file and no network."""
        return render("report.html", self.evidence)

    def write(self, file: Path) -> int:
        """Write the page; return its bytes."""
        content = self.html.encode()
        write_atomic(file, content)
        return len(content)


def is_small(build: Path) -> bool:
    """Tell whether the rows that a build's phases draw from are read again in a minute or so."""
    shards = {
        s.path: s.rows * m.msl for m in read_manifests(build) for p in m.parts for s in p.shards
    }
    return sum(shards.values()) * ROW_TOKEN_BYTES < SMALL_BYTES


def render(template: str, evidence: Evidence, **more: object) -> str:
    """Fill a template with evidence."""
    ref, starts = Ref(asdict(evidence)), _starts(evidence)
    accounts = Accounts(ref["build"])
    drawn = _flow(ref, accounts)
    part_plot = _part_plot(evidence, starts)
    values: dict[str, object] = {
        "e": ref,
        "explore": False,
        "version": version("crystalmix"),
        "sections": page_parts.sections(ref, drawn is not None),
        "records": [account["records"] for account in accounts.sources],
        "documents": [account["documents"] for account in accounts.sources],
        "parts": [part for manifest in _manifests(ref) for part in manifest["parts"]],
        "sources": accounts.sources,
        "packed": accounts.packed,
        "folders": accounts.folders,
        "reasons": accounts.reasons,
        "longest": accounts.longest,
        "flow": drawn,
        "loss_plot": _loss_plot(evidence, starts),
        "held_out": [phase.phase for phase in evidence.sealed if phase.held_out],
        "loss_units": " or ".join(
            dict.fromkeys(s.loss_unit for s in evidence.sealed if s.loss_unit and s.recorded)
        ),
        "part_plot": part_plot,
        "part_labels": list(dict.fromkeys(name for name, _ in part_plot.paths))
        if part_plot
        else [],
        "row_keys": list(dict.fromkeys(f"{row.phase} / {row.part}" for row in evidence.rows)),
        "commands": page_parts.commands(ref),
        "colour_of": page_parts.Colours(ref).of,
        "evaluated": page_parts.evaluated,
        "sum_of": page_parts.sum_of,
        "on_scale": page_parts.on_scale,
        "segments_of": page_parts.segments,
        "included": included,
        **more,
    }
    return environment().get_template(template).render(values)


def included(name: str) -> Markup:
    """Return a file of the templates as it is."""
    return Markup((TEMPLATES / name).read_text("utf-8"))


@cache
def environment() -> Environment:
    """Return the environment of the templates; whatever they print is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(n=refs.shown, total=refs.total, digest=refs.digest)
    return environment


def _shown(value: object) -> object:
    """Return what a template prints, with the controls of a text from data spelt out."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return visible(value, keep="\n\t")
    return value


def _manifests(evidence: Ref) -> list[Ref]:
    return list(evidence["build"]["manifests"]) if evidence["build"] else []


def _starts(evidence: Evidence) -> dict[str, int]:
    """Return where each recorded phase begins on an axis of all steps."""
    starts, start = dict[str, int](), 0
    for phase in evidence.sealed:
        if phase.recorded:
            starts[phase.phase] = start
            start += phase.recorded + phase.skipped
    return starts


def _loss_plot(evidence: Evidence, starts: dict[str, int]) -> Plot | None:
    """Return the loss of all rows with the steps that stand out."""
    losses = evidence.losses
    if losses is None:
        return None
    whole = [point for point in losses.points if point.part is None]
    curves = [  # a line that goes on from one phase to the next would say what nobody measured
        Curve(
            "loss",
            [starts[phase] + p.step for p in whole if p.phase == phase],
            [p.loss for p in whole if p.phase == phase],
        )
        for phase in starts
    ]
    stand: list[tuple[Any, Any, Any]] = [(s["phase"], s["step"], s["loss"]) for s in losses.spikes]
    stand += [(point.phase, point.step, point.loss) for point in losses.highest]
    points = [
        Point(f"{phase} step {step}", f"spike-{phase}-{step}", starts[phase] + step, loss)
        for phase, step, loss in stand
        if loss is not None
    ]
    return plot(curves, starts, points)


def _part_plot(evidence: Evidence, starts: dict[str, int]) -> Plot | None:
    """Return the loss of each part; a part of several phases is one curve in each of them."""
    if evidence.losses is None:
        return None
    lines: dict[tuple[str, str], list[tuple[float, float | None]]] = {}
    for point in evidence.losses.points:
        if point.part is not None:
            line = lines.setdefault((point.part, point.phase), [])
            line.append((starts[point.phase] + point.step, point.loss))
    curves = [
        Curve(part, [x for x, _ in line], [y for _, y in line]) for (part, _), line in lines.items()
    ]
    return plot(curves, starts)


def _flow(evidence: Ref, accounts: Accounts) -> Flow | None:
    """Return what flows from sources to domains (tokens there once), and on to phases."""
    first = [
        (name, folder["folder"].it.split("/")[1], float(source["tokens"].it))
        for folder in accounts.packed
        if folder["folder"].it.endswith("/epoch-0")
        for name, source in folder["sources"].members
    ]
    second: dict[tuple[str, str], float] = {}
    for manifest in _manifests(evidence):
        for part in manifest["parts"]:
            key = part["domain"].it, manifest["phase"].it
            second[key] = second.get(key, 0.0) + part["tokens"].it
    drawn = {domain for domain, _ in second}
    return flow(
        [link for link in first if link[1] in drawn],
        [(domain, phase, tokens) for (domain, phase), tokens in second.items()],
    )
