"""The demo: the whole of crystalmix on documents of the user's own Python, ending with the proof.

Gather documents, train a tokenizer, build three phases in the shape of CrystalCoder's, train a
small model through them, kill the training in the middle and resume it, train the killed phase
once more undisturbed, and compare. Everything lies below one folder and can be looked at after.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import orjson
import pyarrow.parquet as pq
import zstandard

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.manifest.report import read_manifests
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.prep.runtime.atomic_files import write_atomic
from crystalmix.prep.runtime.errors import CrystalmixError
from crystalmix.prep.runtime.tables import table
from crystalmix.prep.tokenizer import train_bpe
from crystalmix.train.api.opened import Build, Run
from crystalmix.train.demo import python_corpus
from crystalmix.train.record import ledger, run_folder

Say = Callable[[str], object]
HERE = Path(__file__).parents[1] / "demo_files"
KILLED = "phase2"
SHOWN = 6  # documents of the step with the highest loss
PATIENCE_SECONDS = 600  # without one more step
PROVEN = (
    "the build is what its manifests say: every file read again, nothing lost or altered",
    "each step consumed the rows that its plan had named: you can say what was fed, and when",
    "killed and resumed, training gave the same weights, bit for bit: a crash leaves no doubt",
)


@dataclass(frozen=True)
class Size:
    """How large a demo is: steps of the three phases, rows per step, vocabulary."""

    steps: tuple[int, int, int]
    batch: int
    vocab: int
    checkpoint_steps: int


FULL = Size((20, 40, 20), 10, 2048, 10)
TINY = Size((10, 16, 10), 8, 1024, 4)


def demo(
    out: str | Path, *, tiny: bool = False, workers: int = 1, say: Say = lambda _: None
) -> bool:
    """Run the demo below a folder; return whether everything that must hold does.

    tiny: fewer documents and steps. say: takes lines of progress, and the proof.
    """
    from crystalmix.train.trainer import session

    out = Path(out)
    size, began = TINY if tiny else FULL, monotonic()
    raw = _gather(out, tiny, say)
    recipe, run_file = _write_settings(out, size, raw)
    built, trained = out / "build", out / "run"
    _tell(say, began, "build three phases")
    manifests = build(recipes.load(recipe), raw, built, workers=workers)
    for manifest in manifests:
        say(f"  {manifest.phase}: {len(manifest.parts)} parts, manifest {manifest.digest[:16]}")
    _tell(say, began, "train phase1")
    session.train(built, str(run_file), trained, phases=["phase1"], say=_indented(say))
    _tell(say, began, f"train {KILLED}, and kill it in the middle")
    say(f"  {_kill_in_the_middle(built, run_file, trained, size)}")
    session.train(built, str(run_file), trained, phases=[KILLED, "phase3"], say=_indented(say))
    _tell(say, began, f"train {KILLED} again, undisturbed, beside it")
    same = _undisturbed(built, run_file, trained, out / "control")
    _tell(say, began, "prove it")
    run = Run(trained, Build(built))
    sound = _proof(run, workers, say)
    say("")
    say(f"a resume in the middle changed nothing: {'yes' if same else 'NO'}")
    _worst_step(run, say)
    say("")
    say(f"look around: crystalmix show {trained}; crystalmix sql {trained}; see {recipe}")
    if same and sound:
        say("")
        for line in PROVEN:
            say(f"proven: {line}")
    return same and sound


def _gather(out: Path, tiny: bool, say: Say) -> Path:
    raw = out / "raw"
    corpus = python_corpus.gather(raw, python_corpus.TINY if tiny else python_corpus.DEFAULT)
    say("documents of your own Python installation:")
    rows = [[f"  {n}", corpus.documents[n], f"{corpus.bytes[n]:,}"] for n in corpus.documents]
    for line in table(rows, ["  domain", "documents", "bytes"]):
        say(line)
    return raw


def _write_settings(out: Path, size: Size, raw: Path) -> tuple[Path, Path]:
    """Write tokenizer.json, recipe.yaml and run.yaml into the demo's folder."""
    tokenizer = out / "tokenizer.json"
    if not tokenizer.exists():
        write_atomic(tokenizer, train_bpe.train(_texts(raw), size.vocab))
    values = {
        "steps1": size.steps[0],
        "steps2": size.steps[1],
        "steps3": size.steps[2],
        "batch": size.batch,
        "micro_batch": size.batch // 2,
        "vocab": size.vocab + 64,
        "checkpoint_steps": size.checkpoint_steps,
    }
    for name in ("recipe.yaml", "run.yaml"):
        text = (HERE / name).read_text("utf-8")
        for key, value in values.items():
            text = text.replace(f"${key}$", str(value))
        write_atomic(out / name, text.encode())
    return out / "recipe.yaml", out / "run.yaml"


def _texts(raw: Path) -> Iterator[str]:
    """Yield the gathered texts, to train the tokenizer on."""
    for path in sorted(raw.rglob("*.parquet")):
        yield from map(str, pq.read_table(path, columns=["content"])["content"].to_pylist())
    for path in sorted(raw.rglob("*.jsonl.zst")):
        with zstandard.open(path, "rb") as file:
            yield from (orjson.loads(line)["text"] for line in file.read().splitlines())


def _kill_in_the_middle(built: Path, run_file: Path, trained: Path, size: Size) -> str:
    """Train a phase in another process and kill it past a checkpoint; return what came of it."""
    metrics = run_folder.PhaseFolder(trained / KILLED).metrics
    middle = size.steps[1] // 2 + size.checkpoint_steps // 2
    if (done := _count_lines(metrics)) >= middle:
        return f"an earlier demo has already come to step {done - 1}; now the rest, if any"
    process = _train_apart(built, run_file, trained)
    moved = monotonic()
    try:
        while process.poll() is None and (steps := _count_lines(metrics)) < middle:
            if steps > done:
                done, moved = steps, monotonic()
            if monotonic() > moved + PATIENCE_SECONDS:
                raise CrystalmixError(
                    f"{KILLED} stands at step {steps} for {PATIENCE_SECONDS} s; run the demo again"
                )
            sleep(0.02)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
    if process.returncode not in {-signal.SIGKILL, 0}:
        raise CrystalmixError(f"training {KILLED} failed: {errors.decode().strip()}")
    if process.returncode == 0:
        return "it was done before the kill came"
    reached = _count_lines(metrics) - 1
    return f"killed with SIGKILL after step {reached}; now the same command again"


def _train_apart(built: Path, run_file: Path, trained: Path) -> "subprocess.Popen[bytes]":
    """Start `crystalmix train` as a process of its own, with these very modules."""
    command: list[str | Path] = [sys.executable, "-P", "-m", "crystalmix", "train", built]
    command += ["--run", run_file, "--out", trained, "--phase", KILLED]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _undisturbed(built: Path, run_file: Path, trained: Path, control: Path) -> bool:
    """Train the killed phase without a kill; return whether losses, ledger and weights agree."""
    from crystalmix.train.runfile.run_file import load
    from crystalmix.train.trainer.trainer import Trainer

    manifest = next(m for m in read_manifests(built) if m.phase == KILLED)
    before = run_folder.PhaseFolder(trained / "phase1").newest
    Trainer(load(run_file, KILLED), manifest, built, control / KILLED).train(before)
    both = [run_folder.PhaseFolder(run / KILLED) for run in (trained, control)]
    weights = [run_folder.read_state(p.checkpoint(manifest.steps)).weights for p in both]
    ledgers = [
        [ledger.read(phase.ledger, kind).to_pylist() for kind in ("steps", "rows")]
        for phase in both
    ]
    return weights[0] == weights[1] and ledgers[0] == ledgers[1]


def _proof(run: Run, workers: int, say: Say) -> bool:
    """Print asked and got ratios and the verdicts; return whether they are clean."""
    faults = run.build.verify(workers=workers).faults
    disagreements = run.findings(batches=True).disagreements
    for line in (*run.ratios().lines(), *faults, *disagreements):
        say(f"  {line}")
    say("")
    say(f"every file, count and digest of the build agrees: {'no' if faults else 'yes'}")
    say(f"ledger equals plan: {'no' if disagreements else 'yes'}")
    return not faults and not disagreements


def _worst_step(run: Run, say: Say) -> None:
    """Print documents of the step with the highest loss of the last phase."""
    [worst] = run.sql(
        "SELECT phase, step, loss FROM steps WHERE phase = 'phase3' ORDER BY loss DESC LIMIT 1"
    ).content()
    pieces = run.step(worst["phase"], worst["step"]).content()
    longest = sorted(pieces, key=lambda p: (p["start"] - p["stop"], p["slot"]))[:SHOWN]
    rows = [
        [f"  {p['part']}", p["stop"] - p["start"], p["fim"], p["name"], p["snippet"]]
        for p in sorted(longest, key=lambda p: p["slot"])
    ]
    say(
        f"highest loss of {worst['phase']}: step {worst['step']} ({worst['loss']:.3f}), "
        f"{len(pieces)} documents in it, among them:"
    )
    for line in table(rows, ["  part", "tokens", "fim", "document", "text"]):
        say(line)


def _tell(say: Say, began: float, text: str) -> None:
    say(f"[{monotonic() - began:5.1f} s] {text}")


def _indented(say: Say) -> Say:
    return lambda line: say(f"  {line}")
