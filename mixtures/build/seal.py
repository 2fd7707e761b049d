"""Sealing: from a phase and the finished folders of its domains to its manifest.

What the data can't give is refused here, with the numbers: a part without rows, a part repeated
more often than it may be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from crystalmix.mixtures.build.context import Context, Copies, Folder, tokenizer_identity
from crystalmix.mixtures.manifest import cerebras_order, manifest
from crystalmix.mixtures.manifest.build_folder import BuildFolder, rows_files
from crystalmix.mixtures.manifest.exact_order import VERSION
from crystalmix.mixtures.manifest.manifest import (
    Manifest,
    ManifestPart,
    PackedAs,
    PartShard,
    TokenizerIdentity,
)
from crystalmix.mixtures.recipes import continuing
from crystalmix.mixtures.recipes.continuing import Reading
from crystalmix.mixtures.recipes.phase import DEFAULT_MAX_EPOCHS, Part, Phase, shares
from crystalmix.prep.rows import pack
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Json, frozen

with imported_later(__name__):
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

if TYPE_CHECKING:
    from crystalmix.mixtures.recipes.recipe import Domain, Recipe
    from crystalmix.prep.runtime.receipts import Receipt

_compute: Any = pc  # its stub knows no runs
SCHEMA = 3  # of the manifests that builds write; `migrate` makes 4 of them
BATCH_ROWS = 1 << 16


class PartRefusalError(RefusalError):
    """What the data can't give one part of a phase, by the part's name."""

    def __init__(self, part: str, message: str) -> None:
        super().__init__(message)
        self.part = part


@frozen
class Basis:
    """What all manifests of a build have in common.

    sharing: how documents of domains share rows (`PackSettings.sharing`), where they don't run on.
    """

    name: str
    seed: int
    msl: int
    tokenizer: TokenizerIdentity
    out: Path
    imported: Json | None = None
    sharing: dict[str, Json | None] = field(default_factory=dict[str, Json | None])


def draft(
    context: Context, phase: Phase, folders: dict[str, Folder], before: Mapping[str, Manifest]
) -> Manifest:
    """Return a phase's manifest; RefusalError if the data can't give it.

    before: the manifests of earlier phases that are there.
    """
    recipe = context.recipe
    tokenizer = TokenizerIdentity(**tokenizer_identity(context.tokenizer))
    sharing = {part.domain: recipe.rows_of(part.domain).sharing() for part in phase.parts}
    msl = recipe.msl_of(phase)
    basis = Basis(recipe.name, recipe.seed, msl, tokenizer, context.out, sharing=sharing)
    starts = _starts(recipe, phase, before)
    every = [*recipe.phases]
    last = every[every.index(phase.name) - 1] if every[0] != phase.name else None
    previous = before[last].digest if last is not None and last in before else None
    try:
        composed = compose(basis, phase, folders, previous, starts)
        if last is None or previous is not None:
            return composed
        return manifest.resealed(composed, after=last)
    except RefusalError as error:
        message = str(error).removeprefix(f"phase {phase.name}: ")
        names = [part.name for part in phase.parts]
        at = ("parts", names.index(error.part)) if isinstance(error, PartRefusalError) else ()
        raise RefusalError(str(recipe.fault(message, "phases", phase.name, *at))) from None


def compose(
    basis: Basis,
    phase: Phase,
    folders: dict[str, Folder],
    previous: str | None,
    starts: Sequence[int] | None = None,
) -> Manifest:
    """Return the manifest of a phase over folders that are sealed; RefusalError as `draft`.

    starts: the draw at which each part begins, 0 for all by default.
    """
    drawn = [_drawn(basis.out, part, phase, folders[part.domain]) for part in phase.parts]
    available = [sum(shard.last - shard.first for shard in shards) for shards in drawn]
    weights = phase.weights(available)
    targets = shares(phase.kind, [part.asked for part in phase.parts], weights)
    parts = [
        _part(part, share, weight, shards, folders[part.domain], basis.sharing.get(part.domain))
        for part, share, weight, shards in zip(phase.parts, targets, weights, drawn, strict=True)
    ]
    if starts is not None:
        parts = [replace(part, start=s) for part, s in zip(parts, starts, strict=True)]
    draft = Manifest(
        name=basis.name,
        phase=phase.name,
        steps=phase.steps_of(available, basis.msl),
        batch=phase.batch,
        msl=basis.msl,
        seed=basis.seed,
        order_version=VERSION if phase.cerebras is None else cerebras_order.VERSION,
        cerebras=phase.cerebras,
        tokenizer=basis.tokenizer,
        parts=tuple(parts),
        previous=previous,
        imported=basis.imported,
    )
    counts = draft.order.counts(draft.steps * draft.batch)
    final = [
        _budgeted(spec, part, count, draft)
        for spec, part, count in zip(phase.parts, parts, counts, strict=True)
    ]
    return manifest.resealed(draft, parts=tuple(final))


def _drawn(out: Path, part: Part, phase: Phase, folder: Folder) -> tuple[PartShard, ...]:
    version = "2.0.3" if phase.cerebras is None else phase.cerebras.subset
    return choose(part, folder.sealed, folder.place.relative_to(out), version)


def _part(
    part: Part,
    share: float,
    weight: int,
    shards: tuple[PartShard, ...],
    folder: Folder,
    sharing: Json | None,
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
        variants=folder.domain.epochs if folder.copies is None else folder.copies.epochs,
        shards=shards,
        digest=manifest.part_digest(shards),
        sharing=sharing,
        upsampling=None if folder.copies is None else upsampling(folder.domain, folder.copies),
    )


def upsampling(domain: Domain, copies: Copies) -> Json:
    """Return what a manifest says of a domain's copies: the curve, and what it comes to."""
    settings = {} if domain.upsample is None else domain.upsample.content()
    return {**settings, "sources": {name: one.content() for name, one in copies.counts.items()}}


def choose(
    part: Part, receipt: Receipt, folder: Path, version: Literal["1.9.1", "2.0.3"] = "2.0.3"
) -> tuple[PartShard, ...]:
    """Return the shards, and the rows of them, that a part draws from.

    half: shards of even or odd number, as CrystalCoder's `part0of2`. subset: the rows that
    `data_subset` of a version of Model Zoo takes.
    """
    shards = rows_files(receipt)
    if part.half is not None:
        parity = 0 if part.half == "even" else 1
        shards = [s for s in shards if pack.number(s.name) % 2 == parity]
    total = sum(shard.rows for shard in shards)
    first, last = cerebras_order.subset_bounds(total, part.subset or (0.0, 1.0), version)
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
        begin, end = max(0, first - before), min(shard.rows, last - before)
        if begin < end:
            path = (folder / shard.name).as_posix()
            bounds = shard.rows, shard.digest, begin, end
            chosen.append(PartShard(path, *bounds, shard.loss_tokens))
        before += shard.rows
    return tuple(chosen)


def _budgeted(spec: Part, part: ManifestPart, count: int, draft: Manifest) -> ManifestPart:
    """Fill in what the order gives a part; refuse too many epochs and a part without rows."""
    rows, epochs = draft.steps * draft.batch, count / part.available
    if count == 0 and spec.asked and draft.imported is None:  # an import records what was drawn
        raise PartRefusalError(
            part.name,
            f"phase {draft.phase}: part {part.name} gets none of {rows} rows "
            f"({spec.kind} {spec.asked}); raise its {spec.kind} or the steps, or leave it out",
        )
    if epochs > (most := spec.max_epochs):
        usual = " (the default)" if most == DEFAULT_MAX_EPOCHS else ""
        raise PartRefusalError(
            part.name,
            f"phase {draft.phase}: part {part.name} would be repeated {epochs:.2f} times "
            f"({count} rows asked, {part.available} there), over max_epochs {most:g}{usual}; "
            f"lower its {spec.kind} or the steps, add data, or raise max_epochs",
        )
    if part.upsampling is not None:
        _check_copies(spec, part.upsampling, epochs, draft)
    return manifest.budgeted(part, count, rows, draft.msl)


def _check_copies(spec: Part, upsampling: Json, epochs: float, draft: Manifest) -> None:
    """Refuse to repeat a document more often than a part may be repeated."""
    most = max(counts["most"] for counts in upsampling["sources"].values())
    if max(1.0, epochs) * most > spec.max_epochs:
        raise PartRefusalError(
            spec.name,
            f"phase {draft.phase}: part {spec.name} would repeat documents up to "
            f"{max(1.0, epochs) * most:.2f} times ({most} copies, {epochs:.2f} epochs), over "
            f"max_epochs {spec.max_epochs:g}; lower its {spec.kind}, the steps or the curve, or "
            "raise max_epochs",
        )


def _starts(recipe: Recipe, phase: Phase, sealed: Mapping[str, Manifest]) -> list[int]:
    """Return the draw at which each part of a phase begins; sealed: manifests that are there.

    Raises RefusalError, with file and line, where the phases before say how much only by data that
    are not built.
    """
    before: list[Reading] = []
    for name, earlier in recipe.phases.items():
        if name == phase.name:
            break
        before += (
            _taken(earlier, sealed[name]) if name in sealed else _asked(recipe, earlier, before)
        )
    return [_start(recipe, phase, place, before) for place in range(len(phase.parts))]


def _start(recipe: Recipe, phase: Phase, place: int, before: list[Reading]) -> int:
    part = phase.parts[place]
    try:
        return continuing.begin(phase, part, recipe.format, before)
    except RefusalError as error:
        steps = ("phases", phase.name, "parts", place)
        raise RefusalError(str(recipe.fault(f"{part.name} {error}", *steps))) from None


def _taken(phase: Phase, manifest: Manifest) -> list[Reading]:
    parts = {part.name: part for part in manifest.parts}
    return [
        Reading(phase, part, parts[part.name].start, parts[part.name].rows)
        for part in phase.parts
        if part.name in parts
    ]


def _asked(recipe: Recipe, phase: Phase, before: list[Reading]) -> list[Reading]:
    """Return what a phase that is not built takes by its weights or budgets, without any data."""
    if phase.kind == "epochs" or phase.cerebras is not None:
        return [Reading(phase, part, 0, None) for part in phase.parts]
    nothing = [0] * len(phase.parts)
    counts = phase.counts(phase.weights(nothing), phase.steps_of(nothing, recipe.msl_of(phase)))
    readings: list[Reading] = []
    for part, rows in zip(phase.parts, counts, strict=True):
        try:
            start = continuing.begin(phase, part, recipe.format, before)
        except RefusalError:
            readings.append(Reading(phase, part, 0, None))
        else:
            readings.append(Reading(phase, part, start, rows))
    return readings


def migrated(old: Manifest, build: BuildFolder, before: str | None) -> Manifest:
    """Return a manifest in schema 4; before: the digest that it had in schema 3.

    Raises RefusalError where the build's receipts or documents are not there to say so.
    """
    packings = {part.domain: packed_as(build, part.domain) for part in old.parts}
    for part in old.parts:
        if packings[part.domain] is None:
            raise RefusalError(
                f"phase {old.phase}: part {part.name}: {build.packed(part.domain)} or its "
                "documents are not here, which say how its rows were packed; restore them"
            )
    parts = tuple(replace(part, packed=packings[part.domain]) for part in old.parts)
    return manifest.resealed(old, parts=parts, migrated=before)


def packed_as(build: BuildFolder, domain: str) -> PackedAs | None:
    """Return how a domain was packed, by its receipt and its documents; None where one is gone."""
    settings = settings_of(build, domain)
    if settings is None:
        return None
    paths = [build.documents(source) for source in settings["sources"]]
    if not all(path.exists() for path in paths):
        return None
    return PackedAs(
        held_out=settings["held_out"],
        split=settings["split"],
        packing=settings["rows"],
        documents=receipts.digest([documents_digest(path) for path in paths]),
    )


def settings_of(build: BuildFolder, domain: str) -> Json | None:
    """Return what a domain was packed with, by its receipt; None where there is none."""
    place = build.packed(domain)
    if not (place / receipts.NAME).exists():
        return None
    return receipts.read(place).settings


def documents_digest(path: Path) -> str:
    """Return the sha256 over the values of a documents.parquet, not over its bytes.

    It is by batches: the documents of one raw file in a row group, however many files share it.
    """
    content = sha256()
    with pq.ParquetFile(path, pre_buffer=False) as file:
        content.update(canonical([[field.name, str(field.type)] for field in file.schema_arrow]))
        for group in range(file.num_row_groups):
            for batch in _batches(file.read_row_group(group)):
                content.update(canonical(batch.num_rows))
                for column in batch.columns:
                    _add(content, column)
    return content.hexdigest()


def _batches(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """Yield the documents of each raw file in a row group, at most BATCH_ROWS at once."""
    run_ends: Any = _compute.run_end_encode(table["file"].cast(pa.string()).combine_chunks())
    first, [whole] = 0, table.unify_dictionaries().combine_chunks().to_batches()
    for end in run_ends.run_ends.to_pylist():
        for at in range(first, end, BATCH_ROWS):
            yield whole.slice(at, min(BATCH_ROWS, end - at))
        first = end


def _add(content: Any, column: Any) -> None:  # noqa: ANN401  a hash, and an Arrow array
    """Add the values of a column: which are null, their lengths, and their bytes."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    content.update(np.packbits(column.is_null().to_numpy(zero_copy_only=False)).tobytes())
    values = column.drop_null()
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        lengths = pc.binary_length(values).to_numpy(zero_copy_only=False).astype("<i8")
        content.update(lengths.tobytes())
        ends = values.cast(pa.large_binary())
        offsets = np.frombuffer(ends.buffers()[1], "<i8")[ends.offset : ends.offset + len(ends) + 1]
        if len(ends) and ends.buffers()[2] is not None:
            content.update(memoryview(ends.buffers()[2])[int(offsets[0]) : int(offsets[-1])])
    elif pa.types.is_primitive(values.type) and not pa.types.is_boolean(values.type):
        content.update(np.ascontiguousarray(values.to_numpy(zero_copy_only=False)).tobytes())
    else:
        content.update(canonical([repr(value) for value in values.to_pylist()]))
