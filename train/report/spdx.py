"""SPDX 3.0.1 as JSON-LD: the mixture and its sources as datasets, of a run also the model.

Profiles core, software, simpleLicensing, build; dataset and ai where all that they require is
stated (else what lacks is listed as not stated). Times that nobody states are those at which files
were last written. A licence is an SPDX expression, else a LicenseRef with the words as its text.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from json import dumps
from uuid import NAMESPACE_URL, uuid5

from crystalmix.mixtures.manifest.report import redaction_line
from crystalmix.prep.runtime.atomic_files import file_sha256
from crystalmix.prep.runtime.types import Content
from crystalmix.train.report import build_files
from crystalmix.train.report.build_files import public_name, written
from crystalmix.train.report.facts import Facts, SourceFacts, trained_with
from crystalmix.train.report.licences import of_documents, spdx_expression
from crystalmix.train.report.words import Blanks, program_version, words

CONTEXT = "https://spdx.org/rdf/3.0.1/spdx-context.jsonld"
NO_LICENCE = "expandedlicensing_NoAssertionLicense"
MOST_LICENCES = 1000  # of a source's documents
PRESENCE = {"none": "no", "possible": "noAssertion", "yes": "noAssertion", None: "noAssertion"}
DAY = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass
class _Graph:
    """The elements of a document, with ids below one name; agent: who made it, for all of them."""

    name: str
    agent: str
    elements: list[Content] = field(default_factory=list[Content])
    licences: dict[str, str] = field(default_factory=dict[str, str])

    def add(self, kind: str, place: str, **values: object) -> str:
        """Add an element without the values that are empty; return its id."""
        fields = {k: v for k, v in values.items() if v not in (None, "", [], ())}
        own = f"{self.name}#{place}"
        self.elements.append({"type": kind, "spdxId": own, "creationInfo": "_:creation", **fields})
        return own

    def relate(self, source: str, kind: str, targets: Iterable[str], comment: str = "") -> None:
        """Add a relationship, where it leads to something."""
        if to := list(targets):
            place = f"relationship-{len(self.elements)}"
            values = {"from": source, "relationshipType": kind, "to": to, "comment": comment}
            self.add("Relationship", place, **values)

    def licence(self, text: str | None) -> str:
        """Return the id of a licence; without one that of `no assertion`."""
        if text is None:
            return NO_LICENCE
        if text not in self.licences:
            self.licences[text] = self._licence(text, f"licence-{len(self.licences)}")
        return self.licences[text]

    def _licence(self, text: str, place: str) -> str:
        expression = spdx_expression(text)
        if expression is not None:
            values = {"simplelicensing_licenseExpression": expression}
            return self.add("simplelicensing_LicenseExpression", place, **values)
        values = {"simplelicensing_licenseText": text}
        return self.add("simplelicensing_SimpleLicensingText", place, **values)


def spdx(facts: Facts, blanks: Blanks) -> list[str]:
    """Return the document; every file of the build that it lists is read for its sha256."""
    digests = [phase.manifest.digest for phase in facts.phases]
    card = facts.card
    name = f"urn:uuid:{uuid5(NAMESPACE_URL, ' '.join(digests))}"
    graph = _Graph(name, f"{name}#provider")
    provider = blanks.say("provider.name", card.provider.name)
    if card.provider.name is None:
        graph.agent = graph.add("SoftwareAgent", "crystalmix-agent", name="crystalmix")
    else:
        graph.add("Organization", "provider", name=provider)
    tool = graph.add("Tool", "crystalmix", name=f"crystalmix {program_version()}")
    sources = [_source(graph, source, blanks) for source in facts.sources]
    dataset = _dataset(graph, facts, blanks)
    graph.relate(dataset, "descendantOf", sources)
    build = graph.add(
        "build_Build",
        "build",
        build_buildType="urn:crystalmix:build",
        build_buildId=" ".join(digests),
    )
    graph.relate(build, "hasInput", sources)
    graph.relate(build, "hasOutput", [dataset])
    root = dataset if facts.run is None else _model(graph, facts, dataset, blanks)
    document = {
        "name": card.dataset.title or facts.name,
        "rootElement": [root],
        "element": [element["spdxId"] for element in graph.elements],
        "profileConformance": _profiles(facts),
    }
    graph.add("SpdxDocument", "document", **document)
    creation = {
        "type": "CreationInfo",
        "@id": "_:creation",
        "specVersion": "3.0.1",
        "created": _built(facts),
        "createdBy": [graph.agent],
        "createdUsing": [tool],
        "comment": "created: when the newest manifest was written, as its file system has it",
    }
    content = {"@context": CONTEXT, "@graph": [creation, *graph.elements]}
    return [dumps(content, indent=1, ensure_ascii=False)]


def _source(graph: _Graph, source: SourceFacts, blanks: Blanks) -> str:
    """Add a source with its raw files; return its id."""
    about, place = source.about, f"source-{source.name}"
    say = f"sources.{source.name}.about"
    for key in ("url", "revision", "licence", "personal"):
        blanks.say(f"{say}.{key}", getattr(about, key))
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in source.dropped.items())
    own = graph.add(
        "dataset_DatasetPackage",
        place,
        name=source.title,
        description=about.text,
        software_primaryPurpose="data",
        software_downloadLocation=about.url,
        software_packageVersion=about.revision,
        dataset_datasetType=["text"],
        dataset_datasetSize=sum(file.bytes or 0 for file in source.files) or None,
        dataset_dataCollectionProcess=_collection(source, blanks),
        dataset_dataPreprocessing=[
            f"records read {source.records:,}, documents kept {source.documents:,} of digest "
            f"{source.digest}; dropped, by reason: {dropped or 'none'}"
        ],
        dataset_hasSensitivePersonalInformation=PRESENCE[about.personal],
    )
    files = [
        graph.add(
            "software_File",
            f"{place}-file-{number}",
            name=public_name(file.name),
            software_primaryPurpose="data",
            verifiedUsing=_hash("other", file.xxh3, "xxh3-128 of the bytes, in hex"),
        )
        for number, file in enumerate(source.files)
    ]
    graph.relate(own, "contains", files)
    graph.relate(own, "hasConcludedLicense", [graph.licence(about.licence)])
    if (tally := source.licences) is not None:
        licences = of_documents(source, MOST_LICENCES)
        without = tally.sealed.missing_documents
        comment = (
            f"by document, as written: {tally.sealed.values:,} values, of which the "
            f"{MOST_LICENCES:,} largest at most are named; documents without one: {without:,}"
        )
        places = [graph.licence(licence) for licence in (*licences, *([None] if without else []))]
        graph.relate(own, "hasDeclaredLicense", places, comment)
    return own


def _collection(source: SourceFacts, blanks: Blanks) -> str | None:
    """Return how a source was collected, as far as it is stated."""
    about, place = source.about, f"sources.{source.name}.about"
    stated = {
        "kind": about.kind,
        "collected.from": about.collected.since,
        "collected.to": about.collected.to,
        "crawler.name": about.crawler.name if about.kind == "crawled" else "-",
        "generator": about.generator if about.kind == "synthetic" else "-",
        "reservations": about.reservations,
    }
    for key, value in stated.items():
        blanks.say(f"{place}.{key}", value)
    parts = [f"{k}: {words(v)}" for k, v in stated.items() if words(v) not in ("", "-")]
    return "; ".join(parts) or None


def _dataset(graph: _Graph, facts: Facts, blanks: Blanks) -> str:
    """Add the mixture with the build's files; return its id. A redacted view has no files."""
    dataset, say = facts.card.dataset, blanks.say
    for key in ("description", "url", "version", "published", "licence", "use", "bias"):
        say(f"dataset.{key}", getattr(dataset, key))
    names = [] if facts.redacted else build_files.files(facts)
    personal = {source.about.personal for source in facts.sources}
    phases = [
        f"phase {phase.name}: {phase.manifest.steps:,} steps of {phase.manifest.batch:,} rows of "
        f"{phase.manifest.msl:,} tokens, manifest {phase.manifest.digest}"
        + (f", {line}" if (line := redaction_line(phase.manifest)) else "")
        for phase in facts.phases
    ]
    if facts.redacted:
        phases.append("a redacted view: no file holds its rows, so that none is listed")
    own = graph.add(
        "dataset_DatasetPackage",
        "dataset",
        name=dataset.title or facts.name,
        description=dataset.description,
        originatedBy=_provider(graph, facts),
        builtTime=_built(facts),
        releaseTime=_time(dataset.published),
        software_primaryPurpose="data",
        software_downloadLocation=dataset.url,
        software_packageVersion=dataset.version,
        dataset_datasetType=["text"],
        dataset_datasetSize=sum((facts.build.path / name).stat().st_size for name in names) or None,
        dataset_dataPreprocessing=phases,
        dataset_intendedUse=dataset.use,
        dataset_knownBias=list(dataset.bias),
        dataset_hasSensitivePersonalInformation="no" if personal == {"none"} else "noAssertion",
    )
    files = [
        graph.add(
            "software_File",
            f"file-{number}",
            name=name,
            software_primaryPurpose="data",
            verifiedUsing=_hash("sha256", file_sha256(facts.build.path / name)),
        )
        for number, name in enumerate(names)
    ]
    graph.relate(own, "contains", files)
    graph.relate(own, "hasConcludedLicense", [graph.licence(dataset.licence)])
    return own


def _model(graph: _Graph, facts: Facts, dataset: str, blanks: Blanks) -> str:
    """Add the model that a run trained; return its id."""
    model = facts.card.model
    for key in ("names", "licence", "url", "placed", "use", "limits", "base"):
        blanks.say(f"model.{key}", getattr(model, key))
    done = [phase for phase in facts.phases if phase.checkpoint is not None]
    comments = [
        f"{phase.name}: {phase.steps:,} steps recorded, {phase.skipped:,} skipped, head of the "
        f"ledger's chain {phase.chain}"
        for phase in facts.phases
        if phase.steps
    ]
    entries = {
        f"{phase.name}.{key}": value
        for phase in facts.phases
        if phase.claim is not None
        for key, value in trained_with(phase.claim)
    }
    weights = done[-1].checkpoint.weights if done and done[-1].checkpoint else None
    own = graph.add(
        "ai_AIPackage",
        "model",
        name=", ".join(model.names) or facts.name,
        suppliedBy=next(iter(_provider(graph, facts)), None),
        releaseTime=_time(model.placed),
        verifiedUsing=_hash("other", weights, "crystalmix digest of all parameters"),
        software_primaryPurpose="model",
        software_downloadLocation=model.url,
        software_packageVersion=", ".join(model.names),
        ai_informationAboutTraining="; ".join(comments),
        ai_informationAboutApplication=model.use,
        ai_limitation=model.limits,
        ai_hyperparameter=[
            {"type": "DictionaryEntry", "key": key, "value": value}
            for key, value in entries.items()
        ],
    )
    if comments:
        comment = "what was consumed is recorded step by step in the run's ledger"
        graph.relate(own, "trainedOn", [dataset], comment)
    graph.relate(own, "hasConcludedLicense", [graph.licence(model.licence)])
    return own


def _profiles(facts: Facts) -> list[str]:
    """Return the profiles whose required properties are all there."""
    dataset, model, name = facts.card.dataset, facts.card.model, facts.card.provider.name
    profiles = ["core", "software", "simpleLicensing", "build"]
    sources_lack = bool(facts.sources)  # nobody states who a source is by, or when it was built
    if not sources_lack and all((name, dataset.url, _time(dataset.published))):
        profiles.append("dataset")
    if facts.run is not None and all((name, model.names, model.url, _time(model.placed))):
        profiles.append("ai")
    return profiles


def _provider(graph: _Graph, facts: Facts) -> list[str]:
    return [] if facts.card.provider.name is None else [graph.agent]


def _built(facts: Facts) -> str:
    return max(written(facts.build.manifest(phase.name)) for phase in facts.phases)


def _time(day: str | None) -> str | None:
    """Return the beginning of a day as a time; a month or a year is none."""
    return f"{day}T00:00:00Z" if day and DAY.fullmatch(day) else None


def _hash(algorithm: str, value: str | None, comment: str = "") -> list[Content]:
    more = {"comment": comment} if comment else {}
    hashed: Content = {"type": "Hash", "algorithm": algorithm, "hashValue": value, **more}
    return [] if value is None else [hashed]
