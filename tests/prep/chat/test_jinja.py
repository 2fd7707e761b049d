"""The exported Jinja template: the ids and the loss of the renderer, by `tokenizers` alone."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.chat.jinja import jinja
from crystalmix.prep.chat.render import Renderer
from crystalmix.prep.chat.rules import Rules
from crystalmix.prep.chat.settings import ChatSettings, Piece, Template
from crystalmix.prep.documents.conversation_text import Message
from helpers.chat import chatty_small
from helpers.jinja_templates import rendered
from helpers.materials import made

TOKENIZER = made(chatty_small())
READER = tokenizers.Tokenizer.from_buffer(chatty_small())
OWN = Template(
    begin=("<s>",),
    system=(Piece(text="It's \\ 'so':\n"), "TEXT", "<|sys_end|>"),
    user=("<|im_start|>", Piece(text="Q\t"), "TEXT"),
    assistant=("<|im_end|>", Piece(text="A: "), "TEXT", Piece(text="\n", learn=True)),
)
# At the ends letters that are ids of their own: transformers loses others of a byte each there.
words = st.text("ab ○é\n\"'{%}#\\", max_size=10).map(lambda text: f"a{text}b")
talks = st.builds(
    lambda system, pairs: [
        *([Message("system", system)] if system else []),
        *(Message(role, text) for pair in pairs for role, text in pair),
    ],
    st.one_of(st.none(), words),
    st.lists(st.tuples(st.tuples(st.just("user"), words), st.tuples(st.just("assistant"), words)),
             min_size=1, max_size=3),
)  # fmt: skip
choices = st.sampled_from(
    [
        ChatSettings("crystal"),
        ChatSettings("crystal", system="Be brief.", turn_end=True),
        ChatSettings("chatml"),
        ChatSettings("chatml", loss=("user",)),
        ChatSettings("llama-3", loss="all"),
        ChatSettings("llama-2", system="Be\nbrief."),
        ChatSettings("llama-2"),
        ChatSettings(OWN),
    ]
)


@settings(max_examples=150, deadline=None)
@given(talk=talks, chosen=choices)
def test_the_template_gives_the_ids_and_the_loss_of_the_renderer(
    talk: list[Message], chosen: ChatSettings
) -> None:
    """Chat test 6."""
    renderer = Renderer(TOKENIZER, chosen)
    turns = Rules(chosen, renderer.template).apply(talk, "here")
    assert turns is not None
    whole = renderer.render(turns)
    messages = [{"role": message.role, "content": message.text} for message in talk]
    names = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": False}
    text, learnt = rendered(jinja(chosen), messages, **names)
    encoded = READER.encode(text, add_special_tokens=False)
    assert encoded.ids == whole.ids.tolist()
    # As transformers does: from the id of the first learnt letter to that of the last.
    marks = np.zeros(len(encoded.ids), bool)
    edges = np.flatnonzero(np.diff([False, *learnt, False])).reshape(-1, 2)
    for first, stop in edges.tolist():
        low, high = encoded.char_to_token(first), encoded.char_to_token(stop - 1)
        marks[low : high + 1] = True
    # A dummy space of its own behind a special id belongs to no letter: there alone they differ.
    controls = TOKENIZER.is_control[whole.ids]
    dummies = (whole.ids == TOKENIZER.vocabulary["▁"]) & np.append([True], controls[:-1])
    assert marks[~dummies].tolist() == whole.learnt[~dummies].tolist()


@settings(max_examples=100, deadline=None)
@given(talk=talks, chosen=choices)
def test_the_prompt_of_an_answer_is_what_stands_before_it_in_training(
    talk: list[Message], chosen: ChatSettings
) -> None:
    renderer = Renderer(TOKENIZER, chosen)
    rules = Rules(chosen, renderer.template)
    turns = rules.apply(talk, "here")
    assert turns is not None
    prompt = renderer.render(turns[:-1], answer=True)
    messages = [{"role": message.role, "content": message.text} for message in talk[:-1]]
    names = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    text, _ = rendered(jinja(chosen), messages, **names)
    assert READER.encode(text, add_special_tokens=False).ids == prompt.ids.tolist()
    whole = renderer.render(turns)
    if chosen.template in ("crystal", "llama-3"):
        assert whole.ids[: len(prompt.ids)].tolist() == prompt.ids.tolist()


def test_a_role_without_pieces_is_refused() -> None:
    with pytest.raises(ValueError, match="no pieces for a message of role tool"):
        rendered(jinja(ChatSettings("crystal")), [{"role": "tool", "content": "x"}], bos_token="")
