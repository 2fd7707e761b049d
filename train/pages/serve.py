"""A page to explore: a report, of a run or build with questions, served to this machine alone.

It answers GET on the loopback address, to browsers that ask for that address, and writes nothing.
"""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Final
from urllib.parse import parse_qs, urlsplit

from crystalmix.prep.runtime.errors import CrystalmixError, InputError, UsageError
from crystalmix.train.pages import evidence, report_page
from crystalmix.train.pages.evidence import Evidence
from crystalmix.train.record import views
from crystalmix.train.record.views import Traced
from crystalmix.train.trace import questions
from crystalmix.train.trace.answers import Answer, Grid, cell

HOST: Final = "127.0.0.1"
NAMES: Final = ("127.0.0.1", "localhost")
HEADERS: Final = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}


class Explorer:
    """Answers paths of pages; one question at a time, as they share a database.

    traced: what questions are asked of; None of an ablation, which has no steps.
    """

    def __init__(self, evidence: Evidence, traced: Traced | None) -> None:
        self.evidence, self.traced = evidence, traced
        self.first = report_page.render("report.html", evidence, explore=traced is not None)
        self.lock = Lock()

    @classmethod
    def of(cls, run: Path | None, build: Path) -> "Explorer":
        """Return the explorer of a run, or of a build, whose steps are those planned."""
        return cls(evidence.of_build(run, build, None), views.connect(build, run))

    @classmethod
    def of_ablation(cls, folder: Path) -> "Explorer":
        """Return the explorer of an ablation's report."""
        return cls(evidence.of_ablation(folder), None)

    def page(self, path: str) -> tuple[int, str]:
        """Return status and HTML of a path: `/`, `/step?phase=&step=`, `/document?name=`."""
        place = urlsplit(path)
        query = {key: values[0].strip() for key, values in parse_qs(place.query).items()}
        if place.path == "/":
            return 200, self.first
        if self.traced is None or place.path not in ("/step", "/document"):
            return 404, self._answer("Not found", ["there is no such page"])
        if place.path == "/step":
            title = f"Step {query.get('step', '')} of {query.get('phase', '')}"
            answer = _step
        else:
            title = f"Document {query.get('name', '')}"
            answer = _document
        try:
            with self.lock:
                return 200, self._answer(title, list(answer(self.traced, query).shown()))
        except (UsageError, InputError) as error:
            return 404, self._answer(title, [str(error)])
        except CrystalmixError as error:
            return 500, self._answer(title, [str(error)])

    def _answer(self, title: str, parts: list[str | Grid]) -> str:
        shown = [
            part
            if isinstance(part, str)
            else Grid([[cell(value) for value in row] for row in part.rows], part.head)
            for part in parts
        ]
        return report_page.render(
            "answer.html", self.evidence, title=title, answer=shown, explore=self.traced is not None
        )


def _step(traced: Traced, query: dict[str, str]) -> Answer:
    if not query.get("step", "").isdecimal():
        raise UsageError(f"the step must be a number, got {query.get('step', '')!r}")
    phase = query.get("phase", "")
    slots = questions.first_slots(traced, phase)
    return questions.step_documents(traced, phase, int(query["step"]), slots)


def _document(traced: Traced, query: dict[str, str]) -> Answer:
    if not query.get("name"):
        raise UsageError("give a document's name, or a piece of it")
    return questions.document_steps(traced, query["name"])


def server(explorer: Explorer, port: int) -> ThreadingHTTPServer:
    """Return a server of an explorer on the loopback address; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = (self.headers.get("Host") or "").rpartition(":")[0]
            if host not in NAMES:  # another site's name that was made to lead here
                self.send_error(403, "ask for 127.0.0.1")
                return
            status, html = explorer.page(self.path)
            content = html.encode()
            self.send_response(status)
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  its name there
            """Say nothing of each request."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise UsageError(f"--port: can't take {port}: {error}; give another, or 0") from None
