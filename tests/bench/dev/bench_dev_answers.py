"""Answers on real text, held against a recount: `python bench_dev_answers.py DEV TOKENIZER`.

DEV: a corpus in the layouts of SlimPajama and StarCoder; TOKENIZER: the tokenizer.json of recipe
crystalcoder-mini. Of each set some texts are taken, cut at 16,000 characters; with --whole behind
the paths all texts of all files, as they are. Two repositories are added: `two/phases`, real Python
whose characters are moved into an alphabet that no other text has, so that its ids tell its pieces,
and `dropped/copy` of the same texts. The recipe is built, some steps are trained, three
repositories are audited (those two, and one that is not there), redacted, and purged. What is
counted here is read by h5py, pyarrow and tokenizers alone.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from tokenizers import Tokenizer

import crystalmix as cm

OWN, COPY, ABSENT = "two/phases", "dropped/copy", "not/there"
WHOLE = "--whole" in sys.argv
TEXTS, CHARACTERS = (None, None) if WHOLE else (24, 16_000)
OWN_TEXTS = 40 if WHOLE else 3
BYTE = re.compile("<0x[0-9A-F]{2}>")
MOST_BLANK = 16  # ids of a piece that a row's end cut off, which may be blanks or half a letter
LETTERS = {chr(c): chr(0x1200 + c) for c in range(33, 127)}  # into Ethiopic
LANGUAGES = ("css", "javascript", "html", "python")
STEPS = {"phase1": 8, "phase2": 20, "phase3": 20}
NAME = "max_stars_repo_name || '/' || max_stars_repo_path"
SETTINGS = (
    *(f"phases.{phase}.steps={steps}" for phase, steps in STEPS.items()),
    *(
        "phases.phase2.max_shared=1",
        f"rows.rows_per_shard={64 if WHOLE else 4}",
        "duplicates.exact=source",
    ),
    *(f"phases.phase3.parts.{part}.max_epochs=50" for part in range(11)),
    f'sources.starcoder.identity="{NAME}"',
)
RUN = ("runconfig.checkpoint_steps=4",)
Rows = np.ndarray[Any, np.dtype[np.int32]]


def tell(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def write_slice(dev: Path, out: Path) -> None:
    """Write a part of the corpus, and the two repositories."""
    for folder in sorted((dev / "slimpajama").iterdir()):
        lines = [
            orjson.loads(line)
            for file in sorted(folder.iterdir())[: None if WHOLE else 1]
            for line in islice(
                _lines(zstandard.ZstdDecompressor().stream_reader(file.open("rb"))), TEXTS
            )
        ]
        cut = [orjson.dumps({**line, "text": line["text"][:CHARACTERS]}) for line in lines]
        path = out / "slimpajama" / folder.name / "a.jsonl.zst"
        path.parent.mkdir(parents=True)
        path.write_bytes(zstandard.compress(b"\n".join(cut) + b"\n"))
    for name in LANGUAGES:
        files = sorted((dev / "starcoderdata" / name).iterdir())[: None if WHOLE else 1]
        columns = ["max_stars_repo_path", "max_stars_repo_name", "content"]
        rows = [
            row
            for file in files
            for row in pq.read_table(file, columns=columns).slice(0, TEXTS).to_pylist()
        ]
        rows = [{**row, "content": row["content"][:CHARACTERS]} for row in rows]
        if name == "python":
            own = [
                "".join(LETTERS.get(c, c) for c in str(row["content"])[:1500])
                for row in rows[:OWN_TEXTS]
            ]
            for repository in (OWN, COPY):
                rows += [
                    {"max_stars_repo_path": f"{i}.py", "max_stars_repo_name": repository}
                    | {"content": text}
                    for i, text in enumerate(own)
                ]
        path = out / "starcoderdata" / name / "train-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), path)


def _lines(raw: Any) -> Iterator[bytes]:
    rest = b""
    while block := raw.read(1 << 20):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines


Holds = Callable[[list[int]], bool]


def marked(build: Path, file: Path) -> Holds:
    """Return what tells whether ids hold a letter of `two/phases`, as bytes; no other text has one.

    Ids don't tell: letters that are in no vocabulary are bytes, which other texts have, too. Nor
    does the tokenizer's decoder, which gives up a run of bytes that begins within a letter.
    """
    tokenizer, letters = Tokenizer.from_file(str(file)), {*LETTERS.values()}
    for path in sorted((build.parent / "data").rglob("*")):
        if path.suffix == ".parquet":
            table = pq.read_table(path).to_pylist()
            texts = [r["content"] for r in table if r["max_stars_repo_name"] not in (OWN, COPY)]
        elif path.suffix == ".zst":
            texts = [
                orjson.loads(line)["text"]
                for line in zstandard.decompress(path.read_bytes(), 1 << 30).splitlines()
            ]
        else:
            continue
        assert all(letters.isdisjoint(text) for text in texts), path

    spelt = [
        bytes([int(name[3:-1], 16)]) if BYTE.fullmatch(name) else name.encode()
        for name in map(tokenizer.id_to_token, range(tokenizer.get_vocab_size()))
    ]

    def holds(ids: list[int]) -> bool:
        text = b"".join(spelt[number] for number in ids).decode("utf-8", "ignore")
        return not letters.isdisjoint(text)

    return holds


def segments(ids: list[int], bos: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds of the pieces of documents in a row: from BOS to EOS, which is the next id.

    What follows an EOS and is no BOS is padding.
    """
    starts = sorted({0, *(i for i, number in enumerate(ids) if number == bos)})
    for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
        ends = [i + 1 for i in range(start, stop) if ids[i] == bos + 1]
        yield start, (ends or [stop])[0]


def recount(build: Path, run: Path, phase: str, own: Holds, bos: int) -> dict[str, int]:
    """Count what a phase's ledger consumed of `two/phases`, from decoded rows alone."""
    rows = tokens = pieces = 0
    steps: set[int] = set()
    for path in sorted((run / phase / "ledger").glob("rows-*.parquet")):
        table = pq.read_table(path, columns=["step", "shard", "row"]).to_pylist()
        for line in table:
            with h5py.File(build / line["shard"]) as file:
                data: Any = file["data"]
                ids = data[line["row"]][0].tolist()
            held = [stop - start for start, stop in segments(ids, bos) if own(ids[start:stop])]
            if held:
                rows, pieces, tokens = rows + 1, pieces + len(held), tokens + sum(held)
                steps.add(line["step"])
    return {"rows": rows, "pieces": pieces, "tokens": tokens, "steps": len(steps)}


def audited(build: Path, run: Path, folder: Path, own: Holds, bos: int) -> None:
    """Audit the three repositories, hold the counts against the recount, and check the evidence."""
    (folder / "list").write_text("".join(f"{n}\n" for n in (OWN, COPY, ABSENT)), "utf-8")
    answer = cm.audit(run, folder / "list", evidence=folder / "evidence.json")
    present, copy, absent = answer.entries
    assert [one.verdict for one in answer.entries] == ["consumed", "consumed as a copy", "absent"]
    assert {drop.reason for drop in copy.dropped} == {"duplicate"}
    for entry, several in ((present, present.own), (copy, copy.as_copies)):
        seen = {one.phase: one for one in several}
        for phase in STEPS:
            counted = recount(build, run, phase, own, bos)
            got = {key: getattr(seen[phase], key) if phase in seen else 0 for key in counted}
            tell(f"  {entry.entry} {phase}: recount {counted}, audit {got}")
            assert got == counted, (entry.entry, phase)
    assert sum(bool(one.rows) for one in present.own) >= 2
    assert (absent.documents, absent.copies, absent.dropped) == ((), (), ())
    assert cm.check_evidence(run, folder / "evidence.json").faults == ()
    raw = (folder / "evidence.json").read_bytes()
    (folder / "evidence.json").write_bytes(raw.replace(b'"absent"', b'"abseut"'))
    assert cm.check_evidence(run, folder / "evidence.json").faults
    documents = build / "sources/python/documents.parquet"
    (folder / "evidence.json").write_bytes(raw)
    held = documents.read_bytes()
    documents.write_bytes(held[:-20] + bytes([held[-20] ^ 1]) + held[-19:])
    assert cm.check_evidence(run, folder / "evidence.json").faults
    documents.write_bytes(held)


def all_rows(build: Path) -> dict[str, Rows]:
    """Read every row of every last folder of a build, through the reader that trainers use."""
    from crystalmix.mixtures.manifest.manifest import read_manifests
    from crystalmix.prep.rows import shards

    paths = {path for manifest in read_manifests(build) for path in manifest.paths}
    return {path: shards.read(build / path) for path in sorted(paths)}


def without(before: dict[str, Rows], after: dict[str, Rows], own: Holds, bos: int) -> int:
    """Check that rows hold nothing of `two/phases` and all else as it was; count what changed."""
    changed = 0
    for path, rows in before.items():
        assert not any(own(ids) for row in after[path] for ids in row[[0, 2]].tolist()), path
        for was, now in zip(rows, after[path], strict=True):
            ids = was[0].tolist()
            for start, stop in segments(ids, bos):
                same = np.array_equal(was[0, start:stop], now[0, start:stop])
                if own(ids[start:stop]):
                    changed += stop - start
                elif not same:  # the end of a text, without a letter, that the row begins with
                    assert start == 0 or stop == len(ids), path
                    assert stop - start <= MOST_BLANK, path
                    changed += stop - start
            predicted = np.flatnonzero(was[0] != now[0])
            allowed = {*predicted.tolist(), *(predicted - 1).tolist(), was.shape[1] - 1}
            moved = np.flatnonzero((was[1:] != now[1:]).any(axis=0))
            assert set(moved.tolist()) <= allowed
    return changed


def timed(words: str, work: Callable[[], Any]) -> Any:
    """Do something, and print the processor seconds that it took."""
    before = time.process_time()
    result = work()
    tell(f"{words}: {time.process_time() - before:.1f} CPU-s")
    return result


def answer(dev: Path, tokenizer: Path, folder: Path) -> None:
    """Build, train, audit, redact, fork, purge; fail where anything is not as it should be."""
    write_slice(dev, folder / "data")
    build, run = folder / "build", folder / "run"
    data = folder / "data"
    timed(
        "build",
        lambda: cm.build(
            "crystalcoder-mini", build, data=data, tokenizer=tokenizer, overrides=SETTINGS
        ),
    )
    timed("train", lambda: cm.train(build, out=run, overrides=RUN))
    own = marked(build, tokenizer)
    bos = orjson.loads((build / "phases/phase1/manifest.json").read_bytes())["tokenizer"]["special"]
    timed("audit and recount", lambda: audited(build, run, folder, own, bos["bos"]))

    (folder / "gone").write_text(f"{OWN}\n", "utf-8")
    before = all_rows(build)
    digests = {path: path.read_bytes() for path in sorted(build.glob("store/rows/*/*.h5"))}
    view = folder / "view"
    timed("redact", lambda: cm.redact(build, folder / "gone", view))
    tell(f"  {without(before, all_rows(view), own, bos['bos'])} tokens are padding")
    assert all(path.read_bytes() == raw for path, raw in digests.items())
    assert timed("verify", lambda: cm.verify(view)).faults == ()
    tell(f"  {cm.fork(run, view, folder / 'fork')}")
    timed("train the fork", lambda: cm.train(view, out=folder / "fork", overrides=RUN))
    assert cm.verify(view, run=folder / "fork").faults == ()

    certificate = timed("purge", lambda: cm.purge(build, folder / "gone", erase=True)).certificate
    tell(f"  {without(before, all_rows(build), own, bos['bos'])} tokens are padding")
    done = {one.file for one in certificate.files}
    names = {path: path.relative_to(build).as_posix() for path in digests}
    assert all((path.read_bytes() != raw) == (names[path] in done) for path, raw in digests.items())
    tell(f"  {len(done & {*names.values()})} of {len(digests)} shards written anew")
    assert cm.verify(build, run=run).faults == ()


def main() -> None:
    """Answer in a folder that goes when it is done."""
    dev, tokenizer = map(Path, sys.argv[1:3])
    with TemporaryDirectory() as folder:
        answer(dev.resolve(), tokenizer.resolve(), Path(folder))


if __name__ == "__main__":
    main()
