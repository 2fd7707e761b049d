"""The stage from documents to token blocks, with document-level FIM: one work item per block."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from crystalmix.mixtures.build.context import Context, Folder, TokenBlock, once, tokenizer_identity
from crystalmix.mixtures.recipes.recipe import Domain
from crystalmix.prep.chat import encode, templates
from crystalmix.prep.chat.encode import ChatEncoder
from crystalmix.prep.chat.settings import ChatSettings
from crystalmix.prep.crystalcoder.lmdata import PieceEncoder
from crystalmix.prep.documents import scan
from crystalmix.prep.documents.source import Document, Source
from crystalmix.prep.filters.sample import Split
from crystalmix.prep.fim.document_fim import DocumentFim, FimSettings
from crystalmix.prep.rows import pack, token_blocks
from crystalmix.prep.rows.pack import Controls, PackSettings
from crystalmix.prep.rows.token_blocks import Encoded
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.tokenizer.metadata_head import HeadEncoder, Metadata
from crystalmix.prep.tokenizer.special_spellings import Literals
from crystalmix.prep.tokenizer.tokenizer import Tokenizer, TokenizerSettings, load

Encoder = Callable[[Document], Encoded]
TOKENS = "tokens"  # the folder of tokenised blocks, removed when a folder is sealed


@dataclass(frozen=True)
class Tokenise:
    """Work item: encode the documents [first, last) of one block, for one domain and epoch."""

    mark: str
    source: Source
    root: Path
    block: str
    documents: Path
    rows: tuple[int, int]
    tokenizer: TokenizerSettings
    settings: PackSettings
    fim: FimSettings | None
    draw: tuple[int, str, int]  # seed, domain, epoch
    split: Split | None
    out: Path
    chat: ChatSettings | None = None


def settings(context: Context, name: str, domain: Domain, epoch: int) -> Json:
    """Return what the token blocks of one epoch of a domain follow from, for the receipt."""
    recipe = context.recipe
    inner, split = _document_fim(domain), _split(context, domain)
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
    }


def chat_identity(chat: ChatSettings) -> Json:
    """Return what the ids of conversations follow from: the settings, and the template's pieces."""
    pieces = asdict(templates.template_of(chat.template))
    return {**asdict(chat), "template": pieces, "version": encode.VERSION}


def run(
    context: Context, folders: Sequence[Folder], scanned: dict[str, Json]
) -> list[list[TokenBlock]]:
    """Tokenise the blocks of folders; return each folder's blocks in the order of its stream."""
    items = [_items(context, folder, scanned) for folder in folders]
    results = context.run(_tokenise_once, items, "tokenise")
    return [
        [
            TokenBlock.of(item.out, item.source.name, result)
            for item, result in zip(group, outcomes, strict=True)
        ]
        for group, outcomes in zip(items, results, strict=True)
    ]


def _items(context: Context, folder: Folder, scanned: dict[str, Json]) -> list[Tokenise]:
    """Return the work items of a folder's blocks, in the order of its stream."""
    items: list[Tokenise] = []
    for name in folder.domain.sources:
        first = 0
        for entry in scanned[name]["blocks"]:
            last = first + entry["documents"]
            items.append(
                Tokenise(
                    mark=folder.mark,
                    source=context.recipe.sources[name],
                    root=context.root,
                    block=entry["block"],
                    documents=context.folder.documents(name),
                    rows=(first, last),
                    tokenizer=context.recipe.tokenizer,
                    settings=context.recipe.rows_of(folder.name),
                    fim=_document_fim(folder.domain),
                    draw=(context.recipe.seed, folder.name, folder.epoch),
                    split=_split(context, folder.domain),
                    out=folder.path / TOKENS / f"block-{len(items):05d}.ids",
                    chat=folder.domain.chat,
                )
            )
            first = last
    return items


def _document_fim(domain: Domain) -> FimSettings | None:
    return domain.fim if domain.fim and domain.fim.level == "document" else None


def _split(context: Context, domain: Domain) -> Split | None:
    if domain.split is None:
        return None
    return Split(context.recipe.seed, context.recipe.valid, domain.split)


def _tokenise_once(item: Tokenise) -> Json:
    return once(item.mark, item.out, lambda: _tokenise(item))


def _tokenise(item: Tokenise) -> Json:
    """Write a block's ids; the result is what `TokenBlock.of` reads."""
    tokenizer = load(item.tokenizer)
    literals = Literals(tokenizer.specials)
    texts = scan.texts(item.source, item.root, item.block, item.documents, item.rows)
    side = None if item.split is None else Side(item.split)
    texts = texts if side is None else side.of(texts)
    documents = prepared(texts, item.source, item.block, tokenizer, literals)
    chat = None
    if item.chat is None:
        encode = encoder(tokenizer, item.source, item.settings, item.fim, item.draw)
        controls = controls_of(tokenizer, item.settings)
        framed = (pack.frame(encode(document), controls) for document in documents)
    else:
        chat = ChatEncoder(tokenizer, item.chat, most_of_conversation(item.settings))
        place = f"source {item.source.name}: {item.block}: document"
        framed = (
            piece
            for document in documents
            for piece in chat.encode(document, f"{place} {document.number}")
        )
    counts = token_blocks.write(item.out, framed, vocab=tokenizer.vocab)
    sides = {} if side is None else {"held_out": side.held_out, "bytes": side.bytes}
    told = {} if chat is None else {"chat": asdict(chat.counts())}
    return {**asdict(counts), "literals": literals.account(), **sides, **told}


def most_of_conversation(rows: PackSettings) -> int | None:
    """Return the ids above which a conversation is cut at turn ends, None where it is not."""
    return rows.msl if rows.too_long == "split_turns" else None


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
        return PieceEncoder(tokenizer, rows.cerebras, bos)
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
    """The documents of one side of a split: counts those of the other, and the bytes of its own."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.held_out = self.bytes = 0

    def of(self, texts: Iterator[Document]) -> Iterator[Document]:
        """Yield the documents that are on this side."""
        for document in texts:
            if self.split.takes(document.digest):
                self.bytes += len(document.text.encode())
                yield document
            else:
                self.held_out += 1


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
