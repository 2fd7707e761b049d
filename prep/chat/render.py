"""Rendering: turns to ids, each id with its turn and whether it is learnt.

Special ids stand between the texts and are never read from a text: texts are encoded without
special tokens. The texts between two special ids are encoded in one piece, as tokenizers do with a
conversation that is one string; an id that lies in two texts is learnt where one of them is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from crystalmix.prep.chat.rules import INSERTED, Turn
from crystalmix.prep.chat.settings import TURNS, ChatSettings, Piece, pieces
from crystalmix.prep.chat.templates import template_of
from crystalmix.prep.rows.turns import ROLES
from crystalmix.prep.runtime.errors import RecipeError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.tokenizer.tokenizer import Tokenizer

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]

PARTS = ("bos", "eos")
NO_MESSAGE = INSERTED


@dataclass(frozen=True)
class Part:
    """One piece of a conversation: a special id, or a text; number: of its turn, by place."""

    token: int | None
    text: str
    learnt: bool
    turn: int


@dataclass(frozen=True)
class Rendered:
    """A conversation as ids: (n,) uint32, which are learnt (n,) bool, how many are special.

    turns: (m, 3) int64, the first id of each turn, its message's number, its role.
    """

    ids: NDArray[np.uint32]
    learnt: NDArray[np.bool_]
    controls: int
    turns: Numbers

    @property
    def masked(self) -> Numbers:
        """Start and stop of the runs that are no labels: (k, 2)."""
        edges = np.flatnonzero(np.diff(~self.learnt, prepend=False, append=False))
        return edges.reshape(-1, 2).astype(np.int64)

    @property
    def labels(self) -> int:
        """How many ids are labels; the first id is predicted by nothing of the conversation."""
        return int(np.count_nonzero(self.learnt[1:]))


class Renderer:
    """Write conversations by a template, with a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, settings: ChatSettings) -> None:
        """Raise RecipeError for a token that the tokenizer lacks, or that texts could spell."""
        self.tokenizer, self.settings = tokenizer, settings
        self.template = template_of(settings.template)
        names = (*TURNS, "begin", "document", "end")
        self.pieces = {name: pieces(getattr(self.template, name)) for name in names}
        if settings.system is not None and not self.pieces["system"]:
            raise RecipeError("system: the template has no pieces of a system text; drop it")
        self.ids = {
            piece.token: self._id(piece.token)
            for name in names
            for piece in self.pieces[name]
            if piece.token is not None
        }

    def _id(self, token: str) -> int:
        tokenizer = self.tokenizer
        if token in PARTS:
            return tokenizer.id_of(token)
        if token not in tokenizer.added:
            raise RecipeError(
                f"template: {token!r} is no added token of {tokenizer.settings.path}; take a "
                "template whose tokens it has, or add them to it as `special`"
            )
        number = tokenizer.added[token]
        if token in tokenizer.matched or token in tokenizer.spelt_controls:
            raise RecipeError(
                f"template: {token!r} is not special in the tokenizer, so that a text could forge "
                "it; mark it `special` in tokenizer.json"
            )
        return number

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end an answer: of a turn's or conversation's end, or the next beginning."""
        turn = self.pieces["assistant"]
        behind = turn[[piece.is_message for piece in turn].index(True) :]
        ids = [self.ids[piece.token] for piece in (*behind, *self.pieces["end"]) if piece.token]
        ids += [self.ids[piece.token] for piece in self.pieces["user"][:1] if piece.token]
        return tuple(dict.fromkeys(ids))

    def render(self, turns: Sequence[Turn], *, answer: bool = False) -> Rendered:
        """Write turns to ids; answer: up to where the assistant's next text begins."""
        parts = self._parts(turns, answer=answer)
        marks = [self._mark("begin"), *(self._turn(turn) for turn in turns), self._mark("end")]
        return self._encoded(parts, marks)

    def _mark(self, role: str) -> tuple[int, int]:
        return NO_MESSAGE, ROLES.index(role)

    def _turn(self, turn: Turn) -> tuple[int, int]:
        role = "tool" if turn.role == "tool_call" else turn.role
        return turn.number, ROLES.index(role)

    def _parts(self, turns: Sequence[Turn], *, answer: bool) -> list[Part]:
        """Return the pieces of a conversation in order; turn 0 is what stands before the first."""
        every = self.settings.loss == "all"
        if turns and turns[0].role == "text":
            return [
                self._part(piece, turn.message.text, number, learnt=True)
                for number, turn in enumerate(turns, 1)
                for piece in self.pieces["document"]
            ]
        parts = [self._part(piece, "", 0, learnt=every) for piece in self.pieces["begin"]]
        learnt, before = False, ""
        last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
        for i, turn in enumerate(turns):
            after, learnt = learnt, self._is_learnt(turn, is_last=i == last)
            role = turn.role
            if role == "user" and before == "system" and self.pieces["user_after_system"]:
                role = "user_after_system"
            for j, piece in enumerate(self.pieces[role]):
                ends = self.settings.turn_end and after and j == 0 and piece.token is not None
                on = every or ends or (learnt and piece.learnt)
                parts.append(self._part(piece, turn.message.text, i + 1, learnt=on))
            before = turn.role
        if answer:
            at = [piece.is_message for piece in self.pieces["assistant"]].index(True)
            opening = self.pieces["assistant"][:at]
            return parts + [
                self._part(piece, "", len(turns) + 1, learnt=False) for piece in opening
            ]
        for piece in self.pieces["end"]:
            on = every or (learnt and piece.learnt)
            parts.append(self._part(piece, "", len(turns) + 1, learnt=on))
        return parts

    def _part(self, piece: Piece, message: str, turn: int, *, learnt: bool) -> Part:
        if piece.token is not None:
            return Part(self.ids[piece.token], "", learnt, turn)
        return Part(None, message if piece.is_message else piece.text or "", learnt, turn)

    def _is_learnt(self, turn: Turn, *, is_last: bool) -> bool:
        if turn.message.learn is not None:
            return turn.message.learn
        if self.settings.loss == "last_response":
            return is_last
        return turn.role in self.settings.learnt_roles

    def _encoded(self, parts: list[Part], marks: list[tuple[int, int]]) -> Rendered:
        ids: list[NDArray[np.uint32]] = []
        learnt: list[NDArray[np.bool_]] = []
        starts = np.full(len(marks), -1, np.int64)
        size = controls = place = 0
        while place < len(parts):
            part = parts[place]
            if part.token is not None:
                tokens, on = np.array([part.token], np.uint32), np.array([part.learnt])
                firsts, stop = [0], place + 1
                controls += 1
            else:
                stop = place + 1
                while not self.template.alone and stop < len(parts) and parts[stop].token is None:
                    stop += 1
                tokens, on, firsts = self._run(parts[place:stop])
                controls += self.tokenizer.count_controls(tokens)
            for piece, first in zip(parts[place:stop], firsts, strict=True):
                if starts[piece.turn] < 0:
                    starts[piece.turn] = size + first
            ids.append(tokens)
            learnt.append(on)
            size += len(tokens)
            place = stop
        here = np.flatnonzero(starts >= 0)
        turns = np.array([[starts[i], *marks[i]] for i in here], np.int64).reshape(-1, 3)
        return Rendered(
            np.concatenate([np.empty(0, np.uint32), *ids]),
            np.concatenate([np.empty(0, np.bool_), *learnt]),
            controls,
            turns,
        )

    def _run(self, parts: list[Part]) -> tuple[NDArray[np.uint32], NDArray[np.bool_], list[int]]:
        """Encode texts in one piece; return ids, which are learnt, the first id of each text."""
        texts = [part.text for part in parts]
        ids = self.tokenizer.encode("".join(texts)) if any(texts) else np.empty(0, np.uint32)
        if len(parts) == 1:
            return ids, np.full(len(ids), parts[0].learnt), [0]
        ends = np.cumsum([len(text.encode()) for text in texts])
        begin, end = self._extents("".join(texts), ids)  # of each id, in bytes
        on = np.zeros(len(ids), np.bool_)
        firsts: list[int] = []
        for part, low, high in zip(parts, [0, *ends[:-1]], ends, strict=True):
            first = 0 if not firsts else int(np.searchsorted(end, low, side="right"))
            firsts.append(first)
            if part.learnt and low < high:
                on[first : int(np.searchsorted(begin, high, side="left"))] = True
        return ids, on, firsts

    def _extents(self, text: str, ids: NDArray[np.uint32]) -> tuple[Numbers, Numbers]:
        """Return where in a text's bytes each id begins and ends: (n,) each."""
        sizes = [len(self._bytes_of[i]) for i in ids.tolist()]
        end = np.cumsum([0, *sizes]).astype(np.int64)
        data = text.encode()
        spelt = b"".join(self._bytes_of[i] for i in ids.tolist())
        for shift in (0, 1):  # a dummy space may stand in front
            if spelt[shift:] == data:
                return end[:-1] - shift, end[1:] - shift
        pairs = self.tokenizer.reference("document").encode(text, add_special_tokens=False).offsets
        width = np.cumsum([0, *(len(letter.encode()) for letter in text)])  # characters to bytes
        low, high = (np.array([pair[k] for pair in pairs], np.int64) for k in (0, 1))
        return width[low], width[high]

    @cached_property
    def _bytes_of(self) -> list[bytes]:
        return self.tokenizer.bytes_of
