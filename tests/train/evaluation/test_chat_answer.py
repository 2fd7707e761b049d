"""A model trained on conversations: its answers, its export's template, and its turns traced."""

import shutil
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import orjson
import pytest

import crystalmix as cm
from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.prep.rows import shards
from crystalmix.prep.runtime.errors import RefusalError
from helpers import corpora
from helpers.chat import chatty_small, recipe_of
from helpers.jinja_templates import rendered
from helpers.materials import made, raw
from helpers.runs import undisturbed, write_run

QUESTIONS = {"quartz?": "amber river", "lantern?": "stone ember", "willow?": "thicket"}


@lru_cache(maxsize=1)
def trained() -> Path:
    """Return a run of a small model on three questions, made once per process."""
    folder = Path(mkdtemp(prefix="chat-"))
    records = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in QUESTIONS.items()
        for _ in range(12)
    ]
    raw(folder / "talk.jsonl", records)
    (folder / "tokenizer.json").write_bytes(chatty_small())
    rows = {"msl": 64, "pack": "best_fit", "documents": "masked"}
    recipe = recipe_of(folder, rows=rows, chat={"template": "crystal", "system": "Be brief."})
    text = recipe.read_text().replace("batch: 1", "batch: 4").replace("epochs: 1", "weight: 1")
    text = text.replace("batch: 4", "batch: 4\n    steps: 120")
    recipe.write_text(text.replace("weight: 1", "weight: 1\n      max_epochs: 1000"))
    build(recipes.load(recipe), folder, folder / "build", workers=1)
    model = {"hidden_size": 32, "filter_size": 48, "vocab_size": 424}
    lines = [
        {"initial_learning_rate": 0.0, "end_learning_rate": 0.02, "steps": 5},
        {"initial_learning_rate": 0.02, "end_learning_rate": 0.002, "decay_steps": 115},
    ]
    run = write_run(
        folder / "run.yaml",
        model={**model, "loss_scaling": "num_tokens"},
        optimizer={"learning_rate": lines},
        runconfig={"checkpoint_steps": 120},
    )
    cm.train(folder / "build", run, out=folder / "run")
    return folder


def test_a_model_answers_in_the_template_it_was_trained_with() -> None:
    run = trained() / "run"
    for question, answer in QUESTIONS.items():
        reply = cm.chat(run, question, new=20)
        assert (reply.answer, reply.ended) == (answer, True)
    told = corpora.crystalmix("chat", run, "quartz?")
    assert told.output == "amber river\n"
    content = orjson.loads(corpora.crystalmix("chat", run, "quartz?", "--json").output)
    ids = made(chatty_small()).encode("quartz?").tolist()
    prompt = content["prompt_ids"]
    assert prompt[-len(ids) - 1 : -1] == ids
    assert content["phase"] == "chat"


def test_a_run_without_chat_has_no_template_to_ask_in() -> None:
    with pytest.raises(RefusalError, match="trained on no chat, so that there is no template"):
        cm.chat(undisturbed(), "quartz?")


@pytest.mark.parametrize("own", [None, {"chat_template": "of another model", "other": 1}])
def test_an_export_carries_the_template_of_its_phase(
    own: dict[str, object] | None, tmp_path: Path
) -> None:
    build = trained() / "build"
    if own is not None:
        build = tmp_path / "build"
        shutil.copytree(trained() / "build", build, symlinks=True)
        special = {"bos_token": "<s>", "eos_token": "</s>"}
        (build / "tokenizer_config.json").write_bytes(orjson.dumps({**own, **special}))
    cm.export(trained() / "run", tmp_path / "weights", build=build)
    config = orjson.loads((tmp_path / "weights" / "tokenizer_config.json").read_bytes())
    names = {"bos_token": config["bos_token"], "eos_token": config["eos_token"]}
    text, _ = rendered(
        config["chat_template"],
        [{"role": "user", "content": "quartz?"}],
        add_generation_prompt=True,
        **names,
    )
    prompt = "<s><|sys_start|>Be brief.<|sys_end|><|im_start|>quartz?<|im_end|>"
    assert text == prompt


def test_the_turns_of_a_steps_rows_are_traced_to_records() -> None:
    """Chat test 7."""
    folder = trained()
    tokenizer = made(chatty_small())
    table = cm.sql(
        folder / "run",
        'SELECT r.step, r.shard, r."row", t.start, t.stop, t.message, t.role, d.file, d.record '
        'FROM "rows" r JOIN turns t USING (shard, "row") JOIN documents d USING (source, document) '
        "WHERE r.step = 7",
    ).content()
    assert {entry["role"] for entry in table} == {"begin", "system", "user", "assistant", "end"}
    lines = (folder / "talk.jsonl").read_bytes().splitlines()
    for entry in table:
        if entry["message"] < 0:
            continue
        rows = shards.read(folder / "build" / entry["shard"], entry["row"], entry["row"] + 1)
        ids = rows[0, 0, entry["start"] : entry["stop"]].tolist()
        ids = [i for i in ids if not tokenizer.is_control[i]]
        message = orjson.loads(lines[entry["record"]])["messages"][entry["message"]]
        assert (message["role"], message["content"]) == (entry["role"], tokenizer.decode(ids))
    assert cm.verify(folder / "build", run=folder / "run").faults == ()


def test_steps_record_the_mean_over_learnt_labels() -> None:
    folder = trained()
    steps = cm.sql(folder / "run", "SELECT loss, parts FROM steps").content()
    for step in steps:
        [part] = step["parts"]
        assert np.isclose(step["loss"], part["loss"])
