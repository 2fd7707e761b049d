"""Runs over a build that was changed after they began: they go on, verify and trace as before."""

from pathlib import Path

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.resealing.mix import mix
from crystalmix.train.record import run_folder
from crystalmix.train.record.run_folder import build_of
from crystalmix.train.trainer import session
from helpers import corpora, runs


def test_a_run_goes_on_verifies_and_traces_over_what_the_build_was(tmp_path: Path) -> None:
    out = corpora.built(tmp_path)
    run, path = tmp_path / "run", str(runs.run_file())
    session.train(out, path, run, phases=["prose"], stop=5, say=str)
    changed = {"sources": {"web": {"where": "length(text) > 200"}}, "seed": 8}
    recipe = recipes.load(corpora.write_recipe(tmp_path, **changed))
    build(recipe, tmp_path, out)
    [state] = (out / "history").iterdir()
    assert build_of(run, None) == build_of(run, out) == state
    said: list[str] = []
    session.train(out, path, run, phases=["prose"], say=said.append)
    assert (
        said[0] == f"{run}: is over {state}, which {out} was before it was changed; goes on over it"
    )
    assert runs.recorded(run, "prose") == runs.recorded(runs.undisturbed(), "prose")
    assert runs.weights(run, "prose") == runs.weights(runs.undisturbed(), "prose")
    assert corpora.crystalmix("verify", out, "--run", run, "--workers", 1).exit_code == 0
    found = corpora.crystalmix("trace", run, "--build", out, "--step", "prose:7")
    assert found.exit_code == 0
    assert "prose" in found.stdout or found.stdout.count("\n") > 1
    document = corpora.crystalmix("trace", run, "--step", "prose:7")
    assert document.stdout == found.stdout
    other = tmp_path / "other"
    session.train(out, path, other, phases=["prose"], stop=3, say=str)
    assert build_of(other, None) == out.resolve()
    claims = [run_folder.claimed(each) for each in (run, other)]
    assert claims[0].isdisjoint(claims[1])


def test_show_tells_what_a_build_was(tmp_path: Path) -> None:
    out = corpora.built(tmp_path)
    before = corpora.crystalmix("show", out, "--history").stdout
    assert before.count("now") == 3
    recipe = corpora.write_recipe(tmp_path, phases={"code": {"steps": 9}})
    build(recipes.load(recipe), tmp_path, out)
    told = corpora.crystalmix("show", out, "--history").stdout
    [state] = (out / "history").iterdir()
    assert (told.count("now"), told.count(f"history/{state.name}")) == (3, 3)
    for line in before.splitlines()[1:]:
        assert line.split()[-1] in told


def test_a_run_over_a_mixture_goes_on_and_verifies_after_its_build_was_changed(
    tmp_path: Path,
) -> None:
    out = corpora.built(tmp_path)
    mix(recipes.load(corpora.write_recipe(tmp_path, name="other")), out)
    run, path = tmp_path / "run", str(runs.run_file())
    session.train(out / "mixtures" / "other", path, run, phases=["prose"], stop=5, say=str)
    changed = corpora.write_recipe(tmp_path, rows={"rows_per_shard": 16})
    build(recipes.load(changed), tmp_path, out)
    assert not (out / "mixtures" / "other").exists()
    place = build_of(run, None)
    [state] = (out / "history").iterdir()
    assert place == state / "mixtures" / "other"
    session.train(out / "mixtures" / "other", path, run, phases=["prose"], say=str)
    assert runs.weights(run, "prose") == runs.weights(runs.undisturbed(), "prose")
    told = corpora.crystalmix("verify", place, "--run", run, "--workers", 1)
    assert (told.exit_code, told.stderr) == (0, "")
