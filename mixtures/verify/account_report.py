"""Tables of the accounts of a build's folders."""

from collections.abc import Iterator
from pathlib import Path

from crystalmix.mixtures.manifest.build_folder import SOURCES, BuildFolder, rows_files
from crystalmix.mixtures.manifest.manifest import read_manifests
from crystalmix.mixtures.manifest.report import cut_shares, upsampled_lines
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.tables import table
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.tallies import tally

LARGEST = 5  # values of a tally to show
LOST = {"truncate": " shortened", "drop": " left out"}  # in place of cut, by `too_long`


def account_lines(build: Path) -> list[str]:
    """Return the accounts of a build's folders: what came in, what went out, what was dropped."""
    sources: list[list[object]] = []
    rows: list[list[object]] = []
    notes: list[str] = []
    for folder in BuildFolder(build).sealed():
        receipt = receipts.read(folder)
        account, place = receipt.account, folder.relative_to(build).as_posix()
        broken = {f"files {k}": v for k, v in account.get("broken_files", {}).items()}
        counted = {**account["dropped"], **broken}
        dropped = ", ".join(f"{k} {v:,}" for k, v in counted.items() if v) or "-"
        if receipt.stage == "documents":
            counts = [f"{account[k]:,}" for k in ("records", "documents", "bytes")]
            sources.append([place, *counts, dropped])
            notes += _notes(place, account)
            notes += _tallied(place, BuildFolder(build).lookup / SOURCES / folder.name)
        else:
            keys = ("rows", "tokens_in", "tokens_out", "padding")  # an import knows its rows only
            counts = [f"{account[k]:,}" if k in account else "-" for k in keys]
            rows.append([place, *counts, dropped])
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
    files = [e for folder in BuildFolder(build).sealed() for e in rows_files(receipts.read(folder))]
    return (
        f"{len(phases)} phase{'s' * (len(phases) != 1)} ({', '.join(phases)}), "
        f"{len(files):,} shards, {sum(entry['rows'] for entry in files):,} rows"
    )


def _notes(place: str, account: Json) -> list[str]:
    """Return notes on lists: entries that match nothing, texts too short to protect."""
    notes = [
        f"{place}: {entry['unmatched']:,} of {entry['entries']:,} entries of {entry['file']} "
        "match nothing"
        for entry in account.get("opt_out", [])
        if entry["unmatched"]
    ]
    counts = account.get("evaluations")
    if counts:
        notes.append(
            f"{place}: {counts['runs']:,} runs of words of {counts['texts']:,} evaluation texts, "
            f"{counts['short']:,} of them too short to have one"
        )
        notes += [
            f"{place}: {file['file']}: {file['protected']:,} of {file['items']:,} items protected, "
            f"{file['short']:,} too short"
            for file in counts.get("files", [])  # folders made before have none
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


def statistics_lines(build: Path) -> list[str]:
    """Return what packed folders hold of each source, and the special tokens spelt in texts."""
    rows: list[list[object]] = []
    spelt: list[list[object]] = []
    for folder in BuildFolder(build).sealed():
        receipt, place = receipts.read(folder), folder.relative_to(build).as_posix()
        if receipt.stage != "pack":
            continue
        for name, source in receipt.account["sources"].items():
            lengths, cut = source["lengths"], source["cut"] / max(1, source["documents"])
            quantiles = [f"{lengths.get(q, 0):,}" for q in ("p10", "p50", "p90", "max")]
            ratio = f"{source['bytes_per_token'] or 0:.2f}"
            counts = [f"{source[key]:,}" for key in ("documents", "tokens")]
            rows.append([place, name, *counts, ratio, *quantiles, f"{cut:.1%}"])
        for literal, (documents, times) in receipt.account["literals"].items():
            spelt.append([place, literal, f"{documents:,}", f"{times:,}"])
    head = ["folder", "source", "documents", "tokens", "bytes/token", "p10", "p50", "p90", "max"]
    lines = table(rows, [*head, "cut"])
    if spelt:
        lines += ["", *table(spelt, ["folder", "special spelt in texts", "documents", "times"])]
    return lines


def conversation_lines(build: Path) -> list[str]:
    """Return what became of the conversations of each folder that has any."""
    rows: list[list[object]] = []
    for folder in BuildFolder(build).sealed():
        counts = receipts.read(folder).account.get("chat")
        if counts is not None:
            keys = ("conversations", "rendered", "pieces", "labels", "left_out")
            whys = [
                ", ".join(f"{reason} {n:,}" for reason, n in counts[key].items() if n) or "-"
                for key in ("cases", "dropped")
            ]
            place = folder.relative_to(build).as_posix()
            rows.append([place, *(f"{counts[key]:,}" for key in keys), *whys])
    head = ["folder", "conversations", "written", "pieces", "learnt ids", "turns left out"]
    return ["", *table(rows, [*head, "odd", "dropped"])] if rows else []


def fitted_lines(build: Path) -> list[str]:
    """Return what fitting documents into rows came to, beside rows that run on over them."""
    rows: list[list[object]] = []
    for folder in BuildFolder(build).sealed():
        receipt = receipts.read(folder)
        account = receipt.account
        if "fitted" in account:
            settings, counts = receipt.settings["rows"], account["fitted"]
            cut, streamed = cut_shares(account)
            least = -(-account["tokens_out"] // settings["msl"])
            rows.append(
                [
                    folder.relative_to(build).as_posix(),
                    settings["pack"],
                    f"{counts['groups']:,}",
                    f"{counts['pieces']:,}",
                    f"{account['rows']:,}",
                    f"{least:,}",
                    f"{padding_of(account, settings['msl']):.2%}",
                    f"{cut:.1%}{LOST.get(settings.get('too_long'), '')}",
                    f"{streamed:.1%}",
                ]
            )
    head = ["folder", "pack", "groups", "pieces", "rows", "at least", "padding", "cut"]
    return ["", *table(rows, [*head, "as a stream"])] if rows else []


def copies_lines(build: Path) -> list[str]:
    """Return how often the documents of each domain are taken, where that differs."""
    lines: list[str] = []
    for folder in BuildFolder(build).sealed():
        receipt = receipts.read(folder)
        settings = receipt.settings.get("upsample")
        if settings is not None and settings["epoch"] == 0:
            place = folder.relative_to(build).as_posix()
            lines += ["", f"{place}: copies of documents by {settings['by']}"]
            lines += upsampled_lines(receipt.account["upsampled"])
    return lines


def padding_of(account: Json, msl: int) -> float:
    """Return the share of padding among the tokens of a folder's rows, by its account."""
    return account["padding"] / (account["rows"] * msl)
