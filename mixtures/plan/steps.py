"""Steps of a build before it is built: what it would take of its store, and what it would make.

Keys of artifacts are worked out as a build does, in a dry context: no raw byte is read and nothing
is written. Where a key follows from what is not made yet, what the build holds now stands for it,
and the state is `depends`: it is made unless its inputs come out as they are. Rows and bytes of
what is made are estimates, by the ratios of what the build holds (`measured`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from crystalmix.mixtures.build import pack, row_fim, seal, shuffle, tokenise, upsample
from crystalmix.mixtures.build.accounts import rows_of
from crystalmix.mixtures.build.build import sealed_as
from crystalmix.mixtures.build.context import Context, Copies, Folder
from crystalmix.mixtures.build.view import state_of
from crystalmix.mixtures.manifest.build_folder import PHASES, shards_of
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.plan.measured import (
    BLOCKS,
    DOCUMENTS,
    IDS,
    LAID_OUT,
    SPANS,
    Measured,
    bytes_a_token,
)
from crystalmix.mixtures.plan.prospects import Block, Prospect
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.prep.store import store as artifacts

Stage = Literal["documents", "tokens", "pack", "fim", "shuffle", "phase", "history"]
State = Literal["reused", "made", "depends", "refused"]


@dataclass(frozen=True)
class Step:
    """What a build would do for a folder of its view, the token blocks of one, or a phase.

    state: `depends` is made unless its inputs come out as they are now. reused, made: raw files.
    tokens: to be encoded, or of the rows to be written. rows, bytes: to be written. All are at
    most, if everything that depends is made; None where nothing tells.
    """

    stage: Stage
    place: str
    state: State
    reused: int = 0
    made: int = 0
    tokens: int | None = 0
    rows: int | None = 0
    bytes: int | None = 0


@dataclass(frozen=True)
class Made:
    """A folder of rows as far as it is known; folder: None where its key is not.

    tokens, rows: of its rows, None where nothing tells. certain: whether its content is known.
    """

    folder: Folder | None
    tokens: int | None
    rows: int | None
    certain: bool


@dataclass
class Walk:
    """Goes through the stages of a build, and notes a step for each folder and phase.

    scanned: raw bytes to be read for documents, each file once for sources that read it alike;
    read: those to be read for tokens.
    """

    context: Context
    measured: Measured
    prospects: dict[str, Prospect]
    steps: list[Step] = field(default_factory=list[Step])
    scanned: dict[object, int] = field(default_factory=dict[object, int])
    read: dict[object, int] = field(default_factory=dict[object, int])
    seen: set[Path] = field(default_factory=set[Path])  # artifacts that have their step
    certain: bool = True  # whether the phases so far are known

    def source(self, name: str) -> None:
        """Note the documents of a source."""
        prospect = self.prospects[name]
        reading = prospect.source.reading
        for block in prospect.missing:
            self.scanned[block.name, reading] = block.bytes
        state: State = "made"
        if prospect.sealed:
            state = "reused" if prospect.certain else "depends"
        missing = sum(block.bytes for block in prospect.missing)
        raw = sum(block.bytes for block in prospect.blocks)
        size = 0
        if state != "reused":  # blocks that are missing, and all blocks joined
            joined = self.measured.documents.of(name) or DOCUMENTS
            size = round(joined * raw + (self.measured.blocks.of(name) or BLOCKS) * missing)
        counts = len(prospect.blocks) - len(prospect.missing), len(prospect.missing)
        self.steps.append(Step("documents", f"sources/{name}", state, *counts, bytes=size))

    def domain(self, name: str) -> Made:
        """Note the token blocks and rows of a domain; return what phases draw from."""
        domain = self.context.recipe.domains[name]
        copies = self._copies(name)
        epochs = domain.epochs if copies is None else copies.epochs
        packed = [self._packed(name, epoch, copies) for epoch in range(epochs)]
        if domain.fim is not None and domain.fim.level == "row":
            packed = [self._permuted(name, epoch, made) for epoch, made in enumerate(packed)]
        if not domain.shuffle and domain.epochs == 1:
            return packed[0]
        folders = [made.folder for made in packed if made.folder is not None]
        last = None
        if len(folders) == len(packed) and all(folder.receipt is not None for folder in folders):
            last = shuffle.last_folder(self.context, name, folders)
        if last is None or last.receipt is None:
            for folder in folders:
                self._tokens_of_laid_out(folder.behind or folder)
        build = self.context.folder
        place = build.shuffled(name) if domain.shuffle else build.joined(name)
        counts = _summed(m.tokens for m in packed), _summed(m.rows for m in packed)
        return self._rows("shuffle", place, last, *counts, all(made.certain for made in packed))

    def phase(self, name: str, last: dict[str, Made], before: dict[str, Manifest]) -> None:
        """Note a phase; before: the manifests of those before it, as far as they are known."""
        state = self._phase_state(name, last, before)
        size = 0 if state in ("reused", "refused") else self._manifest_bytes(name)
        self.steps.append(Step("phase", f"phases/{name}", state, bytes=size))

    def history(self) -> None:
        """Note the state that the build would keep before its phases are sealed anew."""
        build = self.context.folder
        changed = {step.place for step in self.steps if step.state != "reused"}
        sealed = [path.parent for path in build.manifests()]
        if not any(path.relative_to(build.path).as_posix() in changed for path in sealed):
            return
        state = build.history / state_of(build)
        files = [path for path in (build.path / PHASES).rglob("*") if path.is_file()]
        if not state.exists():
            size = sum(path.stat().st_size for path in (*files, build.tokenizer))
            self.steps.append(Step("history", f"history/{state.name}", "made", bytes=size))

    def _phase_state(self, name: str, last: dict[str, Made], before: dict[str, Manifest]) -> State:
        """Return what becomes of a phase; add its manifest to those before, if it is known."""
        phase, names = self.context.recipe.phases[name], list(self.context.recipe.phases)
        parts = {part.domain: last[part.domain] for part in phase.parts}
        folders = {
            domain: made.folder
            for domain, made in parts.items()
            if made.folder is not None and made.folder.receipt is not None
        }
        certain = all(made.certain for made in parts.values())
        if len(folders) < len(parts):
            return "made"
        if names[: names.index(name)] != list(before):  # one of those before it is refused
            return "depends"
        try:
            draft = seal.draft(self.context, phase, folders, before)
        except RefusalError:
            return "refused" if self.certain and certain else "depends"
        self.certain &= certain
        sealed = sealed_as(self.context, draft)
        before[name] = sealed or draft
        if sealed is None:
            return "made"
        return "reused" if self.certain else "depends"

    def _manifest_bytes(self, name: str) -> int:
        path = self.context.folder.manifest(name)
        sizes = [path.stat().st_size for path in self.context.folder.manifests()]
        return path.stat().st_size if path.exists() else max(sizes, default=0)

    def _copies(self, name: str) -> Copies | None:
        """Return how often a domain's documents are taken; None for once, or where unknown."""
        receipts_of = {s: p.receipt for s, p in self.prospects.items() if p.receipt is not None}
        if not receipts_of.keys() >= {*self.context.recipe.domains[name].sources}:
            return None
        copies = upsample.known(self.context, name, receipts_of)
        return copies if copies is None or copies.epochs else None

    def _packed(self, name: str, epoch: int, copies: Copies | None) -> Made:
        domain, context = self.context.recipe.domains[name], self.context
        prospects = [self.prospects[source] for source in domain.sources]
        scanned = {p.source.name: p.receipt for p in prospects if p.receipt is not None}
        place, folder, blocks = context.folder.packed(name, epoch), None, _blocks(prospects)
        certain = all(prospect.certain for prospect in prospects)
        outs: Sequence[Path | None] = [None] * len(blocks)
        uncounted = domain.upsample is not None and copies is None
        if len(scanned) == len(prospects) and not uncounted:
            settings = tokenise.settings(context, name, domain, epoch)
            folder = pack.folder(context, name, epoch, settings, scanned, copies)
            if folder.receipt is None or not certain:
                outs = [block.out for _, block in tokenise.encodings(context, folder, scanned)]
        if folder is not None and folder.receipt is not None and certain:
            return self._rows("pack", place, folder, None, None, certain)
        tokens = self._tokens(name, epoch, blocks, outs, folder)
        share = self.measured.filled.of(name) or 1.0
        msl = context.recipe.rows_of(name).msl
        rows = None if tokens is None else round(tokens * share / msl)
        return self._rows("pack", place, folder, rows and rows * msl, rows, certain)

    def _tokens(
        self,
        name: str,
        epoch: int,
        blocks: list[tuple[Prospect, Block]],
        outs: Sequence[Path | None],
        folder: Folder | None,
    ) -> int | None:
        """Note the token blocks of a folder that may be missing; return all its tokens.

        outs: where they lie or go, None where that is not known. folder: the rows, if they are
        there unless documents change.
        """
        total: list[int | None] = []
        missing: list[int | None] = []
        for (prospect, block), out in zip(blocks, outs, strict=True):
            account = None if out is None or not block.settled else artifacts.done(out)
            if account is not None:
                total.append(account["tokens"])
                continue
            source = prospect.source.name
            rate = self.measured.tokens.of(f"{name}/{source}", source)
            total.append(None if rate is None else round(rate * block.bytes))
            if out is None or out not in self.seen:
                missing.append(total[-1])
                self.read[block.name, prospect.source.reading] = block.bytes
                self.seen |= set() if out is None else {out}
        if missing:
            tokens = _summed(missing)
            size = None if tokens is None else round(tokens * (self.measured.ids.of() or IDS))
            depends = folder is not None and folder.receipt is not None
            counts = len(total) - len(missing), len(missing)
            state: State = "depends" if depends else "made"
            place = f"domains/{name}/epoch-{epoch}"
            self.steps.append(Step("tokens", place, state, *counts, tokens, bytes=size))
        return _summed(total)

    def _tokens_of_laid_out(self, folder: Folder) -> None:
        """Note the missing token blocks of rows that exist, but only as a layout."""
        prospects = [self.prospects[source] for source in folder.domain.sources]
        if folder.laid_out and folder.receipt is not None and all(p.certain for p in prospects):
            scanned = {p.source.name: p.receipt for p in prospects if p.receipt is not None}
            outs = [block.out for _, block in tokenise.encodings(self.context, folder, scanned)]
            self._tokens(folder.name, folder.epoch, _blocks(prospects), outs, None)

    def _permuted(self, name: str, epoch: int, packed: Made) -> Made:
        folder = None
        if packed.folder is not None and packed.folder.receipt is not None:
            folder = row_fim.successor(self.context, packed.folder)
            if folder.receipt is None:
                self._tokens_of_laid_out(packed.folder)
        place = self.context.folder.row_fim(name, epoch)
        return self._rows("fim", place, folder, packed.tokens, packed.rows, packed.certain)

    def _rows(
        self,
        stage: Literal["pack", "fim", "shuffle"],
        place: Path,
        folder: Folder | None,
        tokens: int | None,
        rows: int | None,
        certain: bool,
    ) -> Made:
        """Note a folder of rows; what its place holds now stands for one that is not there.

        certain: whether what it follows from is.
        """
        receipt = None if folder is None else folder.receipt
        sealed = receipt is not None
        if receipt is not None and certain:
            rows = rows_of(receipt)
            tokens = rows and rows * next((shard.msl for shard in shards_of(receipt)), 0)
        state: State = "made"
        if sealed:
            state = "reused" if certain else "depends"
        domain = place.parent.name
        recipe = self.context.recipe
        rate = self.measured.rows.of(f"{stage}/{domain}", stage)
        rate = rate or bytes_a_token(recipe.rows_of(domain).msl)
        if folder is None and stage == "pack":  # a size is not known: as of few texts
            laid_out = pack.is_laid_out(recipe, domain, 0)
        else:
            laid_out = folder is not None and folder.laid_out
        if laid_out:
            rate = self.measured.rows.known(f"{stage}/{domain}", LAID_OUT) or SPANS
        size = None if tokens is None else round(tokens * rate)
        written = (tokens, rows, size)
        if state == "reused" or (folder is not None and folder.path.resolve() in self.seen):
            written = (0, 0, 0)
        if folder is not None:
            self.seen.add(folder.path.resolve())
            if folder.receipt is None and (place / receipts.NAME).exists():
                folder.receipt = receipts.read(place)
        where = place.relative_to(self.context.out).as_posix()
        self.steps.append(Step(stage, where, state, 0, 0, *written))
        return Made(folder, tokens, rows, certain and sealed)


def _blocks(prospects: Sequence[Prospect]) -> list[tuple[Prospect, Block]]:
    return [(prospect, block) for prospect in prospects for block in prospect.blocks]


def _summed(amounts: Iterable[int | None]) -> int | None:
    counts = list(amounts)
    return None if None in counts else sum(amount or 0 for amount in counts)
