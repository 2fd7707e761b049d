"""Kills, bit flips and hostile inputs, by a seed and a size:

    export PYTHONPATH=tests
    python tests/hardship/campaign.py --seed 1 --kills 300 --flips 1000 --forgeries 500 --inputs 500

What must hold: nothing lost (a build or run that was killed ends as an undisturbed one), nothing
silent (a flip, or a receipt forged with its digest made anew, is found by `verify`, or lies in a
file that it names as not read), no traceback, no process left, no file outside `--out`. Exit code
1, and a line for each thing that did not hold.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random

from crystalmix.mixtures.verify.verify import verify
from crystalmix.train.record import seal
from crystalmix.train.trace.findings import findings
from helpers import corpora, hostile, kills, runs, subjects
from helpers.processes import all_end, described, members

PATIENCE_SECONDS = 180
CODES = {0, 1, 2}
TRAINING_EVERY = 5  # of the kills; the others are of builds
ALONE = "held to their own digests alone"
REMEMBERED = "store/files"  # named as a folder
REMEDIES = ("resume the run to cut it", "resume the run to seal it again")


@dataclass
class Campaign:
    """A seeded run of trials below a scratch folder, and what did not hold."""

    seed: int
    scratch: Path
    broken: list[str] = field(default_factory=list[str])
    counts: Counter[str] = field(default_factory=Counter[str])

    def rng(self, *purpose: object) -> Random:
        """Return the draws of one trial, whatever the others drew."""
        return Random("-".join(map(str, (self.seed, *purpose))))

    def hold(self, holds: bool, what: str) -> None:
        """Write down what does not hold."""
        if not holds:
            self.broken.append(what)
            sys.stderr.write(f"BROKEN: {what}\n")


def command(words: list[str], log: str) -> None:
    """Run crystalmix in this process, which leads a group of its own; `log` takes its output."""
    os.setsid()
    with Path(log).open("wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from crystalmix.cli import main

    main(words)


def started(words: list[object], log: Path) -> BaseProcess:
    """Start a command."""
    log.unlink(missing_ok=True)
    return kills.start(command, [str(word) for word in words], str(log))


def ended(campaign: Campaign, process: BaseProcess, log: Path, what: str) -> int:
    """Wait for a command; hold its exit code, its output and the end of its processes."""
    process.join(PATIENCE_SECONDS)
    pid = process.pid or 0
    if process.exitcode is None:
        campaign.hold(False, f"{what}: no end after {PATIENCE_SECONDS} s")
        os.killpg(pid, signal.SIGKILL)
        process.join()
    if not (whole := all_end(pid)):
        what = f"{what}: {described(pid)}"
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    campaign.hold(whole, f"{what}: processes were left")
    text = log.read_text("utf-8", "replace") if log.exists() else ""
    campaign.hold("Traceback" not in text, f"{what}: a traceback: {text[-600:]}")
    code = process.exitcode
    campaign.hold(code in CODES or code == -signal.SIGKILL, f"{what}: exit code {code}: {text}")
    if code in {1, 2}:
        last = (text.splitlines() or [""])[-1]
        campaign.hold(bool(last.strip()), f"{what}: exit code {code} without a line")
    return code if code is not None else -1


def kill_builds(campaign: Campaign, count: int) -> None:
    """Kill builds: one of their processes, the parent alone, or all; each goes on from there."""
    world = campaign.scratch / "kills"
    corpora.write_corpus(world)
    recipe = corpora.write_recipe(world, rows={"rows_per_shard": 16}, phases={"prose": None})
    log, out = world / "log", world / "killed"
    words: list[object] = ["build", recipe, "--workers", 2, "--out"]
    began = time.monotonic()
    ended(campaign, started([*words, world / "whole"], log), log, "the whole build")
    seconds, whole = time.monotonic() - began, corpora.contents(world / "whole")
    done = number = 0
    while done < count:
        number += 1
        rng = campaign.rng("build", number)
        way = rng.choice(["process", "parent", "group"])
        process = started([*words, out], log)
        process.join(rng.uniform(0, 1) * seconds)
        hit = process.exitcode is None and _kill(process.pid or 0, way, rng)
        done += hit
        campaign.counts[f"kills of a build's {way}"] += hit
        code = ended(campaign, process, log, f"kill {number} of a build's {way}")
        if code == 0:
            _same(campaign, out, whole, f"kill {number} of a build's {way}")
            shutil.rmtree(out)
    process = started([*words, out], log)
    code = ended(campaign, process, log, "the last build")
    campaign.hold(code == 0, f"the last build ended with {code}: {log.read_text('utf-8')}")
    _same(campaign, out, whole, "the last build")


def _kill(pid: int, way: str, rng: Random) -> bool:
    """Kill a group's leader, another member, or all of it; tell whether there was one."""
    others = [member for member in members(pid) if member != pid]
    with suppress(ProcessLookupError):
        if way == "group":
            os.killpg(pid, signal.SIGKILL)
        elif way == "parent":
            os.kill(pid, signal.SIGKILL)
        elif others:
            os.kill(rng.choice(others), signal.SIGKILL)
        else:
            return False
        return True
    return False


def _same(campaign: Campaign, out: Path, whole: object, what: str) -> None:
    campaign.hold(corpora.contents(out) == whole, f"{what}: differs from an undisturbed build")
    lines = verify(out)
    campaign.hold(not lines, f"{what}: {lines}")


def kill_trainings(campaign: Campaign, count: int) -> None:
    """Kill trainings at random instants; the resumed run must equal one that nothing stopped."""
    if not count:
        return
    began = time.monotonic()
    timed = kills.run(kills.train, kills.job(campaign.scratch / "timed", "prose"))
    campaign.hold(timed == 0, "the undisturbed training failed")
    seconds = time.monotonic() - began
    done = number = 0
    while done < count:
        number += 1
        rng, out = campaign.rng("train", number), campaign.scratch / f"run-{number}"
        code: int | None = None
        while code != 0 and done < count:
            process = kills.start(kills.train, kills.job(out, "prose"))
            process.join(rng.uniform(0.05, 0.9) * seconds)
            process.kill()
            process.join()
            code = process.exitcode
            done += code == -signal.SIGKILL
            campaign.hold(code in {0, -signal.SIGKILL}, f"training {number} ended with {code}")
            if any(out.glob("*/run.json")):
                lines = findings(runs.small_build(), out) + seal.check(out).faults
                odd = [line for line in lines if not line.endswith(REMEDIES)]
                campaign.hold(not odd, f"training {number} after a kill: {odd}")
        campaign.hold(kills.run(kills.train, kills.job(out, "prose")) == 0, f"training {number}")
        same = runs.same_run(out, runs.undisturbed(), "prose")
        campaign.hold(same, f"training {number} differs from an undisturbed one")
        campaign.hold(not runs.leftovers(out), f"training {number}: {runs.leftovers(out)}")
        shutil.rmtree(out)
    campaign.counts["kills of a training"] += done


def flips(campaign: Campaign, count: int, forgeries: int) -> None:
    """Flip bits and forge receipts, one at a time: each is found, or in a file named unread.

    A forgery is a value changed in a receipt, manifest or seal, with the digest that the file
    carries of itself made anew.
    """
    place = campaign.scratch / "subjects"
    place.mkdir()
    given = list(subjects.every(place))
    for subject in given:
        faults, _ = subject.checked()
        campaign.hold(not faults, f"{subject.name}: before any flip: {faults}")
    every = [(subject, path) for subject in given for path in subject.files()]
    sealed = [(subject, path) for subject in given for path in subject.forgeable()]
    for kind, number, (subject, path) in [
        *(("flip", n, _nth(campaign, "flip", n, every)) for n in range(count)),
        *(("forgery", n, _nth(campaign, "forgery", n, sealed)) for n in range(forgeries)),
    ]:
        rng, before = campaign.rng(kind, number), path.read_bytes()
        if kind == "flip":
            content, what = _flipped(before, rng)
        else:
            content, what = subjects.forged(path, rng)
        what = f"{kind} in {subject.name}, {path.relative_to(subject.folder)}, {what}"
        path.write_bytes(content)
        try:
            faults, unread = subject.checked()
            campaign.hold(bool(faults) or _named(path, unread), f"{what}: found by nothing")
            campaign.hold(not any("\n" in line for line in faults), f"{what}: many lines")
            end = "found" if faults else "in bytes named unread"
            campaign.counts[f"{kind} of a {subject.name}, {end}"] += 1
        except Exception as error:  # noqa: BLE001  whatever it is, it is the finding
            campaign.hold(False, f"{what}: {type(error).__name__}: {error}")
        path.write_bytes(before)


Target = tuple[subjects.Subject, Path]


def _nth(campaign: Campaign, kind: str, number: int, every: list[Target]) -> Target:
    """Return what is damaged next: a file of each kind of subject in turn."""
    names = list(dict.fromkeys(subject.name for subject, _ in every))
    name = names[number % len(names)]
    rng = campaign.rng(kind, number, "file")
    return rng.choice([target for target in every if target[0].name == name])


def _flipped(before: bytes, rng: Random) -> tuple[bytes, str]:
    content = bytearray(before)
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    content[place] ^= 1 << bit
    return bytes(content), f"byte {place}, bit {bit}"


def _named(path: Path, notes: list[str]) -> bool:
    """Tell whether notes name a file as not read, or `verify` says what it is held to alone."""
    shown = REMEMBERED if f"/{REMEMBERED}/" in path.as_posix() else path.name
    return any(("not read" in line or ALONE in line) and shown in line for line in notes)


@dataclass(frozen=True)
class World:
    """A folder with good inputs, of which one is made hostile at a time; nobody may write to it."""

    folder: Path
    canary: Path

    def state(self) -> dict[str, tuple[int, int]]:
        """Return the size and time of every file."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def world(campaign: Campaign) -> World:
    """Make the good inputs: raw files, recipe, a build, a run file and a run."""
    made = World(campaign.scratch / "world", campaign.scratch / "world" / "canary")
    corpora.write_corpus(made.folder)
    made.canary.mkdir()
    corpora.write_recipe(made.folder, phases={"mixed": None, "code": None})
    corpora.built(made.folder)
    runs.write_run(made.folder / "run.yaml", runconfig={"checkpoint_steps": 6})
    words = ["train", made.folder / "build", "--run", made.folder / "run.yaml", "--stop", 6]
    log = campaign.scratch / "log"
    process = started([*words, "--out", made.folder / "run"], log)
    campaign.hold(ended(campaign, process, log, "the run") == 0, log.read_text("utf-8"))
    return made


def inputs(campaign: Campaign, count: int) -> None:
    """Give hostile inputs to commands: each ends well or in a line, and writes to --out alone."""
    if not count:
        return
    given = world(campaign)
    out, log = campaign.scratch / "out", campaign.scratch / "log"
    kinds = (_recipe, _run_file, _raw, _rows, _checkpoint)
    for number in range(count):
        rng, kind = campaign.rng("input", number), kinds[number % len(kinds)]
        name = kind.__name__.strip("_").replace("_", " ")
        with _changed(kind, given, rng, out) as words:
            what = f"input {number} ({name}): {' '.join(map(str, words[:3]))}"
            before = given.state()
            code = ended(campaign, started(words, log), log, what)
            after = given.state()
            odd = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
            campaign.hold(not odd, f"{what}: wrote to {odd}")
            text = log.read_text("utf-8", "replace")
            if code in {1, 2} and words[0] not in {"verify", "trace"}:
                lines = [line for line in text.splitlines() if line.startswith("crystalmix: ")]
                campaign.hold(len(lines) == 1, f"{what}: {len(lines)} lines of errors: {text}")
            if code == 0 and words[0] == "build":
                lines = verify(out)
                campaign.hold(not lines, f"{what}: {lines}")
            campaign.counts[f"{name}: {'taken' if code == 0 else 'refused'}"] += 1
        shutil.rmtree(out, ignore_errors=True)


class _changed:  # noqa: N801  used as a context
    """A change of one good file, taken back at the end; gives the words of a command."""

    def __init__(self, kind: "Change", given: World, rng: Random, out: Path) -> None:
        self.path, self.content, self.words = kind(given, rng, out)

    def __enter__(self) -> list[object]:
        self.before = self.path.read_bytes() if self.path.exists() else None
        self.path.write_bytes(self.content)
        return self.words

    def __exit__(self, *_error: object) -> None:
        if self.before is None:
            self.path.unlink()
        else:
            self.path.write_bytes(self.before)


Hostile = tuple[Path, bytes, list[object]]  # the file, what it holds, the words of a command


class Change:
    """Type of a function that makes one input hostile."""

    __name__: str

    def __call__(self, given: World, rng: Random, out: Path) -> Hostile:
        raise NotImplementedError


def _recipe(given: World, rng: Random, out: Path) -> Hostile:
    content = {**corpora.RECIPE, "phases": {"prose": corpora.RECIPE["phases"]["prose"]}}
    text = hostile.settings(content, rng, given.canary)
    path = given.folder / "hostile.yaml"
    words: list[object] = ["build", path, "--data", given.folder, "--out", out, "--workers", 1]
    if rng.random() < 0.2:
        words = ["plan", path, "--data", given.folder]
    return path, text.encode(), words


def _run_file(given: World, rng: Random, out: Path) -> Hostile:
    text = hostile.settings(runs.RUN, rng, given.canary)
    path = given.folder / "hostile-run.yaml"
    words: list[object] = ["train", given.folder / "build", "--run", path, "--phase", "code"]
    return path, text.encode(), [*words, "--stop", 2, "--out", out]


def _raw(given: World, rng: Random, out: Path) -> Hostile:
    files = sorted(p for top in ("slimpajama", "starcoderdata") for p in _files(given.folder / top))
    path = rng.choice(files)
    content = hostile.damaged(path.read_bytes(), rng)
    if rng.random() < 0.15:  # another format under this name
        content = rng.choice(files).read_bytes()
    skip = {name: {"on_error": "skip"} for name in corpora.RECIPE["sources"]}
    recipe = given.folder / "tolerant.yaml"
    if not recipe.exists():
        folder = given.folder / "settings"
        folder.mkdir()
        shutil.move(corpora.write_recipe(folder, sources=skip, phases={"mixed": None}), recipe)
    chosen = rng.choice([given.folder / "recipe.yaml", recipe])
    words: list[object] = ["build", chosen, "--data", given.folder, "--out", out, "--workers", 1]
    return path, content, words


def _rows(given: World, rng: Random, out: Path) -> Hostile:
    path = rng.choice(sorted((given.folder / "build" / "store" / "rows").rglob("*.h5")))
    words: list[object] = rng.choice(
        [
            ["verify", path],
            ["verify", given.folder / "build", "--workers", 1],
            [
                *("export-rows", given.folder / "build", "--phase", "mixed", "--workers", 1),
                *("--to", rng.choice(["megatron", "parquet", "bin", "arrow"]), "--out", out),
            ],
            [
                *("train", given.folder / "build", "--run", given.folder / "run.yaml"),
                *("--stop", 2, "--out", out),
            ],
        ]
    )
    return path, hostile.damaged(path.read_bytes(), rng), words


def _checkpoint(given: World, rng: Random, out: Path) -> Hostile:
    run = given.folder / "run"
    path = rng.choice(sorted(p for p in _files(run) if p.stat().st_size))
    words: list[object] = rng.choice(
        [
            ["verify", given.folder / "build", "--run", run, "--workers", 1],
            ["show", run],
            ["export", run, "--out", out],
            ["trace", run, "--findings"],
            [
                *("train", given.folder / "build", "--run", given.folder / "run.yaml"),
                *("--init-from", _newest(run), "--stop", 2, "--out", out),
            ],
        ]
    )
    return path, hostile.damaged(path.read_bytes(), rng), words


def _newest(run: Path) -> Path:
    return max(run.glob("*/checkpoints/step-*"))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def campaign(
    seed: int, kills: int, flipped: int, hostile_inputs: int, forgeries: int = 0
) -> Campaign:
    """Run a campaign in a scratch folder of its own; return what it counted and what broke."""
    scratch = Path(tempfile.mkdtemp(prefix="crystalmix-campaign-"))
    made = Campaign(seed, scratch)
    try:
        kill_builds(made, kills - kills // TRAINING_EVERY)
        kill_trainings(made, kills // TRAINING_EVERY)
        if flipped or forgeries:
            flips(made, flipped, forgeries)
        inputs(made, hostile_inputs)
    except KeyboardInterrupt:
        made.hold(False, "it was interrupted; the counts are of what was done")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return made


def main() -> int:
    """Print what was tried and what did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("seed", "kills", "flips", "inputs", "forgeries"):
        parser.add_argument(f"--{name}", type=int, default=1 if name == "seed" else 0)
    asked = parser.parse_args()
    made = campaign(asked.seed, asked.kills, asked.flips, asked.inputs, asked.forgeries)
    for name, number in sorted(made.counts.items()):
        sys.stdout.write(f"{number:6,} {name}\n")
    for line in made.broken:
        sys.stdout.write(f"BROKEN: {line}\n")
    sys.stdout.write(f"{len(made.broken)} things did not hold\n")
    return int(bool(made.broken))


if __name__ == "__main__":
    sys.exit(main())
