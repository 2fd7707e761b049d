"""The proxies' vocabulary: small, trained on every domain, able to spell every text."""

from pathlib import Path

import pytest

from crystalmix.mixtures.ablations import proxy_tokenizer as vocabulary
from crystalmix.mixtures.ablations import spec as ablation
from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings, load
from helpers.ablations import write_spec


def test_a_vocabulary_is_as_large_as_asked_and_spells_what_it_never_saw(tmp_path: Path) -> None:
    spec, recipe = ablation.load(str(write_spec(tmp_path)))
    out = tmp_path / "small.json"
    vocabulary.train(recipe, tmp_path, list(spec.domains), 380, out)
    tokenizer = load(TokenizerSettings(str(out)))
    assert tokenizer.vocab == 380 + 4  # and the specials of FIM
    text = "Ångström 漢字 unseen\n\tindented"
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text


def test_a_vocabulary_that_is_there_is_kept(tmp_path: Path) -> None:
    spec, recipe = ablation.load(str(write_spec(tmp_path)))
    out = tmp_path / "small.json"
    out.write_bytes(b"mine")
    vocabulary.train(recipe, tmp_path, list(spec.domains), 380, out)
    assert out.read_bytes() == b"mine"


def test_a_domain_without_text_is_told(tmp_path: Path) -> None:
    spec, recipe = ablation.load(str(write_spec(tmp_path)))
    for path in (tmp_path / "slimpajama").rglob("*.zst"):
        path.unlink()
    with pytest.raises(InputError):
        vocabulary.train(recipe, tmp_path, list(spec.domains), 380, tmp_path / "small.json")
