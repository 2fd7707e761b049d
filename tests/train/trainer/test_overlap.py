"""Stages that overlap: a phase trains while those after it are built."""

import subprocess
import sys
from pathlib import Path

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.train.trainer import session
from helpers import corpora, runs


def test_a_phase_trains_while_the_rest_is_built(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    recipe, out, run = corpora.write_recipe(tmp_path), tmp_path / "build", tmp_path / "run"
    build(recipes.load(recipe), tmp_path, out, phases=["prose"])
    words = [sys.executable, "-m", "crystalmix", "build", str(recipe), "--out", str(out)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as rest:
        session.train(out, str(runs.run_file()), run, phases=["prose"], say=lambda _: None)
    assert rest.returncode == 0
    session.train(out, str(runs.run_file()), run, phases=[], say=lambda _: None)
    assert runs.same_run(run, runs.undisturbed())
    told = corpora.crystalmix("verify", out, "--run", run)
    assert (told.exit_code, told.stderr) == (0, "")
