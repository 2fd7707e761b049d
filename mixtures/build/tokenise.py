"""Encoding a block: its documents repaired, checked and counted, and what encodes them."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from crystalmix.prep.crystalcoder.lmdata import PieceEncoder
from crystalmix.prep.documents.source import Document, Source
from crystalmix.prep.filters.sample import Split
from crystalmix.prep.fim import document_fim as fim
from crystalmix.prep.fim.document_fim import FimSettings
from crystalmix.prep.rows.pack import PackSettings
from crystalmix.prep.rows.token_blocks import Encoded
from crystalmix.prep.tokenizer.metadata_head import HeadEncoder, Metadata
from crystalmix.prep.tokenizer.special_spellings import Literals
from crystalmix.prep.tokenizer.tokenizer import Tokenizer

Encoder = Callable[[Document], Encoded]


def encoder(
    tokenizer: Tokenizer,
    source: Source,
    settings: PackSettings,
    inner: FimSettings | None,
    draw: tuple[int, str, int],
) -> Encoder:
    """Return what encodes a source's documents, without the BOS and EOS around them.

    inner: document-level FIM, if asked; draw: seed, domain and epoch that its cuts are keyed by.
    """
    if settings.cerebras is not None:
        bos = tokenizer.id_of("bos") if settings.bos else None
        return PieceEncoder(tokenizer, settings.cerebras, bos)
    metadata = Metadata(tokenizer, source) if source.metadata else None
    if inner is not None and inner.level == "document":
        return fim.DocumentFim(tokenizer, inner, *draw, metadata)
    if metadata is not None:
        return HeadEncoder(tokenizer, metadata)
    return lambda document: Encoded(document.number, tokenizer.encode(document.text), 0)


class Side:
    """The documents of one side of a split: counts those of the other, and the bytes of its own."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.held_out = self.bytes = 0

    def of(self, documents: Iterator[Document]) -> Iterator[Document]:
        """Yield the documents that are on this side."""
        for document in documents:
            if self.split.takes(document.digest):
                self.bytes += len(document.text.encode())
                yield document
            else:
                self.held_out += 1


def prepared(
    documents: Iterator[Document],
    source: Source,
    block: str,
    tokenizer: Tokenizer,
    literals: Literals,
) -> Iterator[Document]:
    """Yield the documents of a block, repaired if asked; count the literals of special tokens.

    Raises InputError where one of the sampled documents has other ids than the reference gives:
    what was encoded before may be wrong too, so there is nothing to go on with.
    """
    every = tokenizer.settings.verify_every
    for document in _repaired(documents) if source.ftfy else documents:
        literals.add(document.text)
        if every and document.digest % every == 0:
            place = f"source {source.name}: {block}: document {document.number}"
            tokenizer.verify(document.text, place)
        yield document


def _repaired(documents: Iterator[Document]) -> Iterator[Document]:
    from crystalmix.prep.documents.repair_text import repaired

    for document in documents:
        yield replace(document, text=repaired(document.text))
