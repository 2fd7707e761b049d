"""Near copies in audits: found by the signatures that a build kept, at their true similarity."""

from pathlib import Path

import orjson
import pytest
import xxhash
import zstandard

import crystalmix as cm
from helpers.audited import audited_build
from helpers.corpora import WORDS, built, crystalmix, write_corpus, write_recipe
from helpers.runs import scratch

pytest.importorskip("datasketch")
TEXT = " ".join(f"{WORDS[i % 29]}{i}" for i in range(300))
NEAR = TEXT.replace(" quartz2 ", " other ").replace(f"{WORDS[150 % 29]}150", "changed")
FAR = " ".join(f"{WORDS[i % 29]}{i if i % 3 else -i}" for i in range(300))


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def near_build(near: dict[str, object] | None) -> Path:
    folder = scratch()
    write_corpus(folder)
    path = sorted((folder / "slimpajama/train").rglob("*.jsonl.zst"))[0]
    lines = zstandard.decompress(path.read_bytes()).splitlines()
    for name, text in (("Wikipedia", TEXT), ("Book", NEAR), ("C4", FAR)):
        meta = {"redpajama_set_name": f"RedPajama{name}"}
        lines.append(orjson.dumps({"text": text, "meta": meta}))
    path.write_bytes(zstandard.compress(b"\n".join(lines) + b"\n"))
    write_recipe(folder, **({} if near is None else {"duplicates": {"near": near}}))
    return built(folder)


def test_near_copies_in_other_sources_are_listed_with_their_similarity(tmp_path: Path) -> None:
    build = near_build({"scope": "source", "permutations": 256})
    (tmp_path / "list").write_text(f"digest:{xxhash.xxh3_128_hexdigest(TEXT.encode())}\n", "utf-8")
    answer = cm.audit(build, tmp_path / "list", letter=tmp_path / "letter")
    [entry] = answer.entries
    assert [one.source for one in entry.documents] == ["wiki"]
    [copy] = entry.copies
    assert (copy.source, copy.digest) == ("book", xxhash.xxh3_128_hexdigest(NEAR.encode()))
    one, other = shingles(TEXT), shingles(NEAR)
    assert copy.similarity == pytest.approx(len(one & other) / len(one | other), abs=0.06)
    assert set(answer.near.searched) == {"wiki", "book", "web", "code", "python"}
    assert f"similarity {copy.similarity:.2f}" in (tmp_path / "letter").read_text("utf-8")
    assert "near copy" in crystalmix("audit", build, "--list", tmp_path / "list").stdout


def test_a_build_without_signatures_says_so_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("seen/twice\n", "utf-8")
    answer = cm.audit(audited_build(), tmp_path / "list", letter=tmp_path / "letter")
    line = "Near copies were not searched: no signatures were kept (`duplicates.near`)"
    assert answer.near.line() == line
    assert f"{line}." in (tmp_path / "letter").read_text("utf-8").splitlines()
