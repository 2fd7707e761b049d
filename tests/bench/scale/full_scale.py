"""The metadata of the published run without its data: manifests, receipts, lookups, ledger.

Three phases of 321,836 steps of 2,112 rows over 658 million rows in shards of 4,096, 800 million
documents. Receipts, ranges of documents, manifests, steps, and the row groups of documents and of
sorted names are all there; what stands in a row group, a side file or a shard is written for those
that are asked. A document's tokens follow each other as many as the domain's others', so where it
lies is arithmetic.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.mixtures.build import lookups
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest import opened
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.exact_order import VERSION
from crystalmix.mixtures.manifest.manifest import (
    Manifest,
    ManifestPart,
    PartShard,
    TokenizerIdentity,
)
from crystalmix.mixtures.plan.plan import plan
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.prep.documents import dropped, lookup
from crystalmix.prep.documents.schema import identity
from crystalmix.prep.rows import document_ranges, shards, shuffle, spans
from crystalmix.prep.runtime import randomness, receipts
from crystalmix.prep.runtime.atomic_files import canonical, write_atomic
from crystalmix.prep.runtime.permutation import Permutation
from crystalmix.prep.runtime.types import Json
from crystalmix.train.record import ledger, run_folder
from crystalmix.train.record.ledger import Ledger, PartLoss, Step

SHARD, MSL, SEED = 4096, 2048, 1
DOCUMENTS = 800_000_000
GROUP = 1 << 16  # documents of a row group
FILES = 60_000  # raw files of all sources
PER_SEAL = 1000  # steps between checkpoints
SPIKE = 10_000  # steps of which one stands out
IDS = (300, 32_000)  # tokens of rows
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Domain:
    """A domain and the one source that it has, of the same name."""

    name: str
    rows: int
    documents: int

    @property
    def sizes(self) -> list[int]:
        """Rows of its shards."""
        whole, rest = divmod(self.rows, SHARD)
        return [*[SHARD] * whole, *[rest] * bool(rest)]

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return self.rows * MSL

    @property
    def length(self) -> int:
        """Tokens of each document; the last one has what is left over, too."""
        return self.tokens // self.documents

    def start(self, document: Numbers) -> Numbers:
        """Return the first token of documents; that behind the last is where the rows end."""
        return np.where(document < self.documents, document * self.length, self.tokens)

    def holding(self, token: Numbers) -> Numbers:
        """Return the documents that hold tokens."""
        return np.minimum(token // self.length, self.documents - 1)

    def named(self, document: int) -> str:
        """Return a document's name; names ascend with numbers."""
        return f"{self.name}/repository-{document // 100:08d}/src/{document:010d}.txt"

    @property
    def shuffled(self) -> Permutation:
        """Row of the shuffled order -> packed row."""
        return Permutation(self.rows, randomness.key(SEED, "shuffle", self.name))


def domains() -> dict[str, Domain]:
    """Return the domains of the published recipe."""
    recipe = recipes.load("crystalcoder")
    rows = {name: int((d.tokens or 0) / MSL) for name, d in recipe.domains.items()}
    every = sum(rows.values())
    return {
        name: Domain(name, count, max(1, count * DOCUMENTS // every))
        for name, count in rows.items()
    }


def write_manifests(out: Path) -> None:
    """Write the manifests of the published phases over the shards of all domains."""
    recipe = recipes.load("crystalcoder")
    plans = {phase.name: phase for phase in plan(recipe)}
    stock = {name: _shards(domain) for name, domain in domains().items()}
    previous: str | None = None
    for phase in [*recipe.phases.values()][:3]:
        parts: list[ManifestPart] = []
        drawn: list[tuple[PartShard, ...]] = []
        for part in phase.parts:
            own = stock[part.domain]
            own = own if part.half is None else own[part.half == "odd" :: 2]
            drawn.append(tuple(own[: len(own) // 10] if part.subset else own))
        available = [sum(shard.last - shard.first for shard in own) for own in drawn]
        weights = phase.weights(available)
        for part, own, weight, count in zip(
            phase.parts, drawn, weights, phase.counts(weights, phase.steps or 0), strict=True
        ):
            made = ManifestPart(
                name=part.name,
                domain=part.domain,
                budget={"weight": part.weight},
                asked=part.asked,
                weight=weight,
                rows=0,
                tokens=0,
                loss_tokens=0,
                got=0.0,
                available=sum(shard.last - shard.first for shard in own),
                epochs=0.0,
                fim=None,
                variants=1,
                shards=own,
                digest=manifests.part_digest(own),
            )
            size = (phase.steps or 0) * phase.batch
            parts.append(manifests.budgeted(made, count, size, MSL))
        sealed = manifests.sealed(
            Manifest(
                name="crystalcoder",
                phase=phase.name,
                steps=plans[phase.name].steps,
                batch=phase.batch,
                msl=MSL,
                seed=SEED,
                order_version=VERSION,
                cerebras=None,
                tokenizer=TokenizerIdentity(32032),
                parts=tuple(parts),
                previous=previous,
                imported=None,
            )
        )
        manifests.write(BuildFolder(out).manifest(phase.name), sealed)
        previous = sealed.digest


def _shards(domain: Domain) -> list[PartShard]:
    return [
        PartShard(
            path=f"domains/{domain.name}/shuffled/data-{number:05d}.h5",
            rows=size,
            digest=receipts.digest([domain.name, number]),
            first=0,
            last=size,
            loss_tokens=size * MSL,
        )
        for number, size in enumerate(domain.sizes)
    ]


def write_receipts(out: Path) -> None:
    """Write the receipts of all sources and folders of rows; raw files are counted in a source."""
    build, every = BuildFolder(out), domains()
    files = _files_of(every)
    for domain in every.values():
        inputs = {
            f"{domain.name}/part-{number:05d}.jsonl.zst": {
                "bytes": 20_000_000,
                "xxh3": f"{number:032x}",
            }
            for number in range(files[domain.name])
        }
        source = build.source(domain.name)
        content = _receipt(
            source,
            "documents",
            [],
            {"files": inputs, "earlier": {}},
            {},
            _documents_account(domain),
        )
        entries = [
            {"name": shards.name(number), "rows": size, "msl": MSL, "loss_tokens": size * MSL}
            | {"bytes": 12_000_000, "xxh3": f"{number:032x}", "rows_sum": number}
            | {"digest": receipts.digest([domain.name, number])}
            for number, size in enumerate(domain.sizes)
        ]
        packed = build.packed(domain.name)
        sides = [
            {"name": entry["name"].replace(".h5", ".spans.parquet"), "bytes": 90_000}
            | {"xxh3": f"{number:032x}"}
            for number, entry in enumerate(entries)
        ]
        made = {domain.name: content}
        content = _receipt(packed, "pack", sides, made, {"shards": entries}, _rows_account(domain))
        origins = [
            {"name": entry["name"].replace(".h5", ".origin.parquet"), "bytes": 20_000}
            | {"xxh3": f"{number:032x}"}
            for number, entry in enumerate(entries)
        ]
        pairs = [file for pair in zip(entries, origins, strict=True) for file in pair]
        made = {packed.name: content}
        _receipt(build.shuffled(domain.name), "shuffle", pairs, made, {}, _rows_account(domain))


def _files_of(every: dict[str, Domain]) -> dict[str, int]:
    rows = sum(domain.rows for domain in every.values())
    return {name: max(1, FILES * domain.rows // rows) for name, domain in every.items()}


def _documents_account(domain: Domain) -> Json:
    return {"records": domain.documents, "documents": domain.documents, "dropped": {}}


def _rows_account(domain: Domain) -> Json:
    count = domain.tokens
    account = {"rows": domain.rows, "tokens_in": count, "tokens_out": count, "dropped": {}}
    account |= {"text_tokens": count - 2 * domain.documents, "controls": 2 * domain.documents}
    account |= {"controls_out": 2 * domain.documents, "padding": 0}
    return {**account, "documents": domain.documents, "held_out": 0}


def _receipt(
    folder: Path, stage: str, files: list[Json], inputs: Json, more: Json, account: Json
) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {"stage": stage, "version": 1, "settings": {"domain": folder.parent.name}}
    recipe |= {"seed": SEED, "inputs": inputs}
    content = {"account": account, "content": f"{stage} of {folder.parent.name}", **more}
    return receipts.seal(folder, recipe, files, content).content


def write_lookups(out: Path, asked: dict[str, Numbers]) -> None:
    """Write ranges of documents, documents and sorted names; asked: documents of each source."""
    build, every = BuildFolder(out), domains()
    for domain in every.values():
        numbers = asked.get(domain.name, np.empty(0, np.int64))
        inside = build.lookup / build.packed(domain.name).relative_to(out)
        if (inside / lookups.SEAL).exists():
            continue
        _write_documents(build, domain, set((numbers // GROUP).tolist()))
        place = build.lookup / "sources" / domain.name
        place.mkdir(parents=True, exist_ok=True)
        groups = set((numbers // lookup.GROUP_ROWS).tolist())
        _write_names(place / lookup.NAMES, domain, groups)
        _write_digests(place / lookup.DIGESTS, domain)
        _write_lines(place / lookup.LINES, domain, set((numbers // lookup.LINE_ROWS).tolist()))
        seal(out, build.source(domain.name), [lookup.NAMES, lookup.DIGESTS, lookup.LINES])
        packed = build.packed(domain.name)
        inside.mkdir(parents=True, exist_ok=True)
        ends = np.cumsum([0, *domain.sizes])
        table = {
            "shard": [shards.name(number) for number in range(len(domain.sizes))],
            "source": [domain.name] * len(domain.sizes),
            "first": domain.holding(ends[:-1] * MSL),
            "last": domain.holding(ends[1:] * MSL - 1),
        }
        ranges = pa.table(table, schema=document_ranges.SCHEMA)
        document_ranges.write(inside / lookups.RANGES, ranges)
        seal(out, packed, [lookups.RANGES])
    opened.make(build)


def seal(out: Path, folder: Path, names: list[str]) -> None:
    """Seal the lookup of a folder, as a build does."""
    inside = BuildFolder(out).lookup / folder.relative_to(out)
    made = {"version": lookup.VERSION, "origin": lookups.origin_digest(receipts.read(folder))}
    receipt = receipts.FileEntry.of(folder / receipts.NAME)
    made |= {"receipt": receipt.xxh3, "receipt_bytes": receipt.bytes}
    made["receipt_digest"] = receipts.own_digest(folder / receipts.NAME)
    content = {**made, "files": [receipts.describe(inside / name) for name in names]}
    write_atomic(inside / lookups.SEAL, canonical({**content, "digest": receipts.digest(content)}))


def _write_documents(build: BuildFolder, domain: Domain, groups: set[int]) -> None:
    schema = identity()
    place = build.documents(domain.name)
    empty = _documents(domain, np.zeros(GROUP, np.int64), real=False)
    with pq.ParquetWriter(place, schema, compression="zstd") as writer:
        for group, first in enumerate(range(0, domain.documents, GROUP)):
            last = min(first + GROUP, domain.documents)
            if group in groups:
                writer.write_table(_documents(domain, np.arange(first, last), real=True))
            else:
                writer.write_table(empty.slice(0, last - first))
    pq.write_table(dropped.SCHEMA.empty_table(), place.with_name(dropped.NAME))


def _documents(domain: Domain, numbers: Numbers, *, real: bool) -> pa.Table:
    names = [domain.named(d) for d in numbers.tolist()] if real else [None] * len(numbers)
    digests = [d.to_bytes(16, "big") for d in numbers.tolist()]
    file = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(len(numbers)), pa.int32()), [f"{domain.name}/part-00000.jsonl.zst"]
    )
    columns = [
        numbers, file, numbers, pa.array(names, pa.string()), pa.array(digests, pa.binary(16)),
        numbers, numbers,
    ]  # fmt: skip
    return pa.table(columns, schema=identity())


def _write_names(path: Path, domain: Domain, groups: set[int]) -> None:
    schema = pa.schema([("key", pa.large_string()), ("place", pa.int64())])
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for group, first in enumerate(range(0, domain.documents, lookup.GROUP_ROWS)):
            last = min(first + lookup.GROUP_ROWS, domain.documents)
            numbers = np.arange(first, last)
            if group in groups:
                keys = pa.array([domain.named(d) for d in numbers.tolist()], pa.large_string())
            else:
                keys = _ends(domain.named(first), domain.named(last - 1), len(numbers))
                numbers = np.zeros(len(numbers), np.int64)
            writer.write_table(
                pa.table([keys, numbers], schema=schema), row_group_size=lookup.GROUP_ROWS
            )


def _ends(first: object, last: object, count: int) -> pa.Array:
    """Return keys of which the smallest and the largest are these."""
    kind = pa.large_string() if isinstance(first, str) else pa.binary(16)
    rest = pa.repeat(pa.scalar(last, kind), count - 1)
    return pa.concat_arrays([pa.array([first], kind), rest])


def _write_digests(path: Path, domain: Domain) -> None:
    schema = pa.schema([("key", pa.binary(16)), ("place", pa.int64())])
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for first in range(0, domain.documents, lookup.GROUP_ROWS):
            last = min(first + lookup.GROUP_ROWS, domain.documents)
            ends = [
                (d * (2**128 // domain.documents)).to_bytes(16, "big") for d in (first, last - 1)
            ]
            numbers = np.zeros(last - first, np.int64)
            writer.write_table(
                pa.table([_ends(*ends, last - first), numbers], schema=schema),
                row_group_size=lookup.GROUP_ROWS,
            )


def _write_lines(path: Path, domain: Domain, batches: set[int]) -> None:
    rows = lookup.LINE_ROWS
    known = {"rows": str(rows), "lines": str(domain.documents)}
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(
        path, lookup.kept_schema().with_metadata(known), options=options
    ) as writer:
        empty = _lines(domain, np.zeros(rows, np.int64), real=False)
        for batch, first in enumerate(range(0, domain.documents, rows)):
            numbers = np.arange(first, min(first + rows, domain.documents))
            real = batch in batches
            writer.write_batch(
                _lines(domain, numbers, real=True) if real else empty.slice(0, len(numbers))
            )


def _lines(domain: Domain, numbers: Numbers, *, real: bool) -> pa.RecordBatch:
    table = _documents(domain, numbers, real=real).select(lookup.line_schema().names)
    return lookup.line_batch(table.cast(lookup.line_schema()))


def documents_of(domain: Domain, packed: Numbers) -> Numbers:
    """Return the documents that stand in packed rows."""
    first, last = domain.holding(packed * MSL), domain.holding((packed + 1) * MSL - 1)
    return np.unique(np.concatenate([first, last, (first + last) // 2]))


def write_spans(out: Path, domain: Domain, shard: int) -> None:
    """Write the spans of a packed shard."""
    place = spans.path_of(BuildFolder(out).packed(domain.name) / shards.name(shard))
    if place.exists():
        return
    first = shard * SHARD
    last = min(first + SHARD, domain.rows)
    low, high = (domain.holding(np.array([t]))[0] for t in (first * MSL, last * MSL - 1))
    starts = domain.start(np.arange(low, high + 2))
    cut = spans.cut(starts, first * MSL, last * MSL, MSL)
    count = len(cut["row"])
    document = low + cut.pop("document")
    none = np.full(count, -1)
    columns = {
        **cut,
        "source": pa.DictionaryArray.from_arrays(np.zeros(count, np.int16), [domain.name]),
        "document": document,
        "fim": np.zeros(count),
        "cut1": none,
        "cut2": none,
    }
    table = pa.table({name: pa.array(columns[name]) for name in spans.SPANS.names})
    spans.write(place, table.cast(spans.SPANS))


def write_shuffled(out: Path, domain: Domain, shard: int) -> Numbers:
    """Write a shuffled shard with its origins; return the packed row of each row."""
    build = BuildFolder(out)
    place = build.shuffled(domain.name) / shards.name(shard)
    first = shard * SHARD
    last = min(first + SHARD, domain.rows)
    packed = domain.shuffled.forward(np.arange(first, last))
    if not place.exists():
        names = [f"epoch-0/{shards.name(number)}" for number in range(len(domain.sizes))]
        inputs = tuple(
            shuffle.Input(name, Path(name), size)
            for name, size in zip(names, domain.sizes, strict=True)
        )
        rng = np.random.default_rng(shard)
        block = np.ones((256, 3, MSL), np.int32)
        block[:, 0] = rng.integers(*IDS, (256, MSL))
        rows = (block[: min(256, last - first - at)] for at in range(0, last - first, 256))
        shuffle.write(inputs, packed, place, rows)
    return packed


def write_steps(run: Path, manifest: Manifest, whole: Iterable[int]) -> None:
    """Write the steps of a phase, and the rows of segments; whole: the segments that have rows."""
    phase = run_folder.PhaseFolder(run / manifest.phase)
    keeper, kept = Ledger(phase.ledger, manifest), set(whole)
    phase.ledger.mkdir(parents=True, exist_ok=True)
    names = [part.name for part in manifest.parts]
    before = np.zeros(len(names), np.int64)
    entries: list[receipts.FileEntry] = []
    for segment, first in enumerate(range(0, manifest.steps, PER_SEAL)):
        last = min(first + PER_SEAL, manifest.steps)
        stale = [path for path in ledger.segments(phase.ledger) if f"-{first:08d}-" in path.name]
        for step in range(first, last):
            after = np.array(manifest.order.counts((step + 1) * manifest.batch))
            parts = tuple(
                PartLoss(name, rows, rows * MSL, 2.0 + 1e-4 * (step % 997))
                for name, rows in zip(names, (after - before).tolist(), strict=True)
                if rows
            )
            before = after
            refs = manifest.step(step) if segment in kept else manifest.rows(0, 0)
            digest = f"{step:032x}"
            loss = 2.0 + step % 7 * 0.01 + (step % SPIKE == SPIKE // 2)
            keeper.record(Step(step, refs, digest, loss, 1.0, 1e-4, parts))
        entries += keeper.seal().files[len(entries) :]
        for path in stale:
            path.unlink(missing_ok=True)
    place = phase.checkpoint(manifest.steps)
    place.mkdir(parents=True, exist_ok=True)
    seal = run_folder.SealedLedger(keeper.chain, manifest.steps, tuple(entries))
    state = run_folder.CheckpointState(manifest.steps, (), manifest.digest, None, seal)
    run_folder.write_state(place, state)
    write_atomic(phase.claim, canonical({"manifest": manifest.digest}))
