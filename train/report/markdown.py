"""Markdown: the sections that cards share, and the plain card of a build or run."""

from crystalmix.mixtures.manifest.report import redaction_line
from crystalmix.prep.runtime.tables import counted, visible
from crystalmix.train.record.metrics import HeldOutLoss
from crystalmix.train.report.facts import Facts, PhaseFacts, SourceFacts
from crystalmix.train.report.words import Blanks, table

SHOWN = 10  # values of a tally


def card(facts: Facts, blanks: Blanks) -> list[str]:
    """Return the plain card."""
    say, card = blanks.say, facts.card
    kind = "run" if facts.run is not None else "build"
    return [
        f"# {card.dataset.title or facts.name}",
        "",
        f"Card of a {kind} of the recipe `{facts.name}`.",
        "",
        f"- Provider: {say('provider.name', card.provider.name)}",
        f"- Contact: {say('provider.contact', card.provider.contact)}",
        f"- Licence of the whole: {say('dataset.licence', card.dataset.licence)}",
        f"- Published: {say('dataset.published', card.dataset.published)}",
        "",
        *totals(facts, blanks),
        *sources(facts, blanks),
        *phases(facts),
        *results(facts),
        *evidence(facts),
        *blanks.section(),
    ]


def totals(facts: Facts, blanks: Blanks) -> list[str]:
    """Return documents and tokens: unique, planned, consumed."""
    documents = sum(source.documents for source in facts.sources)
    lines = [
        "## Size",
        "",
        f"- Documents kept, of all sources: {documents:,}"
        if facts.sources
        else "- Documents kept, of all sources: not known of imported rows",
        "- Tokens of the domains trained on, each once: "
        f"{blanks.say('tokens of imported domains', facts.unique)}",
        f"- Tokens planned, epochs counted: {facts.planned:,}",
    ]
    if facts.consumed is not None:
        lines.append(f"- Tokens consumed by recorded steps, epochs counted: {facts.consumed:,}")
    return [*lines, ""]


def sources(facts: Facts, blanks: Blanks) -> list[str]:
    """Return what is known of each source, then what was dropped of it."""
    lines = ["## Sources", ""]
    for source in facts.sources:
        lines += [f"### {source.title}", "", *described(facts, source, blanks), ""]
    return lines


def described(facts: Facts, source: SourceFacts, blanks: Blanks) -> list[str]:
    """Return the lines of one source: what was said of it, what was read, kept, dropped."""
    about, name = source.about, f"sources.{source.name}.about"
    fields = {
        "kind": about.kind,
        "licence": about.licence,
        "url": about.url,
        "revision": about.revision,
        "collected.from": about.collected.since,
        "collected.to": about.collected.to,
        "languages": about.languages,
        "personal": about.personal,
        "reservations": about.reservations,
    }
    lines = [f"- {key}: {blanks.say(f'{name}.{key}', value)}" for key, value in fields.items()]
    if about.text:
        lines.append(f"- {about.text}")
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in source.dropped.items())
    files = counted(len(source.files), "file or shard", "files or shards")
    return [
        *lines,
        f"- read from: {source.place} ({files}, {_stored(source)})",
        f"- records: {source.records:,}; documents kept: {source.documents:,} "
        f"({source.bytes:,} bytes, {source.characters:,} characters of text)",
        f"- dropped, by reason: {dropped or 'none'}",
        *tallied(source),
        f"- tokens in the domains trained on, each once: {_tokens(facts, source)}",
        f"- digest of the documents: `{source.digest}`",
    ]


def _stored(source: SourceFacts) -> str:
    """Return the size of a source's files; nobody measures shards of a hub dataset."""
    if any(file.bytes is None for file in source.files):
        return "of a size that is not recorded"
    return f"{sum(file.bytes or 0 for file in source.files):,} bytes as stored"


def tallied(source: SourceFacts) -> list[str]:
    """Return the lines of a source's tallies: how many values, the largest, documents without."""
    lines: list[str] = []
    for name, tally in (("domains of urls", source.domains), ("licences", source.licences)):
        if tally is None:
            continue
        sealed, largest = tally.sealed, tally.largest(1.0, SHOWN)[:SHOWN]
        shown = ", ".join(f"{visible(value)} {documents:,}" for value, documents, _ in largest)
        more = ", ..." if sealed.values > len(largest) else ""
        lines.append(
            f"- {name} of documents: {sealed.values:,} ({sealed.by}); documents of the largest: "
            f"{shown or 'none'}{more}; without one: {sealed.missing_documents:,} documents, "
            f"{sealed.missing_bytes:,} bytes"
        )
    return lines


def phases(facts: Facts) -> list[str]:
    """Return a table of parts for each phase."""
    lines = ["## Mixture", ""]
    for phase in facts.phases:
        lines += [f"### Phase {phase.name}", "", *_phase(phase)]
    rows = [[t.domain, t.source, t.documents, t.tokens] for t in facts.tokens]
    head = ["domain", "source", "documents", "tokens, once"]
    return [*lines, "### Domains", "", *table(head, rows)]


def results(facts: Facts) -> list[str]:
    """Return the last held-out losses and results of tasks of each phase, nothing without any."""
    losses = [
        [phase.name, f"{e.step:,}", e.part, e.kind, f"{e.tokens:,}", *_losses(e)]
        for phase in facts.phases
        for e in phase.losses
    ]
    tasks = [
        [phase.name, f"{e.step:,}", e.task, e.metric, f"{e.value:.4f}", f"{e.samples:,}"]
        for phase in facts.phases
        for e in phase.tasks
    ]
    head = ["phase", "step", "held-out part", "labels", "tokens", "nats/token", "bits/byte"]
    lines = table([*head, "exact"], losses) if losses else []
    if tasks:
        lines += table(["phase", "step", "task", "metric", "value", "questions"], tasks)
    return ["## Results", "", *lines] if lines else []


def _losses(line: HeldOutLoss) -> list[str]:
    numbers = ["" if n is None else f"{n:.4f}" for n in (line.loss, line.bits_per_byte)]
    return [*numbers, "" if line.whole is None else f"{line.exact} of {line.whole}"]


def evidence(facts: Facts) -> list[str]:
    """Return the digests that the numbers rest on, and how to check them."""
    lines = ["## Evidence", ""]
    for phase in facts.phases:
        lines.append(f"- manifest of {phase.name}: `{phase.manifest.digest}`")
        if phase.chain:
            lines.append(f"- head of the ledger's chain of {phase.name}: `{phase.chain}`")
    lines += [
        f"- phase {phase.name} was {line}; the numbers above are those before it"
        for phase in facts.phases
        if (line := redaction_line(phase.manifest)) is not None
    ]
    command = (
        "crystalmix verify BUILD" if facts.run is None else "crystalmix verify BUILD --run RUN"
    )
    return [*lines, f"- `{command}` works all of it out anew from the files.", ""]


def _tokens(facts: Facts, source: SourceFacts) -> str:
    tokens = facts.tokens_of(source.name)
    return "none" if tokens is None else f"{tokens:,}"


def _phase(phase: PhaseFacts) -> list[str]:
    manifest = phase.manifest
    line = f"{manifest.steps:,} steps of {manifest.batch:,} rows of {manifest.msl:,} tokens."
    if phase.steps is not None:
        line += f" Recorded: {phase.steps:,} steps; skipped: {phase.skipped:,}."
    head = ["part", "domain", "asked", "got", "rows", "tokens", "expected with loss", "epochs"]
    rows: list[list[object]] = [
        [p.name, p.domain, p.asked, p.got, p.rows, p.tokens, p.loss_tokens, p.epochs]
        for p in (part.planned for part in phase.parts)
    ]
    if phase.steps is not None:
        head += ["rows consumed", "tokens consumed", "of them with loss"]
        for row, p in zip(rows, phase.parts, strict=True):
            row += [p.consumed, p.consumed_tokens, p.learnt]
    return [line, "", *table(head, rows)]
