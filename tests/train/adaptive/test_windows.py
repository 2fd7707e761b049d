"""A phase in windows: its rows, kills, replays byte for byte, and forgeries that verify finds."""

import multiprocessing
from functools import lru_cache
from pathlib import Path
from shutil import copytree, rmtree

import pytest
from click.testing import CliRunner

import crystalmix as cm
from crystalmix.cli import main
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.manifest import Manifest, read, read_manifests
from crystalmix.prep.runtime.errors import InputError, RefusalError, StaleError, UsageError
from crystalmix.train.model.optimizer import schedule
from crystalmix.train.runfile.run_file import load
from crystalmix.train.trainer.trainer import Trainer
from helpers import corpora, watched
from helpers.runs import run_file, scratch, small_build, train, write_run

PHASE = "mixed"
GROUP = "policy: group\nsteps: 4\nrate: 2.0\nmemory: 0.2\n"


def policy(folder: Path, text: str = GROUP) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy.yaml").write_text(text, "utf-8")
    return folder / "policy.yaml"


def adapt(out: Path, text: str = GROUP, **settings: object) -> cm.Run:
    place = policy(out.parent / f"{out.name}-policy", text)
    return cm.adapt(small_build(), place, run_file(), phase=PHASE, out=out, **settings)


@lru_cache(maxsize=1)
def adapted() -> Path:
    out = scratch() / "adapted"
    adapt(out)
    return out


def windows(run: Path) -> list[Manifest]:
    return [m for m in read_manifests(run / "build") if m.adapted is not None]


def base() -> Manifest:
    return read(small_build() / "phases" / PHASE)


def test_windows_cover_the_phase_and_shares_move() -> None:
    made = windows(adapted())
    assert sum(window.steps for window in made) == base().steps
    assert [window.phase for window in made[:2]] == ["mixed.w0000", "mixed.w0001"]
    assert len({tuple(part.asked for part in window.parts) for window in made}) == len(made)
    assert made[1].previous == made[0].digest


def test_each_part_reads_on_where_the_window_before_stopped() -> None:
    """All windows together read a prefix of the part's sequence: each row once per epoch."""
    made = windows(adapted())
    for place, part in enumerate(base().parts):
        drawn: list[tuple[int, int]] = []  # shard and row, in the order of the draws
        for window in made:
            refs = window.rows(0, window.steps * window.batch)
            mine = refs.part == place
            drawn += zip(refs.shard[mine].tolist(), refs.row[mine].tolist(), strict=True)
        assert len(drawn) == sum(window.parts[place].rows for window in made)
        for first in range(0, len(drawn), part.available):
            epoch = drawn[first : first + part.available]
            assert len(set(epoch)) == len(epoch)


def test_verify_trace_and_show_take_the_run_as_any_other() -> None:
    run = adapted()
    verdict = cm.verify(run / "build", run=run)
    assert not verdict.faulty, verdict
    assert "windows: their shares follow" in str(verdict)
    assert "mixed.w0001" in str(cm.open(run))


def test_losses_that_the_next_window_records_are_those_of_the_ledger() -> None:
    made = windows(adapted())
    steps = cm.open(adapted()).sql(
        "SELECT p.part, sum(p.loss * p.tokens) / sum(p.tokens) AS loss, sum(p.tokens) AS tokens "
        "FROM (SELECT unnest(parts) AS p FROM steps WHERE phase = 'mixed.w0000') GROUP BY 1"
    )
    held = made[1].adapted
    assert held is not None
    assert len(steps) == len(base().parts)
    for row in steps.content():
        assert held["seen"]["losses"][row["part"]] == pytest.approx(row["loss"] * 1e6, abs=1)
        assert held["seen"]["tokens"][row["part"]] == row["tokens"]


def test_a_recorded_run_replays_to_the_same_bytes(tmp_path: Path) -> None:
    adapt(tmp_path / "again")
    for one, other in zip(windows(adapted()), windows(tmp_path / "again"), strict=True):
        assert one.digest == other.digest
    paths = sorted((adapted() / "build" / "phases").rglob("*.json"))
    for path in paths:
        other = tmp_path / "again" / path.relative_to(adapted())
        assert other.read_bytes() == path.read_bytes()


def test_moments_and_the_learning_rate_go_on_from_window_to_window() -> None:
    run, made = load(run_file(), PHASE), windows(adapted())
    last = made[-1]
    trainer = Trainer(run, last, adapted() / "build", adapted() / last.phase)
    assert trainer.begin(None) == last.steps
    [*groups] = trainer.optimizer.param_groups
    assert {group["finished_steps"] for group in groups} == {base().steps}
    rates = cm.open(adapted()).sql("SELECT learning_rate FROM steps ORDER BY phase, step")
    pieces = run.optimizer.learning_rate
    expected = [schedule(pieces, step) for step in range(base().steps)]
    assert rates["learning_rate"] == pytest.approx(expected)


def die(out: str, after: int) -> None:
    """Train and die without a word once so many checkpoints were written."""
    import os

    from crystalmix.train.trainer import checkpoint

    count, write = [0], checkpoint.write

    def counted(*arguments: object, **more: object) -> object:
        made = write(*arguments, **more)
        count[0] += 1
        if count[0] >= after:
            os._exit(9)
        return made

    checkpoint.write = counted
    adapt(Path(out))


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_run_killed_within_or_between_windows_goes_on_to_the_same(
    tmp_path: Path, after: int
) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=die, args=(str(tmp_path / "run"), after)
    )
    process.start()
    process.join(120)
    assert process.exitcode == 9
    adapt(tmp_path / "run")
    mine, whole = windows(tmp_path / "run"), windows(adapted())
    assert [window.digest for window in mine] == [window.digest for window in whole]
    assert not cm.verify(tmp_path / "run" / "build", run=tmp_path / "run").faulty


def copied(out: Path) -> Path:
    """Return a copy of the run, whose links still lead to the build."""
    copytree(adapted(), out, symlinks=True)
    for link in (out / "build").iterdir():
        if link.is_symlink():
            link.unlink()
            link.symlink_to(small_build() / link.name)
    return out


def forged(tmp_path: Path, number: int, **changes: object) -> str:
    """Seal a window of a copy of the run otherwise; return what verify says."""
    run = copied(tmp_path / "forged")
    window = windows(run)[number]
    assert window.adapted is not None
    content = {**window.adapted, **changes}
    path = run / "build" / "phases" / window.phase / "manifest.json"
    manifests.write(path, manifests.resealed(window, adapted=content))
    return str(cm.verify(run / "build", run=run))


def test_a_forged_loss_is_found(tmp_path: Path) -> None:
    seen = windows(adapted())[1].adapted["seen"]  # type: ignore[index]
    losses = {name: loss + 1 for name, loss in seen["losses"].items()}
    said = forged(tmp_path, 1, seen={**seen, "losses": losses})
    assert "records other tokens or losses than the ledger" in said


def test_a_forged_policy_is_found(tmp_path: Path) -> None:
    held = windows(adapted())[1].adapted["policy"]  # type: ignore[index]
    assert "shares, rows or starts are not" in forged(tmp_path, 1, policy={**held, "rate": 1.0})
    rmtree(tmp_path / "forged")
    assert "another version" in forged(tmp_path, 0, policy={**held, "version": "windows-0"})


def test_a_forged_share_is_found(tmp_path: Path) -> None:
    run = copied(tmp_path / "forged")
    window = windows(run)[-1]
    from dataclasses import replace

    first, second = window.parts[:2]
    moved = (replace(first, weight=first.weight + 1), second, *window.parts[2:])
    path = run / "build" / "phases" / window.phase / "manifest.json"
    manifests.write(path, manifests.sealed(replace(window, parts=moved, digest="")))
    assert "shares, rows or starts are not" in str(cm.verify(run / "build", run=run))


def test_another_policy_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    run = copied(tmp_path / "run")
    with pytest.raises(StaleError, match="is another window than the policy"):
        adapt(run, GROUP.replace("2.0", "3.0"))


def test_stop_counts_the_steps_of_the_phase(tmp_path: Path) -> None:
    adapt(tmp_path / "run", stop=6)
    assert [window.phase for window in windows(tmp_path / "run")] == ["mixed.w0000", "mixed.w0001"]
    lines = (tmp_path / "run" / "mixed.w0001" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2


def test_what_has_no_windows_is_refused(tmp_path: Path) -> None:
    words = ["--run", run_file(), "--adapt", policy(tmp_path), "--out", tmp_path / "run"]
    result = CliRunner().invoke(main, [str(word) for word in ["train", small_build(), *words]])
    assert result.exit_code == 2
    assert "name it with --phase" in str(result.exception) + result.output
    with pytest.raises(UsageError, match="no phase is called 'mixd'"):
        cm.adapt(small_build(), policy(tmp_path), phase="mixd", out=tmp_path / "run")
    with pytest.raises(RefusalError, match="no shares of"):
        adapt(tmp_path / "other", GROUP + "least: 0.9\n")


def test_a_run_without_windows_is_checked_as_before(tmp_path: Path) -> None:
    train(tmp_path / "run", "prose")
    assert "windows" not in str(cm.verify(small_build(), run=tmp_path / "run"))


def losses(run: Path) -> list[float]:
    table = cm.open(run).sql("SELECT loss FROM steps WHERE phase = 'mixed.w0000' ORDER BY step")
    return [row["loss"] for row in table.content()]


def test_the_first_window_begins_with_the_weights_of_the_phase_before(tmp_path: Path) -> None:
    run, other, fresh = (tmp_path / name for name in ("run", "other", "fresh"))
    train(run, "prose")
    adapt(run, stop=1)
    adapt(other, stop=1, init_from=sorted((run / "prose/checkpoints").iterdir())[-1])
    adapt(fresh, stop=1)
    assert losses(run) == losses(other) != losses(fresh)


def test_windows_after_half_a_phase_are_refused(tmp_path: Path) -> None:
    train(tmp_path / "run", "prose", stop=2)
    with pytest.raises(InputError, match="phase prose is not trained to its end"):
        adapt(tmp_path / "run", stop=1)


def test_a_fork_over_redacted_windows_keeps_their_shares(tmp_path: Path) -> None:
    """Other losses than those that gave the shares are no fault of such a run."""
    run, view, out = (tmp_path / name for name in ("run", "redacted", "fork"))
    train(run, "prose")
    adapt(run)
    digests = cm.open(run).sql(
        "SELECT min(lower(hex(d.digest))) AS digest FROM pieces p "
        "JOIN documents d USING (source, document) WHERE p.phase = 'mixed.w0001'"
    )
    (tmp_path / "list").write_text(f"digest:{digests.content()[0]['digest']}\n", "utf-8")
    cm.redact(run / "build", tmp_path / "list", out=view)
    cm.fork(run, view, out)
    cm.train(view, run=run_file(), out=out)
    verdict = cm.verify(view, run=out)
    assert not verdict.faulty, verdict
    assert "their shares are those of the run whose build was redacted" in str(verdict)


def test_windows_are_evaluated_on_the_held_out_phase_of_their_build(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.yaml", evaluation={"phase": "held", "rows": 4, "steps": 4})
    place, out = policy(tmp_path), tmp_path / "run"
    cm.adapt(watched.split_build(), place, run, phase="mixed", out=out, stop=4)
    lines = (out / "mixed.w0000" / "evaluation.jsonl").read_text("utf-8")
    assert '"step":4' in lines.replace(" ", "")


def test_a_run_in_windows_stays_and_goes_on_when_its_build_is_changed(tmp_path: Path) -> None:
    build, run = corpora.built(tmp_path), tmp_path / "run"
    settings = {"phase": PHASE, "out": run}
    cm.adapt(build, policy(tmp_path), run_file(), **settings, stop=6)
    corpora.write_recipe(tmp_path, rows={"rows_per_shard": 16})
    cm.build(tmp_path / "recipe.yaml", build, data=tmp_path)
    assert not cm.verify(run / "build", run=run).faulty
    cm.adapt(build, policy(tmp_path), run_file(), **settings)
    assert [window.digest for window in windows(run)] == [w.digest for w in windows(adapted())]
    assert not cm.verify(run / "build", run=run).faulty
