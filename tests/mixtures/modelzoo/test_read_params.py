"""Model Zoo's params.yaml as they were published: what is read, found again, noted and refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from crystalmix.mixtures.manifest.cerebras_order import ZooMixture
from crystalmix.mixtures.modelzoo.import_shards import ImportSettings, import_shards
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.rows import shards
from crystalmix.prep.runtime.errors import CrystalmixError, InputError
from crystalmix.prep.runtime.types import Json
from helpers.corpora import crystalmix, merged
from helpers.hubs import ONE, fake, params_of, published, write

BAD: list[tuple[Json, str]] = [
    ({"train_input": {"mixture": [{"data_dir": "/x/nowhere", "weight": 1.0}]}},
     "data_dir /x/nowhere: no folder below"),
    ({"train_input": {"shuffle": True}}, "train_input.shuffle: only the interleaved order"),
    ({"train_input": {"data_processor": "Other"}}, "data_processor: only the order of"),
    ({"train_input": {"shuffle_seed": None}}, "train_input.shuffle_seed: is missing"),
    ({"train_input": {"vocab_size": None}}, "train_input.vocab_size: is missing"),
    ({"train_input": {"mixture": []}}, "mixture: must list at least one data_dir"),
    ({"train_input": None}, "train_input: is missing"),
    ({"runconfig": {"max_steps": 0}}, "steps: must be positive, got 0"),
    ({"runconfig": {"max_steps": None}}, "runconfig.max_steps: is missing"),
    ({"train_input": {"batch_size": 0}}, "batch: must be positive, got 0"),
    ({"train_input": {"mixture": [{"data_dir": "slim", "weight": -1.0}]}}, "weight: must be a num"),
    ({"train_input": {"mixture": [{"data_dir": "slim", "wight": 1.0}]}}, "wight: is no known key"),
    ({"train_input": {"mixture": [{"data_dir": "slim", "weight": 1.0, "data_subset": "0-1,0-1"}]}},
     "data_subset: must be one range such as 0.0-0.1"),
    ({"train_input": {"mixture": [{"data_dir": "slim", "weight": 1.0, "data_subset": "0.5-0.2"}]}},
     "subset: must be 0 <= from < to <= 1"),
    ({"train_input": {"mixture": [{"data_dir": "slim", "weight": 0.0},
                                  {"data_dir": "css", "weight": 1.0}]}}, "--zeros misaligned"),
    ({"train_input": {"mixture": [{"data_dir": "slim", "weight": 0.5}] * 2}}, "slim stands twice"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "told"), BAD, ids=[told for _, told in BAD])
def test_a_bad_params_file_is_one_line(tmp_path: Path, changes: Json, told: str) -> None:
    names = ("star_part0of2", "slim", "css")
    root = fake(tmp_path / "hub", *(f"Sets/{name}/data-00000.h5" for name in names))
    path = write(tmp_path / "bad.yaml", merged(ONE, changes))
    result = crystalmix("import", root, "--out", tmp_path / "out", "--params", path)
    assert result.exit_code in {1, 2}
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out" / "phases").exists()


@pytest.mark.golden
def test_the_published_params_are_read_as_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files, root = published(tmp_path / "hub")
    code = "StarCoder_fim_train_shuffled=phase2/StarCoder_fim_shuffled"
    with pytest.raises(InputError, match=f"say where it is: --map {code.partition('=')[0]}"):
        import_shards(root, tmp_path / "out", ImportSettings(tuple(files)))
    caplog.clear()
    made = import_shards(root, tmp_path / "out", ImportSettings(tuple(files), (code,)))
    assert [m.phase for m in made] == ["phase1", "phase2", "phase3"]
    assert sum(m.steps for m in made) == 321_836
    assert {m.batch for m in made} == {2112}
    assert [len(m.parts) for m in made] == [7, 8, 11]
    wanted = [part["weight"] for part in YAML(typ="safe").load(files[2])["train_input"]["mixture"]]
    assert [part.asked for part in made[2].parts] == wanted
    arxiv = next(part for part in made[2].parts if part.domain == "ArXiv_train_packed")
    domain = tmp_path / "out/domains/ArXiv_train_packed/imported"
    assert [p.name for p in shards.folder(domain)] == [shards.name(n) for n in range(4)]
    assert arxiv.budget == {"weight": 0.016663255966286664}
    assert made[2].parts[-1].domain == "StarCoder_fim_shuffled"  # one folder is one domain
    css = (tmp_path / "out/domains/css/imported/data-00000.h5").resolve()
    assert css.parts[-3:] == ("train_shuffled_correct_ratio", "css", "data-00000.h5")
    assert verify(tmp_path / "out") == []
    assert caplog.text.count("as Model Zoo 2.0.3 does") == 1
    assert "ArXiv_train_packed_part0of2 and phase2/SlimPajama/ArXiv_train_pack" in caplog.text
    manifest = made[2]
    lists = [part.available for part in manifest.parts]
    refs = ZooMixture(lists, wanted, 1).refs(27_000 * 2112, 27_001 * 2112)
    np.testing.assert_array_equal(manifest.step(27_000).part, refs.part)


def test_a_name_in_two_places_is_settled_by_what_stands_before_it_or_refused(
    tmp_path: Path,
) -> None:
    root = fake(tmp_path / "hub", "a/x/data-00000.h5", "b/x/data-00000.h5")
    (made,) = import_shards(
        root, tmp_path / "out", ImportSettings((params_of(tmp_path, "/old/b/x", "/old/a/x"),))
    )
    assert [part.domain for part in made.parts] == ["x", "a-x"]
    assert (tmp_path / "out/domains/x/imported/data-00000.h5").resolve().parts[-3] == "b"
    path = params_of(tmp_path, "/old/c/x")
    with pytest.raises(InputError, match=r"2 folders below .* match \(a/x, b/x\); say where"):
        import_shards(root, tmp_path / "no", ImportSettings((path,)))
    (made,) = import_shards(root, tmp_path / "map", ImportSettings((path,), ("x=b/x",)))
    assert (tmp_path / "map/domains/x/imported/data-00000.h5").resolve().parts[-3] == "b"


def test_parts_stand_for_the_whole_only_if_all_are_there(tmp_path: Path) -> None:
    root = fake(tmp_path / "hub", "x_part0of2/data-00000.h5", "x_part1of2/data-00001.h5")
    path = params_of(tmp_path, "/old/x")
    (made,) = import_shards(root, tmp_path / "out", ImportSettings((path,)))
    assert [Path(shard.path).name for shard in made.parts[0].shards] == [
        "data-00000.h5",
        "data-00001.h5",
    ]
    shutil.rmtree(root / "x_part1of2")
    with pytest.raises(InputError, match="no folder below .* has its name"):
        import_shards(root, tmp_path / "other", ImportSettings((path,)))


@pytest.mark.parametrize(
    "weights", [[0.0031415926535897933, 0.5, 0.4968584073464102], [0.1, 0.2, 0.4], [3.0, 1.0, 9.0]]
)
def test_weights_reach_model_zoos_arithmetic_as_they_were_written(
    tmp_path: Path, weights: list[float]
) -> None:
    root = fake(tmp_path / "hub", *(f"{name}/data-00000.h5" for name in "xyz"))
    mixture = [{"data_dir": d, "weight": w} for d, w in zip("xyz", weights, strict=True)]
    path = write(tmp_path / "p.yaml", merged(ONE, {"train_input": {"mixture": mixture}}))
    (made,) = import_shards(root, tmp_path / "out", ImportSettings((path,)))
    wanted = ZooMixture([5, 5, 5], weights, 1)
    np.testing.assert_array_equal(made.rows(0, 420).part, wanted.refs(0, 420).part)
    assert [part.rows for part in made.parts] == wanted.counts(420, 3)
    assert verify(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("maps", "told"),
    [
        (("x",), "must be DATA_DIR=FOLDER"),
        (("y=a",), "no data_dir of the params ends in 'y'"),
        (("x=c",), "c holds no .h5 file"),
        (("x=a,b",), "have one name"),
    ],
)
def test_a_map_that_leads_nowhere_is_told(tmp_path: Path, maps: tuple[str, ...], told: str) -> None:
    root = fake(tmp_path / "hub", "a/data-00000.h5", "b/data-00000.h5")
    settings = ImportSettings((params_of(tmp_path, "/old/x"),), maps)
    with pytest.raises(CrystalmixError, match=told):
        import_shards(root, tmp_path / "out", settings)


def test_keys_that_nobody_reads_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = fake(tmp_path / "hub", "x/data-00000.h5")
    path = params_of(tmp_path, "x", bucket=3)
    import_shards(root, tmp_path / "out", ImportSettings((path,)))
    assert f"{path}: train_input: not used: bucket" in caplog.text
