"""Cards: their numbers are those of the files, their form is what readers of it take."""

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

import crystalmix as cm
from crystalmix.cli import main
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.prep.runtime.errors import (
    DamageError,
    InputError,
    RecipeError,
    RefusalError,
    UsageError,
)
from crystalmix.train.commands.answering import FORMS
from crystalmix.train.report import cards
from helpers.corpora import write_corpus, write_recipe
from helpers.described import ABOUT, described, given
from helpers.runs import small_build, undisturbed

HEADINGS = [
    *("1", "1.1", "1.2", "1.3", "2", "2.1", "2.2", "2.2.1", "2.2.2", "2.3", "2.4", "2.5", "2.6"),
    *("3", "3.1", "3.2", "3.3"),
]


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def head_of(text: str) -> dict[str, object]:
    _, head, _ = text.split("---\n", 2)
    return YAML(typ="safe").load(head)


def used(text: str, number: str) -> str:
    match = re.search(rf"#+ {re.escape(number)} [^\n]*\n\n- Used: ([^\n]*)\n", text)
    assert match, number
    return match[1]


def manifests(build: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in sorted(build.glob("phases/*/manifest.json"))]


def held(build: Path, domain: str) -> int:
    """Count the tokens of a domain's packed rows that are of documents, from its spans."""
    spans = (build / "domains" / domain / "epoch-0").glob("*.spans.parquet")
    tables = [pq.read_table(path, columns=["start", "stop"]) for path in spans]
    return sum(
        stop - start
        for table in tables
        for start, stop in zip(*(table[n].to_pylist() for n in ("start", "stop")), strict=True)
    )


def test_descriptions_change_neither_manifests_nor_receipts() -> None:
    patterns = ("*/*/receipt.json", "domains/*/*/receipt.json", "phases/*.json")
    patterns = (*patterns, "phases/*/manifest.json")
    files = [path for pattern in patterns for path in described().glob(pattern)]
    names = {path.relative_to(described()).as_posix() for path in files}
    assert len(names) > 10
    volatile = {"digest", "seen"}  # times of files
    for name in sorted(names):
        ours, plain = (json.loads((b / name).read_bytes()) for b in (described(), small_build()))
        if name.startswith("sources/"):
            ours, plain = ({k: v for k, v in c.items() if k not in volatile} for c in (ours, plain))
        assert ours == plain, name


def test_another_description_rebuilds_nothing(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    path, out = write_recipe(tmp_path), tmp_path / "build"
    cm.build(path, out, data=tmp_path, phases=["prose"])
    assert not (out / "about.json").exists()
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    content = YAML(typ="safe").load(path)
    content["sources"]["wiki"]["about"] = ABOUT
    with path.open("w") as file:
        YAML().dump(content, file)
    cm.build(path, out, data=tmp_path, phases=["prose"])
    after = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    assert {p.name for p in after.keys() - before.keys()} == {"about.json"}
    assert before.items() <= after.items()
    sealed = json.loads((out / "about.json").read_bytes())["sources"]["wiki"]
    assert sealed["about"]["collected"] == {"from": "2023", "to": "2023-03"}
    assert sealed["about"]["revision"] == "1.0"
    assert "Encyclopedia" in cm.card(out).text
    (out / "about.json").write_bytes((out / "about.json").read_bytes().replace(b"CC-BY", b"CC-BX"))
    with pytest.raises(DamageError, match=r"about\.json: was edited"):
        cm.card(out)


def test_a_description_of_other_documents_is_not_taken(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    path, out = write_recipe(tmp_path), tmp_path / "build"
    content = YAML(typ="safe").load(path)
    content["sources"]["wiki"]["about"] = ABOUT
    with path.open("w") as file:
        YAML().dump(content, file)
    cm.build(path, out, data=tmp_path, phases=["prose"])
    old = (out / "about.json").read_bytes()
    content["sources"]["wiki"]["where"] += " AND length(text) > 100"
    with path.open("w") as file:
        YAML().dump(content, file)
    cm.build(path, out, data=tmp_path, phases=["prose"])
    assert "Encyclopedia" in cm.card(out).text
    (out / "about.json").write_bytes(old)
    assert "Encyclopedia" not in cm.card(out).text


@pytest.mark.parametrize(
    ("key", "value"),
    [("kind", "stolen"), ("collected", {"from": "last May"}), ("licenced", "MIT")],
)
def test_a_wrong_description_names_its_line(tmp_path: Path, key: str, value: object) -> None:
    write_corpus(tmp_path)
    path = write_recipe(tmp_path)
    content = YAML(typ="safe").load(path)
    content["sources"]["wiki"]["about"] = {key: value}
    with path.open("w") as file:
        YAML().dump(content, file)
    with pytest.raises(RecipeError, match=rf"{path.name}:\d+: sources\.wiki\.about\.{key}"):
        recipes.load(path)


def test_numbers_of_the_plain_card_are_those_of_the_files() -> None:
    text = cm.card(described(), about=given()).text
    assert text == cm.card(described(), about=given()).text
    domains = ("wiki", "book", "web", "code", "python")
    tokens = {domain: held(described(), domain) for domain in domains}
    for domain in domains:
        path = described() / "sources" / domain / "documents.parquet"
        documents = pq.read_metadata(path).num_rows
        assert f"| {domain} | {domain} | {documents:,} | {tokens[domain]:,} |" in text
    assert f"each once: {sum(tokens.values()):,}\n" in text
    planned = sum(m["steps"] * m["batch"] * m["msl"] for m in manifests(described()))
    assert f"Tokens planned, epochs counted: {planned:,}\n" in text
    for manifest in manifests(described()):
        assert f"manifest of {manifest['phase']}: `{manifest['digest']}`" in text


def test_a_card_of_a_run_counts_what_its_ledger_has() -> None:
    run = undisturbed()
    text = cm.card(run, "model-card").text
    whole = 0
    for manifest in manifests(small_build()):
        rows = [
            row
            for path in run.glob(f"{manifest['phase']}/ledger/rows-*.parquet")
            for row in map(str, pq.read_table(path)["part"].to_pylist())
        ]
        whole += len(rows) * 64
        for part in set(rows):
            count = rows.count(part)
            assert re.search(rf"\| {re.escape(part)} \|.*\| {count:,} \| {count * 64:,} \|", text)
    assert f"Tokens consumed by recorded steps, epochs counted: {whole:,}\n" in text
    state = max(run.glob("prose/checkpoints/*/state.json"))
    assert json.loads(state.read_bytes())["weights"] in text


def test_the_head_of_a_dataset_card_is_yaml_of_the_hub() -> None:
    head = head_of(cm.card(described(), "dataset-card", about=given()).text)
    assert head["pretty_name"] == "Small: a mixture"
    assert head["license"] == "odc-by"
    assert head["language"] == ["en", "fr"]
    assert head["source_datasets"] == ["example/wiki"]
    assert head["size_categories"] == ["n<1K"]
    configs = head["configs"]
    assert isinstance(configs, list)
    assert all((described() / c["data_files"]).is_file() for c in configs)
    assert "license" not in head_of(cm.card(small_build(), "dataset-card").text)


def test_a_model_card_is_of_a_run() -> None:
    head = head_of(cm.card(undisturbed(), "model-card", about=given()).text)
    assert head == {"license": "apache-2.0", "tags": ["crystalmix"]}
    with pytest.raises(UsageError, match="a model card needs a run"):
        cm.card(described(), "model-card")


def test_croissant_lists_files_with_their_bytes_and_columns() -> None:
    content = json.loads(cm.card(described(), "croissant", about=given()).text)
    required = "@context @type conformsTo name description license url creator datePublished"
    assert set(required.split()) <= content.keys()
    assert content["version"] == "1.0.0"
    files = {entry["@id"]: entry for entry in content["distribution"]}
    for name, entry in files.items():
        raw = (described() / name).read_bytes()
        assert entry["sha256"] == sha256(raw).hexdigest()
        assert entry["contentSize"] == f"{len(raw)} B"
    shards = {
        shard["path"] for m in manifests(described()) for p in m["parts"] for shard in p["shards"]
    }
    assert {name for name in files if name.endswith(".h5")} == shards
    sides = [name for name in files if name.endswith(".spans.parquet")]
    assert len(sides) == len([*described().glob("domains/*/epoch-*/*.spans.parquet")])
    for records in content["recordSet"]:
        ids = {field["@id"] for field in records["field"]}
        assert records["key"]["@id"] in ids
        for field in records["field"]:
            file = field["source"]["fileObject"]["@id"]
            assert field["source"]["extract"]["column"] in pq.read_schema(described() / file).names
            assert files[file]["encodingFormat"] == "application/x-parquet"
    assert str(described()) not in json.dumps(content)


def test_the_summary_has_every_section_in_order() -> None:
    for build, about in ((described(), given()), (small_build(), None)):
        text = cm.card(build, "aiact", about=about).text
        found = re.findall(r"^#+ (\d[\d.]*) ", text, re.MULTILINE)
        assert found == HEADINGS


def test_the_summary_puts_sources_where_their_kind_says() -> None:
    text = cm.card(described(), "aiact", about=given()).text
    assert [used(text, n) for n in ("2.1", "2.2.1", "2.2.2", "2.3", "2.4", "2.5", "2.6")] == [
        *("yes", "yes", "no", "yes", "yes", "yes", "no")
    ]
    assert "generated by: model-a, model-b" in text
    assert "crawler: webbot" in text
    assert "Latest date of acquisition: 2024-02-03 (stated of 2 of 5 sources)" in text
    whole = sum(held(described(), domain) for domain in ("wiki", "book", "web", "code", "python"))
    assert f"less than 1 billion tokens ({whole:,}, each domain once)" in text
    rows = text.split("### Tokens of each source in each domain")[1].split("## 3")[0]
    counts = [line.split("|")[4].replace(",", "") for line in rows.splitlines() if "| " in line]
    assert sum(int(count) for count in counts[1:]) == whole


def test_what_nothing_answers_is_named_and_never_a_no() -> None:
    card = cm.card(small_build(), "aiact")
    assert used(card.text, "2.1") == used(card.text, "2.6") == "not stated"
    assert "provider.name" in card.unstated
    for name in card.unstated:
        assert f"\n- {name}\n" in card.text
    assert not re.search(r"\b(may|some)\b", card.text)


def test_the_command_writes_files_and_names_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "card.md"
    result = call("card", described(), "--about", given(), "--out", out)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert out.read_text() == cm.card(described(), about=given()).text
    assert "fields are not stated" in result.stderr
    printed = call("card", described(), "--about", given(), "--strict")
    assert printed.exit_code == 1
    assert printed.stdout == out.read_text()
    assert cards.FORMS.keys() == set(FORMS)
    assert call("card", described(), "--as", "pdf").exit_code == 2
    with pytest.raises(UsageError, match="--as pdf: is no form of a card; use one of md, "):
        cm.card(described(), "pdf")


def test_what_is_no_build_or_card_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no build and no run"):
        cm.card(tmp_path)
    (tmp_path / "card.yaml").write_text("provider: {nme: X}\n")
    with pytest.raises(RecipeError, match=r"card\.yaml:1: provider\.nme: is no known key"):
        cm.card(described(), about=tmp_path / "card.yaml")


def test_a_redacted_view_says_so_and_has_no_croissant(tmp_path: Path) -> None:
    path = described() / "sources" / "wiki" / "documents.parquet"
    digest = pq.read_table(path)["digest"].to_pylist()[0]
    (tmp_path / "list.txt").write_text(f"digest:{digest.hex()}\n")
    view = cm.redact(described(), tmp_path / "list.txt", tmp_path / "view")
    text = cm.card(view.path).text
    assert " is redacted, its manifest says of what; numbers are those before it\n" in text
    assert "### Encyclopedia\n" in text
    with pytest.raises(RefusalError, match="is a redacted view, whose rows no file holds"):
        cm.card(view.path, "croissant")
