"""Tallies of a build: asked for by a description, in no digest, in all cards."""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import crystalmix as cm
from crystalmix.prep.runtime.errors import RecipeError
from helpers.corpora import crystalmix, viewed, write_recipe
from helpers.runs import scratch

HOSTS = ["www.big.example.co.uk"] * 12 + ["mid.example.org"] * 6 + ["small.example.net"] * 2
LICENCES = ["MIT", "[MIT, Apache-2.0]", "our own terms", "MIT"]
DOMAINS = {"kind": "crawled", "domains": "name", "licences": "licence"}


def write_pages(folder: Path) -> Path:
    """Write raw files with urls and licences, and a recipe over them; return the recipe."""
    path = write_recipe(folder)
    recipe = YAML(typ="safe").load(path)
    for number, hosts in enumerate((HOSTS[:11], HOSTS[11:])):
        lines = [
            json.dumps(
                {
                    "text": f"river {number} {place} " + "quartz lantern meadow " * 12,
                    "url": f"https://{host}/page/{place}",
                    "licence": LICENCES[place % len(LICENCES)],
                }
            )
            for place, host in enumerate(hosts)
        ]
        (folder / f"pages-{number}.jsonl").write_text("\n".join(lines) + "\n")
    source = {"files": ["pages-*.jsonl"], "identity": "url", "keep": ["licence"]}
    recipe["sources"] = {"pages": source}
    recipe["domains"] = {"pages": {"sources": ["pages"]}}
    recipe["phases"] = {
        "only": {"steps": 4, "batch": 2, "parts": [{"domain": "pages", "weight": 1}]}
    }
    dump(path, recipe)
    return path


def dump(path: Path, recipe: dict[str, Any]) -> None:
    with path.open("w") as file:
        YAML().dump(recipe, file)


def described(path: Path, about: dict[str, Any]) -> Path:
    recipe = YAML(typ="safe").load(path)
    recipe["sources"]["pages"]["about"] = about
    dump(path, recipe)
    return path


@lru_cache(maxsize=1)
def tallied() -> Path:
    """Return a build with tallies; nobody may change it."""
    from helpers.corpora import tokenizer

    folder = scratch()
    (folder / "tokenizer.json").write_bytes(tokenizer())
    path = write_pages(folder)
    cm.build(path, folder / "plain", data=folder)
    described(path, DOMAINS)
    cm.build(path, folder / "build", data=folder, workers=2)
    return folder / "build"


def of(build: Path) -> dict[str, bytes]:
    folder = build / "lookup" / "sources" / "pages"
    return {path.name: path.read_bytes() for path in folder.glob("[dl]*[sn]*.*") if path.is_file()}


def test_tallies_are_in_no_digest_and_the_same_for_any_number_of_workers() -> None:
    folder = tallied().parent
    assert viewed(tallied()) == viewed(folder / "plain")
    assert not [*(folder / "plain").rglob("domains.*")]
    cm.build(folder / "recipe.yaml", folder / "plain", data=folder, workers=1)
    names = ("domains.json", "domains.parquet", "licences.json", "licences.parquet")
    for name in names:
        first, second = ((b / "lookup/sources/pages" / name) for b in (tallied(), folder / "plain"))
        assert first.read_bytes() == second.read_bytes()


def test_cards_and_show_have_them() -> None:
    text = cm.card(tallied()).text
    assert re.search(
        r"- domains of urls of documents: 3 \(\D.*?\); documents of the largest: ", text
    )
    assert "- licences of documents: 3 (value as it is written); documents of the largest: " in text
    shown = crystalmix("show", tallied()).output
    assert re.search(r"sources/pages: domains: 3 \(.*example\.co\.uk 12, .*without one: 0", shown)
    summary = cm.card(tallied(), "aiact")
    assert "sources.pages.about.domains" not in summary.unstated
    assert "with those of equal size: 1 of 3 (" in summary.text
    assert re.search(r"\| (www\.big\.)?example\.co\.uk \| 12 \| [\d,]+ \|", summary.text)
    assert (
        "small.example.net"
        not in summary.text.split("### 2.4")[0].split("### 2.3")[1].split("| domain |")[1]
    )


def test_an_sme_names_fewer_domains(tmp_path: Path) -> None:
    about = tmp_path / "card.yaml"
    about.write_text("provider: {sme: true}\n")
    text = cm.card(tallied(), "aiact", about=about).text
    assert "the largest 5 % or 1,000, as of an SME by bytes of text" in text


def test_licences_of_documents_are_those_of_croissant_and_spdx() -> None:
    croissant = json.loads(cm.card(tallied(), "croissant").text)
    spdx = "https://spdx.org/licenses"
    assert croissant["license"] == [f"{spdx}/Apache-2.0.html", f"{spdx}/MIT.html", "our own terms"]
    elements = json.loads(cm.card(tallied(), "spdx").text)["@graph"]
    by_id = {e["spdxId"]: e for e in elements if "spdxId" in e}
    [declared] = [e for e in elements if e.get("relationshipType") == "hasDeclaredLicense"]
    words = [
        by_id[place].get("simplelicensing_licenseExpression")
        or by_id[place]["simplelicensing_licenseText"]
        for place in declared["to"]
    ]
    assert sorted(words) == ["Apache-2.0", "MIT", "our own terms"]
    assert "3 values" in declared["comment"]


def test_cards_of_a_hub_dataset_name_its_shards(tmp_path: Path) -> None:
    path = write_pages(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((tallied().parent / "tokenizer.json").read_bytes())
    recipe = YAML(typ="safe").load(path)
    source = {"hub": "json", "data_files": ["pages-0.jsonl"], "identity": "url"}
    recipe["sources"]["pages"] = source
    dump(path, recipe)
    build = cm.build(path, tmp_path / "build", data=tmp_path).path
    text = cm.card(build).text
    assert "(1 file or shard, of a size that is not recorded)" in text
    assert cm.card(build, "aiact").text.count("of a size that is not recorded") == 1
    first = json.loads(cm.card(build, "openlineage").text.splitlines()[0])
    assert [(each["namespace"], each["name"]) for each in first["inputs"]] == [
        ("hub:json", "shard 0")
    ]
    [file] = [
        e
        for e in json.loads(cm.card(build, "spdx").text)["@graph"]
        if e["type"] == "software_File" and "source-pages-file" in e["spdxId"]
    ]
    assert (file["name"], "verifiedUsing" in file) == ("shard 0", False)


def test_a_damaged_tally_is_found_by_verify(tmp_path: Path) -> None:
    folder = tallied().parent
    cm.build(folder / "recipe.yaml", tmp_path / "build", data=folder)
    place = tmp_path / "build" / "lookup" / "sources" / "pages" / "domains.parquet"
    assert crystalmix("verify", tmp_path / "build").exit_code == 0
    place.write_bytes(place.read_bytes()[:-1] + b"?")
    told = crystalmix("verify", tmp_path / "build")
    assert told.exit_code == 1
    assert "domains.parquet: its bytes changed" in told.output


@pytest.mark.parametrize(
    ("sql", "fault"),
    [
        ("url", "documents have no 'url'; add it to `keep`, or use what they have: document, "),
        ("now()", "gives another value each time"),
        ("name, 1", "is not one expression"),
    ],
)
def test_sql_that_is_none_over_documents_names_its_line(
    tmp_path: Path, sql: str, fault: str
) -> None:
    path = described(write_pages(tmp_path), {"domains": sql})
    (tmp_path / "tokenizer.json").write_bytes((tallied().parent / "tokenizer.json").read_bytes())
    with pytest.raises(
        RecipeError, match=r"recipe\.yaml:\d+: sources\.pages\.about\.domains: "
    ) as e:
        cm.build(path, tmp_path / "build", data=tmp_path)
    assert fault in str(e.value)
