"""Check of receipts against the seal of their build, which knows the digest of each."""

from collections.abc import Callable, Collection, Iterator

from crystalmix.mixtures.manifest import purged, sealed_receipts
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import read_json
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.types import Json


def faults(
    build: BuildFolder,
    lines: Collection[str],
    note: Callable[[str], None],
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
        if _is_purged(build, receipt):
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


def _is_purged(build: BuildFolder, receipt: Json) -> bool:
    """Tell whether a build is a state of another from before a purge, which changed a receipt."""
    return purged.KEY in receipt and build.is_past
