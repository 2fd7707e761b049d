"""The verbs that answer to those outside: audit, redact, purge, card, report, serve.

Each imports what it needs when it runs, so that `--help` is quick.
"""

import sys
from pathlib import Path
from typing import Any

import click

from crystalmix.train.commands.options import (
    JSON,
    MOVED,
    OUT,
    PATH,
    PLACE,
    WORKERS,
    Verb,
    note,
    refuse_without,
    show_answer,
    show_lines,
    show_phases,
)

FORMS = ("md", "dataset-card", "model-card", "croissant", "aiact", "spdx", "openlineage")
SHOWN = 8  # fields that are not stated
LIST = "A file of names, prefixes (owner/), urls, digest: and sql: entries, one a line."


@click.command(cls=Verb, example="crystalmix audit run --list names.txt --evidence evidence.json")
@click.argument("run", type=PLACE)
@click.option("--list", "listed", type=PATH, help=LIST)
@click.option("--evidence", type=PATH, help="Write what the answer rests on into this file.")
@click.option("--letter", type=PATH, help="Write the answer as a text to send into this file.")
@click.option("--by", default="", help="Who answers for it, and when; it is signed so.")
@click.option("--check", type=PATH, help="Check this evidence from the files themselves.")
@MOVED
@JSON
def audit(run: Path, listed: Path | None, as_json: bool, **settings: Any) -> None:
    """Say whether, when and how often RUN (or a build, as planned) consumed what a list names."""
    from crystalmix.train.api import answering

    if (check := settings.pop("check")) is not None:
        refuse_without("--list", "evidence", "letter", "by")
        verdict = answering.check_evidence(run, check, build=settings["build"])
        show_answer(verdict, as_json)
        return
    if listed is None:
        raise click.UsageError("Missing option '--list' (or '--check').")
    answer = answering.audit(run, listed, **settings)
    for kind in ("evidence", "letter"):
        if settings[kind]:
            note(f"{settings[kind]}: written")
    show_answer(answer, as_json)


@click.command(cls=Verb, example="crystalmix redact build --list names.txt --out redacted")
@click.argument("build", type=PATH)
@click.option("--list", "listed", type=PATH, required=True, help=LIST)
@OUT
@click.option("--copies", is_flag=True, help="Take other documents of equal text, too.")
@click.option(
    "--rebuild", metavar="RECIPE", help="Build this recipe without them, and tell what moves."
)
@click.option("--data", type=PATH, help="With --rebuild: folder of the raw files.")
@WORKERS
def redact(build: Path, listed: Path, out: Path, rebuild: str | None, **settings: Any) -> None:
    """Write a view of BUILD in which the documents of a list are padding; all else stays.

    With --rebuild a build of its own, without the texts; what differs from BUILD is listed.
    """
    from crystalmix.train.api import answering

    if rebuild is None:
        refuse_without("--rebuild", "data", "workers")
        show_phases(answering.redact(build, listed, out, copies=settings["copies"]))
        return
    more = {key: settings[key] for key in ("data", "workers")}
    answer = answering.rebuild_without(build, listed, rebuild, out, **more)
    show_lines(answer.lines())


@click.command(cls=Verb, example="crystalmix purge build --list names.txt --erase")
@click.argument("build", type=PATH)
@click.option("--list", "listed", type=PATH, help=f"{LIST} Without it the log is shown.")
@click.option("--erase", is_flag=True, help="Do it; without this it is only listed.")
@click.option("--copies", is_flag=True, help="Take other documents of equal text, too.")
@click.option("--keep-names", is_flag=True, help="Erase texts and metadata, and leave names.")
@click.option("--everywhere", is_flag=True, help="Of a shared store: erase from all its builds.")
@click.option("--by", default="", help="Who answers for it; the certificate says so.")
@click.option("--resume", is_flag=True, help="Go on with a purge that was killed.")
@JSON
def purge(build: Path, listed: Path | None, as_json: bool, **settings: Any) -> None:
    """Erase the documents of a list from the files of BUILD, and certify what was erased.

    It can't be undone. Without --erase it is only listed what would be erased.
    """
    from crystalmix.train.api import purges

    show_answer(purges.purge(build, listed, **settings), as_json)


@click.command(cls=Verb, example="crystalmix card build --as dataset-card --out README.md")
@click.argument("path", metavar="BUILD|RUN", type=PLACE)
@click.option(
    "--as", "form", type=click.Choice(FORMS), default="md", help="What to write (default: md)."
)
@click.option("--out", type=PATH, help="File to write into; without it the card is printed.")
@click.option("--about", type=PATH, help="A YAML file of what belongs to no source.")
@click.option("--strict", is_flag=True, help="Exit with 1 where a field is not stated.")
@MOVED
def card(path: Path, form: str, strict: bool, **settings: Any) -> None:
    """Write what is published of a BUILD or RUN: a card, Croissant, the EU's summary.

    Facts are those of manifests, receipts and the ledger; what none of them answers, nor --about,
    is named as not stated.
    """
    from crystalmix.train.api import answering

    answer = answering.card(path, form, **settings)
    if settings["out"] is None:
        click.echo(answer.text, nl=False)
    else:
        note(f"{settings['out']}: written")
    if answer.unstated:
        shown = ", ".join(answer.unstated[:SHOWN])
        more = ", ..." if len(answer.unstated) > SHOWN else ""
        note(f"{len(answer.unstated)} fields are not stated: {shown}{more}")
        if strict:
            sys.exit(1)


@click.command(cls=Verb, example="crystalmix report run --html report.html")
@click.argument("path", metavar="BUILD|RUN|ABLATION", type=PATH)
@click.option("--html", type=PATH, help="File to write the page into; it needs nothing else.")
@click.option(
    "--verify/--no-verify",
    default=None,
    help="Put the result of verify on the page, or not (by default below 1 GiB of rows).",
)
@WORKERS
@MOVED
@JSON
def report(path: Path, html: Path | None, as_json: bool, **settings: Any) -> None:
    """Write a page to look at: records, mixture, flow, repeats, loss, rows, certificate.

    One HTML file that opens from disk. Every number on it names its place in what --json prints.
    Exit code 1 if verify finds a fault.
    """
    from crystalmix.train.api import answering

    if html is None and not as_json:
        raise click.UsageError("Missing option '--html' (or '--json').")
    answer = answering.report(path, html, **settings)
    if html is not None:
        note(f"{html}: written, {html.stat().st_size:,} bytes")
    show_answer(answer, as_json)


@click.command(cls=Verb, example="crystalmix serve run")
@click.argument("path", metavar="BUILD|RUN|ABLATION", type=PATH)
@click.option("--port", type=click.IntRange(0, 65535), default=8321, help="Of 127.0.0.1 (8321).")
@MOVED
def serve(path: Path, port: int, build: Path | None) -> None:
    """Serve a report to browsers on this machine, with search of documents and steps.

    Steps are those that a RUN recorded or that a BUILD plans. It listens on 127.0.0.1 alone and
    writes nothing; Ctrl-C ends it.
    """
    from crystalmix.train.api import answering

    answering.serve(path, port, build=build, say=click.echo)
