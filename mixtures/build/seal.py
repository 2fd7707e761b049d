"""Sealing: from a phase and the finished folders of its domains to its manifest.

What the data can't give is refused here, with the numbers: a part without rows, a part repeated
more often than it may be.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from crystalmix.mixtures.build.context import Context, Folder, tokenizer_identity
from crystalmix.mixtures.manifest import cerebras_order as zoo
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.build_folder import rows_files
from crystalmix.mixtures.manifest.exact_order import VERSION
from crystalmix.mixtures.manifest.manifest import Manifest, ManifestPart, PartShard
from crystalmix.mixtures.recipes.phase import DEFAULT_MAX_EPOCHS, Part, Phase, shares
from crystalmix.prep.rows import pack
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.prep.runtime.types import Json


class PartRefusalError(RefusalError):
    """What the data can't give one part of a phase, by the part's name."""

    def __init__(self, part: str, told: str) -> None:
        super().__init__(told)
        self.part = part


@dataclass(frozen=True)
class Basis:
    """What all manifests of a build have in common."""

    name: str
    seed: int
    msl: int
    tokenizer: Json
    out: Path
    imported: Json | None = None


def draft(
    context: Context, phase: Phase, folders: dict[str, Folder], previous: str | None
) -> Manifest:
    """Return a phase's manifest; RefusalError if the data can't give it."""
    recipe, tokenizer = context.recipe, tokenizer_identity(context.tokenizer)
    basis = Basis(recipe.name, recipe.seed, recipe.rows.msl, tokenizer, context.out)
    try:
        return compose(basis, phase, folders, previous)
    except RefusalError as error:
        told = str(error).removeprefix(f"phase {phase.name}: ")
        names = [part.name for part in phase.parts]
        at = ("parts", names.index(error.part)) if isinstance(error, PartRefusalError) else ()
        raise RefusalError(str(recipe.fault(told, "phases", phase.name, *at))) from None


def compose(
    basis: Basis, phase: Phase, folders: dict[str, Folder], previous: str | None
) -> Manifest:
    """Return the manifest of a phase over folders that are sealed; RefusalError as `draft`."""
    drawn = [_drawn(basis.out, part, phase, folders[part.domain]) for part in phase.parts]
    available = [sum(shard.last - shard.first for shard in shards) for shards in drawn]
    weights = phase.weights(available)
    asked = shares(phase.kind, [part.asked for part in phase.parts], weights)
    parts = [
        _part(part, share, weight, shards, folders[part.domain])
        for part, share, weight, shards in zip(phase.parts, asked, weights, drawn, strict=True)
    ]
    draft = Manifest(
        name=basis.name,
        phase=phase.name,
        steps=phase.steps_of(available, basis.msl),
        batch=phase.batch,
        msl=basis.msl,
        seed=basis.seed,
        order_version=VERSION if phase.cerebras is None else zoo.VERSION,
        cerebras=None if phase.cerebras is None else asdict(phase.cerebras),
        tokenizer=basis.tokenizer,
        parts=tuple(parts),
        previous=previous,
        imported=basis.imported,
    )
    counts = draft.order.counts(draft.steps * draft.batch)
    budgeted = [
        _budgeted(asked, part, count, draft)
        for asked, part, count in zip(phase.parts, parts, counts, strict=True)
    ]
    told = manifests.sealed(replace(draft, parts=tuple(budgeted)))
    vars(told)["order"] = draft.order  # it is the same: a long one takes minutes to draw
    return told


def _drawn(out: Path, part: Part, phase: Phase, folder: Folder) -> tuple[PartShard, ...]:
    version = "2.0.3" if phase.cerebras is None else phase.cerebras.subset
    return choose(part, folder.sealed, folder.path.relative_to(out), version)


def _part(
    part: Part, share: float, weight: int, shards: tuple[PartShard, ...], folder: Folder
) -> ManifestPart:
    return ManifestPart(
        name=part.name,
        domain=part.domain,
        budget={part.kind: part.asked},
        asked=share,
        weight=weight,
        rows=0,
        tokens=0,
        loss_tokens=0,
        got=0.0,
        available=sum(shard.last - shard.first for shard in shards),
        epochs=0.0,
        fim=asdict(folder.domain.fim) if folder.domain.fim else None,
        variants=folder.domain.epochs,
        shards=shards,
        digest=manifests.part_digest(shards),
    )


def choose(
    part: Part, receipt: Json, folder: Path, version: Literal["1.9.1", "2.0.3"] = "2.0.3"
) -> tuple[PartShard, ...]:
    """Return the shards, and the rows of them, that a part draws from.

    half: shards of even or odd number, as CrystalCoder's `part0of2`. subset: the rows that
    `data_subset` of a version of Model Zoo takes.
    """
    shards = rows_files(receipt)
    if part.half is not None:
        parity = 0 if part.half == "even" else 1
        shards = [s for s in shards if pack.number(s["name"]) % 2 == parity]
    total = sum(shard["rows"] for shard in shards)
    first, last = zoo.subset_bounds(total, part.subset or (0.0, 1.0), version)
    if first >= last:
        raise PartRefusalError(
            part.name,
            f"part {part.name}: is empty: rows {first} to {last} of {total} in "
            f"{len(shards)} {f'{part.half} ' if part.half else ''}shards; "
            "widen the subset, add data or lower rows.rows_per_shard",
        )
    chosen: list[PartShard] = []
    before = 0
    for shard in shards:
        begin, end = max(0, first - before), min(shard["rows"], last - before)
        if begin < end:
            path = (folder / shard["name"]).as_posix()
            told = shard["rows"], shard["digest"], begin, end, shard["loss_tokens"]
            chosen.append(PartShard(path, *told))
        before += shard["rows"]
    return tuple(chosen)


def _budgeted(asked: Part, part: ManifestPart, count: int, draft: Manifest) -> ManifestPart:
    """Fill in what the order gives a part; refuse too many epochs and a part without rows."""
    rows, epochs = draft.steps * draft.batch, count / part.available
    if count == 0 and asked.asked and draft.imported is None:  # an import tells what happened
        raise PartRefusalError(
            part.name,
            f"phase {draft.phase}: part {part.name} gets none of {rows} rows "
            f"({asked.kind} {asked.asked}); raise its {asked.kind} or the steps, or leave it out",
        )
    if epochs > (most := asked.max_epochs):
        usual = " (the default)" if most == DEFAULT_MAX_EPOCHS else ""
        raise PartRefusalError(
            part.name,
            f"phase {draft.phase}: part {part.name} would be repeated {epochs:.2f} times "
            f"({count} rows asked, {part.available} there), over max_epochs {most:g}{usual}; "
            f"lower its {asked.kind} or the steps, add data, or raise max_epochs",
        )
    return manifests.budgeted(part, count, rows, draft.msl)
