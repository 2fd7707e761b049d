"""Pages: their numbers are those of `--json`, they need nothing else, they hide nothing."""

import json
import re
from dataclasses import asdict, replace
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import orjson
import pytest

import crystalmix as cm
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.train.pages import evidence, report_page
from crystalmix.train.pages.page_parts import MOST_RESULTS
from crystalmix.train.pages.refs import Ref, shown, total
from crystalmix.train.pages.sampled_rows import MOST_TOKENS
from crystalmix.train.record.run_folder import Claim, build_of
from helpers.audited import audited_build, held
from helpers.corpora import crystalmix
from helpers.pages import Page, says, wrong
from helpers.reported import REPORTED, redacted, strangers
from helpers.runs import copied_build, small_build, undisturbed
from helpers.watched import watched

MEGABYTE = 1_000_000


@lru_cache(maxsize=len(REPORTED))
def reported(name: str) -> tuple[Page, Any]:
    """Return a page, and what `--json` printed when it was written."""
    path = cm.report(REPORTED[name](), verify=False)
    result = crystalmix("report", REPORTED[name](), "--json", "--no-verify")
    assert result.exit_code == 0, result.stderr
    return Page(path.html), json.loads(result.stdout)


def printed(*words: object) -> Any:
    result = crystalmix(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", REPORTED)
def test_every_number_is_what_json_has_at_the_place_that_it_names(name: str) -> None:
    page, content = reported(name)
    assert len(page.numbers) >= 20
    assert wrong(page.numbers, content) == []
    for digest in page.digests:
        assert re.fullmatch(r"[0-9a-f]{16,64}", digest.text)
    assert wrong([], content) == []


@pytest.mark.parametrize("name", REPORTED)
def test_a_page_is_one_small_file_that_asks_for_nothing(name: str) -> None:
    page, _ = reported(name)
    assert len(page.html.encode()) < 5 * MEGABYTE
    assert [at for at in page.references if not at.startswith("#")] == ["data:,"]
    assert not re.search(r"@import|url\(|https?://|fetch\(|XMLHttp", _markup(page.html))
    assert len(page.ids) == len(set(page.ids))
    assert {at[1:] for at in page.references if at.startswith("#")} <= set(page.ids)


def long_run() -> evidence.Evidence:
    """Return evidence of as many phases, parts, evaluations and rows as a large run has."""
    known = evidence.of_build(watched(), build_of(watched(), None), None)
    parts = [f"domain-of-a-long-name-{number}" for number in range(27)]
    phases = ["mixed", "phase1", "phase2"]
    build: Any = dict(known.build)
    [manifest, *_] = build["manifests"]
    [account] = [one for one in build["accounts"] if one["folder"] == "domains/code/epoch-0"]
    [source] = [one for one in build["accounts"] if one["folder"] == "sources/code"]
    build["manifests"] = [
        {**manifest, "phase": phase, "parts": [{**manifest["parts"][0], "name": p} for p in parts]}
        for phase in phases
    ]
    build["accounts"] = [
        {**one, "folder": f"{floor}/{part}{below}"}
        for part in parts
        for floor, one, below in (("domains", account, "/epoch-0"), ("sources", source, ""))
    ]
    run: Any = dict(known.run or {})
    run["evaluations"] = [
        {**one, "phase": phase, "part": part, "step": step}
        for phase in phases
        for step in range(0, 200_000, 1_000)
        for part in parts
        for one in run["evaluations"][:4]
    ]
    [interval, *_] = known.intervals
    asked = [{**interval.parts[0], "part": part} for part in parts]
    assert known.losses is not None
    points = [
        evidence.LossPoint(phase, part, 700 * step, 2.345678901234)
        for phase in phases
        for step in range(evidence.POINTS // 3)
        for part in (None, *parts)
    ]
    most = {"tokens": 2_048_000_000, "rows": 4_000, "share": 0.1234, "asked": 0.1234, "loss": 2.34}
    mark = {"spikes": 2, "steps": 3, "lift": 12.34, "loss_z": 7.1, "loss_median": 2.345}
    spiked = [{**most, **mark, "part": part, "source": "code", "document": 9} for part in parts]
    documents = [{**one, "name": "a/long/name/of/a/file.py" * 4} for one in spiked[:10]]
    norms = {f"gradient_norm{end}": 1.234567 for end in ("", "_z", "_median")}
    spikes: list[Any] = [
        {**most, **mark, **norms, "phase": phases[0], "step": step}
        | {"parts": spiked, "documents": documents}
        for step in range(evidence.MOST_SPIKES)
    ]
    times = MOST_TOKENS // (2 * 3 * 27) // 64
    long = [replace(r, segments=r.segments * times, pieces=r.pieces * times) for r in known.rows]
    rows = [one for one, _ in zip(cycle(long), range(2 * 3 * 27), strict=False)]
    return replace(
        known,
        build=build,
        run=run,
        intervals=[replace(interval, phase=p, parts=asked) for p in phases for _ in range(8)],
        losses=replace(known.losses, points=points, spikes=spikes),
        rows=rows,
        sealed=[replace(known.sealed[0], phase=p, recorded=200_000) for p in phases],
    )


def test_a_page_of_a_large_run_is_small_too() -> None:
    known = long_run()
    html = report_page.render("report.html", known)
    assert html.count('<article class="row"') == len(known.rows) == 162
    assert MEGABYTE < len(html.encode()) < 5 * MEGABYTE
    table = html[html.index("Held-out losses") :]
    shown = re.findall(r'data-at="/run/evaluations/(\d+)/step"', table)
    assert MOST_RESULTS / 2 < len(shown) <= MOST_RESULTS
    steps = {known.run["evaluations"][int(place)]["step"] for place in shown}  # pyright: ignore
    assert {0, 199_000} <= steps
    assert "the first and the last evaluated step and some between" in html
    assert wrong(Page(html).numbers, json.loads(orjson.dumps(asdict(known)))) == []


def _markup(html: str) -> str:
    """Return the page without the texts of rows, in which anything may stand."""
    html = re.sub(r'<article class="row".*?</article>', "", html, flags=re.DOTALL)
    return re.sub(r'<td class="text">.*?</td>', "", html, flags=re.DOTALL)


def test_what_it_holds_is_what_the_commands_print() -> None:
    run = REPORTED["audited"]()
    build = build_of(run, None)
    _, content = reported("audited")
    assert content["build"] == printed("show", build)
    assert content["run"] == printed("show", run)
    assert content["losses"]["spikes"] == printed("trace", run, "--spikes")
    for phase, repeats in content["repeats"].items():
        assert repeats == printed("trace", run, "--repeats", phase)
    assert content["repeats"]
    for interval in content["intervals"]:
        steps = f"{interval['phase']}:{interval['first']}:{interval['last']}"
        assert interval["parts"] == printed("show", build, "--step", steps)
    assert len(content["intervals"]) > len(content["sealed"])
    for one in content["losses"]["highest"]:
        pieces = printed("trace", run, "--step", f"{one['phase']}:{one['step']}")
        assert all(piece in pieces for piece in one["pieces"])


def test_intervals_cover_all_steps_once() -> None:
    _, content = reported("build")
    for manifest in content["build"]["manifests"]:
        own = [i for i in content["intervals"] if i["phase"] == manifest["phase"]]
        steps = [step for i in own for step in range(i["first"], i["last"] + 1)]
        assert steps == list(range(manifest["steps"]))
        rows = sum(part["rows"] for i in own for part in i["parts"])
        assert rows == manifest["steps"] * manifest["batch"]


def test_curves_run_to_the_right_and_end_with_their_phase(tmp_path: Path) -> None:
    told = crystalmix("report", undisturbed(), "--html", tmp_path / "page.html")
    assert told.exit_code == 0, told.stderr
    page = (tmp_path / "page.html").read_text("utf-8")
    paths = re.findall(r'<path class="line [^"]*" d="M([^"]*)"', page)
    assert len(paths) == 3 + 3 + 2 + 3  # of three phases all rows, and the parts of each
    for path in paths:
        across = [float(point.split(",")[0]) for point in path.split(" L")]
        assert across == sorted(set(across))


def test_the_points_of_a_curve_are_the_recorded_losses() -> None:
    _, content = reported("run")
    losses = content["losses"]
    assert losses["width"] == 1
    query = "SELECT phase, step, loss FROM steps WHERE NOT skipped ORDER BY phase, step"
    whole = [p for p in losses["points"] if p["part"] is None]
    wanted = printed("sql", REPORTED["run"](), query)
    assert [(p["phase"], p["step"], p["loss"]) for p in whole] == [
        (p["phase"], p["step"], p["loss"]) for p in wanted
    ]


def test_rows_are_shown_as_they_lie_in_their_shards() -> None:
    _, content = reported("build")
    parts = {(m["phase"], p["name"]) for m in content["build"]["manifests"] for p in m["parts"]}
    assert {(row["phase"], row["part"]) for row in content["rows"]} == parts
    specials = {s["special"] for row in content["rows"] for s in row["segments"]}
    roles = {s["role"] for row in content["rows"] for s in row["segments"]}
    assert {"", "bos", "eos", "fim_prefix", "fim_middle", "fim_suffix"} <= specials
    assert roles & {"prefix", "middle", "suffix", "prefix and middle"}
    build = cm.open(small_build())
    assert isinstance(build, cm.Build)
    for row in content["rows"]:
        with h5py.File(small_build() / row["shard"]) as file:
            rows: Any = file["data"]
            data = np.asarray(rows[row["row"]])
        assert sum(s["tokens"] for s in row["segments"]) == row["tokens"] == data.shape[1]
        assert row["loss_tokens"] == np.count_nonzero(data[1])
        assert sum(s["tokens"] for s in row["segments"] if s["loss"]) == row["loss_tokens"]
        [planned] = [
            r
            for r in build.phases[row["phase"]].rows(row["step"]).content()
            if r["slot"] == row["slot"]
        ]
        keys = ("part", "epoch", "shard", "row")
        assert [row[key] for key in keys] == [planned[key] for key in keys]
        edges = [(p["start"], p["stop"]) for p in row["pieces"]]
        assert edges == sorted(edges)
        assert all(piece["name"] for piece in row["pieces"])


def test_no_row_is_read_but_those_that_are_shown(tmp_path: Path) -> None:
    build = copied_build(tmp_path / "build")
    kept = {(build / row["shard"]).resolve() for row in reported("build")[1]["rows"]}
    others = [path for path in build.rglob("*.h5") if path.resolve() not in kept]
    assert others
    for path in others:
        path.unlink()
    assert (
        cm.report(build, verify=False).evidence.rows
        == cm.report(small_build(), verify=False).evidence.rows
    )


def test_a_redacted_document_is_padding_that_is_said_to_be_taken_out() -> None:
    page, content = reported("redacted")
    assert "is redacted" in page.text
    for row in content["rows"]:
        for number, piece in enumerate(row["pieces"]):
            own = [s for s in row["segments"] if s["piece"] == number]
            gone = bool(held(audited_build(), row["shard"], row["row"], "ж")) and not any(
                s["special"] != "pad" for s in own
            )
            assert piece["taken"] == gone
            assert not piece["taken"] or not any(s["loss"] for s in own)
        assert "ж" not in "".join(s["text"] for s in row["segments"])


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    page, content = reported("imported")
    assert "was imported" in page.text
    assert "Nothing is known of records" in page.text
    assert {piece["name"] for row in content["rows"] for piece in row["pieces"]} == {None}
    assert all(re.fullmatch(r"[\d ]+", s["text"]) for s in content["rows"][0]["segments"])
    page, _ = reported("strangers")
    assert "No loss is recorded" in page.text
    assert "recorded by a caller" in page.text
    assert cm.report(strangers(), tmp_path / "page.html").evidence.verified is not None


def test_verify_s_result_is_on_the_page_and_a_fault_ends_with_one(tmp_path: Path) -> None:
    sound = Page(cm.report(undisturbed()).html)
    assert "Every file, count, digest and order agrees" in sound.text
    assert "not run" not in sound.text
    build = copied_build(tmp_path / "build")
    [path] = (build / "sources/web").glob("documents.parquet")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)
    result = crystalmix("report", build, "--html", tmp_path / "page.html", "--no-verify")
    assert (result.exit_code, "not verified" in result.stdout) == (0, True)
    result = crystalmix("report", build, "--html", tmp_path / "page.html")
    assert result.exit_code == 1
    faults = cm.verify(build).faults
    page = Page((tmp_path / "page.html").read_text("utf-8"))
    assert faults
    assert all(fault in page.text for fault in faults)


def test_the_loss_of_all_rows_has_the_unit_that_it_was_recorded_in() -> None:
    assert ">nats per place of a row<" in reported("run")[0].html
    taught = Claim(run={"model": {}, "optimizer": {}, "settings": {"loss_scaling": "num_tokens"}})
    assert taught.loss_unit == "nats per token with loss"
    assert Claim(caller=True).loss_unit == "as recorded"


def test_a_phase_that_is_held_out_is_named_so() -> None:
    page, content = reported("run")
    assert {one["phase"]: one["held_out"] for one in content["sealed"]} == {
        "mixed": False,
        "held": True,
    }
    assert "Held out, which is evaluated and not trained on: held." in page.text
    assert page.text.count("it is there to be evaluated") == 1
    assert "held out" not in reported("build")[0].text


def test_texts_and_names_are_never_markup() -> None:
    from dataclasses import replace

    evidence = cm.report(small_build(), verify=False).evidence
    evil = "</style><script>alert(1)</script>\"'&"
    row = evidence.rows[0]
    segment = replace(row.segments[0], text=evil, special="")
    piece = replace(row.pieces[0], name=evil, source=evil)
    row = replace(row, part=evil, segments=(segment,), pieces=(piece,))
    page = Page(
        type(cm.report(small_build(), verify=False))(replace(evidence, rows=[row], name=evil)).html
    )
    assert page.html.count("<script>") == 1
    assert page.text.count("alert(1)") >= 4


def test_a_number_names_its_place_and_a_sum_all_of_them() -> None:
    known = Ref({"a/b": [{"n": 1234}, {"n": None}, {"n": 6}]})
    numbers = [one["n"] for one in known["a/b"]]
    assert shown(numbers[0]) == '<data value="1234" data-at="/a~1b/0/n">1,234</data>'
    assert shown(numbers[1]) == '<span class="unknown">–</span>'
    assert total(numbers) == '<data value="1240" data-sum="/a~1b/0/n /a~1b/2/n">1,240</data>'
    assert says("1,234", 1234)
    assert not says("1,234", 1235)
    assert says("12.35%", 0.12345)
    assert not says("12.35%", 0.1244)


def test_a_report_is_written_or_printed() -> None:
    result = crystalmix("report", small_build())
    assert result.exit_code == 2
    assert "Missing option '--html' (or '--json')" in result.stderr
    with pytest.raises(UsageError, match="no such file or folder"):
        cm.report("nothing")


def test_the_view_shares_no_number_with_what_it_was_made_of_but_those_before_it() -> None:
    taken = {
        piece["name"]
        for row in reported("redacted")[1]["rows"]
        for piece in row["pieces"]
        if piece["taken"]
    }
    assert all(name.startswith("seen/twice") for name in taken)
    assert redacted().exists()
