"""An ablation from its spec to a recipe: the same tables always, killed or not; refusals told."""

import json
import os
import subprocess
import sys
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.laws.distributions import student
from crystalmix.mixtures.laws.fit import KINDS
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.exact_order import PREFIX_BOUND
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.prep.runtime.atomic_files import canonical, read_json, write_atomic
from crystalmix.prep.runtime.errors import InputError, RefusalError, StaleError
from crystalmix.train.ablations import tables as evidence
from crystalmix.train.ablations.export_recipe import export
from crystalmix.train.ablations.report import read_report, report_lines
from crystalmix.train.ablations.results import Insight
from crystalmix.train.adaptive.simulate import stretches
from crystalmix.train.api.ablations import Ablation, ablation_cost
from helpers.ablations import DIE, MORE, ROOT, copied, run, sized, tables, tiny, write_spec
from helpers.corpora import crystalmix, merged, write_corpus, write_recipe


def test_an_ablation_killed_and_resumed_gives_the_same_tables(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    paths = [str(ROOT), str(ROOT / "tests")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", DIE, str(spec), str(tmp_path / "out"), "33"]
    assert subprocess.run(command, env=environment, check=False).returncode == 9
    assert not (tmp_path / "out" / "tables").exists()
    run(spec, tmp_path / "out")
    assert tables(tmp_path / "out") == tables(tiny())


def test_an_older_ablation_that_holds_removed_keys_goes_on(tmp_path: Path) -> None:
    out = copied(tmp_path / "out")
    claimed = read_json(out / "ablation.json")
    assert "build" not in claimed["spec"]
    claimed["spec"]["residual"] = False
    claimed["spec"]["proxy"]["stack"] = 1
    write_atomic(out / "ablation.json", canonical(claimed))
    run(tiny().parent / "spec.yaml", out)
    assert tables(out) == tables(tiny())
    claimed["spec"]["proxy"]["stack"] = 8
    write_atomic(out / "ablation.json", canonical(claimed))
    with pytest.raises(StaleError, match=r"proxy.stack: 8"):
        run(tiny().parent / "spec.yaml", out)


def test_an_ablation_keeps_the_dtype_that_it_began_with(tmp_path: Path) -> None:
    out = copied(tmp_path / "out")
    claimed = read_json(out / "ablation.json")
    begun = json.loads((out / "runs/centre/centre/run.json").read_text("utf-8"))
    assert begun["run"]["settings"]["dtype"] == claimed["dtype"]
    other = {"bfloat16": "float32", "float32": "bfloat16"}[claimed["dtype"]]
    write_atomic(out / "ablation.json", canonical({**claimed, "dtype": other}))
    rmtree(out / "runs")
    run(tiny().parent / "spec.yaml", out)
    begun = json.loads((out / "runs/centre/centre/run.json").read_text("utf-8"))
    assert begun["run"]["settings"]["dtype"] == other


def test_a_report_of_another_version_is_told(tmp_path: Path) -> None:
    out = copied(tmp_path / "out")
    write_atomic(out / "report.json", b'{"name": "old", "laws": {}}')
    with pytest.raises(InputError, match=r"report.json: is of another version; .*another --out"):
        read_report(out)


def test_a_finished_ablation_is_not_done_again(tmp_path: Path) -> None:
    out = copied(tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/**/*.parquet")}
    run(tiny().parent / "spec.yaml", out)
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/**/*.parquet")} == before
    assert tables(out) == tables(tiny())


def test_a_lost_run_is_trained_again_to_the_same_tables(tmp_path: Path) -> None:
    out = copied(tmp_path / "out")
    rmtree(out / "runs" / "design-2")
    run(tiny().parent / "spec.yaml", out)
    assert tables(out) == tables(tiny())


def test_another_spec_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, proxy={"steps": 41})
    with pytest.raises(StaleError, match=r"spec.proxy.steps: 40, now 41.*another --out"):
        run(spec, copied(tmp_path / "out"))


def test_the_report_says_what_was_fitted_recommended_and_checked() -> None:
    report = read_report(tiny())
    assert sorted(law.law for law in report.laws) == sorted(KINDS)
    assert [law.error for law in report.laws] == sorted(law.error for law in report.laws)
    shares = report.recommendation.shares
    assert sum(shares.values()) == pytest.approx(1, abs=1e-6)
    assert all(shares[name] <= report.caps[name] + 1e-9 for name in shares)
    checked = {run.mixture for run in report.checks.runs}
    assert checked == {"recommended", "current", "uniform"}
    assert {one.mixture for one in report.checks.against} == {"current", "uniform"}
    assert 0 <= (report.checks.covered or 0) <= 1
    assert (report.noise.sigma or 0) > 0
    assert report.evidence == evidence.digest(tiny())


def test_tables_are_read_by_the_verb_sql() -> None:
    told = crystalmix("sql", tiny(), "SELECT count(*) AS n FROM runs", "--json")
    assert json.loads(told.stdout) == [{"n": 14}]
    views = crystalmix("sql", tiny()).stdout
    assert [line.split()[0] for line in views.splitlines()[1:]] == ["fits", "losses", "runs"]


def test_a_folder_without_tables_is_told(tmp_path: Path) -> None:
    out = copied(tmp_path / "out")
    rmtree(out / "tables")
    told = crystalmix("sql", out)
    assert told.exit_code == 1
    assert "run `crystalmix ablate` to its end" in told.stderr


def _decided(out: Path, refusal: str) -> Path:
    """Have the report of a copy refuse for a reason, or recommend."""
    report = read_json(out / "report.json")
    report["recommendation"]["refusal"] = refusal
    write_atomic(out / "report.json", canonical(report))
    return out


def test_export_writes_a_recipe_that_build_takes_unchanged(tmp_path: Path) -> None:
    out = _decided(copied(tmp_path / "out"), "")
    path = tmp_path / "mine.yaml"
    told = crystalmix("ablate", "export", out, "--out", path)
    assert told.exit_code == 0, told.stderr
    text = path.read_text("utf-8")
    report = read_report(out)
    assert report.evidence in text
    assert "predicted proxy loss of wiki" in text
    recipe = recipes.load(path)
    [manifest] = build(recipe, tiny().parent, tmp_path / "build")
    shares = report.recommendation.shares
    epochs = {part.domain: part.asked for part in recipe.phases["recommended"].parts}
    for name, share in shares.items():
        real = share * report.target_tokens / report.tokens[name]
        assert epochs[name] == pytest.approx(real, abs=1e-3)
    assert {part.domain for part in manifest.parts} == {"wiki", "python", "javascript"}


def test_export_tells_a_prediction_whose_interval_is_not_known(tmp_path: Path) -> None:
    out = _decided(copied(tmp_path / "out"), "")
    report = read_json(out / "report.json")
    report["recommendation"]["predicted"]["wiki"][1:] = [None, None]
    write_atomic(out / "report.json", canonical(report))
    lines = export(out, tmp_path / "mine.yaml", anyway=False)
    assert any("loss of wiki" in line and "its interval is not known" in line for line in lines)


def test_export_gives_weights_where_the_real_run_has_a_number_of_tokens(tmp_path: Path) -> None:
    out = _decided(copied(tmp_path / "out"), "")
    claimed: dict[str, Any] = read_json(out / "ablation.json")
    claimed["spec"]["target"]["tokens"] = 6400
    write_atomic(out / "ablation.json", canonical(claimed))
    export(out, tmp_path / "mine.yaml", anyway=False)
    phase = recipes.load(tmp_path / "mine.yaml").phases["recommended"]
    assert phase.steps == 6400 // (2 * 64)
    shares = read_report(out).recommendation.shares
    for part in phase.parts:
        assert part.weight == pytest.approx(shares[part.domain], abs=1e-6)


def test_export_refuses_what_is_not_recommended_unless_told(tmp_path: Path) -> None:
    out = _decided(copied(tmp_path / "out"), "not distinguishable: no gain")
    with pytest.raises(RefusalError, match="not distinguishable.*--anyway"):
        export(out, tmp_path / "mine.yaml", anyway=False)
    assert not (tmp_path / "mine.yaml").exists()
    export(out, tmp_path / "mine.yaml", anyway=True)
    assert "not distinguishable" in (tmp_path / "mine.yaml").read_text("utf-8")
    export(out, tmp_path / "current.yaml", mixture="current", anyway=False)
    told = crystalmix("ablate", "export", out, "--out", tmp_path / "x.yaml", "--mixture", "best")
    assert told.exit_code == 2
    assert "must be one of recommended, current, uniform" in told.stderr


def test_a_dry_run_tells_runs_tokens_and_hours_and_writes_nothing(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, factors={"fim_rate": [0.0, 0.5], "seeds": 2})
    command = ("ablate", spec, "--out", tmp_path / "out")
    told = crystalmix(*command, "--dry-run", "--json")
    assert told.exit_code == 0, told.stderr
    cost = json.loads(told.stdout)
    runs = {line["kind"]: line["runs"] for line in cost["runs"]}
    assert runs == {"design": 7, "replicates": 2, "anchors": 2, "checks": 3, "factor fim_rate": 4}
    assert cost["tokens"] == 18 * 40 * 4 * 32
    assert cost["hours"] > 0
    power = {one["question"]: one for one in cost["power"]}
    assert (power["checks"]["pairs"], power["factor fim_rate"]["pairs"]) == (1, 2)
    wide = student(1, 0.9) * 0.0152 / 2**0.5  # one degree: two draws of two levels
    assert power["factor fim_rate"]["half_width"] == pytest.approx(wide)
    assert power["factor fim_rate"]["detectable"] > wide
    assert "seen with probability .8" in crystalmix(*command, "--dry-run").stdout
    assert not (tmp_path / "out").exists()


def test_the_verb_may_be_left_out_and_prints_the_report(tmp_path: Path) -> None:
    out = copied(tmp_path / "out")
    words = (tiny().parent / "spec.yaml", "--data", tiny().parent, "--out", out, "--workers", "1")
    short, long = crystalmix("ablate", *words), crystalmix("ablate", "run", *words)
    assert short.exit_code == 0, short.stderr
    assert short.stdout == long.stdout
    for word in (
        "best law: ",
        "best mixture: ",
        "gain over the current mixture",
        "check-recommended-1",
    ):
        assert word in short.stdout


def test_several_sizes_are_fitted_together_and_said_of_the_mixture() -> None:
    out = sized()
    report = read_report(out)
    assert report.across is not None
    assert [best.measured for best in report.across.optima] == [True, True, True, False]
    assert report.across.optima[-1].parameters == 1e6
    assert [ranks.mixtures for ranks in report.across.ranks] == [5, 5, 5]
    shown = "\n".join(report_lines(report))
    assert "(not measured)" in shown
    assert "as the smaller ones predict it" in shown
    rows = evidence.connect(out).rows(
        "SELECT run, size, steps, tokens FROM runs WHERE size = '0.1M' ORDER BY run"
    )
    assert len(rows) == 6
    assert {(row["steps"], row["tokens"]) for row in rows} == {(20, 20 * 128)}
    assert report.recommendation.shares == report.across.optima[-1].shares
    held = Ablation(out).largest.content()
    assert [line["run"] for line in held] == 3 * [row["run"] for row in rows]
    assert all(line["low"] < line["predicted"] < line["high"] for line in held)
    cost = ablation_cost(out.parent / "spec.yaml")
    assert ("scale 0.1M", 6, "0.1M", 6 * 20 * 128) in [
        (x.kind, x.runs, x.size, x.tokens) for x in cost.lines_
    ]


def test_one_size_says_what_it_leaves_open() -> None:
    report = read_report(tiny())
    assert report.across is None
    assert any("was not measured" in line for line in report_lines(report))


def test_sources_of_a_domain_go_in_proportion_through_a_stratified_ablation(tmp_path: Path) -> None:
    domains = {
        "wiki": {"sources": ["wiki", "book"]},
        "python": {"sources": ["python", "javascript"]},
    }
    write_corpus(tmp_path)
    write_recipe(tmp_path, **merged(MORE, {"domains": domains}))
    changes: Any = {
        "domains": {"javascript": None},
        "proxy": {"stratified": True, "steps": 30},
        "swarm": {"count": 5, "replicates": 1},
        "factors": {"fim_rate": [0.0, 0.9], "seeds": 1},
    }
    run(write_spec(tmp_path, **changes), tmp_path / "out")
    seen = Insight(tmp_path / "out")
    assert set(seen.ground.rows) == {"wiki", "python", "python.fim-0", "python.fim-0.9"}
    for path in sorted((tmp_path / "out" / "runs").glob("*/build/phases/*/manifest.json")):
        parts = manifests.read(path.parent).parts
        assert all(".from-" in part.domain for part in parts)
    for row in seen.tables.rows("SELECT asked, got FROM runs WHERE factor = ''"):
        asked, got = dict(row["asked"]), dict(row["got"])
        assert got == pytest.approx(asked, abs=2 * PREFIX_BOUND / 120)
    assert {row["domain"] for row in seen.tables.rows("SELECT DISTINCT domain FROM losses")} == {
        "wiki",
        "python",
        "python.infill",
    }
    folder, draw = seen.ledgers()[0]
    [whole] = stretches(folder, ("wiki", "python"), 30, draw)
    assert whole.shares.sum() == pytest.approx(1)
