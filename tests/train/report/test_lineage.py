"""SPDX and OpenLineage: what they name is there, what they count is counted anew."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import crystalmix as cm
from helpers.described import described, given
from helpers.runs import small_build, undisturbed

Json = dict[str, Any]


def graph(path: Path, **more: Any) -> list[Json]:
    return json.loads(cm.card(path, "spdx", **more).text)["@graph"]


def of_kind(elements: list[Json], kind: str) -> dict[str, Json]:
    return {e["spdxId"].rpartition("#")[2]: e for e in elements if e["type"] == kind}


def targets(elements: list[Json], source: str, kind: str) -> set[str]:
    return {
        target.rpartition("#")[2]
        for e in elements
        if e["type"] == "Relationship" and e["relationshipType"] == kind
        for target in e["to"]
        if e["from"].endswith(f"#{source}")
    }


def events(path: Path) -> list[Json]:
    return [json.loads(line) for line in cm.card(path, "openlineage").text.splitlines()]


def version(dataset: Json) -> str:
    return dataset["facets"]["version"]["datasetVersion"]


def test_spdx_names_what_it_has_and_its_files_are_those_of_the_build() -> None:
    elements = graph(described(), about=given())
    own = {element["spdxId"] for element in elements if "spdxId" in element}
    assert len(own) == len(elements) - 1  # the creation has no id of its own
    for element in elements:
        for target in [element.get("from"), *element.get("to", [])]:
            assert target is None or target in own or target.startswith("expandedlicensing_No")
    packages = of_kind(elements, "dataset_DatasetPackage")
    assert packages.keys() == {"dataset"} | {
        f"source-{name}" for name in ("wiki", "book", "web", "code", "python")
    }
    files = of_kind(elements, "software_File")
    held = targets(elements, "dataset", "contains")
    sizes = 0
    for place in held:
        raw = (described() / files[place]["name"]).read_bytes()
        [check] = files[place]["verifiedUsing"]
        assert (check["algorithm"], check["hashValue"]) == ("sha256", sha256(raw).hexdigest())
        sizes += len(raw)
    assert packages["dataset"]["dataset_datasetSize"] == sizes
    names = {files[place]["name"] for place in held}
    assert {p.relative_to(described()).as_posix() for p in described().glob("phases/*/*")} <= names
    assert targets(elements, "build", "hasInput") == packages.keys() - {"dataset"}
    assert packages["dataset"]["releaseTime"] == "2026-11-29T00:00:00Z"


def test_spdx_says_no_licence_where_none_is_stated() -> None:
    elements = graph(described(), about=given())
    licences = {**of_kind(elements, "simplelicensing_LicenseExpression")}
    words = {
        source: [
            licences[place]["simplelicensing_licenseExpression"] if place in licences else place
            for place in targets(elements, source, "hasConcludedLicense")
        ]
        for source in ("dataset", "source-wiki", "source-web")
    }
    assert words == {
        "dataset": ["ODC-By-1.0"],
        "source-wiki": ["CC-BY-SA-3.0"],
        "source-web": ["expandedlicensing_NoAssertionLicense"],
    }


def test_spdx_of_a_run_claims_the_ai_profile_where_its_fields_are_stated(tmp_path: Path) -> None:
    about = tmp_path / "card.yaml"
    texts = {
        False: "model: {names: [demo-1]}\n",
        True: "provider: {name: Example Lab}\n"
        "model: {names: [demo-1], url: https://example.org/m, placed: 2026-11-30, "
        "licence: our own}\n",
    }
    for stated, text in texts.items():
        about.write_text(text)
        elements = graph(undisturbed(), about=about)
        [document] = of_kind(elements, "SpdxDocument").values()
        assert ("ai" in document["profileConformance"]) == stated
        assert "dataset" not in document["profileConformance"]
    model = of_kind(elements, "ai_AIPackage")["model"]
    assert document["rootElement"] == [model["spdxId"]]
    assert targets(elements, "model", "trainedOn") == {"dataset"}
    hyper = {entry["key"]: entry["value"] for entry in model["ai_hyperparameter"]}
    assert hyper["prose.optimizer.weight_decay_rate"] == "0.1"
    [chain] = pq.read_table(max(undisturbed().glob("code/ledger/steps-*")))["chain"][-1:]
    assert chain.as_py() in model["ai_informationAboutTraining"]
    [text] = of_kind(elements, "simplelicensing_SimpleLicensingText").values()
    assert text["simplelicensing_licenseText"] == "our own"


def test_events_lead_from_raw_files_to_checkpoints() -> None:
    made: dict[str, str] = {}
    for event in events(undisturbed()):
        for dataset in event["inputs"]:
            if dataset["namespace"] == "file":
                raw = small_build().parent / dataset["name"]
                assert dataset["inputFacets"]["inputStatistics"]["size"] == raw.stat().st_size
            else:
                assert made[dataset["name"]] == version(dataset)
        made |= {dataset["name"]: version(dataset) for dataset in event["outputs"]}
    folders = [*small_build().glob("sources/*"), *small_build().glob("phases/*/")]
    states = [*undisturbed().glob("*/checkpoints/*/state.json")]
    assert len(made) == len(folders) + 5 + len(states)
    for state in states:
        place = f"run/{state.parent.relative_to(undisturbed()).as_posix()}"
        assert made[place] == f"sha256:{json.loads(state.read_bytes())['weights']}"
    assert str(small_build().parent) not in cm.card(undisturbed(), "openlineage").text


def test_events_count_rows_and_documents_and_say_when_a_phase_is_done() -> None:
    every = events(undisturbed())
    rows = {
        dataset["name"]: dataset["outputFacets"]["outputStatistics"].get("rowCount")
        for event in every
        for dataset in event["outputs"]
    }
    documents = small_build() / "sources" / "wiki" / "documents.parquet"
    assert rows["small/sources/wiki/documents.parquet"] == pq.read_metadata(documents).num_rows
    assert rows["small/phases/prose/manifest.json"] == 12 * 4
    ends: dict[str, list[str]] = {}
    for event in every:
        if ".train." in event["job"]["name"]:
            ends.setdefault(event["run"]["runId"], []).append(event["eventType"])
    assert list(ends.values()) == [["RUNNING", "COMPLETE"]] * 3


def test_cards_of_a_redacted_view_name_what_it_was(tmp_path: Path) -> None:
    path = described() / "sources" / "wiki" / "documents.parquet"
    digest = pq.read_table(path)["digest"].to_pylist()[0]
    (tmp_path / "list.txt").write_text(f"digest:{digest.hex()}\n")
    view = cm.redact(described(), tmp_path / "list.txt", tmp_path / "view")
    before = {event["job"]["name"]: event for event in events(described())}
    for event in events(view.path):
        if ".phase." in event["job"]["name"]:
            [new], [old] = event["outputs"], before[event["job"]["name"]]["outputs"]
            assert new["name"] == old["name"]
            changed = version(new) != version(old)
            inputs = [version(each) for each in event["inputs"] if each["name"] == new["name"]]
            assert inputs == ([version(old)] if "redaction list" in str(event) else [])
            assert changed or not inputs
    elements = graph(view.path)
    assert not targets(elements, "dataset", "contains")
    assert "a redacted view" in str(of_kind(elements, "dataset_DatasetPackage")["dataset"])
