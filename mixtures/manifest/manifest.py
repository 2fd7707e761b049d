"""Manifests: the seal of a phase, from which every row of every step follows.

`manifest.json` is canonical JSON (the same content gives the same bytes): steps, batch, order,
seed, tokenizer, and for each part the asked weight and the got share, rows budgeted and available,
epochs, FIM settings, and every shard with its rows and the digest of its decoded array. It names
the digest of the previous phase's manifest. `Manifest.rows(step)` predicts what a step consumes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalmix.mixtures.manifest import sealed_receipts
from crystalmix.mixtures.manifest.build_folder import MANIFEST, BuildFolder
from crystalmix.mixtures.manifest.cerebras_order import KEPT, ZooOrder, ZooSettings
from crystalmix.mixtures.manifest.exact_order import Order, OrderPart
from crystalmix.mixtures.manifest.shard_runs import Runs, Shard, joined
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical, read_json, write_atomic
from crystalmix.prep.runtime.errors import CrystalmixError, DamageError, InputError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Json, frozen

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Whole = Callable[[], "Manifest"]
SCHEMAS = (3, 4)  # 4 adds `packed` and `migrated`


@dataclass(frozen=True, slots=True)  # there are hundreds of thousands
class PartShard:
    """The rows [first, last) that a part draws from one shard; path relative to the build.

    loss_tokens: labels of the whole shard that count, None where it was imported unread.
    """

    path: str
    rows: int
    digest: str
    first: int
    last: int
    loss_tokens: int | None

    def content(self) -> Json:
        """Return it as JSON; `asdict` would look into each of many plain values."""
        return {name: getattr(self, name) for name in self.__slots__}


class LaterShards(Sequence[PartShard]):
    """A part's shards, of which runs are known; what else there is of them is read when asked.

    labels: as of `labels_of`.
    """

    def __init__(
        self, runs: Runs, labels: Fraction | None, read: Callable[[], Sequence[PartShard]]
    ) -> None:
        self.runs, self.labels, self._read = runs, labels, read

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, place: Any) -> Any:  # noqa: ANN401  a shard, of a slice several
        return self._whole[place]

    def __iter__(self) -> Iterator[PartShard]:
        return iter(self._whole)

    def __eq__(self, other: object) -> bool:
        return self._whole == tuple(other) if isinstance(other, Sequence) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._whole)

    @cached_property
    def _whole(self) -> tuple[PartShard, ...]:
        return tuple(self._read())


@frozen
class TokenizerIdentity:
    """What must stay the same of a tokenizer; of an import the size of its vocabulary is known.

    controls: ids that no text can give. special: the ids of parts such as `bos`, None for those
    that it lacks.
    """

    vocab: int
    fingerprint: str | None = None
    canary: str | None = None
    controls: list[int] = field(default_factory=list[int])
    special: dict[str, int | None] = field(default_factory=dict[str, int | None])
    pad: int | None = None


@frozen
class PackedAs:
    """What a trainer must know of a part's rows, so that it need not read the build's receipts.

    held_out: its documents are there to validate on, and none may be trained on. split: seed,
    share and side of the recipe's split, None where rows are of both sides. packing: the settings
    of rows: length, BOS, EOS, tail, dialect. documents: digest over the documents' places, names
    and kept columns.
    """

    held_out: bool
    split: Json | None
    packing: Json
    documents: str

    @property
    def validates(self) -> bool:
        """Whether its documents are there to validate on."""
        return self.held_out or (self.split is not None and self.split["side"] == "valid")


@frozen
class ManifestPart:
    """One part: the share asked, the rows available, and the rows that the phase takes."""

    name: str
    domain: str
    budget: dict[str, float]  # as written: {"weight": 0.5}, {"tokens": 1e9} or {"epochs": 2}
    asked: float  # the share of rows that it comes to
    weight: int
    rows: int  # budgeted: what the phase consumes
    tokens: int
    loss_tokens: int | None  # of them those that count as labels: `loss_tokens_of`
    got: float  # rows / rows of the phase
    available: int
    epochs: float
    fim: Json | None
    variants: int  # epochs that the domain's rows hold: of FIM, or of documents with copies left
    shards: Sequence[PartShard]
    digest: str  # over the shards' digests and row ranges
    packed: PackedAs | None = None  # None in schema 3
    sharing: Json | None = None  # how documents share rows (`PackSettings.sharing`), None: run on
    upsampling: Json | None = None  # a curve over documents, and the copies that it came to
    start: int = 0  # draws of the part's sequence that earlier phases took; absent where 0

    @cached_property
    def runs(self) -> Runs:
        """Paths and rows of its shards."""
        if isinstance(self.shards, LaterShards):
            return self.shards.runs
        return Runs.of(Shard(s.path, s.rows, s.first, s.last) for s in self.shards)


@frozen
class RowRefs:
    """Which rows a range of positions consumes: equally long int64 arrays.

    part: index into the manifest's parts; shard: index into `Manifest.paths`; row: in that shard.
    """

    part: NDArray[np.int64]
    epoch: NDArray[np.int64]
    shard: NDArray[np.int64]
    row: NDArray[np.int64]


@frozen
class Manifest:
    """A sealed phase."""

    name: str
    phase: str
    steps: int
    batch: int
    msl: int
    seed: int
    order_version: str
    cerebras: ZooSettings | None  # the settings of Model Zoo's order, where it is set
    tokenizer: TokenizerIdentity
    parts: tuple[ManifestPart, ...]
    previous: str | None
    imported: Json | None  # of shards that another program wrote: from what, how well known
    migrated: str | None = None  # digest of the manifest of schema 3 that this one was made from
    after: str | None = None  # the phase before, where it is built elsewhere; absent where None
    redaction: Json | None = None  # what was taken out of its rows, and of which manifest
    adapted: Json | None = None  # of a window: what its shares follow from; absent where None
    digest: str = ""
    folder: Path | None = field(default=None, compare=False)  # where it was read

    def content(self) -> Json:
        """Return the manifest as JSON without its own digest."""
        parts = (replace(part, shards=()) for part in self.parts)
        value = asdict(replace(self, parts=tuple(parts)))
        for part, own in zip(value["parts"], self.parts, strict=True):
            part["shards"] = [shard.content() for shard in own.shards]
        del value["digest"], value["folder"]
        if self.schema == 3:
            del value["migrated"]
            for part in value["parts"]:
                del part["packed"]
        for key in ("after", "redaction", "adapted"):
            if value[key] is None:
                del value[key]
        for part in value["parts"]:
            for key in ("sharing", "upsampling"):
                if part[key] is None:
                    del part[key]
            if not part["start"]:
                del part["start"]
        return {"schema": self.schema, **value}

    @property
    def first_step(self) -> int:
        """Steps of the same phase that earlier windows did; 0 where it is no window."""
        return 0 if self.adapted is None else self.adapted["first_step"]

    @property
    def schema(self) -> int:
        """4 where every part says how it was packed, else 3."""
        return 4 if all(part.packed for part in self.parts) else 3

    @cached_property
    def order(self) -> Order | ZooOrder:
        """The order of rows that this manifest fixes."""
        parts = [OrderPart(p.name, p.weight, p.available, p.digest, p.start) for p in self.parts]
        if self.cerebras is None:
            return Order(parts, self.seed)
        if late := [part.name for part in self.parts if part.start]:
            where = self.folder or self.phase
            raise DamageError(f"{where}: part {late[0]} starts late, as Model Zoo's order can't")
        # the weights as Model Zoo reads them: it normalises them in its own floats
        shares = tuple(part.budget.get("weight", part.asked) for part in self.parts)
        kept = None if self.folder is None else self.folder / KEPT
        return ZooOrder(tuple(parts), shares, self.cerebras, kept)

    @property
    def masked(self) -> tuple[bool, ...]:
        """Whether attention is masked between documents, for each part."""
        return tuple(
            part.sharing is not None and part.sharing["documents"] == "masked"
            for part in self.parts
        )

    @cached_property
    def paths(self) -> list[str] | Runs:
        """Every shard file of every part, in part order; `RowRefs.shard` points here."""
        if any(isinstance(part.shards, LaterShards) for part in self.parts):
            return self._runs
        return [shard.path for part in self.parts for shard in part.shards]

    def rows(self, start: int, stop: int) -> RowRefs:
        """Predict the rows at positions [start, stop); step s is [s * batch, (s + 1) * batch)."""
        refs = self.order.refs(start, stop)
        shard, row = self._runs.located(self._starts[refs.part] + refs.row)
        return RowRefs(refs.part, refs.epoch, shard, row)

    def step(self, step: int) -> RowRefs:
        """Predict the rows of one step."""
        return self.rows(step * self.batch, (step + 1) * self.batch)

    def positions(self, path: str, row: int) -> list[int]:
        """Return every position of the phase that consumes a row of a shard, ascending."""
        positions: list[int] = []
        for place in self._runs.places(path):
            shard, first = self._runs.shard(place), self._runs.row(place)
            if shard.first <= row < shard.last:
                part = int(np.searchsorted(self._starts, first, side="right")) - 1
                number = first - int(self._starts[part]) + row - shard.first
                positions += self.order.positions(part, number, self.steps * self.batch)
        return sorted(positions)

    @cached_property
    def _runs(self) -> Runs:
        """The shards of all parts; their rows are numbered on over parts."""
        return joined(part.runs for part in self.parts)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """The number of each part's first row."""
        return np.cumsum([0, *(part.runs.rows for part in self.parts)])


def budgeted(part: ManifestPart, count: int, rows: int, msl: int) -> ManifestPart:
    """Fill in what follows for a part from the `count` it gets of a phase's `rows`."""
    return replace(
        part,
        rows=count,
        tokens=count * msl,
        loss_tokens=loss_tokens_of(part.shards, count),
        got=count / rows,
        epochs=count / part.available,
    )


def loss_tokens_of(shards: Sequence[PartShard], rows: int) -> int | None:
    """Return how many labels count in `rows` rows of a part, None where they are not counted.

    Exact over whole epochs of whole shards, and wherever rows are alike; else as expected of rows
    in a random order, rounded down.
    """
    labels = labels_of(shards)
    return None if labels is None else int(rows * labels)


def labels_of(shards: Sequence[PartShard]) -> Fraction | None:
    """Return how many labels count in a row of a part, on average; None where they are not counted.

    Of shards that are not read yet it is known.
    """
    if isinstance(shards, LaterShards):
        return shards.labels
    available, by_size = 0, dict[int, int]()  # shards are of few sizes, fractions are slow
    for shard in shards:
        if shard.loss_tokens is None:
            return None
        size = shard.last - shard.first
        available += size
        by_size[shard.rows] = by_size.get(shard.rows, 0) + shard.loss_tokens * size
    counted = sum((Fraction(loss, size) for size, loss in by_size.items()), Fraction(0))
    return counted / available


def part_digest(shards: Sequence[PartShard]) -> str:
    """Return the digest of a part's content: its shards' digests and row ranges, no names."""
    return receipts.digest([[shard.digest, shard.first, shard.last] for shard in shards])


def sealed(manifest: Manifest) -> Manifest:
    """Return the manifest with its digest."""
    return replace(manifest, digest=receipts.digest(manifest.content()))


def resealed(old: Manifest, **changes: Any) -> Manifest:
    """Return a manifest with changes that leave its order what it is, sealed anew."""
    new = sealed(replace(old, **changes, digest=""))
    vars(new)["order"] = old.order  # a long one takes minutes to draw
    return new


def write(path: Path, manifest: Manifest) -> None:
    """Write a sealed manifest."""
    content = {**manifest.content(), "digest": manifest.digest}
    write_atomic(path, canonical(content))


def read(path: Path) -> Manifest:
    """Read a manifest (a file, or a folder that holds one) and check its own digest."""
    file = path / MANIFEST if path.is_dir() else path
    if not file.exists():
        raise InputError(f"{file}: no such manifest; build the phase first")
    content = read_json(file)
    digest = content.pop("digest", None)
    if receipts.digest(content) != digest:
        raise DamageError(
            f"{file}: was edited (its digest does not match its content); "
            "restore it, or remove it and build again"
        )
    return parsed(content, digest, file)


def parsed(content: Json, digest: str, file: Path, whole: Whole | None = None) -> Manifest:
    """Return the manifest of JSON without its digest; whole: reads it, where shards are runs."""
    schema = content.pop("schema", None)
    if schema not in SCHEMAS:
        raise DamageError(f"{file}: has schema {schema}, not one of {SCHEMAS}; build again")
    try:
        content["parts"] = tuple(
            _part(part, whole, place) for place, part in enumerate(content["parts"])
        )
        content["tokenizer"] = TokenizerIdentity(**content["tokenizer"])
        content["cerebras"] = content["cerebras"] and ZooSettings(**content["cerebras"])
        manifest = Manifest(**content, digest=digest, folder=file.parent)
        if manifest.schema != schema:
            raise KeyError("packed")
        return manifest
    except (KeyError, TypeError, AttributeError) as error:
        raise DamageError(f"{file}: is no manifest ({error}); restore it") from None


def write_phase_set(build: BuildFolder, phases: Sequence[Manifest]) -> None:
    """Seal which phases a build has, and its receipts; phases sealed before stay."""
    sealed_receipts.write(build)
    content = {**read_phase_set(build), **{manifest.phase: manifest.digest for manifest in phases}}
    sealed = {"phases": content, "digest": receipts.digest(content)}
    if not build.phase_set.exists() or read_json(build.phase_set) != sealed:
        write_atomic(build.phase_set, canonical(sealed))


def drop_phases(build: BuildFolder, phases: Collection[str]) -> None:
    """Take phases out of the set that a build has, and the seal of its receipts with them."""
    build.receipt_set.unlink(missing_ok=True)
    content = {name: d for name, d in read_phase_set(build).items() if name not in phases}
    build.phase_set.unlink(missing_ok=True)
    if content:
        sealed = {"phases": content, "digest": receipts.digest(content)}
        write_atomic(build.phase_set, canonical(sealed))


def read_phase_set(build: BuildFolder) -> dict[str, str]:
    """Return the digests of the manifests that a build sealed, by phase; none where it is older."""
    if not build.phase_set.exists():
        return {}
    sealed = read_json(build.phase_set)
    if receipts.digest(sealed.get("phases")) != sealed.get("digest"):
        raise DamageError(f"{build.phase_set}: was edited; restore it or build again")
    return sealed["phases"]


def read_manifests(path: Path, reader: Callable[[Path], Manifest] = read) -> list[Manifest]:
    """Return the manifests at a path: a manifest file, a phase's folder, or a build in order.

    Phases are ordered by lineage: each after the one that its `previous` or `after` names. reader:
    reads a manifest's file.
    """
    places = [path] if path.is_file() or (path / MANIFEST).exists() else []
    places = places or BuildFolder(path).manifests()
    return in_order([reader(place) for place in places])


def in_order(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Return manifests ordered by lineage, as of `read_manifests`."""
    known = {name: manifest for manifest in manifests for name in (manifest.digest, manifest.phase)}

    def depth(manifest: Manifest) -> int:
        before = known.get(manifest.previous or manifest.after or "")
        if before is None:
            return 0 if manifest.after is None else len(manifests)  # it is last among those here
        return 1 + depth(before)

    return sorted(manifests, key=lambda manifest: (depth(manifest), manifest.phase))


def state_with(build: Path, digests: Collection[str]) -> Path:
    """Return a build, or what it was before, that has the manifests of these digests.

    The build itself where it has them, or where no state of it does.
    """
    folder = BuildFolder(build)
    wanted = set(digests)
    for place in (folder, *reversed(folder.states())) if wanted else ():
        try:
            held = {*(read_phase_set(place) or _digests(place)).values()}
        except (CrystalmixError, AttributeError):
            continue  # `verify` tells what is wrong with it
        if wanted <= held:
            return place.path
    return build


def _digests(build: BuildFolder) -> dict[str, str]:
    paths = build.manifests()
    return {path.parent.name: receipts.own_digest(path) or read(path).digest for path in paths}


def _shards(whole: Whole, part: int) -> Sequence[PartShard]:
    return whole().parts[part].shards


def _part(content: Json, whole: Whole | None, place: int) -> ManifestPart:
    listed = content.pop("shards")
    shards: Sequence[PartShard]
    if whole is None:
        shards = tuple(PartShard(**shard) for shard in listed)
    else:
        labels = content.pop("labels")
        labels = None if labels is None else Fraction(labels)
        shards = LaterShards(Runs.from_json(listed), labels, partial(_shards, whole, place))
    packed = content.pop("packed", None)
    return ManifestPart(**content, shards=shards, packed=packed and PackedAs(**packed))


def compare(old: Manifest, new: Manifest) -> list[str]:
    """Return one line for each difference between two manifests; none if they are equal."""
    if old == new:
        return []
    before, after = old.content(), new.content()
    parts_before = {part["name"]: part for part in before.pop("parts")}
    parts_after = {part["name"]: part for part in after.pop("parts")}
    lines = [
        line
        for key in dict.fromkeys([*before, *after])
        for line in receipts.differences(before.get(key), after.get(key), key)
    ]
    for name in sorted({*parts_before, *parts_after}):
        if name not in parts_after:
            lines.append(f"parts.{name}: is gone")
        elif name not in parts_before:
            lines.append(f"parts.{name}: is new")
        else:
            lines += receipts.differences(parts_before[name], parts_after[name], f"parts.{name}")
    if parts_before.keys() == parts_after.keys():
        lines += receipts.differences([*parts_before], [*parts_after], "parts: listed as")
    return lines
