"""Shared parts of the stages of a build: context, token blocks, accounts and folders of rows.

A folder has a place in the view of the build, which manifests, receipts and origins name, and a
path where its files are: the place itself, or its artifact in the store (`view.home`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from crystalmix.mixtures.build.accounts import FolderAccount
from crystalmix.mixtures.build.view import home
from crystalmix.mixtures.manifest.build_folder import DOCUMENTS, BuildFolder
from crystalmix.prep.chat.counts import ChatCounts
from crystalmix.prep.filters.counts import CopyCounts
from crystalmix.prep.filters.sample import Split
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.receipts import Receipt, Shard
from crystalmix.prep.runtime.records import quick_record
from crystalmix.prep.runtime.types import Json, frozen
from crystalmix.prep.store import reuse
from crystalmix.prep.store import store as artifacts
from crystalmix.prep.store.rates import Pace
from crystalmix.prep.store.store import Files, Store

with imported_later(__name__):
    from crystalmix.prep.crystalcoder import lmdata
    from crystalmix.prep.rows import spans, token_blocks

if TYPE_CHECKING:
    from crystalmix.mixtures.recipes.recipe import Domain, Recipe
    from crystalmix.prep.documents.source import Source
    from crystalmix.prep.engines.engine import Engine
    from crystalmix.prep.rows.pack import PackSettings
    from crystalmix.prep.rows.token_blocks import Block, Stream
    from crystalmix.prep.tokenizer.tokenizer import Tokenizer

Item = TypeVar("Item")
MARK_TOKENS = 1 << 20  # of shards that are marked as done together: a tenth of a second's work


@frozen
class Context:
    """Context of one build: recipe, data root, output folder, workers and tokenizer.

    phases: the phases to build, all of them if none is named. dry: whether it is a plan of a build,
    which makes nothing. processes: that run work items. pace: what they did so far. laid_out: of
    each domain whose rows need no files before they are shuffled, whether they have none.
    """

    recipe: Recipe
    root: Path
    out: Path
    pool: Engine
    tokenizer: Tokenizer
    phases: tuple[str, ...] = ()
    sources: dict[str, Path] = field(default_factory=dict[str, Path])  # where documents lie
    dry: bool = False
    processes: int = 1
    pace: Pace = field(default_factory=Pace)
    laid_out: dict[str, bool] = field(default_factory=dict[str, bool])
    looked: set[Path] = field(default_factory=set[Path])  # artifacts that this build may use again

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the phases to build, in order."""
        return tuple(name for name in self.recipe.phases if name in (self.phases or (name,)))

    @property
    def domains(self) -> list[str]:
        """The domains that they draw from."""
        return self.recipe.domains_of(self.phases)

    @property
    def store(self) -> Store:
        """The store of the build."""
        return Store(self.folder.store, self.dry)

    def renew(self, kind: Files, paths: Collection[Path]) -> None:
        """Let artifacts be made again that are not as they were sealed."""
        reuse.renew(self.pool, self.store, kind, paths, self.looked)

    def documents(self, source: str) -> Path:
        """Return the documents of a source that was scanned."""
        return self.sources[source] / DOCUMENTS

    @property
    def folder(self) -> BuildFolder:
        """The layout of the build."""
        return BuildFolder(self.out)

    def split_of(self, domain: str) -> Split | None:
        """Return the side of the recipe's split that a domain has, None without one."""
        side = self.recipe.domains[domain].split
        return None if side is None else Split(self.recipe.seed, self.recipe.valid, side)

    @property
    def controls(self) -> tuple[int, ...]:
        """Every id that no text can give."""
        return self.tokenizer.control_ids

    def run(
        self, work: Callable[[Item], Json], groups: Sequence[Sequence[Item]], label: str
    ) -> list[list[Json]]:
        """Run the items of all groups in one fan-out; return the results group by group.

        What they did is counted: an `amount` that a result names, or the tokens of its rows.
        """
        flat = [item for group in groups for item in group]
        if not flat:
            return [[] for _ in groups]
        began = monotonic()
        results = [*self.pool.map(work, flat, label)]
        amount = sum(_amount(result) for result in results)
        self.pace.add(label, amount, (monotonic() - began) * min(self.processes, len(flat)))
        rest = iter(results)
        return [[next(rest) for _ in group] for group in groups]


@frozen
class Copies:
    """How often the documents of a domain's sources are taken, where that differs.

    files: of each source, copies by document. counts: what they come to.
    """

    files: dict[str, Path]
    counts: dict[str, CopyCounts]

    @property
    def epochs(self) -> int:
        """The folders of rows: that of epoch e has the documents with more than e copies."""
        return max((counts.most for counts in self.counts.values()), default=1)


@dataclass(frozen=True, slots=True)
class TokenBlock:
    """The tokenised documents of one block of a source.

    controls: control ids among the tokens. permuted: documents that FIM permuted. literals:
    [documents, times] of each special token spelt in texts. held_out: documents of the other side
    of a split; spent: those that have no further copies; bytes: of the texts of all others, None
    where nothing is left out. chat: what became of conversations, None without any.
    """

    block: Block
    documents: int
    controls: int
    permuted: int
    literals: dict[str, list[int]]
    held_out: int
    bytes: int | None
    chat: ChatCounts | None = None
    spent: int = 0

    @classmethod
    def of(cls, path: Path, source: str, first: int, result: Json) -> TokenBlock:
        """Return the block at a path from its work item's result; first: its first document."""
        return cls(
            block=token_blocks.Block(
                path, source, result["tokens"], result["wide"], result["turns"], first
            ),
            documents=result["documents"],
            controls=result["controls"],
            permuted=result["permuted"],
            literals=result["literals"],
            held_out=result.get("held_out", 0),
            bytes=result.get("bytes"),
            chat=quick_record(result["chat"], ChatCounts, str(path)) if "chat" in result else None,
            spent=result.get("spent", 0),
        )


@dataclass
class Folder:
    """One folder of rows on its way through the stages: a domain, or one FIM epoch of it.

    place: its folder in the view. store: None for an import, whose rows lie at its place. copies:
    where its documents are upsampled. blocks: its token blocks, where this build looked at them.
    behind: the packed rows that row-level FIM was applied to.
    """

    name: str
    domain: Domain
    epoch: int
    place: Path
    recipe: Json
    store: Store | None = None
    receipt: Receipt | None = field(default=None)
    copies: Copies | None = None
    blocks: Sequence[TokenBlock] = ()
    behind: Folder | None = None

    def __post_init__(self) -> None:
        self.path = (
            self.place if self.store is None else home(self.store, "rows", self.place, self.recipe)
        )
        self.look()

    def look(self) -> None:
        """Look whether the folder is finished."""
        self.receipt = receipts.fresh(self.path, self.recipe)

    @property
    def mark(self) -> str:
        """The digest that this folder's work items carry."""
        return receipts.digest(self.recipe)

    @property
    def laid_out(self) -> bool:
        """Whether its rows are counted only, and written where they are shuffled."""
        return self.recipe["settings"].get("written") is False

    @property
    def sealed(self) -> Receipt:
        """The receipt of a finished folder."""
        if self.receipt is None:
            raise RuntimeError(f"{self.path} is not sealed yet")
        return self.receipt

    def seal(self, results: Sequence[Json], account: FolderAccount) -> None:
        """Write the receipt: every shard's entry, the account, the digest of the content.

        Entries without a size are of shards that were counted and not written.
        """
        files = [entry for result in results for entry in result["files"]]
        written = [entry for entry in files if "bytes" in entry]
        _remove_others(self.path, {entry["name"] for entry in written})
        shards = [entry for entry in files if entry["name"].endswith(".h5")]
        content = {
            "account": account.content(),
            "content": receipts.digest([[entry["rows"], entry["digest"]] for entry in shards]),
            **({"shards": shards} if self.laid_out else {}),
        }
        self.receipt = receipts.seal(self.path, self.recipe, written, content)


Tokenised = Callable[[Sequence[Folder]], list[list[TokenBlock]]]


def look_at_blocks(folders: Sequence[Folder], tokenised: Tokenised) -> None:
    """Give packed folders whose rows are to be made their token blocks."""
    known = {folder.path.resolve(): folder.blocks for folder in folders if folder.blocks}
    wanted = {folder.path.resolve(): folder for folder in folders if folder.laid_out}
    missing = {path: folder for path, folder in wanted.items() if path not in known}
    if missing:
        known |= dict(zip(missing, tokenised(list(missing.values())), strict=True))
    for folder in folders:
        folder.blocks = known.get(folder.path.resolve(), ())


def rows_in(results: Sequence[Json]) -> int:
    """Return the rows of the shards that work items made."""
    return sum(entry.get("rows", 0) for result in results for entry in result["files"])


def _amount(result: Json) -> int:
    rows = [entry for entry in result.get("files", ()) if "rows" in entry]
    return result.get("amount", 0) + sum(entry["rows"] * entry["msl"] for entry in rows)


def once(mark: str, out: Path, work: Callable[[], Json], *others: Path) -> Json:
    """Return the result of a work item, done once and kept beside its output until the seal.

    The result lies in a `.done` file, so that a killed build goes on where it stopped. mark: the
    digest of the folder's whole recipe; an item of another recipe is done again. others: further
    outputs of the item.
    """
    marker = out.with_name(f"{out.name}.done")
    if not all(path.exists() for path in (out, *others)):
        marker.unlink(missing_ok=True)  # an output was taken away: what was done is undone
    with naming(out):
        return receipts.once(marker, [mark, out.name, *(path.name for path in others)], work)


def batches(items: Iterable[Item], tokens: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Yield items in turn, of few tokens several together: each mark costs files of its own."""
    batch, held = list[Item](), 0
    for item in items:
        if batch and held + tokens(item) > MARK_TOKENS:
            yield batch
            batch, held = [], 0
        batch.append(item)
        held += tokens(item)
    if batch:
        yield batch


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Give an error of the disk (full, too large) the name of what was being written.

    h5py raises RuntimeError where closing fails, and hides the number in the message.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        number: int | str | None = getattr(error, "errno", None)
        if number is None and (match := re.search(r"errno *=? *(\d+)", str(error))):
            number = match[1]
        if number is None or getattr(error, "filename", None) is not None:
            raise
        raise OSError(int(number), os.strerror(int(number)), str(path)) from None


def streams(settings: PackSettings, blocks: Sequence[TokenBlock]) -> list[Stream]:
    """Return a folder's blocks as one stream, or one for each process of Model Zoo's dialect."""
    processes = settings.cerebras.processes if settings.cerebras else 1
    bounds = lmdata.slices(len(blocks), processes)
    return [
        token_blocks.Stream(tuple(block.block for block in blocks[low:high]))
        for low, high in bounds
    ]


def shard_entries(shard: Shard, out: Path, *sides: str) -> list[Json]:
    """Return the receipt's entries of a shard and of the files beside it."""
    return [shard.entry(), *(receipts.describe(spans.path_of(out, side)) for side in sides)]


def tokenizer_identity(tokenizer: Tokenizer) -> Json:
    """Return what must stay the same of a tokenizer: fingerprint, canary, control ids."""
    return {
        "fingerprint": tokenizer.fingerprint,
        "canary": tokenizer.canary,
        "vocab": tokenizer.vocab,
        "controls": [*tokenizer.control_ids],
        "special": tokenizer.special,
        "pad": tokenizer.pad,
    }


def columns_of(source: Source, documents: Receipt) -> str | None:
    """Return a digest of what the kept columns of documents follow from, where they become ids.

    documents: the receipt of the source. None where texts alone become ids.
    """
    if not any(column for _, column in source.metadata_entries):
        return None
    return origin_of(documents)


def origin_of(documents: Receipt) -> str:
    """Return a digest of what documents and their columns follow from, by the source's receipt."""
    keys = "version", "settings", "inputs"
    return artifacts.key_of({key: documents.recipe[key] for key in keys})


def shard_files(folder: Path) -> list[Path]:
    """Return the files of a folder's shards and what lies beside them, marks left out, sorted."""
    paths = (path for pattern in ("data-*", "examples_*") for path in folder.glob(pattern))
    return sorted(path for path in paths if path.suffix != ".done")


def _remove_others(folder: Path, names: set[str]) -> None:
    """Remove shards that an earlier, unfinished build with other settings left behind."""
    for path in shard_files(folder):
        if path.name not in names:
            path.unlink()
