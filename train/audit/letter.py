"""Letter: the answer to one who asked whether a run consumed something, as plain text."""

from collections.abc import Iterator

from crystalmix.mixtures.redaction.find_documents import Found
from crystalmix.prep.runtime.tables import counted, visible
from crystalmix.train.audit.audit import WORDS, Audit, EntryAudit, PhaseExposure
from crystalmix.train.audit.evidence import Evidence

OF_NONE = "is true of no document of the build; records that were dropped were not asked"
FIM = "of them permuted by fill-in-the-middle"


def letter(audit: Audit, evidence: Evidence, by: str = "") -> str:
    """Return the text of an audit; evidence: as written beside it. by: who signs, and when."""
    lines = [
        f"What the training run {audit.run.name} consumed"
        if audit.run
        else f"What the build {audit.build.name} plans to consume",
        "",
        f"Of {counted(len(audit.entries), 'entry', 'entries')} the names, prefixes or digests",
        "were looked up among all records that were read for this build, kept or dropped,",
        "and among their copies of equal text.",
        f"{audit.near.line()}.",
        "",
    ]
    for entry in audit.entries:
        lines += [*_entry(entry), ""]
    lines += ["What this rests on:"]
    for phase in audit.phases:
        lines.append(
            f"  phase {phase.phase}: manifest {phase.manifest}, {phase.recorded:,} of "
            f"{counted(phase.steps, 'step')} recorded"
        )
        if phase.chain:
            ranges = ", ".join(phase.proof)
            lines.append(f"    chain of batches ends in {phase.chain} (steps {ranges})")
    files = [file for source in evidence.sources.values() for file in source.files]
    lines.append(
        f"  {counted(len(files), 'file')} of {counted(len(evidence.sources), 'source')} with "
        f"{sum(file.lines for file in files):,} documents and dropped records; their sha256"
    )
    lines.append("    stand in the evidence")
    lines += [
        "",
        "It holds for these bytes: a text that was changed in any way is another text.",
        f"Evidence: sha256 {evidence.digest}; `crystalmix audit --check` works it out anew.",
    ]
    lines += ["", f"Signed: {by}"] if by else []
    return "".join(f"{visible(line)}\n" for line in lines)


def _entry(entry: EntryAudit) -> Iterator[str]:
    absent = entry.kind == "sql" and entry.verdict == "absent"
    yield f"{entry.entry} {OF_NONE if absent else WORDS[entry.verdict]}."
    if entry.documents:
        yield f"  documents: {len(entry.documents):,}"
    if entry.copies:
        names = ", ".join(f"{copy.name} ({_related(copy)})" for copy in entry.copies[:3])
        more = ", ..." if len(entry.copies) > 3 else ""
        yield f"  copies: {len(entry.copies):,}: {names}{more}"
    for reason in sorted({drop.reason for drop in entry.dropped}):
        count = sum(drop.reason == reason for drop in entry.dropped)
        yield f"  dropped before training: {count:,} ({reason})"
    for number in entry.purged:
        yield f"  purged from the build since: certificate {number}"
    for exposure in entry.own:
        yield from _exposure(exposure, "")
    for exposure in entry.as_copies:
        yield from _exposure(exposure, " as copies")
    if entry.first and entry.last:
        yield f"  first in step {entry.first.step:,} of phase {entry.first.phase},"
        yield f"  last in step {entry.last.step:,} of phase {entry.last.phase}"
        checkpoint = entry.clean or "none is kept"
        yield f"  last checkpoint before the first exposure: {checkpoint}"


def _related(copy: Found) -> str:
    share = "" if copy.similarity is None else f", similarity {copy.similarity:.2f}"
    return f"{copy.relation}{share}"


def _exposure(exposure: PhaseExposure, kind: str) -> Iterator[str]:
    if exposure.rows:
        epochs = ", ".join(str(epoch + 1) for epoch in exposure.epochs)
        permuted = exposure.psm + exposure.spm
        yield (
            f"  phase {exposure.phase}: {counted(exposure.rows, 'row')}{kind} in "
            f"{counted(exposure.steps, 'step')} ({exposure.first:,} to {exposure.last:,}), "
            f"{counted(exposure.tokens, 'token')} in {counted(exposure.pieces, 'piece')}, "
            f"{permuted:,} {FIM}; of epoch {epochs}"
        )
    if exposure.planned_rows:
        rows = counted(exposure.planned_rows, "row")
        yield f"  phase {exposure.phase}: planned, not done: {rows}{kind}"
    if exposure.skipped_rows:
        rows = counted(exposure.skipped_rows, "row")
        yield f"  phase {exposure.phase}: skipped: {rows}{kind}"
