"""A build whose recipe describes its sources, and a card file for it."""

from functools import lru_cache
from pathlib import Path

from ruamel.yaml import YAML

from helpers.corpora import built, write_corpus, write_recipe
from helpers.runs import scratch

ABOUT = {
    "title": "Encyclopedia",
    "kind": "public",
    "licence": "CC-BY-SA-3.0",
    "url": "https://huggingface.co/datasets/example/wiki",
    "revision": 1.0,
    "collected": {"from": 2023, "to": "2023-03"},
    "languages": ["en"],
}
OTHERS = {
    "book": {"kind": "licensed", "languages": ["fr"]},
    "web": {"kind": "crawled", "crawler": {"name": "webbot"}, "collected": {"to": "2024-02-03"}},
    "code": {"kind": "synthetic", "generator": ["model-a", "model-b"]},
    "python": {"kind": "user"},
}
CARD = """
provider: {name: Example Lab, url: https://example.org}
model: {names: [demo-1], licence: Apache-2.0}
dataset:
  title: "Small: a mixture"
  url: https://example.org/small
  version: 1.0.0
  published: 2026-11-29
  licence: ODC-By-1.0
summary: {updated: 2026-11-29, signatory: false}
"""


@lru_cache(maxsize=1)
def described() -> Path:
    """Return a build whose recipe describes its sources; nobody may change it."""
    folder = scratch()
    write_corpus(folder)
    path = write_recipe(folder)
    content = YAML(typ="safe").load(path)
    for name, about in {"wiki": ABOUT, **OTHERS}.items():
        content["sources"][name]["about"] = about
    with path.open("w") as file:
        YAML().dump(content, file)
    (folder / "card.yaml").write_text(CARD)
    return built(folder)


def given() -> Path:
    return described().parent / "card.yaml"
