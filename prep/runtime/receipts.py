"""Receipts: what made a folder of outputs, written last and atomically.

A folder without `receipt.json` is unfinished. One whose receipt has the wanted recipe (stage,
settings, seed, inputs) and whose files are all there is fresh and is not rebuilt. One made by
another recipe is refused, with the difference shown.

Work items inside an unfinished folder leave `*.done` files, so that a killed build goes on where
it stopped; `seal` removes them.
"""

from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from crystalmix.prep.runtime.atomic_files import canonical, file_digest, read_json, write_atomic
from crystalmix.prep.runtime.errors import DamageError, StaleError
from crystalmix.prep.runtime.types import Json

NAME = "receipt.json"
RECIPE_KEYS = ("stage", "version", "settings", "seed", "inputs")


def digest(value: object) -> str:
    """Return the sha256 of the canonical JSON of a value, in hex."""
    return sha256(canonical(value)).hexdigest()


def describe(path: Path) -> Json:
    """Return the entry of one output file: name, size in bytes, xxh3-128 of its bytes."""
    return {"name": path.name, "bytes": path.stat().st_size, "xxh3": file_digest(path)}


def once(path: Path, wanted: object, compute: Callable[[], Json]) -> Json:
    """Return the result of a work item, computing it only if `path` does not hold it yet.

    `wanted` is the item's whole description; a `.done` file of another item is overwritten.
    """
    found = done(path, wanted)
    if found is not None:
        return found
    result = compute()
    write_atomic(path, canonical({"item": digest(wanted), "result": result}))
    return result


def done(path: Path, wanted: object) -> Json | None:
    """Return the result of a work item that `path` holds, None where it holds none of this item."""
    found = read_json(path) if path.exists() else {}
    return found.get("result") if found.get("item") == digest(wanted) else None


def fresh(folder: Path, wanted: Mapping[str, Any]) -> Json | None:
    """Return the receipt of a finished folder made by `wanted`, or None if there is none yet.

    wanted: the RECIPE_KEYS. Raises StaleError where the folder was made by another recipe, and
    DamageError where one of its files is missing or has another size.
    """
    path = folder / NAME
    if not path.exists():
        return None
    receipt = read_json(path)
    told = [line for key in RECIPE_KEYS for line in differences(receipt.get(key), wanted[key], key)]
    if told:
        raise StaleError(
            f"{folder}: was built otherwise ({'; '.join(told[:3])}); "
            "build into another --out or remove this folder"
        )
    for entry in receipt["files"]:
        _check_size(folder / entry["name"], entry)
    return receipt


def seal(folder: Path, wanted: Mapping[str, Any], files: list[Json], content: Json) -> Json:
    """Write the receipt of a finished folder and remove what the work items left."""
    receipt = {**{key: wanted[key] for key in RECIPE_KEYS}, **content, "files": files}
    receipt["digest"] = digest(receipt)
    write_atomic(folder / NAME, canonical(receipt))
    for left in [*folder.glob("*.done"), *folder.glob(".*.tmp")]:
        left.unlink(missing_ok=True)
    return receipt


def read(folder: Path) -> Json:
    """Read a folder's receipt and check its own digest."""
    receipt = read_json(folder / NAME)
    body = {key: value for key, value in receipt.items() if key != "digest"}
    if digest(body) != receipt.get("digest"):
        raise DamageError(f"{folder / NAME}: was edited (its digest does not match); build again")
    return receipt


def damages(folder: Path, receipt: Json) -> list[str]:
    """Return one line for every file of a receipt that is missing or has other bytes."""
    told: list[str] = []
    for entry in receipt["files"]:
        path = folder / entry["name"]
        try:
            _check_size(path, entry)
        except DamageError as error:
            told.append(str(error))
            continue
        found = file_digest(path)
        if found != entry["xxh3"]:
            told.append(f"{path}: its bytes changed (xxh3 {found}, receipt has {entry['xxh3']})")
    return told


def differences(found: object, wanted: object, path: str) -> list[str]:
    """Return where two JSON values differ, as `path: found -> wanted` lines.

    Of lists of files the first file that differs is named.
    """
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted({*found, *wanted})
        return [
            line
            for key in keys
            for line in differences(found.get(key), wanted.get(key), f"{path}.{key}")
        ]
    if orjson.dumps(found, option=orjson.OPT_SORT_KEYS) == orjson.dumps(
        wanted, option=orjson.OPT_SORT_KEYS
    ):
        return []
    before, after = _files(found), _files(wanted)
    if before is not None and after is not None:
        return [f"{path}: {_first_file(before, after)}"]
    return [f"{path}: {_brief(found)}, now {_brief(wanted)}"]


def _files(value: Any) -> dict[str, Json] | None:  # noqa: ANN401  any JSON
    """Return a list of entries of files by name; None if it is none."""
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        return None
    entries: list[Json] = value
    named = {str(each.get("file", each.get("name"))): each for each in entries if "xxh3" in each}
    return named if len(named) == len(entries) else None


def _first_file(found: Mapping[str, Json], wanted: Mapping[str, Json]) -> str:
    """Return how the first file that differs between two lists does."""
    for name in dict.fromkeys([*found, *wanted]):
        if name not in wanted:
            return f"{name}: was there, is no more"
        if name not in found:
            return f"{name}: is new"
        old, new = found[name], wanted[name]
        if old.get("bytes") != new.get("bytes"):
            return f"{name}: {old.get('bytes')} bytes, now {new.get('bytes')}"
        if told := differences(old, new, name):
            return told[0].replace(f"{name}.", f"{name}: ", 1)
    return "the same files in another order"


def _brief(value: object) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_size(path: Path, entry: Json) -> None:
    if not path.exists():
        raise DamageError(
            f"{path}: is missing, though the receipt lists it; "
            "restore it, or remove the folder and build again"
        )
    if path.stat().st_size != entry["bytes"]:
        raise DamageError(
            f"{path}: has {path.stat().st_size} bytes, its receipt says {entry['bytes']}; "
            "remove the folder and build again"
        )
