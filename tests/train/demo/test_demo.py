"""The demo, from nothing to the proof, and once more into the same folder."""

import os
import re
import subprocess
import sys
from pathlib import Path
from time import monotonic

import orjson
import pytest
from click.testing import CliRunner

from crystalmix.cli import main
from crystalmix.prep.runtime.errors import CrystalmixError
from crystalmix.train.demo import demo as stage
from crystalmix.train.demo.demo import KILLED, TINY
from crystalmix.train.record import run_folder
from crystalmix.train.trace.findings import findings

ROOT = Path(__file__).parents[3]
PHASES = ("phase1", "phase2", "phase3")


def demo(out: Path, where: Path) -> str:
    """Run the demo in a process of its own and return what it says."""
    command = [sys.executable, "-P", "-m", "crystalmix", "demo", "--tiny", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*command, "--out", str(out)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=where,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr
    return result.stdout


def assert_proven(said: str, run: Path) -> None:
    """Hold what the demo says against what a proof must have."""
    lines = said.splitlines()
    for verdict in (
        "every file, count and digest of the build agrees: yes",
        "ledger equals plan: yes",
        "a resume in the middle changed nothing: yes",
    ):
        assert verdict in lines
    head = next(i for i, line in enumerate(lines) if re.match(r" +phase +part +asked +got", line))
    table = [line.split() for line in lines[head + 1 : lines.index("", head)]]
    assert {row[0] for row in table} == set(PHASES)
    for phase, steps in zip(PHASES, TINY.steps, strict=True):
        rows = [row for row in table if row[0] == phase]
        assert sum(int(row[-1].replace(",", "")) for row in rows) == steps * TINY.batch
        for _, _, asked, got, _ in rows:
            assert abs(float(asked) - float(got)) * steps * TINY.batch <= 2
    assert_worst_step(lines, run)
    assert [line.split(":")[0] for line in lines[-3:]] == ["proven"] * 3


def assert_worst_step(lines: list[str], run: Path) -> None:
    head = next(i for i, line in enumerate(lines) if line.startswith("highest loss of phase3: "))
    told = re.match(r".*: step (\d+) \((.*)\), (\d+) documents in it", lines[head])
    assert told
    metrics = [orjson.loads(x) for x in (run / "phase3/metrics.jsonl").read_bytes().splitlines()]
    worst = max(metrics, key=lambda line: line["loss"])
    assert (int(told[1]), told[2]) == (worst["step"], f"{worst['loss']:.3f}")
    assert lines[head + 1].split() == ["part", "tokens", "fim", "document", "text"]
    assert len(lines[head + 2 : lines.index("", head)]) == min(6, int(told[3]))


def test_the_demo_proves_itself_and_does_so_again(tmp_path: Path) -> None:
    out, where = tmp_path / "demo", tmp_path / "elsewhere"
    where.mkdir()
    (where / "cli.py").write_text("raise SystemExit('not the one that is meant')")
    said = demo(out, where)
    assert "killed with SIGKILL after step" in said
    assert f"{KILLED}: resumed at step" in said
    assert_proven(said, out / "run")
    assert findings(out / "build", out / "run", batches=True) == []
    # The killed phase was trained beside it as a run of its own, which can be looked at too.
    assert CliRunner().invoke(main, ["show", str(out / "control")]).exit_code == 0
    for path in ("build", "run"):
        assert CliRunner().invoke(main, ["show", str(out / path)]).exit_code == 0
    again = demo(out, where)
    assert_proven(again, out / "run")
    assert "an earlier demo has already come to step 15" in again
    assert len(re.findall(r"phase\d: already trained", again)) == len(PHASES)
    proof = said.index("phase   part"), again.index("phase   part")
    assert said[proof[0] :] == again[proof[1] :]


@pytest.mark.parametrize("goes_on", [True, False])
def test_the_demo_waits_as_long_as_steps_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goes_on: bool
) -> None:
    """A slow machine is no reason to give up; one that stands still is, with what to do."""
    metrics = run_folder.PhaseFolder(tmp_path / KILLED).metrics
    metrics.parent.mkdir(parents=True)
    script = "import sys, time\nfor _ in range(int(sys.argv[2])):\n" \
        "    open(sys.argv[1], 'a').write('x\\n'); time.sleep(0.25)\ntime.sleep(60)"  # fmt: skip
    steps = "99" if goes_on else "1"

    def slow(*_: object) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-S", "-c", script, str(metrics), steps]
        return subprocess.Popen(command, stderr=subprocess.PIPE)

    monkeypatch.setattr(stage, "_train_apart", slow)
    monkeypatch.setattr(stage, "PATIENCE_SECONDS", 2)
    began = monotonic()
    if goes_on:
        said = stage._kill_in_the_middle(tmp_path, tmp_path, tmp_path, TINY)
        assert "killed with SIGKILL after step" in said
        assert monotonic() > began + stage.PATIENCE_SECONDS
    else:
        with pytest.raises(CrystalmixError, match="stands at step 1 for 2 s; run the demo again"):
            stage._kill_in_the_middle(tmp_path, tmp_path, tmp_path, TINY)
