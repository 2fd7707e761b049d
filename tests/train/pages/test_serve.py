"""The page to explore: loopback only, read-only, and answers that are those of `trace`."""

import json
import re
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread

import pytest

from crystalmix.prep.runtime.errors import UsageError
from crystalmix.train.pages import serve
from helpers.ablations import tiny
from helpers.corpora import crystalmix
from helpers.pages import Page
from helpers.runs import small_build, undisturbed


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serve.server(serve.Explorer.of(undisturbed(), small_build()), 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        assert server.server_address[0] == "127.0.0.1"
        yield server.server_address[1]
        server.shutdown()


def asked(port: int, path: str, method: str = "GET", host: str | None = None) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"})
    response = connection.getresponse()
    return response.status, response.read().decode()


def cells(html: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    return [[Page(c).text for c in re.findall(r"<td[^>]*>(.*?)</td>", r, re.DOTALL)] for r in rows]


def test_the_first_page_is_the_report_with_questions(port: int) -> None:
    status, html = asked(port, "/")
    assert status == 200
    assert "From records to rows" in html
    assert html.count("<form") == 2


def test_a_step_and_a_document_are_answered_as_trace_does(port: int) -> None:
    status, html = asked(port, "/step?phase=code&step=3")
    pieces = json.loads(crystalmix("trace", undisturbed(), "--step", "code:3", "--json").stdout)
    assert status == 200
    assert [row[4] for row in cells(html) if row] == [piece["name"] for piece in pieces]
    assert [row[2] for row in cells(html) if row] == [str(p["stop"] - p["start"]) for p in pieces]
    name = pieces[0]["name"]
    status, html = asked(port, f"/document?name={name.replace('/', '%2F')}")
    told = crystalmix("trace", undisturbed(), "--document", name, "--json").stdout
    steps = json.loads(told)["steps"]
    assert [row[1:4] for row in cells(html) if row] == [
        [s["phase"], str(s["step"]), str(s["slot"])] for s in steps
    ]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/step?phase=code&step=99999", "phase code has the steps 0 to"),
        ("/step?phase=none&step=1", "no phase is called"),
        ("/step?phase=code&step=x", "must be a number"),
        ("/document?name=nothing-like-it", "no document of"),
        ("/document", "give a document"),
        ("/etc/passwd", "no such page"),
        ("/document?name=%3Cscript%3E", "&lt;script&gt;"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(path: str, words: str, port: int) -> None:
    status, html = asked(port, path)
    assert (status, words in html) == (404, True)


def test_only_get_and_only_by_the_name_of_this_machine(port: int) -> None:
    assert asked(port, "/", "POST")[0] == 501
    assert asked(port, "/", host="evil.example:80")[0] == 403
    assert asked(port, "/", host=f"localhost:{port}")[0] == 200


def test_a_build_answers_with_what_is_planned() -> None:
    explorer = serve.Explorer.of(None, small_build())
    status, html = explorer.page("/")
    assert (status, "Ask the build" in html) == (200, True)
    assert "<option>code</option>" in html
    told = crystalmix("trace", undisturbed(), "--step", "code:3", "--json").stdout
    pieces = json.loads(told)  # of a run, which fed what was planned
    status, html = explorer.page("/step?phase=code&step=3")
    assert status == 200
    assert [row[4] for row in cells(html) if row] == [piece["name"] for piece in pieces]
    status, html = explorer.page(f"/document?name={pieces[0]['name']}")
    told = crystalmix("trace", undisturbed(), "--document", pieces[0]["name"], "--json").stdout
    steps = json.loads(told)["steps"]
    assert [row[1:4] for row in cells(html) if row] == [
        [s["phase"], str(s["step"]), str(s["slot"])] for s in steps
    ]
    status, html = explorer.page("/step?phase=code&step=99999")
    assert (status, "phase code has the steps 0 to" in html) == (404, True)
    assert explorer.page("/step?phase=none&step=1")[0] == 404


def test_an_ablation_is_served_without_questions() -> None:
    explorer = serve.Explorer.of_ablation(tiny())
    status, html = explorer.page("/")
    assert (status, html.count("<form"), "report of the ablation" in html) == (200, 0, True)
    status, html = explorer.page("/step?phase=code&step=3")
    assert (status, html.count("<form")) == (404, 0)


def test_a_port_that_is_taken_and_what_is_none_of_the_three_are_refused(
    port: int, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--port: can't take"):
        serve.server(serve.Explorer.of(undisturbed(), small_build()), port)
    result = crystalmix("serve", tmp_path)
    assert (result.exit_code, str(tmp_path) in result.stderr) == (1, True)
