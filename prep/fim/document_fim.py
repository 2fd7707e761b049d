"""Fill-in-the-middle: cut a text in prefix, middle, suffix and put the middle last.

PSM: [PRE] prefix [SUF] suffix [MID] middle; SPM: [PRE] [SUF] suffix [MID] prefix middle (variant 2
of Bavarian et al. 2022, https://arxiv.org/abs/2207.14255; the forms of crystalcoder-data-prep).
On documents, before packing (default), the packer's EOS marks the end of the middle and nothing is
ever truncated. Pieces rejoin byte for byte: middle and suffix carry no dummy space.

Draws are keyed by (seed, domain, epoch) and the document's own digest, so that no other document,
worker or file order changes them, and every epoch cuts anew. `row_fim` does the same on rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from crystalmix.prep.documents.source import Document
from crystalmix.prep.fim.segments import LEFT_TO_RIGHT, PSM, SPM, Sentinels
from crystalmix.prep.runtime import randomness
from crystalmix.prep.runtime.constraints import AtLeastOne, Share, enforce, within
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Strict, frozen

with imported_later(__name__):
    import numpy as np

    from crystalmix.prep.rows import token_blocks
    from crystalmix.prep.tokenizer import safe_cuts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crystalmix.prep.rows.token_blocks import Encoded
    from crystalmix.prep.tokenizer.metadata_head import Metadata
    from crystalmix.prep.tokenizer.reference import Encode, Ids
    from crystalmix.prep.tokenizer.tokenizer import Tokenizer

VERSION = 2
DRAWS = 4  # whether, first cut, second cut, which form


@frozen
class FimSettings(Strict):
    """How often, in which form, on what and at which units to permute.

    rate: share of documents (or row segments) permuted. spm_rate: share of those in SPM form.
    loss: whether all labels of a permuted document count, or its middle's and its EOS only.
    dialect: `cerebras` permutes rows as crystalcoder-data-prep did (LegacyFim), its draws seeded
    by the process of `processes` that would have had a shard, or by shard (None: stage 3), plus
    first_seed.
    """

    rate: Share
    spm_rate: Share = 0.5
    level: Literal["document", "row"] = "document"
    cut: Literal["character", "token"] = "character"
    loss: Literal["all", "middle"] = "all"
    dialect: Literal["exact", "cerebras"] = "exact"
    processes: AtLeastOne | None = None
    first_seed: Annotated[int, within(0, 2**32, "[)", "0, 2**32")] = 0

    def __post_init__(self) -> None:
        enforce(self)
        if self.dialect == "cerebras":
            for name, only in (("level", "row"), ("cut", "character"), ("loss", "all")):
                if getattr(self, name) != only:
                    raise ValueError(
                        f"{name}: must be {only} with dialect: cerebras, got {getattr(self, name)}"
                    )
        elif self.processes is not None or self.first_seed:
            raise ValueError("processes, first_seed: are for dialect: cerebras, got dialect: exact")


@frozen
class Plan:
    """What one document or segment is to become: form (0: as it is) and two sorted cuts."""

    form: int
    first: int
    second: int


def sentinels(tokenizer: Tokenizer) -> Sentinels:
    """Return a tokenizer's FIM ids; RecipeError if it has none."""
    parts = ("fim_prefix", "fim_middle", "fim_suffix")
    return Sentinels(*(tokenizer.id_of(part) for part in parts))


def plan(settings: FimSettings, u: Sequence[float], length: int) -> Plan:
    """Turn four uniform draws into a plan for something of `length` units.

    u: four numbers in [0, 1). Cuts are uniform over the length + 1 places between units.
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
        self.draw = randomness.Drawer(seed, "fim", domain, epoch)
        self.marks, self.joints = sentinels(tokenizer), safe_cuts.joints(tokenizer)

    def __call__(self, document: Document) -> Encoded:
        """Encode one document; cuts are counted from its text's beginning, its head included."""
        u = self.draw(document.digest, DRAWS)
        head = self.metadata.head(document) if self.metadata else None
        if head is None:
            return self._permuted(document, u, self.tokenizer.encode)
        body = Document(document.number, document.digest, document.text[head.stop :])
        result = self._permuted(body, u, self.tokenizer.encode_piece)
        ahead = head.stop if self.settings.cut == "character" else len(head.ids)
        cuts = result.cuts
        if result.fim != LEFT_TO_RIGHT:
            cuts = cuts[0] + ahead, cuts[1] + ahead
        ids, controls = np.concatenate([head.ids, result.ids]), head.controls + result.controls
        loss_from = result.loss_from and result.loss_from + len(head.ids)
        return token_blocks.Encoded(document.number, ids, controls, result.fim, cuts, loss_from)

    def _permuted(self, document: Document, u: list[float], encode: Encode) -> Encoded:
        ids = encode(document.text) if self.settings.cut == "token" else None
        choice = plan(self.settings, u, len(document.text if ids is None else ids))
        first, second = choice.first, choice.second
        if choice.form == LEFT_TO_RIGHT:
            ids = encode(document.text) if ids is None else ids
            return token_blocks.Encoded(document.number, ids, self.tokenizer.count_controls(ids))
        if ids is None:
            pieces = self._pieces(document.text, (first, second), encode)
        else:
            pieces = (ids[:first], ids[first:second], ids[second:])
        permuted = arrange(choice, pieces, self.marks)
        loss_from = len(permuted) - len(pieces[1]) if self.settings.loss == "middle" else 0
        controls = 3 + sum(map(self.tokenizer.count_controls, pieces))
        return token_blocks.Encoded(
            document.number, permuted, controls, choice.form, (first, second), loss_from
        )

    def _pieces(self, text: str, cuts: tuple[int, int], encode: Encode) -> tuple[Ids, ...]:
        """Encode prefix, middle and suffix: at once where a tokenizer allows it (`joints`)."""
        if self.joints is not None:
            dummy = self.tokenizer.dummy_prefix and encode == self.tokenizer.encode
            return self.joints.divide(encode(text), cuts, dummy=dummy)
        first, second = cuts
        rest = self.tokenizer.encode_piece
        return encode(text[:first]), rest(text[first:second]), rest(text[second:])
