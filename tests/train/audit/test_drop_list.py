"""Drop lists: texts over-represented in spikes, in a file that audit, redact and opt_out take."""

import json
from pathlib import Path

from ruamel.yaml import YAML

import crystalmix as cm
from crystalmix.prep.filters import entries
from crystalmix.prep.filters.opt_out import OptOut
from crystalmix.train.audit import audit as audits
from crystalmix.train.trace.spikes import Spike, Spikes, SpikeSettings
from helpers.audited import PHASES, audited_build, audited_run, held, ledger_rows, marks


def spiked(letter: str, phase: str) -> Spikes:
    """Return the steps that consumed a letter, as if their losses stood out."""
    steps = sorted(
        {
            step
            for step, _, _, shard, row in ledger_rows(audited_run(), phase)
            if held(audited_build(), shard, row, letter)
        }
    )
    each = (Spike(phase, step, 9.0, 9.0, 2.0, 1.0, 0.0, 1.0) for step in steps)
    return Spikes(SpikeSettings(), tuple(each))


def test_a_drop_list_is_taken_by_audit_redact_and_opt_out(tmp_path: Path) -> None:
    file = tmp_path / "drops.txt"
    run = cm.open(audited_run())
    query = (
        "SELECT source || ':' || document AS key FROM documents WHERE lower(name) LIKE 'owner/%'"
    )
    keys = [row["key"] for row in run.sql(query).content()]
    assert run.drop_list(file, keys) == 2
    listed = entries.read(file)
    answer = audits.audit(audited_run(), audited_build(), listed)
    found = {f"{d.source}:{d.document}" for one in answer.entries for d in one.documents}
    assert found == set(keys)
    assert {one.verdict for one in answer.entries} == {"consumed"}
    by_digest = OptOut(file.name, match="digest")
    assert (by_digest.matched(tmp_path, [one.key for one in listed]) >= 0).all()
    digests = [bytes.fromhex(one.key) for one in listed]
    by_entry = OptOut(file.name, match="entries")
    assert (by_entry.matched_entries(tmp_path, [None, None], [*digests]) >= 0).all()


def test_a_drop_list_is_redacted_and_opted_out_of_a_build(tmp_path: Path) -> None:
    file = tmp_path / "drops.txt"
    run = cm.open(audited_run())
    query = "SELECT source || ':' || document AS key FROM documents WHERE name LIKE 'owner2/%'"
    run.drop_list(file, [row["key"] for row in run.sql(query).content()])
    listed = set(file.read_text().split())
    assert len(listed) == 1
    view = cm.redact(audited_build(), file, tmp_path / "view")
    sealed = json.loads((view.path / "redaction.json").read_bytes())
    assert {digest for _, _, digest in sealed["documents"]} == listed
    rows = {(shard, row) for p in PHASES for _, _, _, shard, row in ledger_rows(audited_run(), p)}
    had = [place for place in rows if held(audited_build(), *place, "ю")]
    assert had
    for name in PHASES:
        phase = view.phases[name]
        left = {number for batch in phase.batches() for number in batch.ids.ravel().tolist()}
        assert not left & marks("ю")
    root = audited_build().parent
    recipe = YAML(typ="safe").load(root / "recipe.yaml")
    matches = ("digest", "entries")
    for match, name in zip(matches, ("code", "python"), strict=True):
        recipe["sources"][name]["select"] = {"opt_out": [{"file": str(file), "match": match}]}
    path = root / "without.yaml"
    with path.open("w") as out:
        YAML().dump(recipe, out)
    built = cm.build(path, tmp_path / "build", data=root)
    texts = {row["digest"].hex() for row in built.sql("SELECT digest FROM documents").content()}
    assert not texts & listed
    counts = [
        json.loads((built.path / "sources" / name / "receipt.json").read_bytes())["account"]
        for name in ("code", "python")
    ]
    assert [account["dropped"]["opt_out"] for account in counts] == [1, 1]


def test_texts_over_represented_in_spikes_are_listed(tmp_path: Path) -> None:
    spikes, file = spiked("щ", "mixed"), tmp_path / "drops.txt"
    steps = [spike.step for spike in spikes.steps]
    keys = cm.open(audited_run()).suspects("mixed", steps)
    count = cm.drop_list(audited_run(), spikes, file)
    assert count == len(file.read_text("utf-8").split())
    assert bool(count) == bool(keys)
    everything = cm.open(audited_run()).suspects("mixed", steps, share=1.0)
    assert set(keys) <= set(everything)
