"""Fill-in-the-middle: cut a text in prefix, middle, suffix and put the middle last.

PSM: [PRE] prefix [SUF] suffix [MID] middle; SPM: [PRE] [SUF] suffix [MID] prefix middle (variant 2
of Bavarian et al. 2022, https://arxiv.org/abs/2207.14255; the forms of crystalcoder-data-prep).
On documents, before packing (default), the packer's EOS marks the end of the middle and nothing is
ever truncated. Pieces rejoin byte for byte: middle and suffix carry no dummy space.

Draws are keyed by (seed, domain, epoch) and the document's own digest, so that no other document,
worker or file order changes them, and every epoch cuts anew. `rowfim` does the same on rows.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from prep import seeds
from prep.blocks import Encoded
from prep.encoders import Encode
from prep.metadata import Metadata
from prep.sources import Document
from prep.tokens import Tokenizer

VERSION = 1
LEFT_TO_RIGHT, PSM, SPM = 0, 1, 2
DRAWS = 4  # whether, first cut, second cut, which form


@dataclass(frozen=True)
class FimSettings:
    """How often, in which form, on what and at which units to permute.

    rate: share of documents (or row segments) permuted. spm_rate: share of those in SPM form.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    rate: float
    spm_rate: float = 0.5
    level: Literal["document", "row"] = "document"
    cut: Literal["character", "token"] = "character"

    def __post_init__(self) -> None:
        for name in ("rate", "spm_rate"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: must lie in [0, 1], got {value}")


@dataclass(frozen=True)
class Plan:
    """What one document or segment is to become: form (0: as it is) and two sorted cuts."""

    form: int
    first: int
    second: int


@dataclass(frozen=True)
class Sentinels:
    """The ids of <fim_prefix>, <fim_middle> and <fim_suffix>."""

    prefix: int
    middle: int
    suffix: int


def sentinels(tokenizer: Tokenizer) -> Sentinels:
    """Return a tokenizer's FIM ids; RecipeError if it has none."""
    parts = ("fim_prefix", "fim_middle", "fim_suffix")
    return Sentinels(*(tokenizer.id_of(part) for part in parts))


def plan(settings: FimSettings, u: NDArray[np.float64], length: int) -> Plan:
    """Turn four uniform draws into a plan for something of `length` units.

    u: (4,) in [0, 1). Cuts are uniform over the length + 1 places between units.
    """
    if length == 0 or u[0] >= settings.rate:
        return Plan(LEFT_TO_RIGHT, -1, -1)
    first, second = sorted(int(x * (length + 1)) for x in u[1:3])
    return Plan(SPM if u[3] < settings.spm_rate else PSM, first, second)


def arrange(
    plan: Plan, pieces: tuple[NDArray[np.integer], ...], marks: Sentinels
) -> NDArray[np.int64]:
    """Put prefix, middle and suffix ids in PSM or SPM order with their sentinels."""
    prefix, middle, suffix = pieces
    if plan.form == PSM:
        parts = ([marks.prefix], prefix, [marks.suffix], suffix, [marks.middle], middle)
    else:
        parts = ([marks.prefix, marks.suffix], suffix, [marks.middle], prefix, middle)
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])


class DocumentFim:
    """Encode documents, a share of them permuted: the encoder of one (domain, epoch)."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        settings: FimSettings,
        seed: int,
        domain: str,
        epoch: int,
        metadata: Metadata | None = None,
    ) -> None:
        """Take what draws are keyed by; metadata: what stays before a document as it is."""
        self.tokenizer, self.settings, self.metadata = tokenizer, settings, metadata
        self.name = (seed, "fim", domain, epoch)
        self.marks = sentinels(tokenizer)

    def __call__(self, document: Document) -> Encoded:
        """Encode one document; cuts are counted from its text's beginning, its head included."""
        item = np.array([document.digest], dtype=np.uint64)
        u = seeds.draws(*self.name, items=item, count=DRAWS)[0]
        head = self.metadata.head(document) if self.metadata else None
        if head is None:
            return self._permuted(document, u, self.tokenizer.encode)
        body = Document(document.number, document.digest, document.text[head.stop :])
        done = self._permuted(body, u, self.tokenizer.encode_piece)
        ahead = head.stop if self.settings.cut == "character" else len(head.ids)
        cuts = done.cuts if done.fim == LEFT_TO_RIGHT else _moved(done.cuts, ahead)
        ids = np.concatenate([head.ids, done.ids])
        return Encoded(document.number, ids, head.controls + done.controls, done.fim, cuts)

    def _permuted(self, document: Document, u: NDArray[np.float64], encode: Encode) -> Encoded:
        ids = encode(document.text) if self.settings.cut == "token" else None
        chosen = plan(self.settings, u, len(document.text if ids is None else ids))
        first, second = chosen.first, chosen.second
        if chosen.form == LEFT_TO_RIGHT:
            return Encoded(document.number, encode(document.text) if ids is None else ids, 0)
        if ids is None:
            text, rest = document.text, self.tokenizer.encode_piece
            pieces = (encode(text[:first]), rest(text[first:second]), rest(text[second:]))
        else:
            pieces = (ids[:first], ids[first:second], ids[second:])
        permuted = arrange(chosen, pieces, self.marks)
        return Encoded(document.number, permuted, 3, chosen.form, (first, second))


def _moved(cuts: tuple[int, int], ahead: int) -> tuple[int, int]:
    return cuts[0] + ahead, cuts[1] + ahead
