"""Verify: check a build from its files up to its manifests, and report every disagreement.

Everything is read again: the bytes of every file against its receipt, every shard's decoded array
against its digest, rows, tokens, control ids and documents counted anew against the accounts
(conservation), each folder against those it was made from, receipts and manifests against their own
digests, each manifest against the folders it draws from, against its order and against the manifest
before it, and the tokenizer against its fingerprint and canary. Of packed rows that were laid out
only, spans are counted, and the sum over all rows is held against the shuffled ones; the digests of
their packed shards, which nothing else rests on, are not worked out again, nor are control ids
counted where row-level FIM follows.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from crystalmix.mixtures.build import lookups
from crystalmix.mixtures.build.context import shard_files
from crystalmix.mixtures.build.seal import packed_as
from crystalmix.mixtures.manifest import cerebras_order, purged
from crystalmix.mixtures.manifest.build_folder import PHASES, SOURCES, BuildFolder, rows_files
from crystalmix.mixtures.manifest.cerebras_order import ZooOrder
from crystalmix.mixtures.manifest.exact_order import VERSION, integer_weights
from crystalmix.mixtures.manifest.manifest import (
    Manifest,
    ManifestPart,
    PackedAs,
    loss_tokens_of,
    part_digest,
    read_phase_set,
)
from crystalmix.mixtures.manifest.manifest import read as read_manifest
from crystalmix.mixtures.recipes.phase import fraction, shares
from crystalmix.mixtures.redaction import check, redact
from crystalmix.mixtures.verify import accounts, kept, seals, shuffle_test, upsampling
from crystalmix.mixtures.verify.accounts import Check, Counts, ShardCounts
from crystalmix.mixtures.verify.kept import MALFORMED
from crystalmix.mixtures.verify.shuffle_test import repeated
from crystalmix.prep.documents import about
from crystalmix.prep.rows.spans import path_of
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import read_json
from crystalmix.prep.runtime.errors import CrystalmixError, DamageError, InputError
from crystalmix.prep.runtime.receipts import Receipt, Shard
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.runtime.workers import Fanout, watched

SHOWN = 3  # files in a note
Note = Callable[[str], None]


def verify(out: Path, *, workers: int = 1, note: Note = lambda _: None) -> list[str]:
    """Return one line for each fault of a build; none if it is sound.

    note: takes lines about what is no fault but worth knowing.
    """
    if redact.is_redacted(out):
        origin = redact.origin_of(out)
        return [*check.faults(out, origin), *verify(origin, workers=workers, note=note)]
    folders = BuildFolder(out).sealed()
    if not folders:
        raise InputError(f"{out}: holds no build (no {receipts.NAME} below it; is it for --run?)")
    faults = list(_check_unfinished(out))
    sealed: dict[Path, Receipt] = {}
    for folder in folders:
        try:
            receipt = read_json(folder / receipts.NAME)
            accounts.check_whole(folder, receipt)
            sealed[folder] = Receipt.of(receipt)
            receipts.check(folder / receipts.NAME, receipt)
        except DamageError as error:
            faults.append(str(error))
        except MALFORMED as error:
            faults.append(_unfit(folder / receipts.NAME, error))
    broken = _check_files(sealed, faults)
    faults += _check_contents(sealed, broken, workers, note)
    for folder, receipt in sealed.items():
        faults += _guarded(folder / receipts.NAME, _check_account(out, folder, receipt, sealed))
    faults += _check_manifests(out, sealed, note)
    faults += lookups.faults(BuildFolder(out), sealed, note)
    faults += purged.faults(BuildFolder(out), sealed, note)
    faults += seals.receipt_faults(BuildFolder(out), tuple(faults), note)
    faults += seals.faults(BuildFolder(out), note)
    faults += kept.faults(BuildFolder(out), workers, note)
    faults += about.faults(out / about.NAME, {place.name for place in sealed})
    _note_unread(BuildFolder(out), sealed, note)
    for line in upsampling.uncounted_lines(sealed):
        note(line)
    accounts.tell_unread(out, sealed.values(), note)
    return faults


def _guarded(place: Path, lines: Iterator[str]) -> Iterator[str]:
    """Yield the lines about a file, or that it can't be checked."""
    try:
        yield from (f"{place}: {line}" for line in lines)
    except DamageError as error:
        yield f"{place}: {error}"
    except MALFORMED as error:
        yield _unfit(place, error)


def _unfit(place: Path, error: Exception) -> str:
    return f"{place}: can't be checked ({type(error).__name__}: {error}); build again"


def _check_unfinished(out: Path) -> Iterator[str]:
    """Yield a line for each folder that holds files but no receipt."""
    for folder in BuildFolder(out).unsealed():
        yield (
            f"{folder}: holds files but no {receipts.NAME}: it is unfinished; "
            "build again to go on, or remove it"
        )


def _check_files(sealed: dict[Path, Receipt], faults: list[str]) -> set[Path]:
    """Check size and bytes of every file; return those that are broken."""
    broken: set[Path] = set()
    for folder, receipt in watched(sealed.items(), "files", "folder"):
        for entry in receipt.files:
            try:
                lines = accounts.damages(folder, entry)
            except MALFORMED as error:
                lines = [_unfit(folder / receipts.NAME, error)]
            faults += lines
            if lines:
                broken.add(folder / entry["name"])
        names = {entry["name"] for entry in receipt.files}
        faults += [
            f"{path}: is in no receipt; remove it"
            for path in shard_files(folder)
            if path.name not in names
        ]
    return broken


def _check_contents(
    sealed: dict[Path, Receipt], broken: set[Path], workers: int, note: Note
) -> Iterator[str]:
    """Count the files of every folder again and hold them against its receipt."""
    damaged = {path.parent for path in broken}
    whole: list[tuple[Path, Check]] = []
    for folder, receipt in sealed.items():
        try:
            named = [sealed.get(folder.parent / str(name)) for name in receipt.inputs]
            inputs = [origin for origin in named if origin is not None]
            checks = accounts.checks(folder, receipt, inputs)
        except (DamageError, *MALFORMED) as error:
            yield _unfit(folder / receipts.NAME, error)
            continue
        whole += [(folder, c) for c in checks if broken.isdisjoint({c.path, path_of(c.path)})]
    counts: dict[Path, list[Counts]] = {}
    with Fanout(workers) as pool:
        results = pool.map(recount, [check for _, check in whole], "verify")
        for (folder, check), result in zip(whole, results, strict=True):
            if isinstance(result, str):
                damaged.add(folder)
                yield result
            else:
                counts.setdefault(folder, []).append(result)
                yield from _guarded(check.path, accounts.changed(check, result))
    for folder, results in counts.items():
        if folder not in damaged:
            yield from _guarded(folder, accounts.miscounted(sealed[folder], results))
            rows, again = repeated(c.hashes for c in results if isinstance(c, ShardCounts))
            if again:
                why = _why_equal(folder, sealed)
                note(f"{folder}: {again:,} of {rows:,} rows looked at are equal to another{why}")


def _why_equal(folder: Path, sealed: dict[Path, Receipt]) -> str:
    """Return what is known to make rows of a folder equal, nothing where nothing is."""
    receipt = sealed[folder]
    behind = (sealed.get(folder.parent / str(name)) for name in receipt.inputs)
    if any(origin is not None and origin.settings.get("upsample") for origin in behind):
        return ": `upsample` takes documents several times"
    return ": what was purged of them is padding" if receipt.purged else ""


def recount(check: Check) -> Counts | str:
    """Read one file again: what it holds, or a line of why it can't be read."""
    try:
        return accounts.recount(check)
    except DamageError as error:
        return str(error)
    except (pa.ArrowException, OSError, *MALFORMED) as error:
        return f"{check.path}: can't be read ({error}); build again or restore it"


def _check_account(
    out: Path, folder: Path, receipt: Receipt, sealed: dict[Path, Receipt]
) -> Iterator[str]:
    """Check a receipt against itself and against the folders it names as its inputs."""
    yield from accounts.unbalanced(receipt)
    yield from shuffle_test.unshuffled(folder, receipt, sealed)
    place = out / SOURCES if receipt.stage == "pack" else folder.parent
    inputs = {name: sealed.get(place / name) for name in accounts.inherited(receipt)}
    yield from accounts.disinherited(receipt, inputs)
    yield from upsampling.faults(out, receipt)


def _note_unread(folder: BuildFolder, sealed: dict[Path, Receipt], note: Note) -> None:
    """Note the files in a build's folder that no receipt, manifest or seal names."""
    paths = {folder.tokenizer, folder.phase_set, folder.receipt_set, *folder.manifests()}
    paths |= {path.with_name(cerebras_order.KEPT) for path in folder.manifests()}
    paths |= {folder.path / about.NAME, *lookups.named(folder)}
    for place, receipt in sealed.items():
        paths |= {place / entry["name"] for entry in receipt.files} | {place / receipts.NAME}
    # what they hold is named by other builds, or to be freed, or checked with the log
    elsewhere = {folder.store, folder.history, folder.path / purged.PURGE}
    below = (path for place in (folder.path, *sealed) for path in _below(place, elsewhere))
    files = sorted({path for path in below if path not in paths and path.is_file()})
    if files:
        more = ", ..." if len(files) > SHOWN else ""
        names = ", ".join(str(path.relative_to(folder.path)) for path in files[:SHOWN])
        note(f"{folder.path}: {len(files):,} files are of no build and not read ({names}{more})")


def _below(folder: Path, without: Collection[Path]) -> Iterator[Path]:
    """Yield what lies below a folder, but for some paths; links are not followed."""
    with suppress(PermissionError):
        for path in folder.iterdir():
            if path not in without:
                yield path
                if path.is_dir() and not path.is_symlink():
                    yield from _below(path, without)


def _check_phase_set(
    folder: BuildFolder, paths: list[Path], manifests: dict[str, Manifest], note: Note
) -> Iterator[str]:
    """Compare the phases in the folder with those that the build sealed."""
    if not folder.phase_set.exists():
        note(
            f"{folder.phase_set}: is not there, as in builds of older versions: a phase that was "
            "removed can't be noticed; `crystalmix migrate` or building again seals those here"
        )
        return
    sealed = read_phase_set(folder)
    phases = {path.parent.name for path in paths}
    for name, digest in sealed.items():
        if name not in phases:
            yield f"{folder.manifest(name)}: is missing, though the build sealed it; build again"
        elif name in manifests and manifests[name].digest != digest:
            yield f"{folder.manifest(name)}: is not the one that the build sealed; build again"
    for name in sorted(phases - {*sealed}):
        yield f"{folder.manifest(name)}: is not among the phases that the build sealed; build again"


def _check_manifests(out: Path, sealed: dict[Path, Receipt], note: Note) -> Iterator[str]:
    folder = BuildFolder(out)
    entries = {
        place / shard.name: shard
        for place, receipt in sealed.items()
        for shard in rows_files(receipt)
    }
    manifests: dict[str, Manifest] = {}
    for path in (paths := folder.manifests()):
        try:
            manifests[path.parent.name] = read_manifest(path)
        except CrystalmixError as error:
            yield str(error)
    if not paths:
        yield f"{out / PHASES}: holds no manifest: the build is unfinished; build again to go on"
    try:
        yield from _check_phase_set(folder, paths, manifests, note)
    except (DamageError, *MALFORMED) as error:
        yield str(error)
    packings: dict[str, PackedAs | None] = {}
    for domain in {p.domain for m in manifests.values() for p in m.parts if p.packed is not None}:
        try:
            packings[domain] = packed_as(folder, domain)
        except (CrystalmixError, pa.ArrowException, OSError, *MALFORMED):
            continue  # a receipt or documents are damaged: their own checks report it
    digests = {manifest.digest: manifest for manifest in manifests.values()}
    for name, manifest in manifests.items():
        place = folder.manifest(name)
        yield from _guarded(place, _manifest_faults(out, name, manifest, sealed, entries))
        yield from _guarded(place, _packed_faults(manifest, packings))
        if number := purged.superseded_by(folder, manifest):
            note(f"{place}: is from before purge {number}: rows are held to what they hold now")
        else:
            yield from _guarded(place, _purge_faults(folder, manifest))
        if manifest.previous is not None and manifest.previous not in digests:
            shown = str(manifest.previous)[:12]
            yield f"{place}: names a previous manifest {shown} that is not here"
        yield from _guarded(place, _start_faults(manifest, digests))
        if manifest.after is not None:
            note(
                f"{place}: follows phase {manifest.after}, which was built elsewhere; "
                "`crystalmix merge` seals both as one build"
            )
    yield from seals.tokenizer_faults(folder.tokenizer, manifests)


def _manifest_faults(
    out: Path,
    name: str,
    manifest: Manifest,
    sealed: dict[Path, Receipt],
    entries: dict[Path, Shard],
) -> Iterator[str]:
    """Check a manifest against the folders it draws from and against its own order."""
    if manifest.phase != name:
        yield f"is of phase {manifest.phase}, its folder says {name}"
    for part in manifest.parts:
        lines = [
            *shard_faults(out, manifest, part, entries),
            *_folder_faults(out, manifest, part, sealed),
            *_part_faults(manifest, part),
        ]
        yield from (f"part {part.name}: {line}" for line in lines)
    yield from _asked_faults(manifest)
    version = VERSION if manifest.cerebras is None else cerebras_order.VERSION
    if manifest.order_version != version:
        yield f"is ordered by {manifest.order_version}; only {version} can be checked here"
        return
    if isinstance(manifest.order, ZooOrder) and not manifest.order.is_as_drawn():
        yield f"{cerebras_order.KEPT} beside it is another order; remove it"
        return
    counts = manifest.order.counts(manifest.steps * manifest.batch)
    for part, count in zip(manifest.parts, counts, strict=True):
        if part.rows != count:
            yield f"part {part.name}: says {part.rows} rows, the order gives {count}"


def _purge_faults(folder: BuildFolder, manifest: Manifest) -> Iterator[str]:
    """Check that a manifest names all that was purged of its rows, and nothing else."""
    try:
        now = purged.redaction(folder, manifest)
    except (DamageError, pa.ArrowException, OSError):
        return  # a receipt or a side file is damaged: its own check reports it
    says = dict(manifest.redaction or {}) if purged.is_purged(manifest) else {}
    says.pop("origin", None)
    if (now or {}) != says:
        yield "does not say what was purged of its rows, as receipts do; build again"


def _start_faults(manifest: Manifest, digests: dict[str, Manifest]) -> Iterator[str]:
    """Check that a part which begins late begins where a phase before stopped in the same rows."""
    chain = [manifest]
    while chain[-1].previous is not None:
        before = digests.get(chain[-1].previous)
        if before is None or before in chain:
            return
        chain.append(before)
    for part in manifest.parts if chain[-1].after is None else ():
        earlier = [
            other
            for phase in chain[1:]
            if phase.cerebras is None
            for other in phase.parts
            if other.digest == part.digest
        ]
        if part.start and part.start not in {other.start + other.rows for other in earlier}:
            yield f"part {part.name}: begins at draw {part.start}, where no phase before stopped"


def _asked_faults(manifest: Manifest) -> Iterator[str]:
    """Check weights and shares against the recipe's amounts, as written."""
    kinds = {kind for part in manifest.parts for kind in part.budget}
    [kind] = kinds
    written = [part.budget[kind] for part in manifest.parts]
    scales = [part.available if kind == "epochs" else 1 for part in manifest.parts]
    pairs = zip(written, scales, strict=True)
    rounded = manifest.cerebras is not None
    weights = integer_weights([fraction(value, rounded=rounded) * scale for value, scale in pairs])
    if [part.weight for part in manifest.parts] != weights:
        yield "its integer weights are not those of what was asked"
    if [part.asked for part in manifest.parts] != shares(kind, written, weights):
        yield "its asked shares are not those of what was asked"


def shard_faults(
    out: Path, manifest: Manifest, part: ManifestPart, entries: dict[Path, Shard]
) -> Iterator[str]:
    """Check a part's shards against their entries in receipts."""
    for shard in part.shards:
        entry = entries.get(out / shard.path)
        if entry is None:
            yield f"{shard.path} is in no receipt"
        elif entry.digest != shard.digest:
            yield f"{shard.path} has another digest than the manifest says"
        elif (entry.rows, entry.msl) != (shard.rows, manifest.msl):
            yield f"{shard.path} has {entry.rows} rows of {entry.msl} tokens, not as it says"
        elif entry.loss_tokens != shard.loss_tokens:
            yield f"{shard.path} has {entry.loss_tokens} loss-carrying tokens, not as it says"
        if not 0 <= shard.first < shard.last <= shard.rows:
            yield f"{shard.path}: no rows {shard.first} to {shard.last} of {shard.rows}"


def _folder_faults(
    out: Path, manifest: Manifest, part: ManifestPart, sealed: dict[Path, Receipt]
) -> Iterator[str]:
    """Check a part against the receipts of the folders it draws from, and against its documents."""
    for folder in sorted({(out / shard.path).parent for shard in part.shards}):
        yield from _settings_faults(manifest, part, folder, sealed)


def _packed_faults(manifest: Manifest, packings: dict[str, PackedAs | None]) -> Iterator[str]:
    """Check what a manifest of schema 4 says of its parts against receipts and documents."""
    for part in manifest.parts:
        packing = packings.get(part.domain)
        if part.packed is None or packing is None:
            continue
        for key, value in asdict(part.packed).items():
            if getattr(packing, key) != value:
                made = f"its rows were made with {getattr(packing, key)}"
                yield f"part {part.name}: says {key} {value}, {made}"


def _settings_faults(
    manifest: Manifest, part: ManifestPart, folder: Path, sealed: dict[Path, Receipt]
) -> Iterator[str]:
    """Check seed, tokenizer and FIM of a part against the receipts of its stages."""
    if folder not in sealed or folder.parent.name != part.domain:
        yield f"draws from {folder.name} of {folder.parent.name}, not of {part.domain}"
        return
    last = sealed[folder]
    joined = last.stage in {"shuffle", "join"}
    epochs = [sealed[folder.parent / n] for n in last.inputs if folder.parent / n in sealed]
    chain = [last, *epochs] if joined else [last]
    fim = next((step.settings["fim"] for step in chain if "fim" in step.settings), None)
    settings: Json = {"variants": len(last.inputs) if joined else 1, "fim": fim}
    for key, value in settings.items():
        if getattr(part, key) != value:
            yield f"says {key} {getattr(part, key)}, its rows were made with {value}"
    for receipt in chain:
        if "rows" in receipt.settings:
            made, says = _sharing(receipt.settings["rows"]), _sharing(part.sharing or {})
            if made != says:
                yield f"says sharing {says}, its rows were made with {made}"
        if "rows" in receipt.settings and part.upsampling != upsampling.said(receipt):
            yield "says other copies of documents than its rows were made with"
        if receipt.seed not in {None, manifest.seed}:
            yield f"says seed {manifest.seed}, its rows were made with {receipt.seed}"
        tokenizer = asdict(manifest.tokenizer)
        if receipt.settings.get("tokenizer", tokenizer) != tokenizer:
            yield "says another tokenizer than its rows were made with"


def _sharing(rows: Json) -> Json:
    """Return how documents share rows, from the settings of rows or what a manifest says of it."""
    keys = {"pack": "stream", "loss_across": True, "group_tokens": None, "too_long": None}
    sharing = {key: rows.get(key, usual) for key, usual in keys.items()}
    if sharing["pack"] == "stream":  # conversations are cut before their tokens make a stream
        sharing["too_long"] = None
    return sharing


def _part_faults(manifest: Manifest, part: ManifestPart) -> Iterator[str]:
    """Check a part's numbers against each other."""
    if part_digest(part.shards) != part.digest:
        yield "its digest does not follow from its shards"
    available = sum(shard.last - shard.first for shard in part.shards)
    follow = {
        "available": available,
        "tokens": part.rows * manifest.msl,
        "loss_tokens": loss_tokens_of(part.shards, part.rows),
        "got": part.rows / (manifest.steps * manifest.batch),
        "epochs": part.rows / available,
    }
    for key, value in follow.items():
        if getattr(part, key) != value:
            yield f"says {key} {getattr(part, key)}, its rows and shards give {value}"
