"""Cards in official validators: mlcroissant, huggingface_hub, SPDX's model, OpenLineage's client.

SPDX's SHACL shapes and JSON schema are checked where SPDX_FILES names a folder with the three files
of https://spdx.org/rdf/3.0.1 and https://spdx.org/schema/3.0.1: no test fetches them.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import attr
import pytest

import crystalmix as cm
from crystalmix.mixtures.modelzoo.import_shards import ImportSettings, import_shards
from helpers.described import described, given
from helpers.hubs import ONE, golden_hub, write
from helpers.runs import small_build, undisturbed

for needed in ("mlcroissant", "spdx_python_model", "openlineage"):
    pytest.importorskip(needed, reason="needs `make peers`")
pytestmark = pytest.mark.filterwarnings("default")  # others' code warns
CARDS = [(described, given), (small_build, lambda: None)]
RUNS = [*CARDS, (undisturbed, given)]
# The client's module and class of each of our facets.
FACETS = {
    "version": "dataset_version_dataset.DatasetVersionDatasetFacet",
    "schema": "schema_dataset.SchemaDatasetFacet",
    "documentation": "documentation_dataset.DocumentationDatasetFacet",
    "tags": "tags_dataset.TagsDatasetFacet",
    "inputStatistics": "input_statistics_input_dataset.InputStatisticsInputDatasetFacet",
    "outputStatistics": "output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet",
    "jobType": "job_type_job.JobTypeJobFacet",
    "processing_engine": "processing_engine_run.ProcessingEngineRunFacet",
    "executionParameters": "execution_parameters_run.ExecutionParametersRunFacet",
}
SPDX_FILES = {
    "https://spdx.org/rdf/3.0.1/spdx-context.jsonld": "spdx-context.jsonld",
    "https://spdx.org/rdf/3.0.1/spdx-model.ttl": "spdx-model.ttl",
    "https://spdx.org/schema/3.0.1/spdx-json-schema.json": "spdx-json-schema.json",
}


def json_of(path: Path, form: str, about: Path | None) -> dict[str, Any]:
    return json.loads(cm.card(path, form, about=about).text)


@pytest.mark.parametrize(("build", "about"), CARDS)
def test_mlcroissant_validates_and_reads_the_documents(
    build: Any, about: Any, tmp_path: Path
) -> None:
    import mlcroissant

    copytree(build(), tmp_path / "build")
    file = tmp_path / "build" / "croissant.json"  # names of files are relative to it
    file.write_text(cm.card(tmp_path / "build", "croissant", about=about()).text, "utf-8")
    _validate(file)
    dataset = mlcroissant.Dataset(jsonld=str(file))
    assert not dataset.metadata.issues.errors
    rows = list(dataset.records("documents/code"))
    sql = "SELECT name, bytes FROM documents WHERE source = 'code' ORDER BY document"
    expected = [(row["name"], row["bytes"]) for row in cm.open(build()).sql(sql).content()]
    key = "documents/code/"
    assert [(r[f"{key}name"].decode(), r[f"{key}bytes"]) for r in rows] == expected


def test_mlcroissant_validates_imported_rows(tmp_path: Path) -> None:
    root = golden_hub(tmp_path / "published")
    settings = ImportSettings((write(tmp_path / "one.yaml", ONE),))
    import_shards(root, tmp_path / "build", settings)
    file = tmp_path / "build" / "croissant.json"
    file.write_text(cm.card(tmp_path / "build", "croissant").text)
    _validate(file)


@pytest.mark.parametrize("lost", ["sha256", "contentUrl", "conformsTo", "fileObject"])
def test_mlcroissant_refuses_a_file_that_lacks_what_it_needs(lost: str, tmp_path: Path) -> None:
    content = json_of(small_build(), "croissant", None)
    if lost == "conformsTo":
        del content[lost]
    elif lost == "fileObject":
        content["recordSet"][0]["field"][0]["source"][lost] = {"@id": "nowhere"}
    else:
        del content["distribution"][0][lost]
    file = tmp_path / "croissant.json"
    file.write_text(json.dumps(content))
    with pytest.raises(AssertionError):
        _validate(file)


def _validate(file: Path) -> None:
    program = Path(sys.executable).with_name("mlcroissant")
    done = subprocess.run(
        [program, "validate", "--jsonld", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(("build", "about"), CARDS)
def test_the_hubs_library_loads_the_dataset_card(build: Any, about: Any) -> None:
    from huggingface_hub import DatasetCard, DatasetCardData

    card = DatasetCard(cm.card(build(), "dataset-card", about=about()).text)
    assert isinstance(card.data, DatasetCardData)
    assert card.data.configs
    assert card.data.size_categories == ["n<1K"]
    if about() is not None:
        assert (card.data.license, card.data.language) == ("odc-by", ["en", "fr"])
        assert card.data.source_datasets == ["example/wiki"]
    again = DatasetCard(str(card))
    assert again.data.to_dict() == card.data.to_dict()


def test_the_hubs_library_loads_the_model_card() -> None:
    from huggingface_hub import ModelCard, ModelCardData

    card = ModelCard(cm.card(undisturbed(), "model-card", about=given()).text)
    assert isinstance(card.data, ModelCardData)
    assert (card.data.license, card.data.tags) == ("apache-2.0", ["crystalmix"])
    assert card.text.lstrip().startswith("# demo-1")


@pytest.mark.parametrize(("path", "about"), RUNS)
def test_spdx_loads_in_the_model_of_spdx_itself(path: Any, about: Any) -> None:
    from spdx_python_model import load_data

    content = json_of(path(), "spdx", about())
    model, objects = load_data(content)
    assert not objects.missing_ids
    assert len(list(objects.foreach_type(model.SpdxDocument))) == 1
    broken = json.loads(json.dumps(content))
    next(e for e in broken["@graph"] if e["type"] == "dataset_DatasetPackage")[
        "dataset_datasetType"
    ] = ["rows"]
    with pytest.raises(Exception, match="rows"):
        load_data(broken)


@pytest.mark.skipif("SPDX_FILES" not in os.environ, reason="SPDX_FILES names no folder")
def test_spdx_passes_its_schema_and_shapes() -> None:
    import rdflib
    from spdx3_validate import core, spdx_versions

    folder = Path(os.environ["SPDX_FILES"])
    local = {url: folder / name for url, name in SPDX_FILES.items()}
    [release] = [v for v in spdx_versions.SPDX_VERSIONS if v.pretty == "3.0.1"]
    content = json_of(undisturbed(), "spdx", given())
    schema = json.loads(local[release.schema_url].read_bytes())
    assert not list(core.schema_validator(schema).iter_errors(content))
    shapes = rdflib.Graph().parse(local[release.shacl_url])

    def faults(content: dict[str, Any]) -> list[str]:
        context = json.loads(local[release.context_url].read_bytes())["@context"]
        text = json.dumps({**content, "@context": context})
        graph = rdflib.Graph().parse(data=text, format="json-ld")
        return core.check_graph(graph, shapes, release, True)

    assert faults(content) == []
    next(e for e in content["@graph"] if e["type"] == "CreationInfo")["created"] = "yesterday"
    assert faults(content)


@dataclass(frozen=True)
class Events:
    """Events of a card."""

    every: list[dict[str, Any]]

    def taken(self) -> int:
        """Make each event and facet anew with the client's classes, which refuse what is wrong."""
        from openlineage.client import event_v2 as client

        count = 0
        for event in self.every:
            for part in (event["run"], event["job"], *event["inputs"], *event["outputs"]):
                for kind in ("facets", "inputFacets", "outputFacets"):
                    for key, values in part.get(kind, {}).items():
                        count += _takes(key, values)
            made = client.RunEvent(
                eventTime=event["eventTime"],
                producer=event["producer"],
                eventType=client.RunState(event["eventType"]),
                run=client.Run(**event["run"]),
                job=client.Job(**event["job"]),
                inputs=[client.InputDataset(**dataset) for dataset in event["inputs"]],
                outputs=[client.OutputDataset(**dataset) for dataset in event["outputs"]],
            )
            assert made.schemaURL == event["schemaURL"]
        return count


def _takes(key: str, values: dict[str, Any]) -> int:
    from importlib import import_module

    module, _, name = FACETS[key].partition(".")
    kind = getattr(import_module(f"openlineage.client.generated.{module}"), name)
    own = {k: v for k, v in values.items() if not k.startswith("_")}
    facet = kind(**own, producer=values["_producer"])
    required = [f.name for f in attr.fields(kind) if f.default is attr.NOTHING]
    assert set(required) <= own.keys()
    assert facet._schemaURL == values["_schemaURL"]
    return 1


@pytest.mark.parametrize(("path", "about"), RUNS)
def test_the_client_of_openlineage_takes_every_event_and_facet(path: Any, about: Any) -> None:
    text = cm.card(path(), "openlineage", about=about()).text
    events = Events([json.loads(line) for line in text.splitlines()])
    assert events.taken() > 100
    events.every[0]["outputs"][0]["facets"]["version"]["versions"] = "1"
    with pytest.raises(TypeError, match="versions"):
        events.taken()
