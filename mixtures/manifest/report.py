"""Plain-text tables of plans, builds and manifests."""

from collections.abc import Sequence
from pathlib import Path

from crystalmix.mixtures.build.context import rows_files, sealed_folders
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.manifest.moved_rows import order_lines
from crystalmix.mixtures.plan.plan import PhasePlan
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.runtime.tables import table
from crystalmix.prep.runtime.types import Json

BAR = 24


def plan_lines(plans: Sequence[PhasePlan]) -> list[str]:
    """Return the tables of a plan."""
    lines: list[str] = []
    for phase in plans:
        lines += [
            f"{phase.name}: {phase.steps:,} steps x {phase.batch:,} rows x {phase.msl:,} tokens = "
            f"{phase.tokens:,} tokens ({_asked(phase)})"
        ]
        rows = [
            [
                f"  {part.name}",
                f"{part.asked:.6f}",
                f"{part.rows:,}",
                f"{part.tokens:,}",
                "?" if part.available is None else f"{part.available:,}",
                "?" if part.epochs is None else f"{part.epochs:.3f}",
                "?" if part.seen is None else f"{part.seen:,}",
                part.known,
            ]
            for part in phase.parts
        ]
        head = ["  part", "weight", "rows", "tokens", "available", "epochs", "seen before", "known"]
        lines += table(rows, head)
        if phase.order_bytes:
            size = f"{phase.order_bytes / 1e6:,.1f} MB"
            lines.append(f"  order {phase.order}: holds one byte for each of its positions, {size}")
        lines += [f"  note: {told}" for told in phase.notes]
        lines += [f"  refused: {told}" for told in phase.refusals]
        lines.append("")
    return lines[:-1]


def _asked(phase: PhasePlan) -> str:
    if phase.kind == "weight":
        return f"weights sum to {phase.asked_sum!r}"
    unit = "tokens" if phase.kind == "tokens" else "epochs"
    return f"{phase.asked_sum:,.10g} {unit} asked"


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
            _fim(part.fim),
            "#" * round(BAR * part.got / most),
        ]
        for part in manifest.parts
    ]
    head = ["  part", "asked", "got", "rows", "tokens", "with loss", "epochs", "fim", ""]
    rows.append(["  all", *_total(manifest), "", "", ""])
    return [
        f"{manifest.name} {manifest.phase}: {manifest.steps:,} steps x {manifest.batch:,} rows x "
        f"{manifest.msl:,} tokens, order {manifest.order_version}, seed {manifest.seed}",
        f"  manifest {manifest.digest}",
        *table(rows, head),
    ]


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


def account_lines(build: Path) -> list[str]:
    """Return the accounts of a build's folders: what came in, what went out, what was dropped."""
    sources: list[list[object]] = []
    rows: list[list[object]] = []
    notes: list[str] = []
    for folder in sealed_folders(build):
        receipt = receipts.read(folder)
        account, place = receipt["account"], folder.relative_to(build).as_posix()
        broken = {f"files {k}": v for k, v in account.get("broken_files", {}).items()}
        counted = {**account["dropped"], **broken}
        dropped = ", ".join(f"{k} {v:,}" for k, v in counted.items() if v) or "-"
        if receipt["stage"] == "documents":
            counts = [f"{account[k]:,}" for k in ("records", "documents", "bytes")]
            sources.append([place, *counts, dropped])
            notes += _notes(place, account)
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
    ]


def checked(build: Path) -> str:
    """Return in words what there is of a build to check: phases by name, shards of all stages."""
    phases = [manifest.phase for manifest in read_manifests(build)]
    files = [e for folder in sealed_folders(build) for e in rows_files(receipts.read(folder))]
    return (
        f"{len(phases)} phase{'s' * (len(phases) != 1)} ({', '.join(phases)}), "
        f"{len(files):,} shards, {sum(entry['rows'] for entry in files):,} rows"
    )


def _notes(place: str, account: Json) -> list[str]:
    """Return what lists did not do: entries that match nothing, texts too short to protect."""
    told = [
        f"{place}: {each['unmatched']:,} of {each['entries']:,} entries of {each['file']} "
        "match nothing"
        for each in account.get("opt_out", [])
        if each["unmatched"]
    ]
    found = account.get("evaluations")
    if found:
        told.append(
            f"{place}: {found['runs']:,} runs of words of {found['texts']:,} evaluation texts, "
            f"{found['short']:,} of them too short to have one"
        )
    return told


def statistics_lines(build: Path) -> list[str]:
    """Return what packed folders hold of each source, and the special tokens spelt in texts."""
    rows: list[list[object]] = []
    spelt: list[list[object]] = []
    for folder in sealed_folders(build):
        receipt, place = receipts.read(folder), folder.relative_to(build).as_posix()
        if receipt["stage"] != "pack":
            continue
        for name, told in receipt["account"]["sources"].items():
            lengths, cut = told["lengths"], told["cut"] / max(1, told["documents"])
            quantiles = [f"{lengths.get(q, 0):,}" for q in ("p10", "p50", "p90", "max")]
            ratio = f"{told['bytes_per_token'] or 0:.2f}"
            counts = [f"{told[key]:,}" for key in ("documents", "tokens")]
            rows.append([place, name, *counts, ratio, *quantiles, f"{cut:.1%}"])
        for literal, (documents, times) in receipt["account"]["literals"].items():
            spelt.append([place, literal, f"{documents:,}", f"{times:,}"])
    head = ["folder", "source", "documents", "tokens", "bytes/token", "p10", "p50", "p90", "max"]
    lines = table(rows, [*head, "cut"])
    if spelt:
        lines += ["", *table(spelt, ["folder", "special spelt in texts", "documents", "times"])]
    return lines


def ratio_lines(ratios: Sequence[Json]) -> list[str]:
    """Return asked and got shares of recorded steps as a table."""
    rows = [
        [r["phase"], r["part"], f"{r['asked']:.6f}", f"{r['got'] or 0:.6f}", f"{r['rows']:,}"]
        for r in ratios
    ]
    return table(rows, ["phase", "part", "asked", "got", "rows"])


def read_manifests(path: Path) -> list[Manifest]:
    """Return the manifests at a path: a manifest file, a phase's folder, or a build in order.

    Phases are ordered by lineage: each after the one that its `previous` names.
    """
    places = [path] if path.is_file() or (path / manifests.NAME).exists() else []
    places = places or sorted(path.glob(f"phases/*/{manifests.NAME}"))
    read = [manifests.read(place) for place in places]
    by_digest = {manifest.digest: manifest for manifest in read}

    def depth(manifest: Manifest) -> int:
        before = by_digest.get(manifest.previous or "")
        return 0 if before is None else 1 + depth(before)

    return sorted(read, key=lambda manifest: (depth(manifest), manifest.phase))


def differences(old: Path, new: Path) -> list[str]:
    """Return what differs between two manifests, or two builds phase by phase."""
    before, after = read_manifests(old), read_manifests(new)
    for path, read in ((old, before), (new, after)):
        if not read:
            raise InputError(f"{path}: holds no manifest")
    if len(before) == len(after) == 1:
        return _compared(before[0], after[0])
    phases = {m.phase: m for m in before}, {m.phase: m for m in after}
    told = [f"{name}: only in {old}" for name in phases[0] if name not in phases[1]]
    told += [f"{name}: only in {new}" for name in phases[1] if name not in phases[0]]
    for name in phases[0]:
        if name in phases[1]:
            lines = _compared(phases[0][name], phases[1][name])
            told += [f"{name}: {line}" for line in lines]
    return told


def _compared(old: Manifest, new: Manifest) -> list[str]:
    """Return what differs between two manifests, and then what became of the order."""
    told = manifests.compare(old, new)
    return [*told, *order_lines(old, new)] if told else []


def _fim(settings: Json | None) -> str:
    return "-" if settings is None else f"{settings['rate']:g} {settings['level']}"
