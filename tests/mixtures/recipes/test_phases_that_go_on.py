"""Phases that read on where the earlier ones stopped, from recipe to manifest, plan and verify."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.coverage import Reads, of_manifests
from crystalmix.mixtures.manifest.manifest import Manifest, read_manifests
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.runtime.errors import RecipeError, RefusalError
from helpers import corpora

GONE = dict.fromkeys(("prose", "mixed", "code"))
WEB, PYTHON = {"domain": "web", "weight": 0.5}, {"domain": "python", "weight": 0.5}
FIRST: dict[str, Any] = {"steps": 3, "batch": 4, "parts": [WEB, PYTHON]}
SECOND: dict[str, Any] = {
    "steps": 4,
    "batch": 4,
    "parts": [{**WEB, "weight": 0.75}, {**PYTHON, "weight": 0.25}],
}
THIRD: dict[str, Any] = {"steps": 60, "batch": 2, "parts": [WEB, PYTHON]}
PHASES = {"first": FIRST, "second": SECOND, "third": THIRD}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    recipe(folder)
    return corpora.built(folder)


def recipe(folder: Path, phases: Any = PHASES, **changes: Any) -> Path:
    corpora.write_corpus(folder)
    return corpora.write_recipe(folder, phases={**GONE, **phases}, **{"format": 2, **changes})


def rows_of(manifest: Manifest, domain: str) -> list[tuple[str, int]]:
    """The rows of a domain that a phase consumes, in order, by the manifest's shards."""
    names = [part.domain for part in manifest.parts]
    refs = manifest.rows(0, manifest.steps * manifest.batch)
    triples = zip(refs.part.tolist(), refs.shard.tolist(), refs.row.tolist(), strict=True)
    return [(manifest.paths[shard], row) for part, shard, row in triples if names[part] == domain]


def test_no_row_is_read_again_while_another_was_never_read(made: Path) -> None:
    phases = read_manifests(made)
    assert verify(made) == []
    for domain in ("web", "python"):
        read: list[tuple[str, int]] = []
        for phase in phases:
            [part] = [part for part in phase.parts if part.domain == domain]
            assert part.start == len(read)
            read += rows_of(phase, domain)
            assert len(read) == part.start + part.rows
            times = Counter(read)
            assert len(times) == min(len(read), part.available)
        assert len(read) > part.available
        assert max(times.values()) - min(times.values()) <= 1
    refs = [phase.step(phase.steps - 1) for phase in phases]
    assert [int(ref.epoch.max()) for ref in refs][:2] == [0, 0]


def test_document_to_steps_is_what_the_steps_read(made: Path) -> None:
    for phase in read_manifests(made):
        found: dict[tuple[str, int], list[int]] = {}
        refs = phase.rows(0, phase.steps * phase.batch)
        for place, (shard, row) in enumerate(zip(refs.shard, refs.row, strict=True)):
            found.setdefault((phase.paths[shard], int(row)), []).append(place)
        for part in phase.parts:
            for shard in part.shards:
                for row in range(shard.rows):
                    assert phase.positions(shard.path, row) == found.get((shard.path, row), [])


def test_what_is_read_again_and_what_never_is_counted(made: Path) -> None:
    phases = read_manifests(made)
    for stop in (1, 2, 3):
        reads = Reads.of(of_manifests(phases[:stop]))
        for domain in reads.domains:
            every = [row for phase in phases[:stop] for row in rows_of(phase, domain.domain)]
            available = phases[0].parts[[p.domain for p in phases[0].parts].index(domain.domain)]
            assert (domain.rows, domain.read) == (available.available, len({*every}))
            assert domain.again == len(every) - len({*every})
            assert domain.never == domain.rows - domain.read
    again = {repeats.phase for repeats in reads.repeats}
    assert again == {"third"}
    shown = corpora.crystalmix("show", made).stdout
    assert "  note: third reads " in shown
    content = json.loads(corpora.crystalmix("show", made, "--json").stdout)
    assert [d["domain"] for d in content["reads"]["domains"]] == ["web", "python"]


def test_a_recipe_without_a_format_reads_from_the_start_and_says_so(tmp_path: Path) -> None:
    path = recipe(tmp_path, format=None)
    told = corpora.crystalmix("build", path, "--out", tmp_path / "build").stdout
    phases = read_manifests(tmp_path / "build")
    assert all("start" not in part for phase in phases for part in phase.content()["parts"])
    first, second = (rows_of(phase, "web") for phase in phases[:2])
    assert second[: len(first)] == first
    assert "  note: second reads " in told
    assert " rows of these domains were never read\n" in told
    parts = [{**part, "from": "start"} for part in SECOND["parts"]]
    explicit = {**PHASES, "second": {**SECOND, "parts": parts}}
    third = [{**part, "from": "start"} for part in THIRD["parts"]]
    explicit["third"] = {**THIRD, "parts": third}
    again = recipe(tmp_path, explicit, format=2)
    build(recipes.load(again), tmp_path, tmp_path / "build")  # the same manifests: nothing stale
    assert [m.digest for m in read_manifests(tmp_path / "build")] == [m.digest for m in phases]


def test_plan_says_beforehand_where_parts_begin(made: Path) -> None:
    path = made.parent / "recipe.yaml"
    for more in ([], ["--out", made]):
        told = json.loads(corpora.crystalmix("plan", path, *more, "--json").stdout)
        planned = [[part["start"] for part in phase["parts"]] for phase in told["phases"]]
        assert planned == [[part.start for part in m.parts] for m in read_manifests(made)]
    assert [part["seen"] for part in told["phases"][1]["parts"]] == [0, 0]
    assert told["reads"]["domains"] == [
        {**vars(reads)} for reads in Reads.of(of_manifests(read_manifests(made))).domains
    ]


def test_after_names_the_phase_behind_which_a_part_begins(tmp_path: Path) -> None:
    third = {**THIRD, "steps": 2, "parts": [{**WEB, "from": {"after": "first"}}, PYTHON]}
    recipe(tmp_path, {**PHASES, "third": third})
    first, second, last = read_manifests(corpora.built(tmp_path))
    assert last.parts[0].start == first.parts[0].rows == second.parts[0].start
    assert last.parts[1].start == second.parts[1].start + second.parts[1].rows
    assert verify(tmp_path / "build") == []


HALF = {"domain": "web", "weight": 1, "half": "even"}
REFUSED: list[tuple[Any, str]] = [
    ({**WEB, "from": {"after": "later"}}, "no earlier phase is called 'later' .there are first"),
    ({**WEB, "from": {"after": "second"}}, "no earlier phase is called 'second'"),
    ({"domain": "code", "weight": 0.5, "from": {"after": "first"}}, "takes no part of the same ro"),
    ({**WEB, "half": "even"}, "web-even can't continue: phase first took 100% of its rows in an"),
    ({**WEB, "from": "begin"}, "must be 'start' or 'continue'"),
]


@pytest.mark.parametrize(("part", "told"), REFUSED, ids=[told[:40] for _, told in REFUSED])
def test_what_can_not_go_on_is_refused_with_its_line(tmp_path: Path, part: Any, told: str) -> None:
    path = recipe(tmp_path, {"first": FIRST, "second": {**SECOND, "parts": [part, PYTHON]}})
    with pytest.raises(RecipeError, match=rf"recipe.yaml:\d+: phases.second.parts.0.from.*{told}"):
        recipes.load(path)


def test_model_zoos_order_begins_at_the_start(tmp_path: Path) -> None:
    zoo = {**SECOND, "cerebras": {}}
    assert recipes.load(recipe(tmp_path, {"first": FIRST, "second": zoo}))
    late = [{**WEB, "from": "continue"}, PYTHON]
    with pytest.raises(RecipeError, match=r"parts.0.from: must be start in Model Zoo's order"):
        recipes.load(recipe(tmp_path, {"first": FIRST, "second": {**zoo, "parts": late}}))
    with pytest.raises(RecipeError, match="web can't continue.*of Model Zoo's order"):
        recipes.load(recipe(tmp_path, {"first": {**FIRST, "cerebras": {}}, "second": SECOND}))


def test_a_phase_alone_in_a_fresh_folder_begins_where_it_does_in_the_whole(
    made: Path, tmp_path: Path
) -> None:
    settings, alone = recipes.load(made.parent / "recipe.yaml"), tmp_path / "alone"
    [third] = build(settings, made.parent, alone, phases=["third"])
    assert third.after == "second"
    assert third.previous is None
    notes: list[str] = []
    assert verify(alone, note=notes.append) == []
    assert any("follows phase second, which was built elsewhere" in note for note in notes)
    whole = read_manifests(made)[-1]
    assert manifests.resealed(third, after=None, previous=whole.previous) == whole
    build(settings, made.parent, alone)
    assert corpora.contents(alone) == corpora.contents(made)


def test_rows_that_only_data_tell_are_asked_for(tmp_path: Path) -> None:
    first = {"batch": 4, "parts": [{"domain": "web", "epochs": 0.5}]}
    path = recipe(tmp_path, {"first": first, "second": SECOND})
    with pytest.raises(
        RefusalError, match=r"phases.second.parts.0: web goes on behind phase first"
    ):
        build(recipes.load(path), tmp_path, tmp_path / "build", phases=["second"])
    build(recipes.load(path), tmp_path, tmp_path / "build")
    first_, second = read_manifests(tmp_path / "build")
    assert second.parts[0].start == first_.parts[0].rows > 0


def test_a_start_where_no_phase_stopped_is_told(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "build"
    shutil.copytree(made, out)
    path = BuildFolder(out).manifest("third")
    third = manifests.read(path)
    parts = (third.parts[0], manifests.replace(third.parts[1], start=5))
    manifests.write(path, manifests.sealed(manifests.replace(third, parts=parts)))
    told = f"{path}: part python: begins at draw 5, where no phase before stopped"
    assert told in verify(out)
