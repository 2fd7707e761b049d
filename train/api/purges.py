"""`cm.purge`: erasure of documents from a build on request, its plan, certificate and log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalmix.prep.runtime.errors import UsageError
from crystalmix.train.api.checks import Place, existing
from crystalmix.train.trace.answers import Answer, Grid

if TYPE_CHECKING:
    from crystalmix.mixtures.manifest.purged import Certificate, Request
    from crystalmix.mixtures.upkeep.purge import Plan
    from crystalmix.prep.runtime.types import Content

WORDS = {
    "builds": "builds of the store",
    "documents": "documents",
    "dropped": "dropped records",
    "rows": "rows that hold them",
    "tokens": "tokens, to be padding",
    "shards": "shards to write anew",
    "files": "files of caches to remove",
    "unnamed": "bytes that nothing names, to free",
    "copies": "copies under other names, which stay",
    "gone": "documents that were purged before",
}


@dataclass(frozen=True)
class PurgePlan(Answer):
    """What a purge would erase."""

    build: Path
    plan: Plan

    def content(self) -> Content:
        """Return the counts as JSON."""
        return {**asdict(self.plan), "erased": False}

    def shown(self) -> Iterator[str | Grid]:
        """Yield the counts, and that nothing was erased."""
        counts = self.content()
        kinds = {
            key: words for key, words in WORDS.items() if key != "builds" or self.plan.builds > 1
        }
        yield Grid([[words, f"{counts[key]:,}"] for key, words in kinds.items()], ["what", "count"])
        yield "nothing is erased (add --erase, which can't be undone)"


@dataclass(frozen=True)
class Purged(Answer):
    """The certificate of a purge; file: where it lies."""

    file: Path
    certificate: Certificate

    def content(self) -> Content:
        """Return the certificate."""
        return self.certificate.content()

    def shown(self) -> Iterator[str | Grid]:
        """Yield what was erased, what stays, and what could not be reached."""
        cert = self.certificate
        done = [file.done for file in cert.files]
        counts = [
            *([WORDS[key], f"{getattr(cert, key):,}"] for key in ("documents", "dropped", "rows")),
            ["tokens, now padding", f"{cert.tokens:,}"],
            ["files written anew", done.count("rewritten")],
            ["files removed", done.count("removed")],
        ]
        yield Grid(counts, ["erased", "count"])
        for manifest in cert.manifests:
            place = "" if manifest.place == "." else f"{manifest.place} "
            before, after = manifest.before[:16], manifest.after[:16]
            yield f"{place}{manifest.phase}: manifest {before} is superseded by {after}"
        for key in ("stays", "not_reached", "not_verified"):
            yield from (f"{key.replace('_', ' ')}: {line}" for line in getattr(cert, key))
        yield from (f"purged together, with its own certificate: {p}" for p in cert.builds or ())
        if cert.not_read:
            yield f"not read: {', '.join(cert.not_read)}"
        yield f"certificate: {self.file}"


@dataclass(frozen=True)
class PurgeLog(Answer):
    """The requests of a build, by time, each with how it stands."""

    requests: tuple[tuple[Request, str], ...]

    def content(self) -> list[Content]:
        """Return the requests as JSON, without names and documents."""
        hidden = ("documents", "names_kept", "salt", "caches", "links")
        return [
            {k: v for k, v in request.content().items() if k not in hidden} | {"state_is": state}
            for request, state in self.requests
        ]

    def shown(self) -> Iterator[str | Grid]:
        """Yield a line for each request."""
        cells: list[list[Any]] = [
            [request.id, request.time, len(request.documents), request.names, request.by, state]
            for request, state in self.requests
        ]
        head = ["purge", "time", "records", "names", "by", "state"]
        yield Grid(cells, head) if cells else "nothing was purged"


def purge(
    build: Place,
    listed: Place | None = None,
    *,
    erase: bool = False,
    resume: bool = False,
    copies: bool = False,
    keep_names: bool = False,
    everywhere: bool = False,
    by: str = "",
) -> Purged | PurgePlan | PurgeLog:
    """Erase the documents of a list from a build; return the certificate, the plan, or the log.

    Without `erase` nothing is written: what would be erased is returned. Without a list the log of
    requests is. resume: go on with a purge that was killed. copies: other documents of equal text,
    too. keep_names: names of documents stay. everywhere: from all builds of a shared store, each
    with a certificate. by: who answers for it. It can't be undone. Raises RefusalError where other
    builds share the store and `everywhere` is not said, or where rows were imported, InputError
    where the list names nothing.
    """
    from crystalmix.mixtures.manifest import purged
    from crystalmix.mixtures.manifest.build_folder import BuildFolder
    from crystalmix.mixtures.upkeep import purge as purging

    place = existing(build)
    log = purged.log(BuildFolder(place))
    if resume:
        if listed is not None or erase:
            raise UsageError("resume: takes no list; what is to be erased stands in the request")
        return _purged(log, purging.resume(place))
    if listed is None:
        if erase:
            raise UsageError("erase: needs a list of what is to be erased")
        return _log(place)
    if not erase:
        plan = purging.plan(place, existing(listed), copies=copies, everywhere=everywhere)
        return PurgePlan(place, plan)
    settings = {"copies": copies, "keep_names": keep_names, "everywhere": everywhere}
    return _purged(log, purging.purge(place, existing(listed), by=by, **settings))


def _purged(log: Path, certificate: Certificate) -> Purged:
    from crystalmix.mixtures.manifest import purged

    return Purged(log / certificate.id / purged.CERTIFICATE, certificate)


def _log(build: Path) -> PurgeLog:
    from crystalmix.mixtures.manifest import purged
    from crystalmix.mixtures.manifest.build_folder import BuildFolder

    folder = BuildFolder(build)
    done = {certificate.id for certificate in purged.certificates(folder)}
    states = {True: "done", False: "not finished: --resume"}
    return PurgeLog(
        tuple((request, states[request.id in done]) for request in purged.requests(folder))
    )
