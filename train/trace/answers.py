"""Answers of `crystalmix trace` and `sql`: as JSON content and as lines."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crystalmix.mixtures.build.context import TOKENIZER
from crystalmix.mixtures.manifest import rows_of_steps as consuming
from crystalmix.mixtures.manifest.report import ratio_lines, table
from crystalmix.prep.rows import shards
from crystalmix.prep.runtime.errors import InputError, UsageError
from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings, load
from crystalmix.train.ablations import tables as evidence
from crystalmix.train.record import skips
from crystalmix.train.record import views as trace
from crystalmix.train.record.run_folder import WHERE, build_of
from crystalmix.train.record.views import MOST_DOCUMENTS, Traced
from crystalmix.train.trace import repeats as repeating
from crystalmix.train.trace import spikes as spiking
from crystalmix.train.trace.findings import findings
from crystalmix.train.trace.spikes import SpikeSettings

Json = dict[str, Any]
FIM = ("", "PSM", "SPM")
SNIPPET = 72
MOST_ROWS = 1000
READING = ("SELECT", "EXPLAIN", "PRAGMA", "SET", "MULTI")  # statements of DuckDB; MULTI: a PIVOT


@dataclass(frozen=True)
class Answer:
    """What a question gave; faulty: findings were found."""

    content: Any
    lines: list[str] = field(default_factory=list)
    faulty: bool = False


def answer(
    run: Path,
    build: Path | None,
    *,
    step: str | None,
    document: str | None,
    ratios: str | None,
    repeats: str | None,
    findings: bool,
    spikes: SpikeSettings | None,
) -> Answer:
    """Answer the one question asked of a run; UsageError unless it is one."""
    if sum(map(bool, (step, document, ratios, repeats, findings, spikes))) != 1:
        raise UsageError(
            "trace: ask one of --step PHASE:STEP, --document NAME, --ratios FIRST:LAST, "
            "--repeats PHASE, --spikes [PHASE], --findings"
        )
    place = build_of(run, build)
    if findings:
        return _disagreements(place, run)
    traced = trace.connect(place, run)
    if step is not None:
        return _step(traced, step)
    if document is not None:
        return _document(traced, document)
    if spikes is not None:
        found = spiking.spikes(traced, spikes)
        return Answer(found, spiking.spike_lines(found, spikes))
    if repeats is not None:
        parts = repeating.repeats(traced, repeats)
        return Answer(parts, repeating.repeat_lines(parts, repeats))
    first, last = _range(traced, ratios or "")
    told = trace.ratios(traced, first, last)
    return Answer(told, ratio_lines(told))


def query(path: Path, build: Path | None, asked: str | None) -> Answer:
    """Run SQL over a build or a run; without SQL, list the views and their columns."""
    is_run = (path / WHERE).exists()
    traced = trace.connect(build_of(path, build), path) if is_run else _opened(path)
    if asked is None:
        return _views(traced)
    _check_reads(traced, asked)
    rows = traced.rows(asked)
    head = list(rows[0]) if rows else []
    cells = [[_cell(value) for value in row.values()] for row in rows[:MOST_ROWS]]
    more = [f"... {len(rows) - MOST_ROWS} more rows"] if len(rows) > MOST_ROWS else []
    return Answer(rows, [*table(cells, head), *more] if rows else ["no rows"])


def _check_reads(traced: Traced, asked: str) -> None:
    """Refuse SQL that writes: a build, a run and the folder here are only looked at."""
    with trace.explained():
        statements = traced.connection.extract_statements(asked)
    for statement in statements:
        kind = statement.type.name
        # EXPLAIN ANALYZE does what it explains.
        if kind not in READING or (kind == "EXPLAIN" and "analyze" in asked.lower()):
            raise UsageError(f"sql: only reads (SELECT and the like), got {kind}")


def _opened(path: Path) -> Traced:
    """Open an ablation or a build."""
    return evidence.connect(path) if (path / evidence.SPEC).exists() else trace.connect(path)


def _step(traced: Traced, asked: str) -> Answer:
    phase, number = consuming.parse(asked)
    manifest = traced.manifests.get(phase)
    if manifest is not None and manifest.imported is not None:
        rows = trace.rows(traced, phase, number)
        told = f"{phase} was imported and has no spans: these are its rows, not its documents"
        return Answer(rows, [*consuming.row_lines(rows), told])
    told = trace.documents(traced, phase, number)
    for piece in told:
        piece["fim"] = FIM[piece["fim"]]
        piece["snippet"] = snippet(traced, piece)
    cells = [
        [p["slot"], p["part"], p["stop"] - p["start"], p["fim"], p["name"], p["snippet"]]
        for p in told
    ]
    return Answer(told, table(cells, ["slot", "part", "tokens", "fim", "document", "text"]))


def snippet(traced: Traced, piece: Json, length: int = SNIPPET) -> str:
    """Return the beginning of a document piece as it stands in its row, on one line."""
    tokenizer = load(TokenizerSettings(str(traced.build / TOKENIZER)))
    row = shards.read(traced.build / piece["shard"], piece["row"], piece["row"] + 1)[0, 0]
    ids = row[piece["start"] : min(piece["stop"], piece["start"] + length)].tolist()
    text = " ".join(tokenizer.decode(ids, whole=False).split())
    return text[:length]


def _document(traced: Traced, name: str) -> Answer:
    found = trace.find_documents(traced, name)
    if not found:
        imported = any(manifest.imported for manifest in traced.manifests.values())
        why = " (it was imported and knows no documents)" if imported else ""
        raise InputError(
            f"no document of {traced.build} is called {name!r} or has it in its name{why}"
        )
    exact = any(name in (d["name"], f"{d['file']}#{d['record']}") for d in found)
    if not exact and len({d["name"] for d in found}) > 1:
        return _candidates(name, found)
    told = [
        {"source": d["source"], **step}
        for d in found
        for step in trace.steps(traced, d["source"], d["document"])
    ]
    columns = ("source", "phase", "step", "slot", "shard", "row")
    cells = [[*(s[c] for c in columns), _recorded(s)] for s in told]
    steps = table(cells, [*columns, "recorded"])
    lines = [f"{d['source']}: {d['name']} ({d['file']}#{d['record']})" for d in found]
    lines += steps if told else ["no step of any phase consumes it"]
    return Answer({"documents": found, "steps": told}, lines)


def _recorded(step: Json) -> str:
    return "skipped" if step["skipped"] else "yes" if step["recorded"] else "no"


def _candidates(name: str, found: list[Json]) -> Answer:
    """List documents that have a name in theirs, to choose from."""
    shown = found[:MOST_DOCUMENTS]
    count = f"{len(shown)} documents" if shown == found else f"over {len(shown)} documents"
    cells = [[d["source"], d["name"], f"{d['file']}#{d['record']}", d["characters"]] for d in shown]
    lines = table(cells, ["source", "document", "file#record", "characters"])
    told = f"{count} have {name!r} in their names; ask for one of them:"
    return Answer({"documents": shown, "steps": None}, [told, *lines])


def _range(traced: Traced, asked: str) -> tuple[int, int]:
    """Return the first and the last step of a range in which steps are recorded, all of it."""
    first, _, last = asked.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise UsageError(f"--ratios: must be FIRST:LAST such as 0:999, got {asked!r}")
    if int(first) > int(last):
        raise UsageError(f"--ratios: FIRST must not be after LAST, got {asked}")
    [told] = traced.rows("SELECT max(step) AS last FROM steps")
    if told["last"] is None or int(last) > told["last"]:
        recorded = "none" if told["last"] is None else f"0 to {told['last']}"
        raise UsageError(f"--ratios: the recorded steps are {recorded}, got {asked}")
    return int(first), int(last)


def _disagreements(build: Path, run: Path) -> Answer:
    told = findings(build, run)
    skipped = skips.lines(skips.recorded(run)) if not told else []
    return Answer(told, told or ["ledger equals plan: yes", *skipped], faulty=bool(told))


def _views(traced: Traced) -> Answer:
    query = """
        SELECT table_name AS view, string_agg(column_name, ', ' ORDER BY column_index) AS columns
        FROM duckdb_columns() WHERE NOT internal AND table_name NOT IN ('packed', 'origins')
        GROUP BY table_name ORDER BY table_name
    """
    rows = traced.rows(query)
    return Answer(rows, table([[row["view"], row["columns"]] for row in rows], ["view", "columns"]))


def _cell(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else value
