"""The JSON Schema of manifests, as published: `python tests/test_schema.py` writes it anew."""

from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter

from crystalmix.mixtures.build.build import migrate
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.runtime.atomic_files import write_atomic
from helpers import corpora

PUBLISHED = Path(__file__).parents[2] / "docs" / "manifest.schema.json"
KINDS: dict[str, Any] = {
    **{"string": str, "integer": int, "number": (int, float)},
    **{"object": dict, "array": list, "null": type(None), "boolean": bool},
}


def schema() -> dict[str, Any]:
    """Return the schema of manifest.json, made from the dataclasses that it is read into."""
    made: dict[str, Any] = TypeAdapter(Manifest).json_schema()
    del made["properties"]["folder"]
    made["properties"]["digest"].pop("default")
    made["properties"]["schema"] = {"enum": [*manifests.SCHEMAS]}
    made["required"] += ["digest", "schema"]
    made["additionalProperties"] = False
    made["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return made


def fits(value: Any, shape: dict[str, Any], whole: dict[str, Any]) -> bool:
    """Tell whether a value is of a shape; the few words of JSON Schema that manifests need."""
    if "$ref" in shape:
        shape = whole["$defs"][shape["$ref"].rsplit("/", 1)[1]]
    if "enum" in shape:
        return value in shape["enum"]
    if "anyOf" in shape or "const" in shape:
        options = shape.get("anyOf", [])
        return value == shape.get("const", shape) or any(fits(value, o, whole) for o in options)
    if not isinstance(value, KINDS[shape["type"]]):
        return False
    if shape["type"] == "array":
        return all(fits(one, shape["items"], whole) for one in value)
    if shape["type"] != "object":
        return True
    known = shape.get("properties", {})
    return all(key in value for key in shape.get("required", [])) and all(
        fits(one, known[key], whole) for key, one in value.items() if key in known
    )


def test_the_published_schema_is_that_of_the_manifests_written() -> None:
    assert orjson.loads(PUBLISHED.read_bytes()) == schema()


def test_manifests_of_both_schemas_fit_it_and_others_do_not(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    corpora.write_recipe(tmp_path)
    out = corpora.built(tmp_path)
    for version in manifests.SCHEMAS:
        for path in out.glob("phases/*/manifest.json"):
            content = orjson.loads(path.read_bytes())
            assert content["schema"] == version
            assert fits(content, schema(), schema())
            new = {"after", "adapted", "redaction", *({"migrated"} if version == 3 else ())}
            assert {*content} == {*schema()["properties"]} - new
            for key in content:
                assert not fits({**content, key: 0.5}, schema(), schema()), key
                less = {k: v for k, v in content.items() if k != key}
                assert not fits(less, schema(), schema()) or key == "migrated", key
        migrate(out)


if __name__ == "__main__":
    write_atomic(PUBLISHED, orjson.dumps(schema(), option=orjson.OPT_INDENT_2) + b"\n")
