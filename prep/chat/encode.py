"""Encoding: documents that are conversations to ids for packing, with an account of every case."""

from collections import Counter
from collections.abc import Iterator

from crystalmix.prep.chat.counts import ChatCounts
from crystalmix.prep.chat.render import Rendered, Renderer
from crystalmix.prep.chat.rules import Rules, Turn
from crystalmix.prep.chat.settings import ChatSettings
from crystalmix.prep.documents.conversation_text import messages_of
from crystalmix.prep.documents.source import Document
from crystalmix.prep.rows.token_blocks import Encoded
from crystalmix.prep.tokenizer.tokenizer import Tokenizer

VERSION = 1
Turns = list[Turn]


class ChatEncoder:
    """Encode conversations; most: ids above which one is cut at turn ends, None for never.

    A piece of a long conversation begins with its system text and holds as many whole exchanges
    (turns from one of the user's on) as fit; an exchange that fits no row is left out and counted.
    """

    def __init__(self, tokenizer: Tokenizer, settings: ChatSettings, most: int | None) -> None:
        self.renderer = Renderer(tokenizer, settings)
        self.rules = Rules(settings, self.renderer.template)
        self.most = most
        self.conversations = self.rendered = self.pieces = self.labels = self.left_out = 0
        self.turns: Counter[str] = Counter()

    def encode(self, document: Document, place: str) -> Iterator[Encoded]:
        """Yield what a document is written as: one piece, several, or none."""
        self.conversations += 1
        turns = self.rules.apply(messages_of(document.text), place)
        if turns is None:
            return
        parts = list(self._parts(turns))
        kept = [(some, piece) for some, piece in parts if piece.labels]
        if not kept:
            self.rules.dropped["no_label" if parts else "too_long"] += 1
            return
        self.rendered += 1
        for some, piece in kept:
            self.pieces += 1
            self.labels += piece.labels
            self.turns.update(turn.role for turn in some)
            yield Encoded(
                document.number, piece.ids, piece.controls, masked=piece.masked, turns=piece.turns
            )

    def counts(self) -> ChatCounts:
        """Return the account of what was encoded."""
        return ChatCounts(
            conversations=self.conversations,
            rendered=self.rendered,
            pieces=self.pieces,
            turns=dict(sorted(self.turns.items())),
            labels=self.labels,
            cases=dict(sorted(self.rules.cases.items())),
            dropped=dict(sorted(self.rules.dropped.items())),
            left_out=self.left_out,
        )

    def _parts(self, turns: Turns) -> Iterator[tuple[Turns, Rendered]]:
        """Yield the pieces of a conversation, each with its turns."""
        whole = self.renderer.render(turns)
        if self.most is None or len(whole.ids) <= self.most or turns[0].role == "text":
            yield turns, whole
            return
        head, exchanges = _exchanges(turns)
        waiting: list[Turns] = []
        fitting: tuple[Turns, Rendered] | None = None
        for exchange in exchanges:
            longer = self._fit(head, [*waiting, exchange])
            if longer is None and fitting is not None:
                yield fitting
                waiting, fitting = [], None
                longer = self._fit(head, [exchange])
            if longer is None:
                self.left_out += len(exchange)
                continue
            waiting, fitting = [*waiting, exchange], longer
        if fitting is not None:
            yield fitting

    def _fit(self, head: Turns, exchanges: list[Turns]) -> tuple[Turns, Rendered] | None:
        turns = [*head, *(turn for exchange in exchanges for turn in exchange)]
        rendered = self.renderer.render(turns)
        return (turns, rendered) if self.most is None or len(rendered.ids) <= self.most else None


def _exchanges(turns: Turns) -> tuple[Turns, list[Turns]]:
    """Return the system text in front, and the exchanges: runs that begin with a user's turn."""
    head = turns[:1] if turns[0].role == "system" else []
    exchanges: list[Turns] = []
    for turn in turns[len(head) :]:
        before = exchanges[-1][-1].role if exchanges else ""
        if not exchanges or (turn.role == "user" and before != "user"):
            exchanges.append([])
        exchanges[-1].append(turn)
    return head, exchanges
