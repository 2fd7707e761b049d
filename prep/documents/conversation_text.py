"""Conversations as texts: the messages of a conversation in one text that nothing can forge.

The first line lists role, length in characters and, where the record says so, whether the message
is learnt; the messages follow, each after a blank line. Lengths say where a message ends, so that
no text of a message can look like another message.
"""

from collections.abc import Sequence

import orjson

from crystalmix.prep.runtime.types import frozen

ROLES = ("system", "user", "assistant", "tool", "tool_call", "text")
GAP = "\n\n"


@frozen
class Message:
    """One message: who speaks, what, and whether the record says that it is learnt or not."""

    role: str
    text: str
    learn: bool | None = None


def as_text(messages: Sequence[Message]) -> str:
    """Return messages as the text of a document.

    >>> as_text([Message("user", "Hi"), Message("assistant", "Ho", learn=False)])
    '[["user",2],["assistant",2,false]]\\n\\nHi\\n\\nHo'
    """
    head = [
        [message.role, len(message.text), *([] if message.learn is None else [message.learn])]
        for message in messages
    ]
    return GAP.join([orjson.dumps(head).decode(), *(message.text for message in messages)])


def messages_of(text: str) -> list[Message]:
    """Return the messages of a document's text.

    >>> messages_of('[["user",2],["assistant",2,false]]\\n\\nHi\\n\\nHo')[1]
    Message(role='assistant', text='Ho', learn=False)
    """
    head, _, _ = text.partition("\n")
    messages: list[Message] = []
    place = len(head)
    for role, length, *learn in orjson.loads(head):
        start = place + len(GAP)
        place = start + length
        messages.append(Message(role, text[start:place], learn[0] if learn else None))
    return messages
