"""Rehearses the published run on its metadata: `python tests/bench/scale/rehearsal.py DIR`.

60,000 raw files of three bytes, their blocks and tokens in a store (empty), 668 million rows in
shards of 50,000 as the recipe has them, receipts, manifests. Over them goes what is serial and
grows with the run: listing raw files, plan, sealing, reading receipts and manifests and holding
them against each other as `verify` does, `gc`. Each in a process of its own: CPU seconds, memory,
bytes read, and what was counted. Questions and the ledger: `bench_answers`.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import full_scale
from bench_answers import bytes_read

from crystalmix.mixtures.build import seal
from crystalmix.mixtures.manifest.build_folder import SOURCES, BuildFolder, rows_files, shards_of
from crystalmix.mixtures.manifest.coverage import Reads, of_manifests
from crystalmix.mixtures.manifest.manifest import TokenizerIdentity, read_manifests, sealed
from crystalmix.mixtures.plan.plan import draws, plan
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.upkeep.collect import collect
from crystalmix.mixtures.verify import accounts, verify
from crystalmix.prep.readers import listing
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical
from crystalmix.prep.store.store import Store, key_of

SHARD = 50_000


def make(place: Path) -> None:
    """Write the build in shards of 50,000 rows, the raw files and the store."""
    out, raw = place / "build", place / "raw"
    full_scale.write_manifests(out)
    full_scale.write_receipts(out)
    raw.mkdir(parents=True)
    store = Store(BuildFolder(out).store)
    files = [path for own in raw_files(raw).values() for path in own]
    for number, path in enumerate(files):
        if not number % 1000:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"one")
        for kind, suffixes in (("blocks", (".parquet", ".json")), ("tokens", (".ids", ".json"))):
            for suffix in suffixes:
                own = store.file(kind, key_of([kind, number]), suffix)  # pyright: ignore
                own.parent.mkdir(parents=True, exist_ok=True)
                own.touch()
    for folder in BuildFolder(out).sealed():
        receipt = receipts.read(folder)
        kind = "documents" if receipt.stage == "documents" else "rows"
        home = store.folder(kind, key_of(folder.relative_to(out).as_posix()))
        home.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(home)
        folder.symlink_to(home)
        for entry in receipt.files:
            (home / entry["name"]).touch()
        store.write_uses(home.name, {"tokens": [key_of(["tokens", n]) for n in range(60_000)]})


def raw_files(raw: Path) -> dict[int, list[Path]]:
    """Return the raw files by folder, 1,000 in each."""
    return {
        folder: [raw / f"chunk{folder:02d}" / f"part-{n:05d}.jsonl.zst" for n in range(1000)]
        for folder in range(full_scale.FILES // 1000)
    }


def _listing(place: Path) -> str:
    return f"{len(listing.listed('all', ('raw',), place, None).names):,} raw files"


def _plan(_: Path) -> str:
    recipe = recipes.load("crystalcoder")
    plans = plan(recipe)
    Reads.of(draws(recipe, plans)).lines()
    return f"{len(plans)} phases"


def _receipts(place: Path) -> dict[Path, Any]:
    return {folder: receipts.read(folder) for folder in BuildFolder(place / "build").sealed()}


def _read(place: Path) -> str:
    known = _receipts(place)
    shards = sum(len(shards_of(one)) for one in known.values() if one.stage != "documents")
    return f"{len(known)} receipts, {shards:,} entries of shards"


def _sealing(place: Path) -> str:
    """Compose the manifests of all phases from receipts, as a build's end does."""
    out, recipe = place / "build", recipes.load("crystalcoder")
    build, previous, shards = BuildFolder(out), None, 0
    folders: dict[str, Any] = {
        name: SimpleNamespace(
            sealed=receipts.read(build.shuffled(name)),
            place=build.shuffled(name),
            domain=domain,
            copies=None,
        )
        for name, domain in recipe.domains.items()
    }
    basis = seal.Basis(recipe.name, 1, full_scale.MSL, TokenizerIdentity(32032), out)
    for phase in [*recipe.phases.values()][:3]:
        made = sealed(seal.compose(basis, phase, folders, previous))
        previous = made.digest
        shards += len(made.paths)
        canonical(made.content())
    return f"3 manifests, {shards:,} shards"


def _accounts(place: Path) -> str:
    """Hold receipts and manifests against each other, as `verify` does beside reading the files."""
    out, known = place / "build", _receipts(place)
    lines = 0
    entries = {
        folder / entry.name: entry for folder, one in known.items() for entry in rows_files(one)
    }
    for folder, receipt in known.items():
        place = out / SOURCES if receipt.stage == "pack" else folder.parent
        inputs = {name: known.get(place / name) for name in accounts.inherited(receipt)}
        lines += len(accounts.unbalanced(receipt)) + len(accounts.disinherited(receipt, inputs))
    for manifest in read_manifests(out):
        for part in manifest.parts:
            lines += len([*verify.shard_faults(out, manifest, part, entries)])
        counts = manifest.order.counts(manifest.steps * manifest.batch)
        lines += sum(p.rows != n for p, n in zip(manifest.parts, counts, strict=True))
    return f"{len(entries):,} shards, {lines} faults"


def _reads(place: Path) -> str:
    return f"{len(Reads.of(of_manifests(read_manifests(place / 'build'))).lines())} lines"


def _gc(place: Path) -> str:
    garbage = collect(place / "build")
    return f"{sum(entry.entries for entry in garbage.entries):,} unnamed"


STAGES: dict[str, Callable[[Path], str]] = {
    "list raw files": _listing,
    "plan": _plan,
    "read receipts": _read,
    "seal three phases": _sealing,
    "hold accounts, manifests": _accounts,
    "what all phases read": _reads,
    "gc, listing": _gc,
}


def ask(place: Path, stage: str) -> None:
    """Run a stage and print its figures in one line."""
    read_before, began = bytes_read(), time.process_time()
    counted = STAGES[stage](place)
    seconds, peak = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = (bytes_read() - read_before) / 1e6
    sys.stdout.write(f"{stage:26} {seconds:8.1f} {peak / 1024:8.0f} {read:8.1f}   {counted}\n")


def main() -> None:
    """Make it where it is not there, then run each stage in a process of its own."""
    full_scale.SHARD = SHARD
    if sys.argv[1] == "--ask":
        ask(Path(sys.argv[2]), sys.argv[3])
        return
    place = Path(sys.argv[1])
    if not (place / "build").exists():
        began = time.process_time()
        make(place)
        sys.stdout.write(f"made in {time.process_time() - began:.0f} CPU-s\n")
    sys.stdout.write(f"{'':26} {'CPU-s':>8} {'MiB':>8} {'MB read':>8}\n")
    sys.stdout.flush()
    for stage in STAGES:
        subprocess.run([sys.executable, __file__, "--ask", place, stage], check=True)


if __name__ == "__main__":
    main()
