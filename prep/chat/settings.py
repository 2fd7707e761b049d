"""Settings of chat: the template, where loss lies, and what becomes of odd turns."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, TypeAdapter

from crystalmix.prep.documents.conversation_text import ROLES
from crystalmix.prep.runtime.types import Json, Strict, frozen

MESSAGE = "TEXT"  # in a template, where the message's text stands
TURNS = ("system", "user", "assistant", "tool", "tool_call", "user_after_system")
Bundled = Literal["crystal", "chatml", "llama-2", "llama-3", "plain"]
Choice = Literal["keep", "drop_turn", "drop"]


@frozen
class Piece(Strict):
    """One piece of a template: a special token by name, a literal text, or the message's text.

    token: as the tokenizer spells it, or bos or eos. text: literal, `TEXT` for the message's.
    learn: whether it counts as a label where its turn is learnt; the message's text does, others
    do not, where nothing is said.
    """

    token: str | None = None
    text: str | None = None
    learn: bool | None = None

    def __post_init__(self) -> None:
        if (self.token is None) == (self.text is None):
            raise ValueError("token: give one of token and text")

    @property
    def is_message(self) -> bool:
        """Whether the message's text stands here."""
        return self.text == MESSAGE

    @property
    def learnt(self) -> bool:
        """Whether it counts as a label where its turn is learnt."""
        return self.is_message if self.learn is None else self.learn


def _is_mapping(value: Any) -> str:  # noqa: ANN401  of YAML
    """Tell which member of a union a value is to be checked as, so that one fault is reported."""
    return "name" if isinstance(value, str) else "pieces"


Which = Discriminator(_is_mapping)
OnePiece = Annotated[Annotated[str, Tag("name")] | Annotated[Piece, Tag("pieces")], Which]
Pieces = tuple[OnePiece, ...]


@frozen
class Template(Strict):
    """How a conversation is written: pieces before it, of each role, and behind it.

    A piece is a special token (by its name, or bos or eos), `TEXT` for the message, or a mapping
    with token or text, and learn. begin: before the conversation. end: behind it. system: of a
    system text. user: of a user's turn. assistant: of a response. tool: of a tool's answer.
    tool_call: of calls of tools. document: of a plain text. user_after_system: of a user turn that
    follows a system text, where it differs. markers: texts that tell the roles where no special
    token does; a conversation that holds one is dropped and counted as forged. alone: encode each
    text by itself, not texts without a special token between them in one piece.
    """

    user: Pieces
    assistant: Pieces
    begin: Pieces = ()
    system: Pieces = ()
    user_after_system: Pieces = ()
    tool: Pieces = ()
    tool_call: Pieces = ()
    document: Pieces = ("bos", MESSAGE, "eos")
    end: Pieces = ()
    markers: tuple[str, ...] = ()
    alone: bool = False

    def __post_init__(self) -> None:
        for name in (*TURNS, "document"):
            turn = pieces(getattr(self, name))
            if turn and sum(piece.is_message for piece in turn) != 1:
                raise ValueError(f"{name}: must hold {MESSAGE} once")
        for name in ("begin", "end"):
            if any(piece.is_message for piece in pieces(getattr(self, name))):
                raise ValueError(f"{name}: is of no message; drop {MESSAGE}")
        if not self.markers and not self._is_told_by_tokens():
            raise ValueError(
                "markers: no special token stands between user and assistant, so that a text could "
                "forge a role; add one, or list the texts that no message may hold"
            )

    def _is_told_by_tokens(self) -> bool:
        """Tell whether a special token parts the user's text from the assistant's, and back."""
        user, assistant = pieces(self.user), pieces(self.assistant)
        if any(piece.text not in (None, MESSAGE) for piece in (*user, *assistant)):
            return _parted(user, assistant) and _parted(assistant, user)
        return True  # without literal texts there is nothing to forge


def _parted(first: tuple[Piece, ...], second: tuple[Piece, ...]) -> bool:
    behind = first[[piece.is_message for piece in first].index(True) :]
    before = second[: [piece.is_message for piece in second].index(True)]
    return any(piece.token is not None for piece in (*behind, *before))


def pieces(turn: Pieces) -> tuple[Piece, ...]:
    """Return pieces with what short forms stand for.

    >>> pieces(("bos", "TEXT"))
    (Piece(token='bos', text=None, learn=None), Piece(token=None, text='TEXT', learn=None))
    """
    return tuple(
        piece
        if isinstance(piece, Piece)
        else Piece(text=piece)
        if piece == MESSAGE
        else Piece(token=piece)
        for piece in turn
    )


@frozen
class ChatSettings(Strict):
    """How a domain's conversations are written, and what of them is learnt.

    template: a bundled one by name, or pieces of your own. loss: on responses, on the last
    response, on all, or on the turns of some roles; what a record says of a message goes before.
    system: the text of conversations that have none. first_assistant: a conversation that begins
    with a response. last_user: turns behind the last response. same_role: turns of one role in a
    row. empty: turns without a text. late_system: a system text that is not the first message.
    tools: turns of tools, where the template has no pieces for them. turn_end: whether the id that
    begins the next turn is learnt behind a response, where nothing else ends it.
    """

    template: Annotated[Annotated[Bundled, Tag("name")] | Annotated[Template, Tag("pieces")], Which]
    loss: Literal["responses", "last_response", "all"] | tuple[str, ...] = "responses"
    system: str | None = None
    first_assistant: Choice = "keep"
    last_user: Choice = "drop_turn"
    same_role: Literal["join", "keep", "drop"] = "join"
    empty: Choice = "keep"
    late_system: Choice = "keep"
    tools: Literal["refuse", "drop"] = "refuse"
    turn_end: bool = False

    def __post_init__(self) -> None:
        for role in self.learnt_roles if isinstance(self.loss, tuple) else ():
            if role not in ROLES:
                raise ValueError(f"loss: must name roles ({', '.join(ROLES)}), got {role!r}")
        if isinstance(self.loss, tuple) and not self.loss:
            raise ValueError("loss: names no role, so that nothing would be learnt")

    @property
    def learnt_roles(self) -> tuple[str, ...]:
        """The roles whose turns are learnt where the record says nothing."""
        if isinstance(self.loss, tuple):
            return self.loss
        return ROLES if self.loss == "all" else ("assistant", "tool_call", "text")


def read(content: Json) -> ChatSettings:
    """Return chat settings from a receipt's JSON."""
    values = {key: value for key, value in content.items() if key != "version"}
    return TypeAdapter(ChatSettings).validate_python(values)
