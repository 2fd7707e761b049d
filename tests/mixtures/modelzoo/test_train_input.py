"""Model Zoo's loader, told of a manifest, consumes its rows in its order: read back, compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.cerebras_order import ZooMixture
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.modelzoo import read_params as zooparams
from crystalmix.mixtures.modelzoo.import_shards import ImportSettings, import_shards
from crystalmix.mixtures.modelzoo.train_input import Place, _decimal, train_input
from crystalmix.prep.rows import shards
from crystalmix.prep.runtime.errors import RefusalError, UsageError
from crystalmix.train.modelzoo import write_params as zoofile
from helpers.crystals import golden_folder
from helpers.hubs import ONE, TWO, golden_hub, params_of, tiny, write
from helpers.modelzoo_rows import batches, subset_rows
from helpers.runs import run_file, small_build
from helpers.zooruns import PHASES, in_model_zoos_order

Row = tuple[Path, int]


def loader_rows(path: Path, count: int, reader: str = "2.0.3") -> list[Row]:
    """Return the first rows that Model Zoo's loader gives for a params.yaml, file by file."""
    told = zooparams.read(path).train_input
    lists: list[list[Row]] = []
    for line in told.mixture:
        files = shards.folder(Path(line.data_dir))
        every = [(file.resolve(), row) for file in files for row in range(shards.shape(file)[0])]
        if line.subset is not None:
            every = [every[i] for i in subset_rows(len(every), [line.subset], reader)]  # type: ignore[arg-type]
        lists.append(every)
    weights = [line.weight for line in told.mixture]
    mixture = ZooMixture([len(rows) for rows in lists], weights, told.shuffle_seed, "misaligned")
    refs = mixture.refs(0, count)
    return [lists[p][r] for p, r in zip(refs.part.tolist(), refs.row.tolist(), strict=True)]


def planned(manifest: Manifest, steps: range) -> list[Row]:
    """Return the rows that steps of a manifest consume, with the real files of its shards."""
    assert manifest.folder is not None
    root = manifest.folder.parents[1]
    refs = manifest.rows(steps.start * manifest.batch, steps.stop * manifest.batch)
    paths = [(root / path).resolve() for path in manifest.paths]
    return [(paths[s], r) for s, r in zip(refs.shard.tolist(), refs.row.tolist(), strict=True)]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_model_zoos_order(tmp_path_factory.mktemp("zoo"))


@pytest.mark.parametrize("dialect", ["1.9", "trainer"])
@pytest.mark.parametrize("phase", PHASES)
def test_every_step_read_back_is_the_manifests(
    build: Path, tmp_path: Path, phase: str, dialect: Any
) -> None:
    manifest = manifests.read(build / "phases" / phase)
    out, links = tmp_path / "params.yaml", tmp_path / "links"
    zoofile.write(str(run_file()), manifest, out, dialect, Place(links=links))
    assert zooparams.read(out).runconfig.max_steps == manifest.steps
    steps = range(manifest.steps)
    assert loader_rows(out, manifest.steps * manifest.batch) == planned(manifest, steps)
    halves = [part for part in manifest.parts if "even" in part.name or "odd" in part.name]
    assert [path.name for path in sorted(links.glob("*/*"))] == [part.name for part in halves]


@pytest.mark.golden
def test_an_import_written_and_imported_again_is_the_same_rows(tmp_path: Path) -> None:
    root = golden_hub(tmp_path / "hub")
    params = (write(tmp_path / "one.yaml", ONE), write(tmp_path / "two.yaml", TWO))
    import_shards(root, tmp_path / "out", ImportSettings(params))
    written: list[Path] = []
    for name in ("one", "two"):
        manifest = manifests.read(tmp_path / "out/phases" / name)
        written.append(tmp_path / "again" / f"{name}.yaml")
        written[-1].parent.mkdir(exist_ok=True)
        zoofile.write(str(run_file()), manifest, written[-1])
        count = manifest.steps * manifest.batch
        assert loader_rows(written[-1], count) == planned(manifest, range(manifest.steps))
    again = import_shards(root, tmp_path / "again/out", ImportSettings(tuple(written)))
    for manifest in again:
        before = manifests.read(tmp_path / "out/phases" / manifest.phase)
        after = manifests.read(tmp_path / "again/out/phases" / manifest.phase)
        steps = range(manifest.steps)
        assert planned(after, steps) == planned(before, steps)
        assert [part.budget for part in after.parts] == [part.budget for part in before.parts]


@pytest.mark.golden
def test_any_cluster_is_given_the_steps_of_the_manifest(tmp_path: Path) -> None:
    root, params = golden_hub(tmp_path / "hub"), write(tmp_path / "two.yaml", TWO)
    import_shards(root, tmp_path / "out", ImportSettings((params,)))
    manifest = manifests.read(tmp_path / "out/phases/two")
    zoofile.write(str(run_file()), manifest, tmp_path / "p.yaml")
    length = manifest.order.mixture.length  # type: ignore[union-attr]
    epoch = loader_rows(tmp_path / "p.yaml", length)
    for csx in (1, 2, 3):
        given: dict[int, list[Row]] = {step: [] for step in range(manifest.steps)}
        for worker in range(csx):
            stream = batches(length, manifest.batch, csx=csx, worker=worker, epochs=40)
            micro = [piece for told in stream for rows in told for piece in cut(rows, csx)]
            for step in range(manifest.steps):
                given[step] += [epoch[row] for row in micro[step]]
        for step, rows in given.items():
            assert sorted(rows) == sorted(planned(manifest, range(step, step + 1))), (csx, step)


def cut(rows: list[int], pieces: int) -> list[list[int]]:
    size = len(rows) // pieces
    return [rows[i * size : (i + 1) * size] for i in range(pieces)]


@pytest.mark.golden
def test_mixtures_that_model_zoo_recorded_are_read_back_as_recorded(tmp_path: Path) -> None:
    place = golden_folder().parent / "pipeline" / "loader"
    recorded = np.load(place / "mixture_indices.npz")
    compared = 0
    for case in json.loads((place / "mixture_cases.json").read_text()):
        if not case["interleave"] or sum(case["lens"]) > 3000 or 0 in case["weights"]:
            continue
        folder = tmp_path / str(case["id"])
        for number, rows in enumerate(case["lens"]):
            blank = np.zeros((rows, 3, 4), dtype=np.int32)
            shards.write(folder / "hub" / f"d{number}" / shards.name(0), rows, [blank])
        mixture = [
            {"data_dir": f"d{i}", "weight": weight} for i, weight in enumerate(case["weights"])
        ]
        steps = case["total_samples"] // 2
        params = params_of(folder, "d0", mixture=mixture, batch_size=2, shuffle_seed=case["seed"])
        content = zooparams.read(params)
        assert content.train_input.shuffle_seed == case["seed"]
        import_shards(folder / "hub", folder / "out", ImportSettings((params,)))
        manifest = manifests.read(folder / "out/phases/p")
        zoofile.write(str(run_file()), manifest, folder / "w.yaml")
        found = loader_rows(folder / "w.yaml", 2 * steps)
        dataset, sample = (
            recorded[f"m{case['id']}_{k}"][: 2 * steps] for k in ("dataset", "sample")
        )
        assert [f"d{d}" for d in dataset] == [path.parent.name for path, _ in found]
        assert [row for _, row in found] == sample.tolist()
        compared += 1
    assert compared >= 4


def test_another_order_is_refused_with_the_remedy() -> None:
    manifest = manifests.read(small_build() / "phases/prose")
    with pytest.raises(RefusalError, match="phase prose: its order is `exact`.*cerebras: {}"):
        train_input(manifest, Place())


def test_a_half_without_a_folder_for_links_is_refused(build: Path) -> None:
    with pytest.raises(RefusalError, match="part wiki-even: draws from .* --links FOLDER"):
        train_input(manifests.read(build / "phases/prose"), Place())


def test_links_are_made_anew_and_files_of_others_stay(build: Path, tmp_path: Path) -> None:
    manifest, place = manifests.read(build / "phases/prose"), Place(links=tmp_path)
    stale = tmp_path / "prose" / "wiki-even" / "data-00099.h5"
    stale.parent.mkdir(parents=True)
    stale.symlink_to("nowhere")
    made = [train_input(manifest, place) for _ in range(2)]
    assert made[0] == made[1]
    assert not stale.is_symlink()
    assert all(path.resolve().is_file() for path in stale.parent.iterdir())
    stale.write_bytes(b"rows")
    with pytest.raises(RefusalError, match="data-00099.h5: is a file, no link"):
        train_input(manifest, place)
    assert stale.read_bytes() == b"rows"


def test_the_reader_of_1_9_1_is_told_its_own_subset_or_nothing(tmp_path: Path) -> None:
    tiny(tmp_path / "hub/a", [0, 1], 1.0)  # 2 x 50 rows
    tiny(tmp_path / "hub/b", [0], 0.25)
    lines = [
        {"data_dir": "a", "weight": 0.6, "data_subset": "0.0-0.3"},
        {"data_dir": "b", "weight": 0.4},
    ]
    params = params_of(tmp_path, "a", mixture=lines)
    for version in ("1.9.1", "2.0.3"):
        out = tmp_path / version
        import_shards(tmp_path / "hub", out, ImportSettings((params,), subset=version))  # type: ignore[arg-type]
        manifest = manifests.read(out / "phases/p")
        wanted = planned(manifest, range(manifest.steps))
        for reader in ("1.9.1", "2.0.3"):
            if (version, reader) == ("2.0.3", "1.9.1"):
                with pytest.raises(RefusalError, match="no data_subset of Model Zoo 1.9.1 gives"):
                    train_input(manifest, Place(links=tmp_path / "links", reader=reader))
                continue
            path = tmp_path / f"{version}-{reader}.yaml"
            zoofile.write(str(run_file()), manifest, path, "1.9", Place(reader=reader))  # type: ignore[arg-type]
            assert loader_rows(path, len(wanted), reader) == wanted
    assert zooparams.read(params).train_input.mixture[0].data_subset == "0.0-0.3"


@given(total=st.integers(1, 10**9), share=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_every_count_of_rows_has_a_decimal(total: int, share: float) -> None:
    rows = int(total * share)
    told = _decimal(total, rows)
    assert int(total * float(told)) == rows
    assert len(told) <= 20
    assert zooparams.RANGE.fullmatch(f"0.0-{told}")


def test_the_shortest_decimal_is_the_one_that_was_written() -> None:
    assert [_decimal(166, rows) for rows in (0, 16, 83, 166)] == ["0.0", "0.1", "0.5", "1.0"]


def test_paths_are_written_as_the_other_machine_has_them() -> None:
    place = Place(("/data/a=/x", "/data/a/deep=/y"))
    paths = (Path("/data/a/b"), Path("/data/a/deep/c"), Path("/data/ab"))
    assert [place.there(path) for path in paths] == ["/x/b", "/y/c", "/data/ab"]
    for bad in ("x", "=x", "x="):
        with pytest.raises(UsageError, match="--mount: must be HERE=THERE"):
            Place((bad,))
    with pytest.raises(UsageError, match="--reader: must be 1.9.1 or 2.0.3, got '2'"):
        Place(reader="2")  # type: ignore[arg-type]
