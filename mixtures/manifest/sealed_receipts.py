"""Seal of a build's receipts: one that was edited, and given a new digest of its own, is found.

A receipt's digest says that it is whole, not that it is the one that the build wrote. The seal
keeps of each folder the digest of its recipe and that of its receipt, without the times of raw
files, which differ between builds of one recipe.
"""

from collections.abc import Mapping

from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical, read_json, write_atomic
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.types import Json

Marks = dict[str, dict[str, str]]


def write(build: BuildFolder) -> None:
    """Seal the receipts of a build as they are now.

    One of the recipe that was sealed before keeps its mark, whatever it says: no edit is sealed
    over.
    """
    before, marks = read(build) or {}, Marks()
    for folder in build.sealed():
        name = folder.relative_to(build.path).as_posix()
        old = before.get(name, {})
        try:
            new = mark(read_json(folder / receipts.NAME))
        except DamageError:  # `verify` reports it
            new = old
        if new:
            marks[name] = old if old.get("recipe") == new["recipe"] else new
    if marks != before:
        write_atomic(
            build.receipt_set, canonical({"receipts": marks, "digest": receipts.digest(marks)})
        )


def read(build: BuildFolder) -> Marks | None:
    """Return the marks of receipts by folder; None where a build is of a version without."""
    if not build.receipt_set.exists():
        return None
    sealed = read_json(build.receipt_set)
    if receipts.digest(sealed.get("receipts")) != sealed.get("digest"):
        raise DamageError(
            f"{build.receipt_set}: was edited; restore it, or remove it and build again"
        )
    return sealed["receipts"]


def mark(receipt: Json) -> dict[str, str]:
    """Return the mark of one receipt."""
    recipe = {key: receipt.get(key) for key in receipts.RECIPE_KEYS}
    body = {key: value for key, value in receipt.items() if key not in ("digest", "seen")}
    files: list[Mapping[str, object]] = receipt.get("seen", [])
    files = [{k: v for k, v in file.items() if k != "modified"} for file in files]
    return {"recipe": receipts.digest(recipe), "receipt": receipts.digest([body, files])}
