"""Tables of the accounts of a build's folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from crystalmix.mixtures.build.accounts import (
    PackAccount,
    RowsAccount,
    SourceAccount,
    account_of,
    upsampled_lines,
)
from crystalmix.mixtures.manifest.build_folder import SOURCES, BuildFolder, rows_files
from crystalmix.mixtures.manifest.manifest import read_manifests
from crystalmix.mixtures.verify import kept
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.receipts import Receipt
from crystalmix.prep.runtime.tables import table

with imported_later(__name__):
    from crystalmix.prep.tallies import tally

LARGEST = 5  # values of a tally to show
LOST = {"truncate": " shortened", "drop": " left out"}  # in place of cut, by `too_long`


def account_lines(build: Path) -> list[str]:
    """Return the accounts of a build's folders: what came in, what went out, what was dropped."""
    sources: list[list[object]] = []
    rows: list[list[object]] = []
    notes: list[str] = []
    for folder in BuildFolder(build).sealed():
        account, place = account_of(receipts.read(folder)), folder.relative_to(build).as_posix()
        counted = account.dropped
        if isinstance(account, SourceAccount):
            counted = counted | {f"files {k}": v for k, v in account.broken_files.items()}
        dropped = ", ".join(f"{k} {v:,}" for k, v in counted.items() if v) or "-"
        if isinstance(account, SourceAccount):
            counts = (account.records, account.documents, account.bytes)
            sources.append([place, *(f"{count:,}" for count in counts), dropped])
            notes += _notes(place, account)
            notes += _tallied(place, BuildFolder(build).lookup / SOURCES / folder.name)
        else:
            tokens = ["-"] * 3  # an import knows its rows only
            if isinstance(account, RowsAccount):
                counts = (account.tokens_in, account.tokens_out, account.padding)
                tokens = [f"{count:,}" for count in counts]
            rows.append([place, f"{account.rows:,}", *tokens, dropped])
    return [
        *table(sources, ["source", "records", "documents", "bytes", "dropped"]),
        *notes,
        "",
        *table(rows, ["folder", "rows", "tokens in", "tokens out", "padding", "dropped"]),
        "",
        *statistics_lines(build),
        *conversation_lines(build),
        *fitted_lines(build),
        *copies_lines(build),
    ]


def checked(build: Path) -> str:
    """Return a line of what a build holds to check: phases by name, shards of all stages."""
    phases = [manifest.phase for manifest in read_manifests(build)]
    files = [s for folder in BuildFolder(build).sealed() for s in rows_files(receipts.read(folder))]
    return (
        f"{len(phases)} phase{'s' * (len(phases) != 1)} ({', '.join(phases)}), "
        f"{len(files):,} shards, {sum(shard.rows for shard in files):,} rows"
        f"{kept.counted(BuildFolder(build))}"
    )


def _notes(place: str, account: SourceAccount) -> list[str]:
    """Return notes on lists: entries that match nothing, texts too short to protect."""
    notes = [
        f"{place}: {entry.unmatched:,} of {entry.entries:,} entries of {entry.file} match nothing"
        for entry in account.opt_out
        if entry.unmatched
    ]
    if (counts := account.evaluations) is not None:
        notes.append(
            f"{place}: {counts.runs:,} runs of words of {counts.texts:,} evaluation texts, "
            f"{counts.short:,} of them too short to have one"
        )
        notes += [
            f"{place}: {file.file}: {file.protected:,} of {file.items:,} items protected, "
            f"{file.short:,} too short"
            for file in counts.files
        ]
    return notes


def _tallied(place: str, folder: Path) -> Iterator[str]:
    """Yield notes on a source's tallies: how many values, and the largest of them."""
    for kind in tally.KINDS:
        if (known := tally.found(folder, kind)) is not None:
            sealed, largest = known.sealed, known.largest(1.0, LARGEST)[:LARGEST]
            shown = ", ".join(f"{value} {documents:,}" for value, documents, _ in largest)
            yield (
                f"{place}: {kind}: {sealed.values:,} ({sealed.by}); documents of the largest: "
                f"{shown or 'none'}; without one: {sealed.missing_documents:,}"
            )


def _packed(build: Path) -> Iterator[tuple[str, Receipt, PackAccount]]:
    """Yield place, receipt and account of each folder of packed rows."""
    for folder in BuildFolder(build).sealed():
        receipt = receipts.read(folder)
        if receipt.stage == "pack":
            yield folder.relative_to(build).as_posix(), receipt, PackAccount.of(receipt)


def statistics_lines(build: Path) -> list[str]:
    """Return what packed folders hold of each source, and the special tokens spelt in texts."""
    rows: list[list[object]] = []
    spelt: list[list[object]] = []
    for place, _, account in _packed(build):
        for name, source in account.sources.items():
            counts = [f"{source.documents:,}", f"{source.tokens:,}"]
            quantiles = [f"{source.lengths.get(q, 0):,}" for q in ("p10", "p50", "p90", "max")]
            ratio, cut = source.bytes_per_token or 0, source.cut / max(1, source.documents)
            rows.append([place, name, *counts, f"{ratio:.2f}", *quantiles, f"{cut:.1%}"])
        for literal, (documents, times) in account.literals.items():
            spelt.append([place, literal, f"{documents:,}", f"{times:,}"])
    head = ["folder", "source", "documents", "tokens", "bytes/token", "p10", "p50", "p90", "max"]
    lines = table(rows, [*head, "cut"])
    if spelt:
        lines += ["", *table(spelt, ["folder", "special spelt in texts", "documents", "times"])]
    return lines


def conversation_lines(build: Path) -> list[str]:
    """Return what became of the conversations of each folder that has any."""
    rows: list[list[object]] = []
    for place, _, account in _packed(build):
        if (counts := account.chat) is not None:
            numbers = (counts.conversations, counts.rendered, counts.pieces, counts.labels)
            whys = [
                ", ".join(f"{reason} {n:,}" for reason, n in reasons.items() if n) or "-"
                for reasons in (counts.cases, counts.dropped)
            ]
            rows.append([place, *(f"{n:,}" for n in (*numbers, counts.left_out)), *whys])
    head = ["folder", "conversations", "written", "pieces", "learnt ids", "turns left out"]
    return ["", *table(rows, [*head, "odd", "dropped"])] if rows else []


def fitted_lines(build: Path) -> list[str]:
    """Return what fitting documents into rows came to, beside rows that run on over them."""
    rows: list[list[object]] = []
    for place, receipt, account in _packed(build):
        if (counts := account.fitted) is not None:
            settings = receipt.settings["rows"]
            least = -(-account.tokens_out // settings["msl"])
            numbers = (counts.groups, counts.pieces, account.rows, least)
            rows.append(
                [
                    place,
                    settings["pack"],
                    *(f"{number:,}" for number in numbers),
                    f"{account.padding_share(settings['msl']):.2%}",
                    f"{account.cut_share:.1%}{LOST.get(settings.get('too_long'), '')}",
                    f"{account.stream_cut_share:.1%}",
                ]
            )
    head = ["folder", "pack", "groups", "pieces", "rows", "at least", "padding", "cut"]
    return ["", *table(rows, [*head, "as a stream"])] if rows else []


def copies_lines(build: Path) -> list[str]:
    """Return how often the documents of each domain are taken, where that differs."""
    lines: list[str] = []
    for place, receipt, account in _packed(build):
        settings = receipt.settings.get("upsample")
        if settings is not None and settings["epoch"] == 0:
            lines += ["", f"{place}: copies of documents by {settings['by']}"]
            lines += upsampled_lines(account.upsampled or {})
    return lines
