"""Check of what a build sealed of itself: receipts, its copy of the tokenizer, states of history.

The seal of receipts knows the digest of each, manifests the identity of the tokenizer. States are
builds of links: their rows are those of the store, which the build's own check reads where it still
names them; of a state its manifests, seals and tokenizer are read.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from crystalmix.mixtures.build.context import tokenizer_identity
from crystalmix.mixtures.build.view import state_of
from crystalmix.mixtures.manifest import purged, sealed_receipts
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest, read_manifests, read_phase_set
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import read_json
from crystalmix.prep.runtime.errors import CrystalmixError, DamageError
from crystalmix.prep.tokenizer.tokenizer import Tokenizer, TokenizerSettings

REMEDY = "restore it: runs that were trained on that state rest on it"


def tokenizer_faults(path: Path, manifests: Mapping[str, Manifest]) -> Iterator[str]:
    """Yield where a tokenizer is not the one that phases were built with."""
    if manifests and all(manifest.imported for manifest in manifests.values()):
        return
    if not path.exists():
        yield f"{path}: is missing; restore the tokenizer of this build"
        return
    try:
        identity = tokenizer_identity(Tokenizer(TokenizerSettings(str(path)), path.read_bytes()))
    except (CrystalmixError, KeyError, TypeError, ValueError, AttributeError) as error:
        yield f"{path}: can't be loaded ({error}); restore the tokenizer of this build"
        return
    for name, manifest in manifests.items():
        for key in ("fingerprint", "canary", "vocab"):
            if (sealed := getattr(manifest.tokenizer, key)) != identity[key]:
                yield (
                    f"{path}: has another {key} than phase {name} was built with "
                    f"({identity[key]}, manifest has {sealed})"
                )


def receipt_faults(
    build: BuildFolder, lines: Collection[str], note: Callable[[str], None]
) -> Iterator[str]:
    """Yield where receipts are not those that a build sealed.

    lines: faults found before; of the folders that they begin with nothing more is said.
    """
    try:
        marks = sealed_receipts.read(build)
    except (DamageError, TypeError, AttributeError) as error:
        yield str(error)
        return
    if marks is None and build.manifests():
        note(
            f"{build.receipt_set}: is not there, as in builds of older versions: a receipt "
            "that was edited and sealed again can't be noticed; building again seals those here"
        )
    since = 0  # receipts that a purge wrote anew, of which those before are no more
    for name, old in (marks or {}).items():
        folder = build.path / name
        if any(line.startswith((f"{folder}/", f"{folder}:")) for line in lines):
            continue
        if not (folder / receipts.NAME).exists():
            yield f"{folder}: is missing, though the build sealed it; build again"
            continue
        receipt = read_json(folder / receipts.NAME)
        now = sealed_receipts.mark(receipt)
        if purged.KEY in receipt and build.is_past:
            now["receipt"], since = old["receipt"], since + 1
        if now != old:
            yield (
                f"{folder / receipts.NAME}: is not the one that the build sealed; "
                "restore it, or remove the folder and build again"
            )
    if since:
        note(
            f"{build.receipt_set}: {since} receipts were purged since, so that their digests are "
            "not read; their recipes are"
        )


def faults(build: BuildFolder, note: Callable[[str], None]) -> Iterator[str]:
    """Yield where a state's manifests, seals, receipts or tokenizer are not as they were kept.

    note: takes lines about what is not read of them.
    """
    if build.within is not None:
        return  # the build that it is of has these states
    for state in build.states():
        try:
            yield from _faults(build, state, note)
        except (CrystalmixError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            yield f"{state.path}: can't be checked ({' '.join(str(error).split())}); {REMEDY}"


def _faults(build: BuildFolder, state: BuildFolder, note: Callable[[str], None]) -> Iterator[str]:
    manifests = read_manifests(state.path)
    sealed, here = read_phase_set(state), {m.phase: m.digest for m in manifests}
    if sealed not in ({}, here):
        yield f"{state.phase_set}: does not name the phases that are there; {REMEDY}"
    if state_of(state) != state.path.name:
        yield f"{state.path}: holds other phases than it was named by; {REMEDY}"
    for folder in state.sealed():
        receipts.read(folder)
    yield from receipt_faults(state, (), note)
    kept, now = state.tokenizer, build.tokenizer
    if kept.exists() and not (now.exists() and kept.read_bytes() == now.read_bytes()):
        yield from tokenizer_faults(kept, {m.phase: m for m in manifests})
