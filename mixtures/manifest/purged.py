"""What was purged of a build: the log of requests, and what receipts and manifests say of it.

    purge/<id>/request.json      what is to be erased; written before anything is
    purge/<id>/texts.txt         digests of the texts, as a list for `opt_out` and `audit`
    purge/<id>/certificate.json  what was erased where; written when all of it is

A folder of rows keeps in its receipt the digests that its shards were built with, by which
manifests and orders know them; `purged` beside them says what the shards hold now. The rows that
hold something else than they were built with stand in `data-00007.purged.parquet`. A manifest over
such rows says so in `redaction`, as one of a redacted view does, and names the certificates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self, TypeVar

from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.build_folder import BuildFolder, rows_files
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import read_json
from crystalmix.prep.runtime.errors import DamageError, RefusalError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.receipts import Receipt, Shard
from crystalmix.prep.runtime.records import quick_record
from crystalmix.prep.runtime.types import Content, Json, frozen

with imported_later(__name__):
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from crystalmix.prep.rows import tombstones

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]

PURGE: Final = "purge"
REQUEST, CERTIFICATE, TEXTS = "request.json", "certificate.json", "texts.txt"
SIDE: Final = "purged"  # of a shard: data-00007.purged.parquet
KEY: Final = "purged"  # in receipts
REMEDY = "restore it: without it nobody can say what was erased"
NOWHERE: Final[Mapping[Path, Path]] = {}


Line = tuple[str, int, str | None, list[str]]
Kind = TypeVar("Kind", bound="Sealed")


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """What the log of a build holds of a purge, with a digest of itself; time: UTC."""

    id: str
    time: str
    digest: str = ""

    def content(self) -> Content:
        """Return it as JSON."""
        return {key: value for key, value in vars(self).items() if value is not None}

    def sealed(self) -> Self:
        """Return it with its digest."""
        body = {key: value for key, value in self.content().items() if key != "digest"}
        return replace(self, digest=receipts.digest(body))


@dataclass(frozen=True, kw_only=True)
class Request(Sealed):
    """Request of a purge: all that is to be done in a build.

    list: digest of the list of `entries`. copies: whether other documents of equal text
    are erased too; copies_left: those that stay. by: who answers for it. names: kept or erased.
    salt: of hashed names. state: what the build was. caches: files that are removed, with digests.
    links: files that have another name. documents: of each its source's folder, its number there
    (of a dropped record -1 - its line), digest of its text, hashed names. names_kept: of each, None
    for none. builds: of one store, purged together.
    """

    schema: int
    list: str
    entries: int
    copies: bool
    copies_left: int
    by: str
    names: Literal["kept", "erased"]
    salt: str
    state: str
    caches: Sequence[tuple[str, str]]
    links: Sequence[str]
    documents: Sequence[Line]
    names_kept: Sequence[str | None]
    builds: Sequence[str] | None = None


@frozen
class ChangedFile:
    """A file that a purge wrote anew or removed. rows, tokens: of a shard, that are padding now."""

    file: str
    done: Literal["rewritten", "removed"]
    before: str
    after: str | None
    rows: int | None = None
    tokens: int | None = None


@frozen
class ChangedManifest:
    """A manifest that a purge superseded, by digest; place: of its build below the purged one."""

    place: str
    phase: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Certificate(Sealed):
    """What a purge did.

    request: its digest. finished: UTC. by, list, names: of the request. documents, dropped: that
    were erased. shards, rows, tokens: that hold padding now. builds: that were purged together.
    stays, not_reached, not_verified, not_read: what the purge did not erase, in words.
    """

    schema: int
    request: str
    finished: str
    by: str
    list: str
    names: Literal["kept", "erased"]
    documents: int
    dropped: int
    shards: int
    rows: int
    tokens: int
    files: tuple[ChangedFile, ...]
    manifests: tuple[ChangedManifest, ...]
    builds: Sequence[str] | None = None
    stays: Sequence[str]
    not_reached: Sequence[str]
    not_verified: Sequence[str]
    not_read: Sequence[str]

    def content(self) -> Content:
        """Return it as JSON; a file that is no shard has no rows and tokens."""
        content: Json = asdict(self)
        if self.builds is None:
            del content["builds"]
        for file in content["files"]:
            if file["rows"] is None:
                del file["rows"], file["tokens"]
        return content


@frozen
class ErasedShard:
    """What a shard holds since it was purged, as its receipt says.

    digest, rows_sum, loss_tokens: as of `Shard`. controls: control ids that it has more. rows,
    tokens: that are padding, by `stones`. was: xxh3 of the file before; purge: the last one.
    """

    digest: str
    rows_sum: int
    loss_tokens: int
    controls: int
    rows: int
    tokens: int
    stones: str
    was: str
    purge: str


@frozen
class ErasedFile:
    """A file of documents that was purged. was: its xxh3 before; purge: the last one."""

    was: str
    purge: str


@frozen
class Marks:
    """What a receipt says of purges: their ids, and what they did to its shards and files."""

    certificates: Sequence[str] = ()
    shards: dict[str, ErasedShard] = field(default_factory=dict[str, ErasedShard])
    files: dict[str, ErasedFile] = field(default_factory=dict[str, ErasedFile])

    @classmethod
    def of(cls, receipt: Receipt) -> Marks:
        """Read what a receipt says."""
        return quick_record(receipt.purged, cls, "purged")

    def content(self) -> Content:
        """Return it as JSON."""
        return {key: value for key, value in asdict(self).items() if value}


def log(build: BuildFolder) -> Path:
    """Return the folder of the requests of a build, of a mixture of it, or of what it was."""
    outer = build.within
    return build.path.absolute() / PURGE if outer is None else log(outer)


def requests(build: BuildFolder) -> list[Request]:
    """Return the requests of a build, by time."""
    return _all(build, REQUEST, Request)


def certificates(build: BuildFolder) -> list[Certificate]:
    """Return the certificates of a build, by time."""
    return _all(build, CERTIFICATE, Certificate)


def _all(build: BuildFolder, name: str, shape: type[Kind]) -> list[Kind]:
    records = [read_sealed(path, shape) for path in log(build).glob(f"[!.]*/{name}")]
    return sorted(records, key=lambda record: (record.time, record.id))


def read_sealed(path: Path, shape: type[Kind]) -> Kind:
    """Read a request or certificate, with its digest; DamageError where it was edited."""
    return quick_record(receipts.read_sealed(path, REMEDY), shape, str(path))


def unfinished(build: BuildFolder) -> str | None:
    """Return the id of a purge that was begun and not finished."""
    for path in sorted(log(build).glob(f"[!.]*/{REQUEST}")):
        if not path.with_name(CERTIFICATE).exists():
            return path.parent.name
    return None


def unfinished_line(build: BuildFolder) -> str | None:
    """Return a line of the purge that was begun and not finished, with what goes on with it."""
    if number := unfinished(build):
        home = log(build).parent
        return f"{home}: purge {number} is not finished; `crystalmix purge {home} --resume` goes on"
    return None


def check_finished(build: BuildFolder) -> None:
    """Raise RefusalError while a purge of a build is not finished."""
    if line := unfinished_line(build):
        raise RefusalError(line)


def joint_folder(store: Path) -> Path:
    """Return a shared store's folder of the requests of purges of several builds, until all end."""
    return store.resolve() / "purges"


def check_store(store: Path) -> None:
    """Raise RefusalError while a purge of builds that share a store is not finished."""
    for path in sorted(joint_folder(store).glob("*.json")):
        for home in map(BuildFolder, map(Path, read_json(path, REMEDY)["requests"])):
            if home.path.exists():
                check_finished(home)


def texts(build: BuildFolder) -> set[bytes]:
    """Return the digests of the texts that were purged."""
    lines = [line for request in requests(build) for line in request.documents]
    return {bytes.fromhex(line[2]) for line in lines if line[2]}


def listing(request: Request) -> bytes:
    """Return the digests of a request's texts as a file: a line each, sorted."""
    digests = sorted({line[2] for line in request.documents if line[2]})
    return "".join(f"{digest}\n" for digest in digests).encode()


def refuse_to_make(folder: Path, *made_of: Receipt) -> None:
    """Raise RefusalError where a folder of rows would be made of rows that were purged."""
    if any(receipt.purged for receipt in made_of):
        raise RefusalError(
            f"{folder}: would be made of rows that were purged, which hold padding for texts; "
            "build into another --out, without the texts"
        )


def refuse_others(build: BuildFolder, sources: Mapping[str, Receipt]) -> None:
    """Raise RefusalError where documents of a shared store were purged, and not of this build."""
    own = {request.id for request in requests(build)}
    for name, receipt in sources.items():
        if others := {*Marks.of(receipt).certificates} - own:
            raise RefusalError(
                f"{build.path}: the documents of source {name} were purged in the store, by "
                f"{', '.join(sorted(others))} of other builds, and their rows are padding there; "
                "give that purge's texts.txt as `opt_out`, or build with another --store"
            )


def entries(receipt: Receipt) -> list[Shard]:
    """Return a receipt's shards with digests and sums of what they hold now."""
    marks, every = Marks.of(receipt).shards, rows_files(receipt)
    for place, shard in enumerate(every):
        if (now := marks.get(shard.name)) is not None:
            sums = {"rows_sum": now.rows_sum, "loss_tokens": now.loss_tokens}
            every[place] = replace(shard, digest=now.digest, **sums)
    return every


def rows_of(shard: Path) -> tuple[Numbers, Numbers]:
    """Return rows and tokens of each purged piece of a shard; none where it holds all.

    Pieces that are padding in a redacted view anyway are not among those of its shards.
    """
    stones, place = None, shard.resolve()  # of a view: a link
    if tombstones.path_of(shard).exists():
        stones, place = tombstones.read(shard)
    path = place.with_suffix(f".{SIDE}.parquet")
    if not path.exists():
        return np.empty(0, np.int64), np.empty(0, np.int64)
    table = pq.read_table(path, columns=["row", "start", "stop"])
    row, start, stop = (table[name].to_numpy().astype(np.int64) for name in table.column_names)
    if stones is not None:
        pieces = set(zip(stones.row, stones.start, stones.stop, strict=True))
        new = np.array([piece not in pieces for piece in zip(row, start, stop, strict=True)], bool)
        row, start, stop = row[new], start[new], stop[new]
    return row, stop - start


def redaction(
    build: BuildFolder, manifest: Manifest, moves: Mapping[Path, Path] = NOWHERE
) -> Json | None:
    """Return what receipts say was purged of the rows of a manifest, None for nothing.

    moves: folders of the build that are to be links, and where to.
    """

    @cache
    def place(inside: str) -> Path:
        return moves.get(build.path / inside, build.path / inside)

    @cache
    def mark(inside: str) -> Marks:
        exists = (place(inside) / receipts.NAME).exists()
        return Marks.of(receipts.read(place(inside))) if exists else Marks()

    drawn: dict[str, set[int]] = {}
    shards: dict[str, str] = {}
    tokens, named = 0, set[str]()
    for part in manifest.parts:
        for shard in part.shards:
            inside, _, name = shard.path.rpartition("/")
            if name not in mark(inside).shards:
                continue
            row, count = rows_of(place(inside) / name)
            own = (row >= shard.first) & (row < shard.last)
            new = own & ~np.isin(row, sorted(drawn.get(shard.path, ())))
            if own.any():
                drawn.setdefault(shard.path, set()).update(row[own].tolist())
                shards[shard.path] = mark(inside).shards[name].stones
                tokens += int(count[new].sum())
                named.update(mark(inside).certificates)
    if not drawn:
        return None
    done = [
        place
        for request in requests(build)
        if request.id in named
        for _, place, _, _ in request.documents
        if place >= 0  # else: a record that was dropped
    ]
    return {
        "certificates": sorted(named),
        "documents": len(done),
        "rows": sum(map(len, drawn.values())),
        "tokens": tokens,
        "shards": dict(sorted(shards.items())),
    }


def is_purged(manifest: Manifest) -> bool:
    """Tell whether a manifest is over rows that were purged, and says so."""
    return manifest.redaction is not None and "certificates" in manifest.redaction


def named(
    build: BuildFolder,
    old: Manifest,
    sealed: Manifest | None = None,
    moves: Mapping[Path, Path] = NOWHERE,
) -> Manifest:
    """Return a manifest that names what was purged of its rows; itself where nothing was.

    sealed: the one in its place, which may know the digest that it had before. moves: as of
    `redaction`.
    """
    content = redaction(build, old, moves)
    if content is None:
        return old
    known = old if sealed is None else sealed
    origin = known.redaction["origin"] if known.redaction and is_purged(known) else known.digest
    return manifests.resealed(old, redaction={"origin": origin, **content})


def since(build: BuildFolder, manifest: Manifest) -> dict[str, Numbers]:
    """Return, by shard, the rows of a manifest that were purged after it was sealed."""
    digests = (manifest.redaction or {}).get("shards", {}) if is_purged(manifest) else {}
    now = redaction(build, manifest) or {"shards": {}}
    late = [path for path, digest in now["shards"].items() if digests.get(path) != digest]
    return {path: np.unique(rows_of(build.path / path)[0]) for path in late}


def before(build: BuildFolder, digest: str) -> set[str]:
    """Return the digests of the manifests that purges superseded on the way to a manifest."""
    links: dict[str, set[str]] = {}  # not by time: two may be of one second, or a clock set back
    for certificate in certificates(build):
        for change in certificate.manifests:
            links.setdefault(change.after, set()).add(change.before)
    digests, ahead = set[str](), [digest]
    while ahead:
        new = links.get(ahead.pop(), set[str]()) - digests
        digests |= new
        ahead += new
    return digests - {digest}


def superseded_by(build: BuildFolder, manifest: Manifest) -> str | None:
    """Return the ids of the purges made after a manifest was sealed, None where there are none.

    That is the purge that superseded it; in a past state of a build, the purges of its rows.
    """
    try:
        for certificate in certificates(build):
            if manifest.digest in {change.before for change in certificate.manifests}:
                return certificate.id
        if build.is_past:
            return ", ".join((redaction(build, manifest) or {}).get("certificates", [])) or None
    except (DamageError, KeyError, TypeError, pa.ArrowException, OSError):
        pass  # `faults` and the checks of receipts and files tell
    return None


def faults(
    build: BuildFolder, sealed: dict[Path, Receipt], note: Callable[[str], None]
) -> Iterator[str]:
    """Yield where the log is not whole, or receipts name a certificate that is not there.

    note: takes lines about what is not read of it.
    """
    try:
        if number := unfinished(build):
            yield f"{log(build) / number}: this purge is not finished; `crystalmix purge --resume`"
        ids = {request.id for request in requests(build)}
        for certificate in certificates(build):
            path = log(build) / certificate.id / REQUEST
            if read_sealed(path, Request).digest != certificate.request:
                yield f"{path}: is not the request that was certified; {REMEDY}"
            note(
                f"{path.with_name(CERTIFICATE)}: is of its request and has its own digest; what it "
                "says of files and manifests as they were is recorded, and not read again"
            )
        for request in requests(build):
            path = log(build) / request.id / TEXTS
            if not path.exists() or path.read_bytes() != listing(request):
                yield f"{path}: is not the list of the texts of its request; {REMEDY}"
        for folder, receipt in sealed.items():
            for number in Marks.of(receipt).certificates:
                if number not in ids:
                    yield f"{folder}: names purge {number}, which is not in {log(build)}; {REMEDY}"
    except (DamageError, KeyError, TypeError) as error:
        yield f"{log(build)}: can't be checked ({error}); {REMEDY}"
