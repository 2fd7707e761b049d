"""Facts of a build or run for cards: from manifests, receipts and the ledger, nothing else."""

from dataclasses import dataclass
from pathlib import Path

from crystalmix.mixtures.build.accounts import PackAccount, SourceAccount
from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import SOURCES, BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest, ManifestPart, read_manifests
from crystalmix.prep.documents import about
from crystalmix.prep.documents.about import About
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.tallies import tally
from crystalmix.prep.tallies.tally import Tally
from crystalmix.train.record import ledger, metrics, run_folder
from crystalmix.train.record.metrics import HeldOutLoss, Line, TaskResult
from crystalmix.train.record.run_folder import CheckpointState, Claim, PhaseFolder
from crystalmix.train.report.card_file import CardFile


@dataclass(frozen=True)
class RawFile:
    """A file that a source was read from, or a shard of a hub dataset, whose bytes nobody digests.

    name: as the recipe names it. hub: the dataset of a shard.
    """

    name: str
    bytes: int | None = None
    xxh3: str | None = None
    hub: str | None = None

    @classmethod
    def of(cls, entry: Json | str, hub: str | None) -> "RawFile":
        """Take an entry of a receipt: a file, or the number of a shard."""
        if isinstance(entry, str):
            return cls(f"shard {entry}", hub=hub)
        return cls(entry["file"], entry["bytes"], entry["xxh3"])


@dataclass(frozen=True)
class SourceFacts:
    """A source as its receipt has it.

    about: what the recipe said of these documents, nothing where it said nothing. place: the raw
    files or the hub dataset as the recipe names them. files: those that were read. lists: opt-out
    and drop lists, evaluation files. folder: relative to the build. domains, licences: tallies
    of its documents, where its description asks for them.
    """

    name: str
    about: About
    place: str
    records: int
    documents: int
    bytes: int
    characters: int
    dropped: dict[str, int]
    files: tuple[RawFile, ...]
    lists: tuple[RawFile, ...]
    digest: str
    folder: str
    domains: Tally | None = None
    licences: Tally | None = None

    @property
    def title(self) -> str:
        """Its title, else its name."""
        return self.about.title or self.name


@dataclass(frozen=True)
class SourceTokens:
    """What a domain holds of a source, once: documents, bytes of text, tokens (specials too)."""

    domain: str
    source: str
    documents: int
    bytes: int | None
    tokens: int
    held_out: bool


@dataclass(frozen=True)
class PartFacts:
    """A part: planned as its manifest says; in a run also what was consumed of it.

    consumed: rows that the ledger has, None of a build. learnt: of their tokens those with loss.
    """

    planned: ManifestPart
    msl: int
    consumed: int | None = None
    learnt: int | None = None

    @property
    def consumed_tokens(self) -> int | None:
        """Tokens of the rows consumed."""
        return None if self.consumed is None else self.consumed * self.msl


@dataclass(frozen=True)
class PhaseFacts:
    """A phase, and of a run what was recorded: steps done, head of the chain, last checkpoint.

    losses, tasks: of its last evaluation, and of the last step that has results of tasks.
    """

    manifest: Manifest
    parts: tuple[PartFacts, ...]
    steps: int | None = None
    skipped: int = 0
    chain: str | None = None
    claim: Claim | None = None
    checkpoint: CheckpointState | None = None
    losses: tuple[HeldOutLoss, ...] = ()
    tasks: tuple[TaskResult, ...] = ()

    @property
    def name(self) -> str:
        """The phase's name."""
        return self.manifest.phase


@dataclass(frozen=True)
class Facts:
    """All that a card may say. run: None of a build."""

    build: BuildFolder
    run: Path | None
    phases: tuple[PhaseFacts, ...]
    sources: tuple[SourceFacts, ...]
    tokens: tuple[SourceTokens, ...]
    card: CardFile

    @property
    def name(self) -> str:
        """The name that the recipe has."""
        return self.phases[-1].manifest.name

    @property
    def redacted(self) -> bool:
        """Whether a phase is a redacted view."""
        manifests = [phase.manifest for phase in self.phases]
        return any(m.redaction is not None and not purged.is_purged(m) for m in manifests)

    @property
    def parts(self) -> list[PartFacts]:
        """The parts of all phases that are trained on."""
        held_out = {entry.domain for entry in self.tokens if entry.held_out}
        parts = ((part, part.planned) for phase in self.phases for part in phase.parts)
        return [
            part
            for part, planned in parts
            if not (planned.packed and planned.packed.validates) and planned.domain not in held_out
        ]

    @property
    def planned(self) -> int:
        """Tokens that all steps of all phases come to, epochs counted."""
        return sum(part.planned.tokens for part in self.parts)

    @property
    def consumed(self) -> int | None:
        """Tokens of the rows that the ledger has, epochs counted; None of a build."""
        if self.run is None:
            return None
        return sum(part.consumed_tokens or 0 for part in self.parts)

    @property
    def held(self) -> list[SourceTokens]:
        """What the domains trained on hold of each source."""
        drawn = {part.planned.domain for part in self.parts}
        return [entry for entry in self.tokens if entry.domain in drawn]

    @property
    def unique(self) -> int | None:
        """Tokens of the domains trained on, each once; None where one was imported."""
        whole = {part.planned.domain for part in self.parts} == {
            entry.domain for entry in self.held
        }
        return sum(entry.tokens for entry in self.held) if whole else None

    @property
    def trained(self) -> list[SourceFacts]:
        """The sources that are trained on."""
        names = {entry.source for entry in self.held}
        return [source for source in self.sources if source.name in names]

    def tokens_of(self, source: str) -> int | None:
        """Return the tokens that the domains trained on hold of a source, each domain once."""
        counts = [entry.tokens for entry in self.held if entry.source == source]
        return sum(counts) if counts else None

    def about(self, kind: str | None) -> list[SourceFacts]:
        """Return the sources trained on of a kind; None: those whose kind is not stated."""
        return [source for source in self.trained if source.about.kind == kind]


def gather(run: Path | None, path: Path, card: CardFile) -> Facts:
    """Read what a build and a run of it hold; InputError where the build has no manifest.

    run: None for a build alone. Damage is raised where a digest does not match.
    """
    build = BuildFolder(path)
    manifests = read_manifests(path)
    if not manifests or not (path / "phases").exists():
        raise InputError(f"{path}: is no build and no run; give the --out of build or train")
    domains = sorted({part.domain for manifest in manifests for part in manifest.parts})
    tokens = tuple(entry for domain in domains for entry in _tokens(build, domain))
    names = sorted({entry.source for entry in tokens})
    home = _home(build)
    sources = tuple(_source(build, name, home) for name in names)
    phases = tuple(_phase(manifest, run) for manifest in manifests)
    return Facts(build, run, phases, sources, tokens, card)


def trained_with(claim: Claim) -> list[tuple[str, str]]:
    """Return the settings that a phase was trained with, as `section.key` and value."""
    return [
        (f"{section}.{key}", str(value))
        for section, keys in sorted((claim.run or {}).items())
        if isinstance(keys, dict)
        for key, value in sorted(keys.items())  # pyright: ignore[reportUnknownVariableType]
    ]


def _tokens(build: BuildFolder, domain: str) -> list[SourceTokens]:
    folder = build.packed(domain)
    if not (folder / receipts.NAME).exists():
        return []  # imported: no documents are known
    receipt = receipts.read(folder)
    if receipt.stage != "pack":
        return []
    settings = receipt.settings
    held_out = bool(settings["held_out"] or (settings["split"] or {}).get("side") == "valid")
    return [
        SourceTokens(domain, name, account.documents, account.bytes, account.tokens, held_out)
        for name, account in sorted(PackAccount.of(receipt).sources.items())
    ]


def _home(build: BuildFolder) -> Path:
    """Return the folder with the descriptions of a build, or of what it is a view or mixture of."""
    places = [folder for place in build.places() for folder in (place, place.parent)]
    return next((place for place in places if (place / about.NAME).exists()), build.path)


def _source(build: BuildFolder, name: str, home: Path) -> SourceFacts:
    folder = build.source(name)
    receipt = receipts.read(folder)
    account, settings, inputs = SourceAccount.of(receipt), receipt.settings, receipt.inputs
    content = receipt.content
    described = about.read(home / about.NAME).get(name)
    if described is None or described.documents != content:
        described = about.Described(About(), "")
    tallies = BuildFolder(home).lookup / SOURCES / name
    words = described.about
    hub = settings.get("hub")
    place = f"hub: {hub} ({settings['split']})" if hub else ", ".join(settings["files"])
    return SourceFacts(
        name,
        words,
        place,
        account.records,
        account.documents,
        account.bytes,
        account.characters,
        {reason: count for reason, count in sorted(account.dropped.items()) if count},
        tuple(RawFile.of(entry, hub) for entry in inputs["files"]),
        tuple(RawFile.of(entry, None) for entry in inputs["lists"]),
        content,
        folder.relative_to(build.path).as_posix(),
        None if words.domains is None else tally.found(tallies, "domains", content),
        None if words.licences is None else tally.found(tallies, "licences", content),
    )


def _phase(manifest: Manifest, run: Path | None) -> PhaseFacts:
    folder = None if run is None else PhaseFolder(run / manifest.phase)
    if folder is None:
        return PhaseFacts(manifest, _parts(manifest, None))
    if not ledger.segments(folder.ledger, "steps"):
        return PhaseFacts(manifest, _parts(manifest, {}), 0)
    steps = ledger.read(folder.ledger, "steps")
    counts: dict[str, tuple[int, int]] = {}
    for parts in steps["parts"].to_pylist():
        for part in parts or ():
            rows, learnt = counts.get(part["part"], (0, 0))
            counts[part["part"]] = rows + part["rows"], learnt + part["tokens"]
    skipped = int(steps["skipped"].to_numpy().sum())
    newest = folder.newest
    return PhaseFacts(
        manifest,
        _parts(manifest, counts),
        len(steps) - skipped,
        skipped,
        steps["chain"][-1].as_py(),
        run_folder.read_claim(folder) if folder.claim.exists() else None,
        None if newest is None else run_folder.read_state(newest),
        _last(metrics.evaluations(folder)),
        _last(metrics.tasks(folder)),
    )


def _last(lines: list[Line]) -> tuple[Line, ...]:
    """Return the lines of the last step that has some."""
    step = max((line.step for line in lines), default=0)
    return tuple(line for line in lines if line.step == step)


def _parts(manifest: Manifest, counts: dict[str, tuple[int, int]] | None) -> tuple[PartFacts, ...]:
    """Return the parts of a manifest; counts: rows and tokens with loss that a ledger has."""
    if counts is None:
        return tuple(PartFacts(part, manifest.msl) for part in manifest.parts)
    consumed = [counts.get(part.name, (0, 0)) for part in manifest.parts]
    pairs = zip(manifest.parts, consumed, strict=True)
    return tuple(PartFacts(part, manifest.msl, *counted) for part, counted in pairs)
