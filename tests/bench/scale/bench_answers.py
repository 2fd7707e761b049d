"""Answers at the size of the published run: `python tests/bench/bench_answers.py TOKENIZER [DIR]`.

Makes the metadata of crystalcoder's three phases (`full_scale`): 321,836 steps of 2,112 rows over
668 million rows in shards of 4,096, 800 million documents. Each question is asked in a process of
its own: CPU and wall time to answer it first and again, and what that read; greatest memory. DIR:
where what was made is kept, and taken again. `--ask DIR QUESTION TIMES` asks one of them so often.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import full_scale
import numpy as np

from crystalmix.mixtures.manifest import opened, rows_of_steps
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.coverage import Reads, of_manifests
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.runtime.workers import without_pandas

STEPS = {"phase1": 40_000, "phase2": 200_000, "phase3": 20_000}
SLOTS = (0, 15)  # those that are shown of a step
PHASE = "phase2"


def make(place: Path, tokenizer: Path) -> None:
    """Write the build and the run, whole for what is asked."""
    out, run = place / "build", place / "run"
    began = time.process_time()
    if not BuildFolder(out).tokenizer.exists():
        full_scale.write_manifests(out)
        full_scale.write_receipts(out)
    shutil.copyfile(tokenizer, BuildFolder(out).tokenizer)
    from crystalmix.train.record import run_folder

    every, asked = full_scale.domains(), dict[str, list[np.ndarray]]()
    phases = {manifest.phase: manifest for manifest in opened.in_build(out)}
    for phase, step in STEPS.items():
        manifest = phases[phase]
        refs = manifest.rows(step * manifest.batch, step * manifest.batch + SLOTS[1] + 1)
        for at in range(len(refs.row)):
            domain = every[manifest.parts[int(refs.part[at])].domain]
            shard = int(manifest.paths[int(refs.shard[at])][-8:-3])
            packed = full_scale.write_shuffled(out, domain, shard)[int(refs.row[at])]
            full_scale.write_spans(out, domain, int(packed) // full_scale.SHARD)
            asked.setdefault(domain.name, []).append(
                full_scale.documents_of(domain, np.array([packed]))
            )
    source, number = document(out)
    domain = every[source]
    tokens = domain.start(np.array([number, number + 1]))
    rows = np.unique((tokens - [0, 1]) // full_scale.MSL)
    for row in rows.tolist():
        full_scale.write_spans(out, domain, row // full_scale.SHARD)
    asked.setdefault(source, []).append(np.array([number]))
    full_scale.write_lookups(out, {name: np.concatenate(d) for name, d in asked.items()})
    shuffled = domain.shuffled.inverse(np.arange(rows[0], rows[-1] + 1))
    for phase, manifest in phases.items():
        steps = {STEPS[phase]}
        for row in shuffled.tolist():
            shard, inside = divmod(row, full_scale.SHARD)
            path = f"domains/{source}/shuffled/data-{shard:05d}.h5"
            steps |= {place // manifest.batch for place in manifest.positions(path, inside)}
        full_scale.write_steps(run, manifest, {step // full_scale.PER_SEAL for step in steps})
    run_folder.remember(run, out)
    (place / "name.txt").write_text(domain.named(number), "utf-8")
    sys.stdout.write(f"made in {time.process_time() - began:.0f} CPU-s\n")


def document(out: Path) -> tuple[str, int]:
    """Return source and number of the document that is asked for."""
    manifest = _phase(out)
    refs = manifest.rows(STEPS[PHASE] * manifest.batch, STEPS[PHASE] * manifest.batch + 1)
    domain = full_scale.domains()[manifest.parts[int(refs.part[0])].domain]
    shard = int(manifest.paths[int(refs.shard[0])][-8:-3])
    packed = domain.shuffled.forward(refs.row + shard * full_scale.SHARD)
    return domain.name, int(full_scale.documents_of(domain, packed)[1])


def _phase(out: Path) -> Manifest:
    return opened.manifest(BuildFolder(out).manifest(PHASE))


def _rows(place: Path) -> Callable[[], Any]:
    phase = _phase(place / "build")
    return lambda: rows_of_steps.step_rows(phase, STEPS[PHASE])


def _planned(place: Path) -> Callable[[], Any]:
    phase = _phase(place / "build")
    return lambda: rows_of_steps.part_counts(phase, 0, phase.steps - 1)


def _positions(place: Path) -> Callable[[], Any]:
    phase = _phase(place / "build")
    path = phase.parts[-1].runs[-2]
    return lambda: phase.positions(path, 1234)


def _reads(place: Path) -> Callable[[], Any]:
    phases = opened.in_build(place / "build")
    return lambda: Reads.of(of_manifests(phases)).lines()


def _preview(place: Path) -> Callable[[], Any]:
    from crystalmix.train.pages import sampled_rows

    phase = _phase(place / "build")
    position = STEPS[PHASE] * phase.batch
    return lambda: sampled_rows.rows_at(phase, place / "build", [position])


def _traced(ask: Callable[[Any, Any], Any], place: Path) -> Callable[[], Any]:
    from crystalmix.train.record import views
    from crystalmix.train.trace import questions

    traced = views.connect(place / "build", place / "run")
    return lambda: ask(questions, traced)


def _name(place: Path) -> Callable[[], Any]:
    name = (place / "name.txt").read_text("utf-8")
    return _traced(lambda questions, traced: questions.document_steps(traced, name), place)


def _findings(place: Path) -> Callable[[], Any]:
    """Hold the rows of one segment of the ledger, 1,000 steps, against the plan."""
    from crystalmix.train.record import ledger
    from crystalmix.train.trace.findings import Planned, whole_steps

    phase, folder = _phase(place / "build"), place / "run" / PHASE / "ledger"
    first = STEPS[PHASE]
    name = f"rows-{first:08d}-{first + full_scale.PER_SEAL - 1:08d}.parquet"

    def compare() -> list[str]:
        planned, lines, done = Planned(phase), list[str](), first
        for have in whole_steps(ledger.stream(folder, "rows", {name}), phase.batch):
            steps = np.arange(done, done + len(have) // phase.batch)
            lines += planned.differences(folder, steps, have)
            done += len(steps)
        assert not lines
        assert done == first + full_scale.PER_SEAL
        return lines

    return compare


QUESTIONS: dict[str, Callable[[Path], Callable[[], Any]]] = {
    "rows of a step, planned": _rows,
    "shares of all steps, planned": _planned,
    "positions of a row": _positions,
    "what all phases read": _reads,
    "trace --step": partial(_traced, lambda q, t: q.step_documents(t, PHASE, STEPS[PHASE], SLOTS)),
    "trace --document": _name,
    "trace --ratios 0:3": partial(_traced, lambda q, t: q.step_ratios(t, 0, 3)),
    "trace --ratios 0:999": partial(_traced, lambda q, t: q.step_ratios(t, 0, 999)),
    "trace --ratios, all": partial(_traced, lambda q, t: q.step_ratios(t, 0, 79_720)),
    "trace --repeats phase3": partial(_traced, lambda q, t: q.repeats(t, "phase3")),
    "preview of a row": _preview,
    "findings, of 1,000 steps": _findings,
}


def bytes_read() -> int:
    """Return the bytes that this process asked the system for."""
    lines = Path("/proc/self/io").read_text("utf-8").splitlines()
    return int(lines[0].rpartition(" ")[2])


def most_resident() -> float:
    """Return the most MiB that this program had in memory; `ru_maxrss` has its parent's, too."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def ask(place: Path, question: str, times: int) -> None:
    """Print what the question takes first, with what it opens, and again (medians); one line."""
    without_pandas()  # as commands do
    figures: list[tuple[float, float, float]] = []
    began, wall, read_before = time.process_time(), time.perf_counter(), bytes_read()
    answer = QUESTIONS[question](place)
    for _ in range(times):
        answer()
        now = (time.process_time(), time.perf_counter(), bytes_read())
        each = (1000 * (now[0] - began), 1000 * (now[1] - wall), (now[2] - read_before) / 1e6)
        figures.append(each)
        began, wall, read_before = now
    again = np.median(figures[1:], axis=0).tolist()
    cells = [f"{cpu:8.0f} {wall:8.0f} {size:7.1f}" for cpu, wall, size in (figures[0], again)]
    sys.stdout.write(f"{question:30} {' '.join(cells)} {most_resident():6.0f}\n")


def main() -> None:
    """Make it where it is not there, then ask each question in a process of its own."""
    if sys.argv[1] == "--ask":
        ask(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else 3)
        return
    with TemporaryDirectory() as folder:
        place = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(folder)
        if not (place / "name.txt").exists():
            make(place, Path(sys.argv[1]))
        head = "CPU ms  wall ms      MB"
        sys.stdout.write(f"{'':30}   {head}   {head}    MiB\n")
        sys.stdout.flush()
        for question in QUESTIONS:
            subprocess.run([sys.executable, __file__, "--ask", place, question], check=True)


if __name__ == "__main__":
    main()
