"""Tables of manifests, and of what differs between two."""

from __future__ import annotations

from pathlib import Path

from crystalmix.mixtures.manifest.manifest import Manifest, compare, read_manifests
from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.tables import table
from crystalmix.prep.runtime.types import Json

with imported_later(__name__):
    from crystalmix.mixtures.manifest import moved_rows

BAR = 24


def manifest_lines(manifest: Manifest) -> list[str]:
    """Return a manifest as a table with a bar for each part's share."""
    most = max(part.got for part in manifest.parts)
    rows = [
        [
            f"  {part.name}",
            f"{part.asked:.6f}",
            f"{part.got:.6f}",
            f"{part.rows:,}",
            f"{part.tokens:,}",
            "unknown" if part.loss_tokens is None else f"{part.loss_tokens:,}",
            f"{part.epochs:.3f}",
            "-" if part.fim is None else f"{part.fim['rate']:g} {part.fim['level']}",
            bar(part.got, most),
        ]
        for part in manifest.parts
    ]
    head = ["  part", "asked", "got", "rows", "tokens", "with loss", "epochs", "fim", ""]
    rows.append(["  all", *_total(manifest), "", "", ""])
    return [
        f"{manifest.name} {manifest.phase}: {manifest.steps:,} steps x {manifest.batch:,} rows x "
        f"{manifest.msl:,} tokens, order {manifest.order_version}, seed {manifest.seed}",
        f"  manifest {manifest.digest}",
        *([f"  {line}"] if (line := redaction_line(manifest)) else []),
        *_sharing_lines(manifest),
        *_upsampling_lines(manifest),
        *table(rows, head),
    ]


def bar(value: float, most: float) -> str:
    """Return a bar whose length is a value's share of the greatest one.

    >>> bar(1, 4)
    '######'
    """
    return "#" * round(BAR * value / most) if most else ""


def redaction_line(manifest: Manifest) -> str | None:
    """Return what was taken out of the rows of a redacted or purged phase, None for nothing."""
    if (redaction := manifest.redaction) is None:
        return None
    word, by = "redacted", ""
    if certificates := redaction.get("certificates"):
        word, by = "purged", f" by {', '.join(certificates)}"
    return (
        f"{word}{by}: {redaction['documents']:,} documents, {redaction['tokens']:,} tokens of "
        f"{redaction['rows']:,} rows are padding; of manifest {redaction['origin'][:16]}"
    )


def _sharing_lines(manifest: Manifest) -> list[str]:
    """Return how documents share rows, by part, where they don't simply run on."""
    ways: dict[str, list[str]] = {}
    for part in manifest.parts:
        if part.sharing is not None:
            loss = "over" if part.sharing["loss_across"] else "not over"
            way = f"{part.sharing['pack']}, documents {part.sharing['documents']}, loss {loss} ends"
            ways.setdefault(way, []).append(part.name)
    every = len(manifest.parts)
    return [
        f"  rows: {way}{'' if len(names) == every else ' (' + ', '.join(names) + ')'}"
        for way, names in ways.items()
    ]


def _upsampling_lines(manifest: Manifest) -> list[str]:
    """Return a line for each domain whose documents have different numbers of copies."""
    lines: dict[str, str] = {}
    for part in manifest.parts:
        if (rule := part.upsampling) is not None:
            sources: Json = rule["sources"]
            missing = sum(counts["missing"] for counts in sources.values())
            documents = sum(counts["documents"] for counts in sources.values())
            copies = missing * rule["missing"] + sum(
                bucket["copies"] for counts in sources.values() for bucket in counts["buckets"]
            )
            most = max(counts["most"] for counts in sources.values())
            lines[part.domain] = (
                f"  upsampled: {part.domain} by {rule['by']}, {copies:,} copies of {documents:,} "
                f"documents, at most {most} of one"
            )
    return [*lines.values()]


def _total(manifest: Manifest) -> list[str]:
    """Return asked, got, rows, tokens and loss-carrying tokens of a whole phase."""
    parts = manifest.parts
    counted = [part.loss_tokens for part in parts]
    known = [count for count in counted if count is not None]
    sums = (sum(part.asked for part in parts), sum(part.got for part in parts))
    return [
        *(f"{share:.6f}" for share in sums),
        f"{sum(part.rows for part in parts):,}",
        f"{sum(part.tokens for part in parts):,}",
        f"{sum(known):,}" if len(known) == len(counted) else "unknown",
    ]


def differences(old: Path, new: Path) -> list[str]:
    """Return what differs between two manifests, or two builds phase by phase."""
    before, after = read_manifests(old), read_manifests(new)
    for path, manifests in ((old, before), (new, after)):
        if not manifests:
            raise InputError(f"{path}: holds no manifest")
    if len(before) == len(after) == 1:
        return _compared(before[0], after[0])
    phases = {m.phase: m for m in before}, {m.phase: m for m in after}
    lines = [f"{name}: only in {old}" for name in phases[0] if name not in phases[1]]
    lines += [f"{name}: only in {new}" for name in phases[1] if name not in phases[0]]
    for name in phases[0]:
        if name in phases[1]:
            pair = phases[0][name], phases[1][name]
            lines += [f"{name}: {line}" for line in _compared(*pair)]
    return lines


def _compared(old: Manifest, new: Manifest) -> list[str]:
    """Return what differs between two manifests, and then how the order changed."""
    lines = compare(old, new)
    return [*lines, *moved_rows.order_lines(old, new)] if lines else []
