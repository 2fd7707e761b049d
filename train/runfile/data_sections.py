"""Data sections of a params.yaml, compared with the manifest that is trained on.

Rows follow from the manifest alone, so `train_input` decides nothing here. Where it can contradict
the manifest it is compared, and a difference is noted; every other key is noted by name.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from crystalmix.mixtures.manifest.manifest import Manifest, ManifestPart
from crystalmix.prep.runtime import yaml_settings
from crystalmix.prep.runtime.types import Json

SECTIONS = ("cerebras", "train_input", "eval_input")
HELD = {  # key of a section -> field of the manifest
    "train_input": {"batch_size": "batch", "max_sequence_length": "msl"},
    "runconfig": {"max_steps": "steps"},
}
MIXTURE = ("mixture.data_dir", "mixture.weight")
CLOSE = 1e-6  # greatest difference of two shares that are the same


def unused(section: str, content: object) -> list[str]:
    """Return the keys of a section that are not used, nested ones with dots, as they stand.

    >>> unused("train_input", {"batch_size": 1, "shuffle": 0, "mixture": [{"weight": 1, "x": 2}]})
    ['shuffle', 'mixture.x']
    """
    held = {*HELD.get(section, ()), *(MIXTURE if section == "train_input" else ())}
    return [key for key in dict.fromkeys(_keys(content)) if key not in held]


def _keys(content: object, before: str = "") -> Iterator[str]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            name = f"{before}.{key}" if before else str(key)
            inner = list(_keys(value, name))
            yield from inner or [name]
    elif isinstance(content, list):
        for entry in content:
            yield from _keys(entry, before)


def contradictions(path: Path, manifest: Manifest, overrides: Sequence[str] = ()) -> list[str]:
    """Return one line for each thing that a run file says of the data and the manifest does not.

    The manifest's rows are trained on in any case.
    """
    content = yaml_settings.plain(yaml_settings.override(yaml_settings.load(path), overrides))
    sections = content if isinstance(content, dict) else {}
    lines: list[str] = []
    for section, keys in HELD.items():
        values = sections.get(section)
        if not isinstance(values, dict):
            continue
        for key, name in keys.items():
            planned = getattr(manifest, name)
            if values.get(key) not in (None, planned):
                lines.append(f"{section}.{key} is {values[key]}, the manifest's {name} {planned}")
    values = sections.get("train_input")
    mixture = values.get("mixture") if isinstance(values, dict) else None
    lines += _mixture(mixture, manifest.parts) if isinstance(mixture, list) else []
    return [f"{path}: phase {manifest.phase}: {line}" for line in lines]


def note(path: Path, manifests: Sequence[Manifest], overrides: Sequence[str] = ()) -> None:
    """Warn of every contradiction between a run file and the manifests it is to train on."""
    for manifest in manifests:
        for line in contradictions(path, manifest, overrides):
            logging.getLogger("crystalmix").warning("%s", line)


def _mixture(mixture: list[Any], parts: Sequence[ManifestPart]) -> list[str]:
    """Return where the shares of a mixture differ from the `asked` shares of a manifest's parts."""
    lines = [entry for entry in mixture if isinstance(entry, dict)]
    if len(lines) != len(parts):
        return [f"train_input.mixture lists {len(lines)} data_dir, the manifest {len(parts)} parts"]
    whole = sum(map(_weight, lines)) or 1.0
    differences: list[str] = []
    for i, (line, part) in enumerate(_paired(lines, parts)):
        share = _weight(line) / whole
        if abs(share - part.asked) > CLOSE:
            differences.append(
                f"train_input.mixture.{i}: {line.get('data_dir')} has share {share:.6f}, "
                f"the manifest's part {part.name} {part.asked:.6f}"
            )
    return differences


def _paired(
    lines: Sequence[Json], parts: Sequence[ManifestPart]
) -> Iterator[tuple[Json, ManifestPart]]:
    """Pair each line with the part of its folder's name, and what is left in order."""
    left = list(parts)
    named: list[ManifestPart | None] = []
    for line in lines:
        name = PurePosixPath(str(line.get("data_dir"))).name
        match = next((part for part in left if name in {part.name, part.domain}), None)
        named.append(match)
        if match is not None:
            left.remove(match)
    for line, match in zip(lines, named, strict=True):
        yield line, left.pop(0) if match is None else match


def _weight(line: Json) -> float:
    weight = line.get("weight", 0.0)
    return float(weight) if isinstance(weight, int | float) else 0.0
