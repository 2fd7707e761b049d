"""Sampling: greedy, FIM prompts as in training, the same alone and beside other prompts."""

import pytest
import torch

from crystalmix.prep.fim.document_fim import sentinels
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.tokenizer.tokenizer import Tokenizer
from crystalmix.train.evaluation.sampling import Prompt, greedy, prompt_ids, samples
from crystalmix.train.model.crystal import Crystal, ModelSettings, initialise
from helpers.materials import crystal, small
from helpers.watched import PROMPTS


def special(tokenizer: Tokenizer) -> Json:
    return dict(tokenizer.special)


def model(vocab: int) -> Crystal:
    made = Crystal(
        ModelSettings(
            vocab_size=vocab,
            hidden_size=16,
            num_hidden_layers=2,
            num_heads=2,
            filter_size=24,
            max_position_embeddings=64,
            rotary_dim=4,
            embeddings_scale=14.6,
            output_logits_scale=2.22,
            initializer_std=0.5,
            output_initializer_std=0.5,
        )
    )
    initialise(made, 3)
    return made


def test_a_plain_prompt_is_a_document_that_begins() -> None:
    tokenizer = small()
    ids = prompt_ids(Prompt("the quick"), tokenizer, special(tokenizer), bos=True)
    assert ids == [tokenizer.id_of("bos"), *tokenizer.encode("the quick").tolist()]
    assert prompt_ids(Prompt("the"), tokenizer, special(tokenizer), bos=False)[0] != ids[0]


@pytest.mark.golden
def test_a_fim_prompt_has_the_sentinels_of_its_tokenizer_in_psm_order() -> None:
    tokenizer = crystal()
    marks = sentinels(tokenizer)
    ids = prompt_ids(Prompt("def f(", "\n    return x"), tokenizer, special(tokenizer), bos=True)
    assert ids == [
        tokenizer.id_of("bos"),
        marks.prefix,
        *tokenizer.encode("def f(").tolist(),
        marks.suffix,
        *tokenizer.encode_piece("\n    return x").tolist(),
        marks.middle,
    ]
    names = [f"<|fim_{name}|>" for name in ("prefix", "suffix", "middle")]
    assert [tokenizer.added[name] for name in names] == [marks.prefix, marks.suffix, marks.middle]


def test_control_strings_in_a_prompt_are_text() -> None:
    tokenizer = small()
    ids = prompt_ids(Prompt("<|fim_middle|> </s>"), tokenizer, special(tokenizer), bos=False)
    assert not set(ids) & {int(i) for i in tokenizer.controls}


def test_a_fim_prompt_without_sentinels_is_refused() -> None:
    told = {**special(small()), "fim_middle": None}
    with pytest.raises(RefusalError, match="has no FIM tokens; drop the suffix"):
        prompt_ids(Prompt("a", ""), small(), told, bos=True)


def test_greedy_takes_the_most_likely_id_each_time_whatever_stands_beside() -> None:
    made = model(40)
    prompts = [[1, 5, 9], [1], [3, 3, 3, 3, 7, 30, 31]]
    with torch.no_grad():
        together = greedy(made, prompts, 8, 2)
        for prompt, found in zip(prompts, together, strict=True):
            ids = list(prompt)
            while len(ids) < len(prompt) + 8:
                chosen = int(made(torch.tensor([ids]))[0, -1].argmax())
                if chosen == 2:
                    break
                ids.append(chosen)
            assert found == ids[len(prompt) :]
            assert greedy(made, [prompt], 8, 2) == [found]
    assert len({tuple(found) for found in together}) > 1


def test_eos_ends_a_sample_and_the_others_go_on() -> None:
    def forward(ids: torch.Tensor) -> torch.Tensor:
        """Say the next number; rows that began with 10 end at 12."""
        logits = torch.zeros((*ids.shape, 50))
        following = torch.where((ids == 12) & (ids[:, :1] == 10), 0, ids + 1)
        return logits.scatter(-1, following[..., None], 1.0)

    assert greedy(forward, [[10], [20, 21]], 5, 0) == [[11, 12], [22, 23, 24, 25, 26]]
    assert greedy(forward, [[10, 12]], 5, 0) == [[]]


def test_samples_are_told_with_text_and_no_id_that_the_tokenizer_lacks() -> None:
    tokenizer = small()
    made = model(tokenizer.vocab + 9)

    def forward(ids: torch.Tensor) -> torch.Tensor:
        logits = made(ids)
        logits[..., tokenizer.vocab :] += 1e6
        return logits

    asked = [Prompt(p) if isinstance(p, str) else Prompt(**p) for p in PROMPTS]
    ids = [prompt_ids(p, tokenizer, special(tokenizer), bos=True) for p in asked]
    with torch.no_grad():
        told = samples(forward, asked, ids, 6, tokenizer)
    for sample, prompt in zip(told, asked, strict=True):
        assert max(sample.ids, default=0) < tokenizer.vocab
        assert sample.text == tokenizer.decode(sample.ids, whole=False)
        assert sample.ended == (len(sample.ids) < 6)
        assert (sample.prefix, sample.suffix) == (prompt.prefix, prompt.suffix)
