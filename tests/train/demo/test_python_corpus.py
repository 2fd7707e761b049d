"""Tests of train.demo.python_corpus: what is taken from an installation, and how it is laid out."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

import crystalmix.train.demo.python_corpus as stage
from crystalmix.prep.runtime.errors import InputError, StaleError, UsageError
from crystalmix.train.demo.python_corpus import (
    DOMAINS,
    LANGUAGES,
    NAME,
    PROSE,
    TINY,
    GatherSettings,
    gather,
    installation,
)

Roots = stage.Roots
AMPLE = GatherSettings(dict.fromkeys(DOMAINS, 100_000))
DOCSTRING = '"""Say what this module does, at length.\n\n' + "Words that explain. " * 40 + '\n"""\n'
COLUMNS = ["max_stars_repo_path", "max_stars_repo_name", "max_stars_count", "id", "content"]


def put(root: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def install(root: Path, distribution: str, files: Mapping[str, str | bytes], readme: str) -> None:
    """Put a distribution into a folder as an installer does, RECORD included."""
    info = f"{distribution}-1.0.dist-info"
    files = dict(files) | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {distribution}\n\n{readme}",
        f"{info}/licenses/LICENSE": f"You may use {distribution} as you like.\n",
    }
    put(root, files)
    lines = [f"{name},sha256=x,{len(content)}" for name, content in files.items()]
    put(root, {f"{info}/RECORD": "\n".join([*lines, f"{info}/RECORD,,", ""])})


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    """A standard library and a folder of packages, small but with every domain."""
    library, packages = tmp_path / "installed/lib", tmp_path / "installed/lib/site-packages"
    topics = {"assert": 'The "assert" statement\n', "if": 'The "if" statement — é\n'}
    files = {
        "pydoc_data/topics.py": f"# made by Sphinx\ntopics = {topics!r}\n",
        "pydoc_data/_pydoc.css": "body { margin: 0 }\n",
        "json/tool.py": f"{DOCSTRING}import sys\n",
        "idlelib/README.txt": "How IDLE is built.\n",
        "idlelib/help.html": "<html><p>IDLE</p></html>\n",
        "test/table.txt": "00 01 02\n",
        "__pycache__/cached.py": "cached = True\n",
    }
    put(library, files)
    code = {f"big/part{number}.py": f"value = {number}\n" for number in range(20)}
    install(packages, "big", {**code, "big/show.js": "const shown = 1;\n"}, "# Big\n")
    small = {"small/one.py": f"{DOCSTRING}one = 1\n", "small/web.mjs": "export const two = 2;\n"}
    install(packages, "small", small, "# Small\n\nA small package.\n")
    return library, packages


def prose(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    for path in sorted((folder / "slimpajama" / name).iterdir()):
        for line in zstandard.ZstdDecompressor().decompress(path.read_bytes()).splitlines():
            yield orjson.loads(line)


def code(folder: Path, language: str) -> list[dict[str, Any]]:
    paths = sorted((folder / "starcoderdata" / language).iterdir())
    return [record for path in paths for record in pq.ParquetFile(path).read().to_pylist()]


def texts(folder: Path, domain: str) -> list[str]:
    if domain in LANGUAGES:
        return [record["content"] for record in code(folder, domain)]
    return [record["text"] for record in prose(folder, domain)]


def contents(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def only(**sizes: int) -> GatherSettings:
    return GatherSettings(sizes)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> stage.Gathered:
    """What this very installation gives within small budgets."""
    return gather(tmp_path_factory.mktemp("real") / "demo", TINY)


def test_two_runs_give_the_same_bytes(real: stage.Gathered, tmp_path: Path) -> None:
    assert contents(gather(tmp_path / "elsewhere", TINY).folder) == contents(real.folder)


def test_every_domain_of_this_installation_has_documents(real: stage.Gathered) -> None:
    assert set(real.documents) == set(DOMAINS)
    assert real.bytes["python"] > 400_000
    assert all(real.documents[domain] >= 2 for domain in DOMAINS)


@pytest.mark.parametrize("domain", DOMAINS)
def test_counts_agree_with_the_files_and_the_budget(real: stage.Gathered, domain: str) -> None:
    found = texts(real.folder, domain)
    assert len(found) == real.documents[domain]
    assert sum(len(text.encode()) for text in found) == real.bytes[domain]
    assert 0 < real.bytes[domain] <= TINY.bytes_per_domain[domain]


def test_texts_are_unique_over_all_domains(real: stage.Gathered) -> None:
    found = [text for domain in DOMAINS for text in texts(real.folder, domain)]
    assert len(set(found)) == len(found)
    assert all(text.strip() for text in found)


def test_nothing_tells_about_this_machine(real: stage.Gathered) -> None:
    private = [str(root) for root in (*installation(), real.folder)]
    assert not any(path in (real.folder / NAME).read_text() for path in private)
    found = [text for domain in DOMAINS for text in texts(real.folder, domain)]
    assert not any(path in text for path in private for text in found)
    names = [record["meta"]["name"] for name in PROSE for record in prose(real.folder, name)]
    for language in LANGUAGES:
        names += [record["max_stars_repo_path"] for record in code(real.folder, language)]
    assert not [name for name in names if name.startswith("/") or ".." in name.split("/")]


@pytest.mark.parametrize("language", LANGUAGES)
def test_code_has_the_columns_of_starcoder(real: stage.Gathered, language: str) -> None:
    paths = sorted((real.folder / "starcoderdata" / language).iterdir())
    assert [path.name for path in paths] == [f"train-0000{k}-of-00002.parquet" for k in range(2)]
    for path in paths:
        schema = pq.read_schema(path)
        assert schema.names == COLUMNS
        assert schema.types == [pa.string(), pa.string(), pa.int64(), pa.string(), pa.string()]
    records = code(real.folder, language)
    assert len({record["id"] for record in records}) == len(records)
    assert all(record["max_stars_count"] > 0 for record in records)


@pytest.mark.parametrize("name", PROSE)
def test_prose_has_the_layout_of_slimpajama(real: stage.Gathered, name: str) -> None:
    paths = sorted((real.folder / "slimpajama" / name).iterdir())
    assert [path.name for path in paths] == [f"example_train_{k}.jsonl.zst" for k in range(4)]
    for record in prose(real.folder, name):
        assert set(record) == {"text", "meta"}
        assert record["meta"]["redpajama_set_name"] == name
        assert record["meta"]["name"]
        assert record["meta"]["source"]


def test_each_domain_finds_its_own_files(roots: Roots, tmp_path: Path) -> None:
    out = gather(tmp_path / "out", AMPLE, roots).folder
    assert sorted(texts(out, "javascript")) == ["const shown = 1;\n", "export const two = 2;\n"]
    assert texts(out, "html") == ["<html><p>IDLE</p></html>\n"]
    assert texts(out, "css") == ["body { margin: 0 }\n"]
    assert sorted(texts(out, "Topics")) == ['The "assert" statement\n', 'The "if" statement — é\n']
    readmes = ["# Big\n", "# Small\n\nA small package.\n", "How IDLE is built.\n"]
    assert sorted(texts(out, "Readme")) == readmes
    assert len(texts(out, "Licences")) == 2
    [docstring] = texts(out, "Docstrings")  # two modules have the same words
    assert docstring.startswith("Say what this module does")


def test_stars_are_the_number_of_files_of_a_distribution(roots: Roots, tmp_path: Path) -> None:
    out = gather(tmp_path / "out", only(python=10_000), roots).folder
    stars = {
        record["max_stars_repo_name"]: record["max_stars_count"] for record in code(out, "python")
    }
    assert stars == {"cpython/stdlib": 6, "big": 24, "small": 5}  # RECORD counts itself


def test_a_large_distribution_does_not_push_a_small_one_out(roots: Roots, tmp_path: Path) -> None:
    (roots[0] / "json/tool.py").unlink()
    put(roots[1], {"small/one.py": "one = 1\n"})
    out = gather(tmp_path / "out", only(python=80), roots).folder
    assert {record["max_stars_repo_name"] for record in code(out, "python")} == {"big", "small"}


def test_a_later_folder_only_fills_what_is_left(roots: Roots, tmp_path: Path) -> None:
    base = tmp_path / "installed/base"
    install(base, "spare", {"spare/spare.js": "let spare = 1;\n"}, "# Spare\n")
    both = gather(tmp_path / "both", only(javascript=1000), (*roots, base))
    assert both.documents == {"javascript": 3}
    full = gather(tmp_path / "full", only(javascript=40), (*roots, base))
    assert "let spare = 1;\n" not in texts(full.folder, "javascript")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("small/latin.js", b"// caf\xe9\n"),
        ("small/empty.js", b""),
        ("small/blank.js", b" \n\n"),
        ("small/huge.js", b"x;" * 100_001),
        ("small/again.js", b"const shown = 1;\n"),
        ("small/__pycache__/cached.js", b"cached();\n"),
    ],
)
def test_unfit_files_are_left_out(roots: Roots, tmp_path: Path, name: str, content: bytes) -> None:
    install(roots[1], "unfit", {name: content}, "# Unfit\n")
    out = gather(tmp_path / "out", only(javascript=1_000_000), roots).folder
    assert sorted(texts(out, "javascript")) == ["const shown = 1;\n", "export const two = 2;\n"]


def test_a_document_with_a_path_of_this_machine_is_left_out(roots: Roots, tmp_path: Path) -> None:
    install(roots[1], "telling", {"telling/a.js": f"open('{roots[1]}/x')\n"}, "# Telling\n")
    out = gather(tmp_path / "out", only(javascript=10_000), roots)
    assert out.documents == {"javascript": 2}


def test_a_docstring_that_is_no_unicode_is_left_out(roots: Roots, tmp_path: Path) -> None:
    lone = DOCSTRING.replace("Words", "\\ud800")
    install(
        roots[1], "lone", {"lone/a.py": lone, "lone/b.py": DOCSTRING + "def broken(:"}, "# Lone\n"
    )
    out = gather(tmp_path / "out", only(Docstrings=100_000), roots)
    assert out.documents == {"Docstrings": 1}


def test_a_file_that_is_gone_is_passed_over(roots: Roots, tmp_path: Path) -> None:
    (roots[1] / "small/web.mjs").unlink()
    assert gather(tmp_path / "out", only(javascript=1000), roots).documents == {"javascript": 1}


def test_data_files_beside_lib_are_found_under_a_clean_name(roots: Roots, tmp_path: Path) -> None:
    install(roots[1], "lab", {"../../share/lab/main.js": "lab();\n"}, "# Lab\n")
    records = code(gather(tmp_path / "out", only(javascript=1000), roots).folder, "javascript")
    assert "share/lab/main.js" in {record["max_stars_repo_path"] for record in records}


def test_our_own_readme_is_not_taken(roots: Roots, tmp_path: Path) -> None:
    install(roots[1], "crystalmix", {}, "# crystalmix\n")
    out = gather(tmp_path / "out", only(Readme=10_000), roots).folder
    assert "# crystalmix\n" not in texts(out, "Readme")


def test_an_empty_domain_is_an_error_that_says_where(roots: Roots, tmp_path: Path) -> None:
    (roots[0] / "pydoc_data/_pydoc.css").unlink()
    with pytest.raises(InputError, match=r"css: no document .*site-packages; install a package"):
        gather(tmp_path / "out", AMPLE, roots)
    assert [path.name for path in tmp_path.iterdir()] == ["installed"]


def test_a_domain_without_a_budget_is_left_out(roots: Roots, tmp_path: Path) -> None:
    out = gather(tmp_path / "out", only(css=1000, html=0), roots)
    assert out.documents == {"css": 1}
    assert sorted(contents(out.folder)) == [NAME, "starcoderdata/css/train-00000-of-00001.parquet"]


def test_prose_takes_at_most_a_quarter_each(roots: Roots, tmp_path: Path) -> None:
    install(roots[1], "wordy", {}, "wordy " * 50)
    out = gather(tmp_path / "out", only(Readme=1000), roots).folder
    assert max(map(len, texts(out, "Readme"))) <= 250


def test_a_finished_folder_of_the_same_settings_is_reused(roots: Roots, tmp_path: Path) -> None:
    first = gather(tmp_path / "out", AMPLE, roots)
    (roots[0] / "pydoc_data/_pydoc.css").unlink()
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    assert gather(tmp_path / "out", AMPLE, roots) == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before


def test_a_folder_of_other_settings_is_refused(roots: Roots, tmp_path: Path) -> None:
    gather(tmp_path / "out", AMPLE, roots)
    with pytest.raises(StaleError, match=r"settings.prose_files: 4, now 3"):
        gather(tmp_path / "out", replace(AMPLE, prose_files=3), roots)


def test_another_folder_is_refused_and_an_empty_one_taken(roots: Roots, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert gather(tmp_path / "empty", AMPLE, roots).documents["css"] == 1
    put(tmp_path, {"other/thesis.tex": "years of work"})
    with pytest.raises(StaleError, match=r"holds no gathered\.json"):
        gather(tmp_path / "other", AMPLE, roots)
    assert (tmp_path / "other/thesis.tex").read_text() == "years of work"


def test_a_failed_write_leaves_nothing_behind(
    roots: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        gather(tmp_path / "out", AMPLE, roots)
    assert [path.name for path in tmp_path.iterdir()] == ["installed"]


def test_settings_refuse_an_unknown_domain_and_no_files() -> None:
    with pytest.raises(UsageError, match="'perl'"):
        only(perl=1000)
    with pytest.raises(UsageError, match="must be 1 or more"):
        GatherSettings(code_files=0)
