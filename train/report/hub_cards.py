"""Hub cards: README.md of a dataset or model with the YAML head that the Hugging Face hub reads."""

from typing import Any

from crystalmix.mixtures.manifest.build_folder import DOCUMENTS
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.train.report import markdown
from crystalmix.train.report.facts import Facts, trained_with
from crystalmix.train.report.words import Blanks, table, words, yaml_head

# The hub's names of licences, by SPDX ids in lower case where these differ.
RENAMED = {
    "odc-by-1.0": "odc-by",
    "odbl-1.0": "odbl",
    "pddl-1.0": "pddl",
    "gpl-2.0-only": "gpl-2.0",
    "gpl-3.0-only": "gpl-3.0",
    "agpl-3.0-only": "agpl-3.0",
    "lgpl-3.0-only": "lgpl-3.0",
}
KNOWN = {
    *("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-3.0"),
    *("cc-by-sa-3.0", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "isc", "unlicense", "openrail"),
    *("artistic-2.0", "zlib", "epl-2.0", *RENAMED.values()),
}
SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
HUB = "https://huggingface.co/datasets/"


def dataset_card(facts: Facts, blanks: Blanks) -> list[str]:
    """Return the card of the build as a dataset of the hub: its rows and the documents in them."""
    dataset = facts.card.dataset
    title = dataset.title or facts.name
    rows = {
        (shard.path, shard.rows)
        for phase in facts.phases
        for part in phase.manifest.parts
        for shard in part.shards
    }
    configs = [
        {"config_name": source.name, "data_files": f"{source.folder}/{DOCUMENTS}"}
        for source in facts.sources
        if not facts.redacted  # these files name what was taken
    ]
    head: dict[str, Any] = {
        "pretty_name": title,
        **_licence(dataset.licence),
        "language": _languages(facts) or None,
        "size_categories": [size_category(sum(rows for _, rows in rows))],
        "source_datasets": _hub_ids(facts) or None,
        "tags": ["crystalmix"],
        "configs": configs or None,
    }
    return [
        *yaml_head(head),
        f"# {title}",
        "",
        f"- Description: {blanks.say('dataset.description', dataset.description)}",
        f"- Version: {blanks.say('dataset.version', dataset.version)}",
        f"- Licence: {blanks.say('dataset.licence', dataset.licence)}",
        f"- Provider: {blanks.say('provider.name', facts.card.provider.name)}",
        f"- Home: {blanks.say('dataset.url', dataset.url)}",
        f"- Published: {blanks.say('dataset.published', dataset.published)}",
        "",
        *markdown.totals(facts, blanks),
        *markdown.sources(facts, blanks),
        *markdown.phases(facts),
        *markdown.evidence(facts),
        *blanks.section(),
    ]


def model_card(facts: Facts, blanks: Blanks) -> list[str]:
    """Return the card of the model that a run trained; UsageError for a build."""
    if facts.run is None:
        raise UsageError(f"{facts.build.path}: is a build; a model card needs a run")
    model = facts.card.model
    title = ", ".join(model.names) or facts.name
    head: dict[str, Any] = {
        **_licence(model.licence),
        "language": _languages(facts) or None,
        "base_model": model.base,
        "datasets": _hub_ids(facts) or None,
        "tags": ["crystalmix"],
    }
    return [
        *yaml_head(head),
        f"# {title}",
        "",
        f"- Provider: {blanks.say('provider.name', facts.card.provider.name)}",
        f"- Licence: {blanks.say('model.licence', model.licence)}",
        f"- Made from: {blanks.say('model.base', model.base)}",
        f"- Home: {blanks.say('model.url', model.url)}",
        f"- Meant for: {blanks.say('model.use', model.use)}",
        f"- Limits: {blanks.say('model.limits', model.limits)}",
        "",
        *_training(facts),
        *markdown.results(facts),
        *markdown.totals(facts, blanks),
        *markdown.sources(facts, blanks),
        *markdown.phases(facts),
        *markdown.evidence(facts),
        *blanks.section(),
    ]


def size_category(rows: int) -> str:
    """Return the hub's category of a number of rows.

    >>> size_category(999), size_category(1000), size_category(5_000_000), size_category(10**13)
    ('n<1K', '1K<n<10K', '1M<n<10M', 'n>1T')
    """
    power = len(str(rows)) - 1 - 3
    if power < 0:
        return "n<1K"
    return f"{SIZES[power]}<n<{SIZES[power + 1]}" if power + 1 < len(SIZES) else "n>1T"


def _training(facts: Facts) -> list[str]:
    """Return what each phase was trained with, as its claim and newest checkpoint have it."""
    lines = ["## Training", ""]
    for phase in facts.phases:
        claim, checkpoint = phase.claim, phase.checkpoint
        lines += [f"### Training of {phase.name}", ""]
        if not phase.steps:
            lines += ["No step is recorded.", ""]
            continue
        flat = [] if claim is None else trained_with(claim)
        init, weights = claim and claim.init, checkpoint and checkpoint.weights
        lines += [
            f"- digest of the weights it began with: {words(init) or 'none recorded'}",
            f"- newest checkpoint: step {checkpoint.step:,}"
            if checkpoint
            else "- newest checkpoint: none is kept",
            f"- digest of its weights: {words(weights) or 'none recorded'}",
            "",
            *(table(["setting", "value"], flat) if flat else ["Settings: not recorded.", ""]),
        ]
    return lines


def _licence(stated: str | None) -> dict[str, str | None]:
    """Return a licence as a card's head has it."""
    if stated is None:
        return {}
    name = RENAMED.get(stated.lower(), stated.lower())
    if name in KNOWN:
        return {"license": name}
    link = stated if stated.startswith(("http://", "https://")) else None
    return {"license": "other", "license_name": stated, "license_link": link}


def _languages(facts: Facts) -> list[str]:
    return sorted({language for s in facts.sources for language in s.about.languages})


def _hub_ids(facts: Facts) -> list[str]:
    """Return the hub's datasets that sources name by `url`."""
    urls = sorted({source.about.url or "" for source in facts.sources})
    return [url.removeprefix(HUB).strip("/") for url in urls if url.startswith(HUB)]
