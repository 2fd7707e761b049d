"""Forensics and corpus: what stands out in steps is found, what does not is not, and dropped."""

from pathlib import Path

import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.prep.runtime.errors import InputError
from crystalmix.train.record import views as trace
from crystalmix.train.record.views import Traced
from crystalmix.train.trace import corpus, forensics
from helpers.runs import small_build, undisturbed

PHASE = "code"


def traced() -> Traced:
    return trace.connect(small_build(), undisturbed())


def test_documents_that_only_stand_in_some_steps_stand_out() -> None:
    connected = traced()
    query = """
        SELECT source || ':' || document AS key, min(step) AS first, max(step) AS last
        FROM pieces WHERE phase = ? GROUP BY ALL HAVING count(*) >= 3 AND last - first <= 3
        ORDER BY count(*) DESC, key LIMIT 1
    """
    [rare] = connected.rows(query, [PHASE])
    steps = range(rare["first"], rare["last"] + 1)
    found = forensics.over_represented(connected, PHASE, steps, share=1.0).content()
    assert [row["p"] for row in found] == sorted(row["p"] for row in found)
    told = {row["value"]: row for row in found if row["property"] == "document"}
    assert told[rare["key"]]["inside"] == told[rare["key"]]["every"]
    assert told[rare["key"]]["lift"] > 1


def test_over_all_steps_nothing_stands_out() -> None:
    connected = traced()
    steps = [row["step"] for row in connected.rows("SELECT step FROM steps WHERE phase = 'code'")]
    assert forensics.over_represented(connected, PHASE, steps).content() == []


def test_pieces_are_told_with_their_texts_longest_first() -> None:
    found = forensics.pieces(traced(), PHASE, [2, 3], 5).content()
    assert len(found) == 5
    assert [one["tokens"] for one in found] == sorted((o["tokens"] for o in found), reverse=True)
    assert all(one["text"] for one in found)


def test_one_step_at_least_stands_out() -> None:
    seen = forensics.standing_out(traced(), PHASE)
    assert len(seen.losses) == 10
    assert len(seen.spikes) >= 1
    assert min(seen.spikes) >= 2
    with pytest.raises(InputError, match="holds no step of phase none"):
        forensics.standing_out(traced(), "none")


def test_steps_read_again_are_what_was_trained_on() -> None:
    found = forensics.replayed(traced(), PHASE, [0, 9]).content()
    assert found == [{"step": 0, "rows": 4, "same": True}, {"step": 9, "rows": 4, "same": True}]


def test_a_drop_list_leads_to_a_build_without_its_texts(tmp_path: Path) -> None:
    connected = traced()
    keys = forensics.documents_of(connected, PHASE, [0])[:2]
    count = forensics.drop_list(connected, keys, tmp_path / "drop.txt")
    assert count == len((tmp_path / "drop.txt").read_text().split())
    recipe = recipes.load(small_build().parent / "recipe.yaml")
    build(forensics.without(recipe, tmp_path / "drop.txt"), small_build().parent, tmp_path / "b")
    left = trace.connect(tmp_path / "b").rows("SELECT digest FROM documents")
    dropped = {*(tmp_path / "drop.txt").read_text().split()}
    assert not dropped & {row["digest"].hex() for row in left}
    before = connected.rows("SELECT count(*) AS n FROM documents")[0]["n"]
    assert len(left) < before


def test_domains_are_counted_once_for_all_their_fim_epochs() -> None:
    told = {row["domain"]: row for row in corpus.domains(traced()).content()}
    assert told["code"]["variants"] == 2
    assert told["code"]["tokens"] < 2 * told["code"]["bytes"]
    assert told["wiki"]["documents"] <= 42


def test_what_flows_into_a_domain_is_what_it_holds() -> None:
    first, second = corpus.links(traced())
    told = {row["domain"]: row["tokens"] for row in corpus.domains(traced()).content()}
    for domain, tokens in told.items():
        assert sum(n for _, d, n in first if d == domain) == pytest.approx(tokens, abs=2)
    assert {phase for _, phase, _ in second} == {"prose", "mixed", "code"}


def test_mixtures_that_do_not_apply_are_left_out() -> None:
    told = corpus.compared({"wiki": 100, "python": 300}, 400)
    assert told["natural"] == {"wiki": 0.25, "python": 0.75}
    assert "CrystalCoder 1" not in told
    assert corpus.repeats(told["uniform"], {"wiki": 100, "python": 300}, 400)["wiki"] == 2
