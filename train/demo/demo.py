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
from crystalmix.mixtures.manifest.report import ratio_lines
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.runtime.atomic_files import write_atomic
from crystalmix.prep.runtime.errors import CrystalmixError
from crystalmix.prep.runtime.tables import table
from crystalmix.prep.tokenizer import train_bpe as bpe
from crystalmix.train.demo import python_corpus as gather
from crystalmix.train.record import ledger
from crystalmix.train.record import run_folder as folder
from crystalmix.train.record import views as trace
from crystalmix.train.trace.answers import FIM
from crystalmix.train.trace.findings import findings
from crystalmix.train.trace.questions import snippets
from crystalmix.train.trainer import session

Say = Callable[[str], object]
HERE = Path(__file__).parents[1] / "demo_files"
KILLED = "phase2"
SHOWN = 6  # documents of the step with the highest loss
PATIENCE_SECONDS = 300


@dataclass(frozen=True)
class Size:
    """How large a demo is: steps of the three phases, rows per step, vocabulary."""

    steps: tuple[int, int, int]
    batch: int
    vocab: int
    checkpoint_steps: int


FULL = Size((40, 80, 40), 16, 4096, 20)
TINY = Size((10, 16, 10), 8, 1024, 4)


def demo(out: Path, *, tiny: bool, workers: int, say: Say) -> bool:
    """Run the demo; return whether everything that must hold does."""
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
    sound = _proof(built, trained, workers, say, began)
    say("")
    say(f"a resume in the middle changed nothing: {'yes' if same else 'NO'}")
    _worst_step(built, trained, say)
    say("")
    say(f"look around: crystalmix show {trained}; crystalmix sql {trained}; see {recipe}")
    return same and sound


def _gather(out: Path, tiny: bool, say: Say) -> Path:
    raw = out / "raw"
    got = gather.gather(raw, gather.TINY if tiny else gather.DEFAULT)
    say("documents of your own Python installation:")
    rows = [[f"  {n}", got.documents[n], f"{got.bytes[n]:,}"] for n in got.documents]
    for line in table(rows, ["  domain", "documents", "bytes"]):
        say(line)
    return raw


def _write_settings(out: Path, size: Size, raw: Path) -> tuple[Path, Path]:
    """Write tokenizer.json, recipe.yaml and run.yaml into the demo's folder."""
    tokenizer = out / "tokenizer.json"
    if not tokenizer.exists():
        write_atomic(tokenizer, bpe.train(_texts(raw), size.vocab))
    values = {
        "steps1": size.steps[0],
        "steps2": size.steps[1],
        "steps3": size.steps[2],
        "batch": size.batch,
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
    metrics = folder.PhaseFolder(trained / KILLED).metrics
    middle = size.steps[1] // 2 + size.checkpoint_steps // 2
    if (done := _count_lines(metrics)) >= middle:
        return f"an earlier demo has already come to step {done - 1}; now the rest, if any"
    process = _train_apart(built, run_file, trained)
    deadline = monotonic() + PATIENCE_SECONDS
    try:
        while process.poll() is None and _count_lines(metrics) < middle:
            if monotonic() > deadline:
                raise CrystalmixError(f"{KILLED} did not reach step {middle} in time")
            sleep(0.02)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        _, told = process.communicate()
    if process.returncode not in {-signal.SIGKILL, 0}:
        raise CrystalmixError(f"training {KILLED} failed: {told.decode().strip()}")
    if process.returncode == 0:
        return "it was done before the kill came"
    reached = _count_lines(metrics) - 1
    return f"killed with SIGKILL after step {reached}; now the same command again"


def _train_apart(built: Path, run_file: Path, trained: Path) -> "subprocess.Popen[bytes]":
    """Start `crystalmix train` as a process of its own, with these very modules."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "crystalmix",
        "train",
        str(built),
        "--run",
        str(run_file),
    ]
    command += ["--out", str(trained), "--phase", KILLED]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _undisturbed(built: Path, run_file: Path, trained: Path, control: Path) -> bool:
    """Train the killed phase without a kill; return whether losses, ledger and weights agree."""
    from crystalmix.train.runfile.run_file import load
    from crystalmix.train.trainer.trainer import Trainer

    manifest = session.read_manifests(built)[1]
    before = folder.PhaseFolder(trained / "phase1").newest
    Trainer(load(run_file, KILLED), manifest, built, control / KILLED).train(before)
    both = [folder.PhaseFolder(run / KILLED) for run in (trained, control)]
    weights = [folder.read_state(p.checkpoint(manifest.steps))["weights"] for p in both]
    ledgers = [
        [ledger.read(phase.ledger, kind).to_pylist() for kind in ("steps", "rows")]
        for phase in both
    ]
    return weights[0] == weights[1] and ledgers[0] == ledgers[1]


def _proof(built: Path, trained: Path, workers: int, say: Say, began: float) -> bool:
    """Print asked and got ratios and the verdicts; return whether they are clean."""
    _tell(say, began, "prove it")
    faults = verify(built, workers=workers)
    disagreements = findings(built, trained, batches=True)
    for line in ratio_lines(trace.ratios(trace.connect(built, trained))):
        say(f"  {line}")
    for line in [*faults, *disagreements]:
        say(f"  {line}")
    say("")
    say(f"every file, count and digest of the build agrees: {'no' if faults else 'yes'}")
    say(f"ledger equals plan: {'no' if disagreements else 'yes'}")
    return not faults and not disagreements


def _worst_step(built: Path, trained: Path, say: Say) -> None:
    """Print documents of the step with the highest loss of the last phase."""
    traced = trace.connect(built, trained)
    worst = traced.rows(
        "SELECT phase, step, loss FROM steps WHERE phase = 'phase3' ORDER BY loss DESC LIMIT 1"
    )[0]
    pieces = trace.documents(traced, worst["phase"], worst["step"])
    longest = sorted(pieces, key=lambda p: (p["start"] - p["stop"], p["slot"]))[:SHOWN]
    longest.sort(key=lambda p: p["slot"])
    rows = [
        [f"  {p['part']}", p["stop"] - p["start"], FIM[p["fim"]], p["name"], text]
        for p, text in zip(longest, snippets(traced, longest), strict=True)
    ]
    say(
        f"highest loss of {worst['phase']}: step {worst['step']} ({worst['loss']:.3f}), "
        f"{len(pieces)} documents in it, among them:"
    )
    for line in table(rows, ["  part", "tokens", "fim", "document", "text"]):
        say(line)


def _tell(say: Say, began: float, what: str) -> None:
    say(f"[{monotonic() - began:5.1f} s] {what}")


def _indented(say: Say) -> Say:
    return lambda line: say(f"  {line}")
