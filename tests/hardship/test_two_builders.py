"""Two builders at once on one store, killed at random moments, end with the right digests.

    PYTHONPATH=tests python tests/hardship/test_two_builders.py --kills 100 --seed 1

They build two recipes that share most of what they make, each into a folder of its own, and are
killed (SIGKILL) one or both at a time, and started again, until both have ended; then again from
an empty store. At the end of each round both builds are those of builders that were alone; what
one has packed to files may lie in the other's view, too.
"""

import argparse
import multiprocessing
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.verify import verify
from helpers import corpora

NAMES = ("one", "two")
OTHER: dict[str, Any] = {"domains": {"code": {"fim": {"rate": 0.5}}, "book": {"shuffle": True}}}
BOOK = "domains/book/epoch-0/"  # packed to files by one, laid out only by two if it is alone
PATIENCE = 120.0  # seconds for one builder


def make(recipe: str, folder: str, out: str, store: str | None) -> None:
    """Build in a process that may die at any time."""
    place = None if store is None else Path(store)
    build(recipes.load(recipe), Path(folder), Path(out), store=place)


@dataclass
class Campaign:
    """A corpus, two recipes over it, what they give alone, and how often builders were killed."""

    folder: Path
    rng: np.random.Generator
    kills: int = 0
    rounds: int = 0
    seconds: float = 0.0  # of one builder, undisturbed
    whole: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])

    def prepare(self) -> None:
        """Write the corpus and the recipes, and build each alone."""
        corpora.write_corpus(self.folder)
        for name, changes in zip(NAMES, ({}, OTHER), strict=True):
            corpora.write_recipe(self.folder, **changes).rename(self.recipe(name))
            began = time.monotonic()
            process = self.start(name, self.folder / "alone", shared=False)
            process.join(PATIENCE)
            assert process.exitcode == 0
            self.seconds = time.monotonic() - began
            self.whole[name] = corpora.viewed(self.folder / "alone" / name)

    def recipe(self, name: str) -> Path:
        """Return a builder's recipe."""
        return self.folder / f"{name}.yaml"

    def start(self, name: str, place: Path, *, shared: bool = True) -> BaseProcess:
        """Start a builder, forked from a process that has imported all and started no thread."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([build.__module__, recipes.__name__])
        store = str(place / "store") if shared else None
        words = str(self.recipe(name)), str(self.folder), str(place / name), store
        process = context.Process(target=make, args=words)
        process.start()
        return process

    def round(self, most: int) -> None:
        """Kill builders until so many were killed in all, or both have ended; compare both."""
        self.rounds += 1
        place = self.folder / f"round-{self.rounds}"
        alive = {name: self.start(name, place) for name in NAMES}
        ended = time.monotonic() + PATIENCE
        while alive:
            time.sleep(float(self.rng.uniform(0, 0.7 * self.seconds)))
            chosen = [name for name in alive if self.rng.random() < 0.6]
            for name, process in list(alive.items()):
                if self.kills < most and name in chosen and process.exitcode is None:
                    process.kill()
                    process.join(PATIENCE)
                    assert process.exitcode in (0, -signal.SIGKILL)
                    self.kills += process.exitcode != 0
                    alive[name] = self.start(name, place)
                elif process.exitcode is not None:
                    assert process.exitcode == 0, f"{name} failed by itself"
                    del alive[name]
            assert self.kills < most or time.monotonic() < ended + PATIENCE
        for name in NAMES:
            self.check(name, corpora.viewed(place / name))
            assert verify(place / name) == [], f"round {self.rounds}: {name}"
        shutil.rmtree(place)

    def check(self, name: str, found: dict[str, bytes]) -> None:
        """Hold what a builder ended with against what it gives alone.

        Builder one draws `book` as it is packed, so it needs files; two, which shuffles it, takes
        them where they are there before it has the rows laid out, and has all of them then.
        """
        packed = {path: data for path, data in self.whole["one"].items() if path.startswith(BOOK)}
        taken = found.keys() & packed.keys() > self.whole[name].keys() & packed.keys()
        expected = self.whole[name] | (packed if taken else {})
        assert found == expected, f"round {self.rounds}: {name}"


def run(folder: Path, kills: int, seed: int, seconds: float = float("inf")) -> Campaign:
    """Kill so many times, or for so many seconds; AssertionError where a result is another."""
    campaign = Campaign(folder, np.random.default_rng(seed))
    campaign.prepare()
    began = time.monotonic()
    while campaign.kills < kills and time.monotonic() - began < seconds:
        campaign.round(kills)
    return campaign


def test_two_builders_killed_at_random_end_as_if_each_had_been_alone(tmp_path: Path) -> None:
    assert run(tmp_path, kills=4, seed=0).kills == 4


def main() -> None:
    """Run the campaign that the flags ask for, and say what was done."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most about so long")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done = run(Path(folder), given.kills, given.seed, given.seconds)
    sys.stdout.write(
        f"{done.kills} kills in {done.rounds} rounds: each builder ended with the digests of one "
        f"that was alone ({done.seconds:.1f} s undisturbed)\n"
    )


if __name__ == "__main__":
    main()
