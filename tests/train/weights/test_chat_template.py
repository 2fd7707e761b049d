"""Exported chat templates in an unmodified transformers: ids, masks and prompts are ours."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from crystalmix.prep.chat.jinja import jinja
from crystalmix.prep.chat.render import Renderer
from crystalmix.prep.chat.rules import Rules
from crystalmix.prep.chat.settings import ChatSettings
from crystalmix.prep.documents.conversation_text import Message
from helpers.chat import chatty_small
from helpers.materials import made

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "tests" / "helpers" / "chat_template_script.py"
PYTHON = ROOT / ".env-transformers" / "bin" / "python"
pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="transformers is not installed: `make transformers` has it"
)
TALKS = [
    [("user", "the quick brown fox?"), ("assistant", "a lattice."), ("user", "a  b\n\nc"),
     ("assistant", "def f(x):\n    return x")],
    [("system", "a b"), ("user", "a"), ("assistant", "b")],
]  # fmt: skip


@pytest.mark.parametrize(
    "chosen",
    [
        ChatSettings("crystal"),
        ChatSettings("crystal", system="a brown fox", turn_end=True),
        ChatSettings("chatml"),
        ChatSettings("llama-2"),
        ChatSettings("llama-3", loss="all"),
    ],
    ids=["crystal", "crystal with a system text", "chatml", "llama-2", "llama-3"],
)
def test_transformers_gives_our_ids_and_our_mask(chosen: ChatSettings, tmp_path: Path) -> None:
    """Chat test 6."""
    tokenizer = made(chatty_small())
    (tmp_path / "tokenizer.json").write_bytes(chatty_small())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    config["chat_template"] = jinja(chosen)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    messages = [[{"role": role, "content": text} for role, text in talk] for talk in TALKS]
    (tmp_path / "request.json").write_text(json.dumps(messages), "utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    environment.pop("PYTHONPATH", None)
    words = [SCRIPT, tmp_path, tmp_path / "request.json", tmp_path / "answer.json"]
    done = subprocess.run(
        [str(PYTHON), *map(str, words)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads((tmp_path / "answer.json").read_text("utf-8"))
    renderer = Renderer(tokenizer, chosen)
    for talk, (ids, mask, prompt) in zip(TALKS, answers, strict=True):
        told = [Message(role, text) for role, text in talk]
        turns = Rules(chosen, renderer.template).apply(told, "here")
        assert turns is not None
        whole = renderer.render(turns)
        assert ids == whole.ids.tolist()
        assert prompt == renderer.render(turns[:-1], answer=True).ids.tolist()
        # A dummy space that is an id of its own has no letter there, and so no mask.
        before = np.append([True], tokenizer.is_control[whole.ids][:-1])
        dummies = (whole.ids == tokenizer.vocabulary["▁"]) & before
        assert np.array(mask, bool)[~dummies].tolist() == whole.learnt[~dummies].tolist()
