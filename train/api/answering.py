"""Answers to those outside: `cm.audit`, `cm.redact`, `cm.fork`, `cm.card`, pages to look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from crystalmix.prep.filters import entries
from crystalmix.prep.runtime.atomic_files import write_atomic
from crystalmix.train.api.checks import Place, existing

if TYPE_CHECKING:
    from crystalmix.train.api.checks import Differences
    from crystalmix.train.api.opened import Build
    from crystalmix.train.audit.audit import Audit
    from crystalmix.train.audit.evidence import Checked
    from crystalmix.train.pages.report_page import Report
    from crystalmix.train.report.cards import Card


def audit(
    run: Place,
    listed: Place,
    *,
    build: Place | None = None,
    evidence: Place | None = None,
    letter: Place | None = None,
    by: str = "",
) -> Audit:
    """Say whether, when and how often a run consumed what a list of entries names.

    run: a run, or a build, for what is planned. listed: a file of names, prefixes (`owner/`), urls,
    `digest:` and `sql:` entries, one a line. evidence, letter: files to write, which `by` signs.
    Raises InputError for a bad list, RefusalError for imported rows, DamageError where ledger and
    plan disagree.
    """
    from crystalmix.train.audit import audit as audits
    from crystalmix.train.audit import evidence as proofs
    from crystalmix.train.audit import letter as letters
    from crystalmix.train.record import run_folder

    at, place = run_folder.run_and_build(existing(run), existing(build))
    answer = audits.audit(at, place, entries.read(existing(listed)))
    if evidence is not None or letter is not None:
        content = proofs.evidence(answer, by)
        if evidence is not None:
            proofs.write(Path(evidence), content)
        if letter is not None:
            write_atomic(Path(letter), letters.letter(answer, content, by).encode())
    return answer


def check_evidence(run: Place, evidence: Place, *, build: Place | None = None) -> Checked:
    """Check the evidence of an audit from the files themselves, without the audit's lookups.

    Faults are lines of the result: a byte that changed in the evidence, or in what it rests on.
    """
    from crystalmix.train.audit import evidence as proofs
    from crystalmix.train.record import run_folder

    at, place = run_folder.run_and_build(existing(run), existing(build))
    return proofs.check(existing(evidence), place, at)


def redact(build: Place, listed: Place, out: Place, *, copies: bool = False) -> Build:
    """Write a view of a build in which the documents of a list are tombstones; return it.

    Every other row, the order and the digests of shards stay; nothing is copied and nothing of the
    build is changed. copies: other documents of equal text are taken, too. Raises InputError where
    the list names no document or `out` holds something, RefusalError for imported rows.
    """
    from crystalmix.mixtures.redaction import redact as redaction
    from crystalmix.train.api.opened import Build

    redaction.redact(existing(build), existing(listed), Path(out), copies=copies)
    return Build(Path(out))


def fork(run: Place, view: Place, out: Place) -> str:
    """Begin a run over a redacted build with what `run` recorded before it consumed what was taken.

    `cm.train(view, run_file, out=out)` goes on from there. Returns what is kept, in words; a fork
    that is there stays. Raises UsageError for a build that is not redacted, StaleError where the
    run is not over its origin, RefusalError where no checkpoint is kept from before.
    """
    from crystalmix.train.audit.fork import fork as begin

    return begin(existing(run), existing(view), Path(out))


def rebuild_without(
    build: Place,
    listed: Place,
    recipe: Place,
    out: Place,
    *,
    data: Place | None = None,
    workers: int = 1,
) -> Differences:
    """Build a recipe anew without the documents of a list; return what differs from a build.

    The texts are left out of all sources by their digests, which lie in `OUT.without.txt`: copies
    of equal text go with them. Rows move: this is another build, no view. Errors as of `cm.build`.
    """
    from crystalmix.mixtures.build.lookups import ensured
    from crystalmix.mixtures.redaction import redact as redaction
    from crystalmix.train.api import checks
    from crystalmix.train.api.data import build as make

    removal = redaction.take(ensured(existing(build)), existing(listed), copies=True)
    file = Path(f"{out}.without.txt")
    digests = sorted({document.digest for document in removal.documents})
    write_atomic(file, "".join(f"{digest}\n" for digest in digests).encode())
    make(recipe, out, data=data, without=file, workers=workers)
    return checks.diff(build, out)


def card(
    path: Place,
    form: str = "md",
    *,
    out: Place | None = None,
    about: Place | None = None,
    build: Place | None = None,
) -> Card:
    """Return what is published of a build or run, from its manifests, receipts and ledger.

    form: `md`, `dataset-card`, `model-card` (of runs), `croissant` or `spdx` (which read all files,
    for their sha256), `aiact` or `openlineage`. out: a file to write it into. about: a card
    file, for what belongs to no source. `unstated` of the result lists what nothing answers. Raises
    UsageError for another form, RecipeError for a fault of the card file, InputError where there is
    no build or run.
    """
    from crystalmix.train.report import cards

    file = existing(about)
    answer = cards.card(existing(path), form, about=file, build=existing(build))
    if out is not None:
        write_atomic(Path(out), answer.text.encode())
    return answer


def report(
    path: Place,
    html: Place | None = None,
    *,
    build: Place | None = None,
    verify: bool | None = None,
    workers: int = 1,
) -> Report:
    """Return the report of a build, a run or an ablation, and write it as one HTML file.

    html: the file, which opens from disk and needs nothing else. build: where a run's build is, if
    it was moved. verify: read every file again, with `workers` processes, and put the result on
    the page; by default where the rows come to less than 1 GiB. Raises InputError where there is
    nothing to report.
    """
    from crystalmix.train.api import checks
    from crystalmix.train.pages import evidence, report_page
    from crystalmix.train.record import run_folder

    folder = existing(path)
    if _is_ablation(folder):
        page = report_page.Report(evidence.of_ablation(folder))
    else:
        run, place = run_folder.run_and_build(folder, existing(build))
        if verify is None:
            verify = report_page.is_small(place)
        verdict = checks.verify(place, run=run, workers=workers) if verify else None
        assert not isinstance(verdict, checks.ShardVerdict)
        page = report_page.Report(evidence.of_build(run, place, verdict))
    if html is not None:
        page.write(Path(html))
    return page


def serve(
    path: Place,
    port: int = 8321,
    *,
    build: Place | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> None:
    """Serve the report of a build, a run or an ablation on 127.0.0.1 until interrupted.

    Of a run it has search of documents and of recorded steps, of a build of those planned. port: 0
    takes a free one. say: takes the address. Raises InputError where there is none of the three,
    UsageError where the port is taken.
    """
    from crystalmix.train.pages import serve as serving
    from crystalmix.train.record import run_folder

    folder = existing(path)
    if _is_ablation(folder):
        explorer = serving.Explorer.of_ablation(folder)
    else:
        place = existing(build)
        explorer = serving.Explorer.of(*run_folder.run_and_build(folder, place))
    with serving.server(explorer, port) as server:
        say(f"http://{serving.HOST}:{server.server_address[1]}/")
        server.serve_forever()


def _is_ablation(folder: Path) -> bool:
    from crystalmix.train.api.ablations import is_ablation
    from crystalmix.train.record.run_folder import WHERE

    built = (folder / WHERE).exists() or (folder / "phases").exists()
    return not built and is_ablation(folder)
