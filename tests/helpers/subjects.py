"""Folders that campaigns damage: builds of every kind and runs over them, each with its check."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from shutil import copytree
from typing import Any

import orjson

import crystalmix as cm
from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.redaction.redact import redact
from crystalmix.mixtures.resealing.mix import mix
from crystalmix.mixtures.upkeep.purge import purge
from crystalmix.mixtures.verify import account_report
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical
from crystalmix.prep.runtime.errors import CrystalmixError
from crystalmix.train.record import seal
from crystalmix.train.trace.findings import findings
from helpers import audited, chat, corpora, hostile, masked, runs, watched

Checked = tuple[list[str], list[str]]  # what was found, and what is said not to be read
POLICY = "policy: group\nsteps: 4\nrate: 2.0\nmemory: 0.2\n"
TABLE = "sha256"
UNCHECKED = "modified"  # of a raw file in a receipt: nothing rests on that time


@dataclass(frozen=True)
class Subject:
    """A folder to damage, and what reads it again."""

    name: str
    folder: Path
    check: Callable[[], Checked]

    def files(self) -> list[Path]:
        """Return its own files that hold something."""
        every = sorted(self.folder.rglob("*"))
        return [p for p in every if p.is_file() and not p.is_symlink() and p.stat().st_size]

    def forgeable(self) -> list[Path]:
        """Return all that carries a digest of itself: receipts, manifests, seals, marks, tables."""
        return [p for p in self.files() if p.suffix == ".json" and _is_sealed(p)]

    def checked(self) -> Checked:
        """Read it again; an error of ours is what is found."""
        try:
            return self.check()
        except CrystalmixError as error:
            return [str(error)], []


def forged(path: Path, rng: Random) -> tuple[bytes, str]:
    """Return a sealed file with one value changed and its digest made anew, and what changed."""
    content = orjson.loads(path.read_bytes())
    seal = _seal_of(content)
    steps = [p for p in hostile.paths(content) if p[0] != seal and p[-1] != UNCHECKED]
    chosen = rng.choice(steps)
    place: Any = content
    for step in chosen[:-1]:
        place = place[step]
    place[chosen[-1]] = _other(place[chosen[-1]], rng)
    return resealed(content), ".".join(map(str, chosen))


def resealed(content: dict[str, Any]) -> bytes:
    """Return the bytes of a sealed file's content with its digest made anew."""
    if _seal_of(content) == TABLE:
        return _dumped({**content, TABLE: _digest(content)})
    return canonical({**content, "digest": _digest(content)})


def every(folder: Path) -> Iterator[Subject]:
    """Make the subjects below a folder."""
    split, run = folder / "build", folder / "run"
    copytree(watched.split_build(), split, symlinks=True)
    watched.train(run, build=split)
    yield Subject("build", split, lambda: _build(split))
    yield Subject("run", run, lambda: _run(split, run))
    yield from _views(folder)
    fitted, talk = folder / "fitted", folder / "talk"
    copytree(masked.masked_build(), fitted, symlinks=True)
    yield Subject("fitted build", fitted, lambda: _build(fitted))
    _talk(talk)
    yield Subject("chat build", talk / "build", lambda: _build(talk / "build"))
    yield _adapted(folder)


def _views(folder: Path) -> Iterator[Subject]:
    """Make a mixture, a redacted view and a purged build of one build with names."""
    home, view, gone = folder / "named", folder / "view", folder / "purged"
    listed = folder / "list"
    listed.write_text("seen/twice\n", "utf-8")
    copytree(audited.audited_build(), home, symlinks=True)
    corpora.write_corpus(folder / "raw")
    parts = [{"domain": "wiki", "weight": 0.3}, {"domain": "web", "weight": 0.7}]
    phases = {"prose": {"steps": 9, "batch": 4, "parts": parts}, "mixed": None, "code": None}
    changed = corpora.write_recipe(
        folder / "raw", name="other", duplicates={"exact": "source"}, phases=phases
    )
    mixture = mix(recipes.load(changed), home)
    redact(home, listed, view)
    copytree(audited.audited_build(), gone, symlinks=True)
    purge(gone, listed, by="a campaign")
    yield Subject("mixture", mixture, lambda: _build(mixture))
    yield Subject("redacted view", view, lambda: _build(view))
    yield Subject("purged build", gone, lambda: _build(gone))


def _talk(folder: Path) -> None:
    folder.mkdir()
    rng = Random(1)
    lines = [
        {
            "messages": [
                {"role": role, "content": " ".join(rng.choices(corpora.WORDS, k=9))}
                for role in ("user", "assistant") * rng.randint(1, 3)
            ]
        }
        for _ in range(40)
    ]
    (folder / "talk.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    (folder / "tokenizer.json").write_bytes(chat.chatty_small())
    rows = {"pack": "best_fit", "group_tokens": 700, "documents": "masked"}
    path = chat.recipe_of(folder, {"template": "chatml"}, rows)
    build(recipes.load(path), folder, folder / "build")


def _adapted(folder: Path) -> Subject:
    run, policy = folder / "adapted", folder / "policy.yaml"
    policy.write_text(POLICY, "utf-8")
    cm.adapt(runs.small_build(), policy, runs.run_file(), phase="mixed", out=run)

    def check() -> Checked:
        verdict = cm.verify(run / "build", run=run)
        return list(verdict.faults), [*verdict.notes, *verdict.checked]

    return Subject("adaptive run", run, check)


def _build(folder: Path) -> Checked:
    notes: list[str] = []
    faults = verify(folder, note=notes.append)
    return faults, notes if faults else [*notes, account_report.checked(folder)]


def _run(build: Path, run: Path) -> Checked:
    sealed = seal.check(run)
    return findings(build, run) + sealed.faults, sealed.notes


def _digest(content: dict[str, Any]) -> str:
    """Return the digest of a file's own content; of a seal over one value, that of the value."""
    if _seal_of(content) == TABLE:
        body = {key: value for key, value in content.items() if key != TABLE}
        return sha256(_dumped(body)).hexdigest()
    body = {key: value for key, value in content.items() if key != "digest"}
    return receipts.digest(next(iter(body.values())) if {*body} in SEALS else body)


def _seal_of(content: dict[str, Any]) -> str:
    """Return the key of a file's digest of itself; tables of shards have another."""
    return "digest" if "digest" in content else TABLE


def _dumped(content: dict[str, Any]) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_SORT_KEYS)


SEALS = ({"phases"}, {"receipts"})


def _is_sealed(path: Path) -> bool:
    try:
        content = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        return False
    return isinstance(content, dict) and content.get(_seal_of(content)) == _digest(content)


def _other(value: Any, rng: Random) -> Any:
    """Return another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice([-1, 1, 7])
    if isinstance(value, float):
        return value * 1.5 + 0.125
    if isinstance(value, str):
        return ("1" if value[:1] != "1" else "0") + value[1:]
    if isinstance(value, list):
        return [*value, value[0] if value else 1]
    return {**value, "more": 1} if isinstance(value, dict) else 1
