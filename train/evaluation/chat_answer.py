"""Answers: what a model says to one message, in the template that its phase was trained with."""

from dataclasses import dataclass
from pathlib import Path

import torch

from crystalmix.mixtures.build.seal import settings_of
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.chat import settings
from crystalmix.prep.chat.render import Renderer
from crystalmix.prep.chat.rules import Rules, Turn
from crystalmix.prep.chat.settings import ChatSettings
from crystalmix.prep.documents.conversation_text import Message
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.prep.tokenizer.tokenizer import Tokenizer
from crystalmix.train.evaluation.sampling import Forward, greedy


@dataclass(frozen=True)
class Answer:
    """A message and the answer; ended: by the model, not by the most tokens. ids: of both."""

    text: str
    answer: str
    ended: bool
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """The most ids of an answer, and of message and answer together (what the model takes)."""

    new: int
    longest: int


def chat_of(build: Path, manifest: Manifest) -> ChatSettings | None:
    """Return the chat settings of the first part of a phase that has some."""
    for part in manifest.parts:
        settings_ = settings_of(BuildFolder(build), part.domain)
        if settings_ is not None and "chat" in settings_:
            return settings.read(settings_["chat"])
    return None


def answer(
    forward: Forward,
    tokenizer: Tokenizer,
    chat: ChatSettings,
    text: str,
    limits: Limits,
    system: str | None = None,
) -> Answer:
    """Return the greedy answer to one message.

    system: a system text in place of the settings' own. Raises RefusalError for a message that
    leaves no room for an answer, or holds the template's role markers.
    """
    renderer = Renderer(tokenizer, chat)
    messages = [*([Message("system", system)] if system else []), Message("user", text)]
    # an unwritten answer keeps the question from being left out as one without any
    turns = Rules(chat, renderer.template).apply(
        [*messages, Message("assistant", ".")], "the message"
    )
    if turns is None:
        raise RefusalError(
            "the message holds a text that tells roles in this template; leave it out"
        )
    question: list[Turn] = turns[:-1] if turns[-1].role == "assistant" else turns
    prompt = renderer.render(question, answer=True).ids.tolist()
    room = limits.longest - len(prompt)
    if room <= 0:
        raise RefusalError(
            f"the message has {len(prompt)} tokens, and the model takes {limits.longest}; "
            "shorten it"
        )
    new = min(limits.new, room)
    vocab, ends = tokenizer.vocab, renderer.ends
    with torch.no_grad():
        [ids] = greedy(lambda x: forward(x)[..., :vocab], [prompt], new, ends)
    reply = tokenizer.decode(ids, whole=True)
    return Answer(text, reply, len(ids) < new, tuple(prompt), tuple(ids))
