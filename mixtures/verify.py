"""Verify: check a build from its files up to its manifests, and tell every disagreement.

Everything is read again: the bytes of every file against its receipt, every shard's decoded array
against its digest, tokens and control ids counted anew against the account (conservation), receipts
and manifests against their own digests, each manifest against the folders it draws from, against
the order and against the manifest before it, and the tokenizer against its fingerprint and canary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtures import manifest as manifests
from mixtures.context import TOKENIZER, rows_files, tokenizer_identity
from mixtures.manifest import Manifest
from mixtures.stages import count_controls
from prep import receipts, shards, spans
from prep.errors import CrystalmixError, DamageError, InputError
from prep.fanout import Fanout
from prep.tokens import TokenizerSettings, load

Json = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One shard to read again; tokenizer: whose ids to count, None where there are no spans."""

    folder: Path
    entry: Json
    tokenizer: Json | None


def verify(out: Path, *, workers: int = 1) -> list[str]:
    """Return one line for each fault of a build; none if it is sound."""
    folders = sorted(path.parent for path in out.glob(f"**/{receipts.NAME}"))
    if not folders:
        raise InputError(f"{out}: holds no build (no {receipts.NAME} below it)")
    told: list[str] = []
    sealed: dict[Path, Json] = {}
    for folder in folders:
        try:
            sealed[folder] = receipts.read(folder)
        except DamageError as error:
            told.append(str(error))
    broken = _check_files(sealed, told)
    told += _check_shards(sealed, broken, workers)
    for folder, receipt in sealed.items():
        told += [f"{folder / receipts.NAME}: {line}" for line in unbalanced(receipt)]
    told += _check_manifests(out, sealed)
    return told


def _check_files(sealed: dict[Path, Json], told: list[str]) -> set[Path]:
    """Check size and bytes of every file; return those that are broken."""
    broken: set[Path] = set()
    for folder, receipt in sealed.items():
        for entry in receipt["files"]:
            lines = receipts.damages(folder, {"files": [entry]})
            told += lines
            if lines:
                broken.add(folder / entry["name"])
    return broken


def _check_shards(sealed: dict[Path, Json], broken: set[Path], workers: int) -> Iterator[str]:
    """Decode every shard again and hold sums over each folder against its account."""
    checks = [
        Check(folder, entry, receipt["settings"].get("tokenizer"))
        for folder, receipt in sealed.items()
        for entry in rows_files(receipt)
        if folder / entry["name"] not in broken
    ]
    found: dict[Path, Json] = {}
    with Fanout(workers) as pool:
        for check, result in zip(checks, pool.map(recount, checks, "verify"), strict=True):
            if "fault" in result:
                yield result["fault"]
            sums = found.setdefault(check.folder, {"tokens": 0, "controls": 0, "whole": True})
            sums["tokens"] += result.get("tokens", 0)
            sums["controls"] += result.get("controls", 0)
            sums["whole"] &= "fault" not in result
    damaged = {path.parent for path in broken}
    for folder, sums in found.items():
        if sums["whole"] and folder not in damaged:
            yield from _recounted(folder, sealed[folder], sums)


def recount(check: Check) -> Json:
    """Read one shard again: `fault`, or `tokens` and `controls` counted from its files."""
    path = check.folder / check.entry["name"]
    try:
        digest = shards.content_digest(path)
        if digest != check.entry["digest"]:
            told = (
                f"{path}: its rows changed (sha256 {digest}, receipt has {check.entry['digest']})"
            )
            return {"fault": told}
        if check.tokenizer is None:
            return {}
        rows, msl = shards.shape(path)
        tokens = spans.tokens(spans.path_of(path))
        ids, pad = tuple(check.tokenizer["controls"]), check.tokenizer["pad"]
        controls = count_controls(path, ids, pad, rows * msl - tokens)
    except DamageError as error:
        return {"fault": str(error)}
    return {"tokens": tokens, "controls": controls}


def _recounted(folder: Path, receipt: Json, sums: Json) -> Iterator[str]:
    account = receipt["account"]
    if receipt["stage"] not in {"pack", "fim"}:
        return
    for key, told in (("tokens", "tokens_out"), ("controls", "controls_out")):
        if sums[key] != account[told]:
            yield f"{folder}: holds {sums[key]} {key}, its account says {account[told]}"


def unbalanced(receipt: Json) -> list[str]:
    """Return where a receipt's account breaks conservation."""
    account = receipt["account"]
    dropped = sum(account["dropped"].values())
    if receipt["stage"] == "documents":
        if account["records"] != account["documents"] + dropped:
            return [
                f"records {account['records']} are not documents {account['documents']} "
                f"+ dropped {dropped}"
            ]
        return []
    told: list[str] = []
    given = account["tokens_in"] + account.get("sentinels", 0) + account.get("recut", 0)
    if given != account["tokens_out"] + dropped:
        told.append(
            f"tokens in {given} are not tokens out {account['tokens_out']} + dropped {dropped}"
        )
    if receipt["stage"] == "pack" and account["tokens_in"] != (
        account["text_tokens"] + account["controls"]
    ):
        told.append(
            f"tokens in {account['tokens_in']} are not text {account['text_tokens']} "
            f"+ controls {account['controls']}"
        )
    return told


def _check_manifests(out: Path, sealed: dict[Path, Json]) -> Iterator[str]:
    read: dict[str, Manifest] = {}
    for path in sorted(out.glob(f"phases/*/{manifests.NAME}")):
        try:
            read[path.parent.name] = manifests.read(path)
        except CrystalmixError as error:
            yield str(error)
    digests = {manifest.digest for manifest in read.values()}
    for name, manifest in read.items():
        place = out / "phases" / name / manifests.NAME
        yield from (f"{place}: {line}" for line in _manifest_faults(out, manifest, sealed))
        if manifest.previous is not None and manifest.previous not in digests:
            yield f"{place}: names a previous manifest {manifest.previous[:12]} that is not here"
    yield from _check_tokenizer(out, read)


def _manifest_faults(out: Path, manifest: Manifest, sealed: dict[Path, Json]) -> Iterator[str]:
    """Hold a manifest against the folders it draws from and against its own order."""
    for part in manifest.parts:
        for shard in part.shards:
            path = out / shard.path
            files = rows_files(sealed.get(path.parent, {"files": []}))
            entry = next((e for e in files if e["name"] == path.name), None)
            if entry is None:
                yield f"part {part.name}: {shard.path} is in no receipt"
            elif entry["digest"] != shard.digest:
                yield f"part {part.name}: {shard.path} has another digest than the manifest says"
        if manifests.part_digest(part.shards) != part.digest:
            yield f"part {part.name}: its digest does not follow from its shards"
    counts = manifest.order.counts(manifest.steps * manifest.batch)
    for part, count in zip(manifest.parts, counts, strict=True):
        if part.rows != count:
            yield f"part {part.name}: says {part.rows} rows, the order gives {count}"


def _check_tokenizer(out: Path, read: dict[str, Manifest]) -> Iterator[str]:
    path = out / TOKENIZER
    if not path.exists():
        yield f"{path}: is missing; restore the tokenizer of this build"
        return
    identity = tokenizer_identity(load(TokenizerSettings(str(path))))
    for name, manifest in read.items():
        for key in ("fingerprint", "canary", "vocab"):
            if manifest.tokenizer[key] != identity[key]:
                yield (
                    f"{path}: has another {key} than phase {name} was built with "
                    f"({identity[key]}, manifest has {manifest.tokenizer[key]})"
                )
