"""OpenLineage: what a build and a run made from what, an event on each line.

One event for each source, domain and phase of a build, and for each checkpoint that a run keeps. No
time is recorded of the work itself: `eventTime` is when the file that seals the output was last
written, and START events, whose time nothing knows, are left out. Names are relative.
"""

from collections.abc import Iterator, Sequence
from json import dumps
from pathlib import Path
from typing import Final
from uuid import NAMESPACE_URL, uuid5

import pyarrow.parquet as pq

from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import DOCUMENTS, MANIFEST, rows_files
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import readable
from crystalmix.prep.runtime.types import Content
from crystalmix.train.record import run_folder
from crystalmix.train.record.run_folder import STATE, PhaseFolder
from crystalmix.train.report.build_files import public_name, written
from crystalmix.train.report.facts import Facts, PhaseFacts, RawFile, SourceFacts, trained_with
from crystalmix.train.report.words import Blanks, program_version

SPEC = "https://openlineage.io/spec"
PRODUCER: Final = f"urn:crystalmix:{program_version()}"
NAMESPACE = "crystalmix"
Facet = tuple[str, Content]  # its key, and it
FACETS = {  # our key, the version of the facet's schema, its name there
    "version": ("1-0-1", "DatasetVersionDatasetFacet"),
    "schema": ("1-2-0", "SchemaDatasetFacet"),
    "documentation": ("1-1-0", "DocumentationDatasetFacet"),
    "tags": ("1-0-0", "TagsDatasetFacet"),
    "inputStatistics": ("1-0-0", "InputStatisticsInputDatasetFacet"),
    "outputStatistics": ("1-0-2", "OutputStatisticsOutputDatasetFacet"),
    "jobType": ("2-0-4", "JobTypeJobFacet"),
    "processing_engine": ("1-1-1", "ProcessingEngineRunFacet"),
    "executionParameters": ("1-0-0", "ExecutionParametersRunFacet"),
}


def events(facts: Facts, blanks: Blanks) -> list[str]:
    """Return the events, one a line, in the order in which the outputs were made."""
    lines = [_of_source(facts, source, blanks) for source in facts.sources]
    lines += [_of_domain(facts, domain) for domain in _folders(facts)]
    for phase in facts.phases:
        lines.append(_of_phase(facts, phase))
    for phase in facts.phases:
        lines += _of_checkpoints(facts, phase)
    return [dumps(line, ensure_ascii=False) for line in lines]


def _of_source(facts: Facts, source: SourceFacts, blanks: Blanks) -> Content:
    """Return the event of a source: raw files and lists in, kept documents out."""
    path = facts.build.path / source.folder / DOCUMENTS
    place = f"sources.{source.name}.about"
    stated = {"kind": source.about.kind, "licence": source.about.licence, "url": source.about.url}
    words = {key: blanks.say(f"{place}.{key}", value) for key, value in stated.items()}
    tags = [{"key": k, "value": v, "source": "USER"} for k, v in words.items() if stated[k]]
    fields = [{"name": f.name, "type": str(f.type)} for f in pq.read_schema(readable(path))]
    facets = [
        _facet("version", datasetVersion=f"sha256:{source.digest}"),
        _facet("schema", fields=fields),
        _facet("tags", tags=tags),
    ]
    if source.about.text:
        facets.append(_facet("documentation", description=source.about.text))
    facet = _facet(
        "outputStatistics", rowCount=source.documents, size=path.stat().st_size, fileCount=1
    )
    return _event(
        path,
        f"{facts.name}.source.{source.name}",
        source.digest,
        [_raw(entry) for entry in (*source.files, *source.lists)],
        [_dataset(facts.name, f"{source.folder}/{DOCUMENTS}", facets, outputFacets=[facet])],
    )


def _raw(file: RawFile) -> Content:
    """Return a raw file, list or shard of a hub dataset as a dataset."""
    version = [] if file.xxh3 is None else [_facet("version", datasetVersion=f"xxh3:{file.xxh3}")]
    read = [] if file.bytes is None else [_facet("inputStatistics", size=file.bytes, fileCount=1)]
    return {
        "namespace": "file" if file.hub is None else f"hub:{file.hub}",
        "name": public_name(file.name),
        "facets": dict(version),
        "inputFacets": dict(read),
    }


def _folders(facts: Facts) -> dict[str, Path]:
    """Return of each domain that phases draw from the folder of the rows that they draw."""
    shards = {
        part.domain: part.shards[0].path
        for phase in facts.phases
        for part in phase.manifest.parts
        if part.shards
    }
    return {domain: Path(path).parent for domain, path in sorted(shards.items())}


def _of_domain(facts: Facts, domain: str) -> Content:
    """Return the event of a domain: documents in, rows out; of imported rows nothing goes in."""
    folder = facts.build.path / _folders(facts)[domain]
    receipt = receipts.read(folder)
    by_source = {entry.source: entry for entry in facts.tokens if entry.domain == domain}
    sources = [source for source in facts.sources if source.name in by_source]
    inputs = [
        _dataset(
            facts.name,
            f"{source.folder}/{DOCUMENTS}",
            [_facet("version", datasetVersion=f"sha256:{source.digest}")],
            inputFacets=[_facet("inputStatistics", rowCount=by_source[source.name].documents)],
        )
        for source in sources
    ]
    entries = rows_files(receipt)
    facet = _facet(
        "outputStatistics",
        rowCount=sum(shard.rows for shard in entries),
        size=sum(shard.bytes or 0 for shard in entries),
        fileCount=len(entries),
    )
    output = _rows(facts, domain, outputFacets=[facet])
    path = folder / receipts.NAME
    return _event(path, f"{facts.name}.domain.{domain}", receipt.digest, inputs, [output])


def _rows(facts: Facts, domain: str, **more: list[Facet]) -> Content:
    folder = _folders(facts)[domain]
    digest = receipts.read(facts.build.path / folder).digest
    version = _facet("version", datasetVersion=f"sha256:{digest}")
    return _dataset(facts.name, folder.as_posix(), [version], **more)


def _of_phase(facts: Facts, phase: PhaseFacts) -> Content:
    """Return the event of a phase: rows of domains in, a sealed manifest out."""
    manifest, redaction = phase.manifest, phase.manifest.redaction
    drawn: dict[str, int] = {}
    for part in manifest.parts:
        drawn[part.domain] = drawn.get(part.domain, 0) + part.rows
    inputs = [
        _rows(facts, domain, inputFacets=[_facet("inputStatistics", rowCount=rows)])
        for domain, rows in sorted(drawn.items())
        if rows
    ]
    if redaction is not None:
        origin = _facet("version", datasetVersion=f"sha256:{redaction['origin']}")
        inputs.append(_dataset(facts.name, f"phases/{phase.name}/{MANIFEST}", [origin]))
        if purged.is_purged(manifest):
            inputs += _certificates(facts, redaction["certificates"])
        else:
            listed = _facet("version", datasetVersion=f"xxh3:{redaction['list']}")
            inputs.append(_dataset(facts.name, "redaction list", [listed]))
    facet = _facet("outputStatistics", rowCount=manifest.steps * manifest.batch)
    output = _manifest(facts, phase, outputFacets=[facet])
    path = facts.build.manifest(phase.name)
    return _event(path, f"{facts.name}.phase.{phase.name}", manifest.digest, inputs, [output])


def _certificates(facts: Facts, ids: Sequence[str]) -> Iterator[Content]:
    """Yield the certificates of purges that a phase's manifest names."""
    for certificate in purged.certificates(facts.build):
        if certificate.id in ids:
            version = _facet("version", datasetVersion=f"sha256:{certificate.digest}")
            name = f"{purged.PURGE}/{certificate.id}/{purged.CERTIFICATE}"
            yield _dataset(facts.name, name, [version])


def _manifest(facts: Facts, phase: PhaseFacts, **more: list[Facet]) -> Content:
    version = _facet("version", datasetVersion=f"sha256:{phase.manifest.digest}")
    return _dataset(facts.name, f"phases/{phase.name}/{MANIFEST}", [version], **more)


def _of_checkpoints(facts: Facts, phase: PhaseFacts) -> Iterator[Content]:
    """Yield an event for each checkpoint that a run keeps: COMPLETE where the phase is done."""
    if facts.run is None or phase.claim is None:
        return
    folder = PhaseFolder(facts.run / phase.name)
    settings = [{"key": key, "value": value} for key, value in trained_with(phase.claim)]
    more = [_facet("executionParameters", parameters=settings)] if settings else []
    identity = receipts.digest([phase.claim.content(), phase.manifest.digest])
    for checkpoint in run_folder.checkpoints(folder.checkpoints):
        state = run_folder.read_state(checkpoint)
        version = [] if state.weights is None else [f"sha256:{state.weights}"]
        output = _dataset(
            facts.run.resolve().name,
            f"{phase.name}/checkpoints/{checkpoint.name}",
            [_facet("version", datasetVersion=digest) for digest in version],
            outputFacets=[
                _facet(
                    "outputStatistics",
                    size=sum(file.bytes for file in state.files),
                    fileCount=len(state.files),
                )
            ],
        )
        yield _event(
            checkpoint / STATE,
            f"{facts.name}.train.{phase.name}",
            identity,
            [_manifest(facts, phase)],
            [output],
            "COMPLETE" if state.step == phase.manifest.steps else "RUNNING",
            more,
        )


def _event(
    sealed: Path,
    job: str,
    identity: str,
    inputs: list[Content],
    outputs: list[Content],
    kind: str = "COMPLETE",
    more: Sequence[Facet] = (),
) -> Content:
    """Return an event.

    sealed: the file whose time it has. identity: what its run's id is of; more: facets of its run.
    """
    engine = _facet("processing_engine", version=program_version(), name="crystalmix")
    sort = _facet("jobType", processingType="BATCH", integration="CRYSTALMIX", jobType="COMMAND")
    return {
        "eventType": kind,
        "eventTime": written(sealed),
        "producer": PRODUCER,
        "schemaURL": f"{SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent",
        "run": {
            "runId": str(uuid5(NAMESPACE_URL, f"{job}:{identity}")),
            "facets": dict([engine, *more]),
        },
        "job": {"namespace": NAMESPACE, "name": job, "facets": dict([sort])},
        "inputs": inputs,
        "outputs": outputs,
    }


def _dataset(root: str, name: str, facets: list[Facet], **more: list[Facet]) -> Content:
    """Return a dataset of ours; root: the recipe's or the run's name, which its own begins with."""
    own = {key: dict(pairs) for key, pairs in more.items()}
    return {"namespace": NAMESPACE, "name": f"{root}/{name}", "facets": dict(facets), **own}


def _facet(key: str, **values: object) -> Facet:
    version, name = FACETS[key]
    url = f"{SPEC}/facets/{version}/{name}.json#/$defs/{name}"
    return key, {"_producer": PRODUCER, "_schemaURL": url, **values}
