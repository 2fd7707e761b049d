"""Pair whole commands of this checkout with those of another one, in CPU-seconds.

    python tests/bench/dev/bench_versions.py OTHER DATA TOKENIZER [--recipe NAME] [--times 5]

OTHER is a checkout of another commit (`git worktree add`), which this Python runs; DATA holds the
raw files of the recipe (crystalcoder-mini), the bundled one of each version. In turns each version
builds into an empty folder, with one worker, and verifies that build. Told are CPU-seconds of the
command with its children, and pair by pair how many times this one takes of the other's.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parents[3]


def command(checkout: Path, links: Path) -> tuple[list[str], dict[str, str]]:
    """Return the words that call crystalmix of a checkout, and the environment that finds it."""
    if not (checkout / "__init__.py").exists():  # 0.1.0, whose top level was four packages
        return [sys.executable, "-m", "cli"], os.environ | {"PYTHONPATH": str(checkout)}
    links.mkdir()
    (links / "crystalmix").symlink_to(checkout)
    return [sys.executable, "-m", "crystalmix"], os.environ | {"PYTHONPATH": str(links)}


def seconds(words: list[str], environment: dict[str, str]) -> float:
    """Run a command and return its CPU-seconds, those of its children with them."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a line of CPU-seconds for each turn, and the median ratio of each command."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("other", "data", "tokenizer"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--recipe", default="crystalcoder-mini")
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    inputs = ["--data", str(given.data.resolve()), "--tokenizer", str(given.tokenizer.resolve())]
    ratios: dict[str, list[float]] = {"build": [], "verify": []}
    with tempfile.TemporaryDirectory() as scratch:
        checkouts = HERE.resolve(), given.other.resolve()
        commands = [command(path, Path(scratch, f"link{i}")) for i, path in enumerate(checkouts)]
        os.chdir(scratch)  # no folder of a checkout may be on the path by accident
        for turn in range(given.times):
            builds = [str(Path(scratch, f"build{turn}.{i}")) for i in range(2)]
            for verb, ratio in ratios.items():
                taken = []
                for (start, environment), build in zip(commands, builds, strict=True):
                    words = (
                        [given.recipe, *inputs, "--workers", "1", "--out"]
                        if verb == "build"
                        else []
                    )
                    taken.append(seconds([*start, verb, *words, build], environment))
                ratio.append(taken[0] / taken[1])
                sys.stdout.write(
                    f"{turn + 1} {verb:6} {taken[0]:7.2f} {taken[1]:7.2f} {ratio[-1]:5.2f}\n"
                )
            for build in builds:
                shutil.rmtree(build)
    for verb, ratio in ratios.items():
        middle, least, most = statistics.median(ratio), min(ratio), max(ratio)
        sys.stdout.write(
            f"{verb}: {middle:.2f} times; {len(ratio)} pairs, {least:.2f} to {most:.2f}\n"
        )


if __name__ == "__main__":
    main()
