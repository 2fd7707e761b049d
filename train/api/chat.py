"""`cm.chat`: one message to a trained model, and its greedy answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.train.api.checks import Place, existing
from crystalmix.train.trace.answers import Answer, Grid


@dataclass(frozen=True)
class Reply(Answer):
    """A message and a model's greedy answer, in the template of the phase.

    ended: by the model itself, not by the most ids. prompt_ids, ids: of message and answer.
    """

    phase: str
    step: int
    text: str
    answer: str
    ended: bool
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]

    @property
    def faulty(self) -> bool:
        """An answer names no faults."""
        return False

    def shown(self) -> Iterator[str | Grid]:
        """Yield the answer."""
        yield self.answer
        if not self.ended:
            yield f"(cut after {len(self.ids)} tokens)"


def chat(
    run: Place,
    text: str,
    *,
    system: str | None = None,
    phase: str | None = None,
    step: int | None = None,
    new: int = 128,
    build: Place | None = None,
) -> Reply:
    """Return a run's (or checkpoint's) greedy answer to one message.

    system: a system text in place of the recipe's. phase, step: which checkpoint, by default the
    newest of the last phase. new: ids of the answer at most. build: the run's, if it was moved.
    Raises RefusalError for a phase that was trained on no chat.
    """
    from crystalmix.prep.tokenizer.tokenizer import Tokenizer, TokenizerSettings
    from crystalmix.train.evaluation import chat_answer
    from crystalmix.train.weights import hf_export

    place = existing(build)
    source = hf_export.find(existing(run), phase, step, place)
    manifest, folder, notes = hf_export.origin(source, build=place)
    if manifest is None or folder is None:
        raise RefusalError(notes[0])
    settings = chat_answer.chat_of(folder, manifest)
    if settings is None:
        raise RefusalError(
            f"{source}: phase {manifest.phase} was trained on no chat, so that there is no "
            "template to ask in; name another one with --phase"
        )
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer(TokenizerSettings(str(path)), path.read_bytes())
    model = hf_export.loaded(source)
    longest = model.settings.max_position_embeddings
    limits = chat_answer.Limits(new, longest)
    answer = chat_answer.answer(model, tokenizer, settings, text, limits, system)
    return Reply(
        manifest.phase,
        int(source.name.removeprefix("step-")),
        text,
        answer.answer,
        answer.ended,
        answer.prompt_ids,
        answer.ids,
    )
