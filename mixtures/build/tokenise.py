"""The stage from documents to token blocks, with document-level FIM: one work item per raw file.

The tokens of a file's documents, encoded one way, are an artifact: its key has the documents'
texts, the tokenizer, FIM and its draws, the side of a split. All that a build wants of a file is
made in one reading of it; domains and epochs that want the same share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalmix.mixtures.build.context import (
    Context,
    Folder,
    TokenBlock,
    naming,
    tokenizer_identity,
)
from crystalmix.prep.documents.source import Document, Source, read
from crystalmix.prep.fim.document_fim import DocumentFim, FimSettings
from crystalmix.prep.rows import pack
from crystalmix.prep.rows.pack import Controls, PackSettings
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import frozen
from crystalmix.prep.store import store
from crystalmix.prep.tokenizer.metadata_head import HeadEncoder, Metadata
from crystalmix.prep.tokenizer.special_spellings import Literals
from crystalmix.prep.tokenizer.tokenizer import Tokenizer, TokenizerSettings, load

with imported_later(__name__):
    import numpy as np

    from crystalmix.prep.chat import encode, templates
    from crystalmix.prep.crystalcoder import lmdata
    from crystalmix.prep.documents import scan
    from crystalmix.prep.rows import token_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crystalmix.mixtures.recipes.recipe import Domain
    from crystalmix.prep.chat.settings import ChatSettings
    from crystalmix.prep.documents.scan import Texts
    from crystalmix.prep.filters.sample import Split
    from crystalmix.prep.rows.token_blocks import Encoded
    from crystalmix.prep.runtime.receipts import Receipt
    from crystalmix.prep.runtime.types import Json
    from crystalmix.prep.store.store import Files

    Encoder = Callable[[Document], Encoded]

VERSION = 1  # of the files in the store


@dataclass(frozen=True, slots=True)
class Encoding:
    """One way to encode the documents [first, last) of a source, and where the ids go.

    copies: a file of how often each document of the source is taken; those with more copies than
    the epoch's number are encoded.
    """

    source: Source
    documents: Path
    rows: tuple[int, int]
    settings: PackSettings
    fim: FimSettings | None
    draw: tuple[int, str, int]  # seed, domain, epoch
    split: Split | None
    out: Path
    chat: ChatSettings | None = None
    copies: Path | None = None


@frozen
class KeyedBlock:
    """The documents [first, last) of a source that are of one raw file, and the key of their ids.

    rows: first and last, in the source.
    """

    source: str
    file: str
    rows: tuple[int, int]
    key: str


@dataclass(frozen=True, slots=True)
class Tokenise:
    """Work item: read one raw file and encode its documents in some ways."""

    root: Path
    block: str
    tokenizer: TokenizerSettings
    encodings: tuple[Encoding, ...]


def settings(context: Context, name: str, domain: Domain, epoch: int) -> Json:
    """Return what the token blocks of one epoch of a domain follow from, for the receipt."""
    recipe = context.recipe
    inner, split = _document_fim(domain), context.split_of(name)
    upsample = {} if domain.upsample is None else {**domain.upsample.content(), "epoch": epoch}
    return {
        "fim": asdict(inner) if inner else None,
        "draw": [name, epoch] if inner else None,
        "sources": list(domain.sources),  # their order is the order of the stream
        "ftfy": [recipe.sources[source].ftfy for source in domain.sources],
        "metadata": [list(recipe.sources[source].metadata) for source in domain.sources],
        "tokenizer": tokenizer_identity(context.tokenizer),
        "split": asdict(split) if split else None,
        "held_out": domain.held_out,
        **({} if domain.chat is None else {"chat": chat_identity(domain.chat)}),
        **({"upsample": upsample} if upsample else {}),
    }


def chat_identity(chat: ChatSettings) -> Json:
    """Return what the ids of conversations follow from: the settings, and the template's pieces."""
    pieces = asdict(templates.template_of(chat.template))
    return {**asdict(chat), "template": pieces, "version": encode.VERSION}


def run(
    context: Context, folders: Sequence[Folder], scanned: dict[str, Receipt]
) -> list[list[TokenBlock]]:
    """Tokenise the blocks of folders; return each folder's blocks in the order of its stream."""
    groups = [encodings(context, folder, scanned) for folder in folders]
    context.renew("tokens", [encoding.out for group in groups for _, encoding in group])
    context.run(_tokenise_once, [_items(context, groups)], "tokenise")
    for folder, group in zip(folders, groups, strict=True):
        keys = [encoding.out.stem for _, encoding in group]
        uses: dict[Files, list[str]] = {"tokens": keys}
        if folder.copies is not None:
            uses["copies"] = [path.stem for path in folder.copies.files.values()]
        context.store.write_uses(store.key_of(folder.recipe), uses)
    return [[_token_block(encoding) for _, encoding in group] for group in groups]


def _items(context: Context, groups: Sequence[Sequence[tuple[str, Encoding]]]) -> list[Tokenise]:
    """Return the readings of blocks that some encodings lack."""
    reading = {name: source.reading for name, source in context.recipe.sources.items()}
    missing: dict[tuple[str, str], dict[Path, Encoding]] = {}
    for block, encoding in (pair for group in groups for pair in group):
        if store.done(encoding.out) is None:
            key = (block, reading[encoding.source.name])
            missing.setdefault(key, {})[encoding.out] = encoding
    return [
        Tokenise(context.root, block, context.recipe.tokenizer, tuple(wanted.values()))
        for (block, _), wanted in missing.items()
    ]


def _token_block(encoding: Encoding) -> TokenBlock:
    result = store.done(encoding.out)
    if result is None:
        raise DamageError(f"{encoding.out}: was removed during the build; build again")
    return TokenBlock.of(encoding.out, encoding.source.name, encoding.rows[0], result)


def encodings(
    context: Context, folder: Folder, scanned: dict[str, Receipt]
) -> list[tuple[str, Encoding]]:
    """Return the blocks of a folder in the order of its stream, each with its encoding."""
    domain = folder.domain
    draw = (context.recipe.seed, folder.name, folder.epoch)
    rows = context.recipe.rows_of(folder.name)
    return [
        (
            block.file,
            Encoding(
                source=context.recipe.sources[block.source],
                documents=context.documents(block.source),
                rows=block.rows,
                settings=rows,
                fim=_document_fim(domain),
                draw=draw,
                split=context.split_of(folder.name),
                out=context.store.file("tokens", block.key, ".ids"),
                chat=domain.chat,
                copies=None if folder.copies is None else folder.copies.files[block.source],
            ),
        )
        for block in blocks_of(folder.recipe, scanned)
    ]


def blocks_of(recipe: Json, scanned: dict[str, Receipt]) -> Iterator[KeyedBlock]:
    """Yield the blocks of a folder of packed rows in the order of its stream.

    recipe: of the folder. scanned: the receipts of its sources.
    """
    settings, first_id = recipe["settings"], slice(1, None)
    rows = settings["rows"]
    chat = [settings["chat"], most_of_conversation(rows)] if "chat" in settings else None
    common = {
        "version": [VERSION, *recipe["version"][first_id]],
        "rows": {key: rows[key] for key in ("bos", "eos", "cerebras")},
        "fim": settings["fim"],
        "draw": [recipe["seed"], *settings["draw"]] if settings["draw"] else None,
        "split": settings["split"],
        "tokenizer": settings["tokenizer"],
        **({} if chat is None else {"chat": chat}),
        **({"upsample": settings["upsample"]} if "upsample" in settings else {}),
    }
    names = settings["sources"]
    columns = settings.get("columns", [None] * len(names))
    for name, ftfy, metadata, kept in zip(
        names, settings["ftfy"], settings["metadata"], columns, strict=True
    ):
        own = store.key_of({**common, "ftfy": ftfy, "metadata": metadata, "columns": kept})
        first = 0
        for entry in scanned[name].blocks:
            last = first + entry.documents
            what = [own, entry.text_digest, entry.documents, bool(kept) and first]
            yield KeyedBlock(name, entry.block, (first, last), store.key_of(what))
            first = last


def _document_fim(domain: Domain) -> FimSettings | None:
    return domain.fim if domain.fim and domain.fim.level == "document" else None


def _tokenise_once(item: Tokenise) -> Json:
    """Write the ids of a file's documents, each way; the results are what `TokenBlock.of` reads."""
    tokenizer = load(item.tokenizer)
    works: dict[tuple[Path, tuple[int, int]], tuple[Texts, list[_Encode]]] = {}
    with ExitStack() as stack:
        for one in item.encodings:
            place = one.documents, one.rows
            if place not in works:
                path = item.root / item.block
                works[place] = scan.Texts(one.source, path, one.documents, one.rows), []
            work = stack.enter_context(_Encode(tokenizer, item.block, one))
            works[place][1].append(work)
        if not all(texts.done for texts, _ in works.values()):
            for batch in read(item.encodings[0].source, item.root, item.block):
                with tokenizer.remembering() if len(item.encodings) > 1 else nullcontext():
                    for texts, encodes in works.values():
                        documents = list(texts.of(batch))
                        for work in encodes:
                            work.add(documents)
                if all(texts.done for texts, _ in works.values()):
                    break
                del batch  # while the next one is read
        for texts, _ in works.values():
            texts.close()
    tokens = 0
    for _, encodes in works.values():
        for work in encodes:
            store.finish(work.encoding.out, work.account())
            tokens += work.writer.counts.tokens
    return {"amount": tokens}


class _Encode:
    """Encoding of a block one way; its files are there when it ends without an error."""

    def __init__(self, tokenizer: Tokenizer, block: str, encoding: Encoding) -> None:
        self.tokenizer, self.block, self.encoding = tokenizer, block, encoding
        self.literals = Literals(tokenizer.specials)
        self.chat = self.encode = self.controls = None
        if encoding.chat is not None:
            most = most_of_conversation(encoding.settings.content())
            self.chat = encode.ChatEncoder(tokenizer, encoding.chat, most)
        else:
            how = encoding.source, encoding.settings, encoding.fim, encoding.draw
            self.encode = encoder(tokenizer, *how)
            self.controls = controls_of(tokenizer, encoding.settings)
        self.side = Side(encoding.split, _copies(encoding), encoding.rows[0], encoding.draw[2])
        self.writer = token_blocks.BlockWriter(encoding.out, tokenizer.vocab, encoding.rows[0])
        self.stack = ExitStack()

    def __enter__(self) -> _Encode:
        self.stack.enter_context(naming(self.encoding.out))
        self.stack.enter_context(self.writer)
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def add(self, documents: Sequence[Document]) -> None:
        """Encode more documents."""
        texts = self.side.of(iter(documents))
        source = self.encoding.source
        for document in prepared(texts, source, self.block, self.tokenizer, self.literals):
            if self.chat is not None:
                place = f"source {source.name}: {self.block}: document {document.number}"
                for piece in self.chat.encode(document, place):
                    self.writer.add(piece)
            elif self.encode is not None and self.controls is not None:
                self.writer.add(pack.frame(self.encode(document), self.controls))

    def account(self) -> Json:
        """Return what `TokenBlock.of` reads."""
        chat = {} if self.chat is None else {"chat": asdict(self.chat.counts())}
        counts = {**asdict(self.writer.counts), "literals": self.literals.account()}
        return {**counts, **self.side.account(), **chat}


def most_of_conversation(rows: Json) -> int | None:
    """Return the ids above which a conversation is cut at turn ends, None where it is not."""
    return rows["msl"] if rows.get("too_long") == "split_turns" else None


def encoder(
    tokenizer: Tokenizer,
    source: Source,
    rows: PackSettings,
    inner: FimSettings | None,
    draw: tuple[int, str, int],
) -> Encoder:
    """Return the encoder of a source's documents, without the BOS and EOS around them.

    inner: document-level FIM, where set; draw: seed, domain and epoch that its cuts are keyed by.
    """
    if rows.cerebras is not None:
        bos = tokenizer.id_of("bos") if rows.bos else None
        return lmdata.PieceEncoder(tokenizer, rows.cerebras, bos)
    metadata = Metadata(tokenizer, source) if source.metadata else None
    if inner is not None:
        return DocumentFim(tokenizer, inner, *draw, metadata)
    return HeadEncoder(tokenizer, metadata)


def controls_of(tokenizer: Tokenizer, rows: PackSettings) -> Controls:
    """Return the ids that packing adds; RecipeError if the tokenizer lacks one of them."""
    bos = tokenizer.id_of("bos") if rows.bos else None
    eos = tokenizer.id_of("eos") if rows.eos else None
    return Controls(bos, eos, tokenizer.pad)


class Side:
    """The documents that an epoch has: of one side of a split, and with copies left.

    copies: of each document from number `first` on, None where all are taken once. Counts what it
    leaves out, and the bytes of what it takes.
    """

    def __init__(
        self, split: Split | None, copies: NDArray[np.uint16] | None, first: int, epoch: int
    ) -> None:
        self.split, self.copies = split, copies
        self.first, self.epoch = first, epoch
        self.held_out = self.spent = self.bytes = 0

    def of(self, texts: Iterator[Document]) -> Iterator[Document]:
        """Yield the documents that are taken."""
        if self.split is None and self.copies is None:
            yield from texts
            return
        for document in texts:
            if self.split is not None and not self.split.takes(document.digest):
                self.held_out += 1
            elif (
                self.copies is not None and self.copies[document.number - self.first] <= self.epoch
            ):
                self.spent += 1
            else:
                self.bytes += len(document.text.encode())
                yield document

    def account(self) -> dict[str, int]:
        """Return the counts that there are; none where all documents are taken."""
        held_out = {} if self.split is None else {"held_out": self.held_out}
        spent = {} if self.copies is None else {"spent": self.spent}
        sides = {**held_out, **spent}
        return {**sides, "bytes": self.bytes} if sides else {}


def _copies(encoding: Encoding) -> NDArray[np.uint16] | None:
    """Return how often the documents of an encoding are taken: (documents,), None for once."""
    if encoding.copies is None:
        return None
    every: NDArray[np.uint16] = np.load(encoding.copies, mmap_mode="r")
    return np.array(every[slice(*encoding.rows)])


def prepared(
    texts: Iterator[Document],
    source: Source,
    block: str,
    tokenizer: Tokenizer,
    literals: Literals,
) -> Iterator[Document]:
    """Yield the documents of a block, repaired where set; count the literals of special tokens.

    Raises InputError where one of the sampled documents has other ids than the reference gives:
    what was encoded before may be wrong too, so there is nothing to go on with.
    """
    every = tokenizer.settings.verify_every
    for document in _repaired(texts) if source.ftfy else texts:
        literals.add(document.text)
        if every and document.digest % every == 0:
            place = f"source {source.name}: {block}: document {document.number}"
            tokenizer.verify(document.text, place)
        yield document


def _repaired(texts: Iterator[Document]) -> Iterator[Document]:
    from crystalmix.prep.documents.repair_text import repaired

    for document in texts:
        yield replace(document, text=repaired(document.text))
