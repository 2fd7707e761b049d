"""An ablation over a build: its rows as they lie, its texts held out, every refusal in a line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import pytest
from click.testing import Result

from crystalmix.mixtures.ablations import pool_of_build as reusing
from crystalmix.mixtures.ablations import spec as ablation
from crystalmix.mixtures.ablations.pool_of_build import Reused
from crystalmix.mixtures.ablations.spec import HELD_OUT, POOL
from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.build_folder import MANIFEST
from crystalmix.mixtures.manifest.exact_order import PREFIX_BOUND
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical, read_json, write_atomic
from crystalmix.prep.runtime.errors import DamageError, RecipeError, RefusalError, StaleError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.ablations import costs
from crystalmix.train.ablations import tables as evidence
from crystalmix.train.ablations.report import read_report
from crystalmix.train.evaluation.held_out import hold_out
from crystalmix.train.trace.findings import findings
from helpers.ablations import SPLIT, over, run, tables, write_over
from helpers.corpora import crystalmix, merged, write_recipe

BATCH, DOMAINS = 4, ("wiki", "python", "javascript")


def copied(folder: Path) -> Path:
    """Copy the spec, its recipe and its build, but no raw file and no ablation."""
    left = {"out", "slimpajama", "starcoderdata"}
    return copytree(over(), folder, ignore=lambda _, names: left & set(names))


def reused(folder: Path, **changes: Any) -> Reused:
    path = write_over(folder, **changes)
    return reusing.reuse(path, *ablation.load(str(path)))


def stamps(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return time and bytes of every file of a build."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in paths}


def edited(folder: Path, domain: str, change: Callable[[Json], object]) -> None:
    """Change the receipt of a folder of a domain, and its digest."""
    path = folder / "built" / "domains" / domain / receipts.NAME
    content = {k: v for k, v in read_json(path).items() if k != "digest"}
    change(content)
    write_atomic(path, canonical({**content, "digest": receipts.digest(content)}))


def resealed(folder: Path, phase: str, change: Callable[[Manifest], Manifest]) -> None:
    """Change the manifest of a phase of the build below a folder, and seal it again."""
    path = folder / "built" / "phases" / phase / MANIFEST
    manifests.write(path, manifests.sealed(change(manifests.read(path))))


def ablate(spec: Path, out: Path, *words: str) -> Result:
    return crystalmix("ablate", "run", spec, "--out", out, "--workers", "1", *words)


def test_an_ablation_over_a_build_runs_to_its_end_and_leaves_the_build_as_it_was(
    tmp_path: Path,
) -> None:
    folder = copied(tmp_path / "one")
    before = stamps(folder / "built")
    told = ablate(folder / "spec.yaml", tmp_path / "out", "--json")
    assert told.exit_code == 0, told.stderr
    assert stamps(folder / "built") == before
    place = tmp_path / "out" / "build"
    assert (place / "domains").resolve() == folder / "built" / "domains"
    assert not [path for path in place.rglob("*.h5") if not path.parent.is_symlink()]
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    report = json.loads(told.stdout)
    assert sum(report["recommendation"]["shares"].values()) == pytest.approx(1, abs=1e-6)
    again, first = tables(tmp_path / "out"), tables(over() / "out")
    assert again == first
    assert len(again) == 3 + 10 + 1


def test_realised_shares_of_every_ledger_are_the_asked_ones_within_the_bound() -> None:
    runs = evidence.connect(over() / "out").rows("SELECT run, asked, got, steps FROM runs")
    assert len(runs) == 10
    for each in runs:
        rows = each["steps"] * BATCH
        asked, got = dict(each["asked"]), dict(each["got"])
        assert set(asked) == set(DOMAINS)
        for domain, share in asked.items():
            assert abs(got.get(domain, 0) - share) * rows <= PREFIX_BOUND + rows / 1e6


def test_the_views_verify_and_every_run_agrees_with_its_plan() -> None:
    out = over() / "out"
    assert verify(out / "build") == []
    for place in sorted((out / "runs").iterdir()):
        assert findings(place / "build", place, batches=True) == []
    told = crystalmix("verify", out / "runs" / "design-1" / "build")
    assert told.exit_code == 0, told.output
    assert "sound" in told.stdout


def test_the_pool_has_the_largest_part_of_each_domain_as_the_build_sealed_it() -> None:
    built, out = over() / "built", over() / "out" / "build"
    pool, held = (manifests.read(out / "phases" / name) for name in (POOL, HELD_OUT))
    early, late, check = (
        {part.name: part for part in manifests.read(built / "phases" / name).parts}
        for name in ("early", "late", "held")
    )
    sizes = early["wiki-even"].available, late["wiki-odd"].available
    assert sizes[0] > sizes[1]
    found = {part.name: part for part in pool.parts}
    assert found["wiki"].shards == early["wiki-even"].shards
    assert found["python"].shards == late["python"].shards
    assert {part.name: part.domain for part in held.parts} == {
        f"{name}.valid": f"{name}-held" for name in DOMAINS
    }
    for part in held.parts:
        assert part.shards == check[part.domain].shards
    for one in (pool, held):
        assert [part.epochs for part in one.parts] == [1.0] * 3
        assert one.steps == sum(part.available for part in one.parts)
    assert held.previous == pool.digest
    claimed = read_json(over() / "out" / "ablation.json")["rows"]
    assert claimed == {POOL: pool.digest, HELD_OUT: held.digest}


def test_no_text_that_losses_are_measured_on_is_in_the_pool() -> None:
    pool, held = (hold_out(over() / "out" / "build", name, None) for name in (POOL, HELD_OUT))
    assert pool.documents
    assert held.documents
    assert not pool.documents & held.documents


def test_what_the_rows_hold_is_told() -> None:
    notes = list(read_report(over() / "out").notes)
    assert [note for note in notes if "repeat" not in note] == [
        "domain wiki: part wiki-even of phase early has 48 of its 88 rows; no others are read or "
        "counted",
        "domain python: its rows hold 2 epochs with FIM at a rate of 0.5; they are taken as they "
        "lie",
    ]


def test_rows_that_nobody_shuffled_and_held_out_fim_are_told(tmp_path: Path) -> None:
    def changed(manifest: Manifest) -> Manifest:
        *others, last = manifest.parts
        return replace(manifest, parts=(*others, replace(last, fim={"rate": 0.9})))

    folder = copied(tmp_path / "one")
    edited(folder, "javascript/shuffled", lambda receipt: receipt.update(stage="join"))
    resealed(folder, "held", changed)
    assert reused(folder).notes[-2:] == (
        "domain javascript: its held-out rows hold one epoch with FIM at a rate of 0.9",
        "domain javascript: its rows are not shuffled; proxies read the first ones",
    )


def test_a_build_that_changed_is_refused_where_an_ablation_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    copytree(over(), folder, ignore=lambda _, names: {"out"} & set(names))
    spec = write_over(folder, proxy={"steps": 3}, checks={"seeds": 0})
    run(spec, folder / "out")
    before = stamps(folder / "out" / "runs")
    run(spec, folder / "out")
    assert stamps(folder / "out" / "runs") == before
    parts = [{**part, "half": None} for part in SPLIT["phases"]["late"]["parts"]]
    phases = {**SPLIT["phases"], "late": {**SPLIT["phases"]["late"], "parts": parts}}
    recipe = recipes.load(write_recipe(folder, **{**SPLIT, "phases": phases}))  # all of wiki
    rmtree(folder / "built" / "phases")
    build(recipe, folder, folder / "built")
    with pytest.raises(StaleError, match=r"ablation.rows.pool: .*take another --out"):
        run(spec, folder / "out")


VALUES: list[tuple[Json, str]] = [
    ({"build": "nowhere"}, r"build: .*nowhere is not there; give the --out of `crystalmix build`"),
    ({"build": "starcoderdata"}, r"build: .*starcoderdata holds no sealed phase; give the --out"),
    ({"proxy": {"vocab": 400}}, r"proxy.vocab: must be null over a build, .*, got 400"),
    ({"proxy": {"msl": 64}}, r"proxy.msl: must be 32, as the rows of .*built, got 64"),
    ({"factors": {"fim_rate": [0.0, 0.9]}}, "factors.fim_rate: needs rows packed anew; drop it"),
]


@pytest.mark.parametrize(("changes", "told"), VALUES, ids=[told for _, told in VALUES])
def test_a_value_that_no_build_goes_with_is_refused_with_its_line(
    tmp_path: Path, changes: Json, told: str
) -> None:
    folder = copied(tmp_path / "one")
    (folder / "starcoderdata").mkdir()
    with pytest.raises(RecipeError, match=told) as error:
        reused(folder, **changes)
    place, line, _ = str(error.value).split(":", 2)
    spec = folder / "spec.yaml"
    assert place == str(spec)
    key = told.partition(":")[0].rpartition(".")[2]
    assert spec.read_text("utf-8").splitlines()[int(line) - 1].strip().startswith(key)
    result = ablate(spec, tmp_path / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "out").exists()


def test_a_domain_that_no_phase_holds_is_told_with_those_there_are(tmp_path: Path) -> None:
    folder = copied(tmp_path / "one")
    write_recipe(folder, **merged(SPLIT, {"domains": {"web": {"split": "train"}}}))
    with pytest.raises(RecipeError) as error:
        reused(folder, domains={"web": {}})
    assert str(error.value).endswith(
        f"domains.web: no phase of {folder / 'built'} holds it (there are wiki, python, "
        "javascript); build one that does, or leave it out"
    )


def test_a_domain_of_other_sources_than_the_recipes_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path / "one")
    write_recipe(folder, **merged(SPLIT, {"domains": {"wiki": {"sources": ["book", "wiki"]}}}))
    told = r"domain wiki: .*built drew it from wiki, .*recipe.yaml draws it from book, wiki; name"
    with pytest.raises(RefusalError, match=told):
        reused(folder)


def test_a_domain_without_validation_rows_is_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = copied(tmp_path / "one")
    rmtree(folder / "built" / "phases" / "held")
    told = r"domain wiki: .* no validation rows of it; give the recipe `valid:`, .*`split: valid`"
    with pytest.raises(RefusalError, match=told):
        reused(folder)
    result = ablate(folder / "spec.yaml", tmp_path / "out", "--dry-run")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


def test_held_out_rows_of_another_split_are_none(tmp_path: Path) -> None:
    """Texts of another seed's split may be trained on."""
    folder = copied(tmp_path / "one")
    edited(folder, "python-held/epoch-0", lambda one: one["settings"]["split"].update(seed=8))
    with pytest.raises(RefusalError, match="domain python: .* no validation rows"):
        reused(folder)
    edited(folder, "python/epoch-0", lambda one: one["settings"]["split"].update(seed=8))
    with pytest.raises(RefusalError, match="several seeds, splits or tokenizers"):
        reused(folder)


def test_imported_rows_are_refused_for_nobody_knows_their_texts(tmp_path: Path) -> None:
    folder = copied(tmp_path / "one")
    (folder / "built" / "domains" / "wiki" / "epoch-0" / receipts.NAME).unlink()
    for phase in ("early", "late"):
        resealed(folder, phase, lambda manifest: replace(manifest, imported={"params": {}}))
    with pytest.raises(RefusalError, match="domain wiki: .* was imported, .*drop `build`"):
        reused(folder)


def test_phases_of_several_seeds_are_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path / "one")
    resealed(folder, "late", lambda manifest: replace(manifest, seed=8))
    with pytest.raises(RefusalError, match="several seeds, splits or tokenizers"):
        reused(folder)


def test_shards_and_tokenizer_must_be_as_the_build_says(tmp_path: Path) -> None:
    folder = copied(tmp_path / "one")
    shard = next((folder / "built" / "domains" / "javascript" / "shuffled").glob("*.h5"))
    for damage in (lambda: shard.write_bytes(shard.read_bytes()[:-1]), shard.unlink):
        damage()
        with pytest.raises(DamageError, match=rf"{shard.name}: is not as the manifests .* verify"):
            reused(folder)
    second = copied(tmp_path / "two")
    (second / "built" / "tokenizer.json").unlink()
    with pytest.raises(DamageError, match=r"tokenizer.json: is missing; restore"):
        reused(second, build=str(second / "built"))


def test_a_view_follows_a_build_that_moved_and_replaces_no_folder(tmp_path: Path) -> None:
    found = reused(copied(tmp_path / "one"))
    place = tmp_path / "out" / "build"
    sealed = (found.pool, found.held_out)
    reusing.view(found.build, sealed, place)
    (tmp_path / "one" / "built").rename(tmp_path / "moved")
    reusing.view(tmp_path / "moved", sealed, place)
    assert (place / "domains").resolve() == tmp_path / "moved" / "domains"
    (place / "domains").unlink()
    (place / "domains").mkdir()
    with pytest.raises(StaleError, match="domains: is no link to a build's; take another --out"):
        reusing.view(found.build, sealed, place)


def test_a_dry_run_takes_the_vocabulary_of_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(costs, "seconds_a_step", lambda _, vocab, *rest: asked.append(vocab) or 1.0)
    told = ablate(over() / "spec.yaml", tmp_path / "out", "--dry-run", "--json")
    assert told.exit_code == 0, told.stderr
    assert set(asked) == {manifests.read(over() / "built" / "phases" / "late").tokenizer.vocab}
    assert not (tmp_path / "out").exists()
