"""A params.yaml for Model Zoo: the published ones come out again; both dialects say the same."""

from dataclasses import asdict, replace
from pathlib import Path

import orjson
import pytest
import yaml
from click.testing import CliRunner, Result

from crystalmix.cli import main
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.modelzoo.import_shards import ImportSettings, import_shards
from crystalmix.mixtures.modelzoo.train_input import Place
from crystalmix.prep.runtime.errors import DamageError, RecipeError, UsageError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.modelzoo import write_params as zoofile
from crystalmix.train.modelzoo.write_params_2x import trainer
from crystalmix.train.runfile import run_file as params
from helpers.hubs import fake, params_of, published
from helpers.runs import run_file, small_build, write_run

CODE = "StarCoder_fim_train_shuffled=phase2/StarCoder_fim_shuffled"
# Halves are apart on the hub, so the import links them together in a folder of its own; StarCoder's
# published folder of phase 3 has another name than that of phase 2, which holds its files.
WHOLE = ("ArXiv", "Book", "C4", "CommonCrawl", "StackExchange", "Wikipedia")
KNOWN = {
    "phase1": [],
    "phase2": [],
    "phase3": [
        "train_input.mixture.10.data_dir: '/path/to/StarCoder_fim_shuffled', "
        "the other '/path/to/StarCoder_fim_train_shuffled/'"
    ],
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Path, Path]:
    """Import the published phases over tiny shards of the published length; return all places."""
    folder = tmp_path_factory.mktemp("published")
    files, root = published(folder / "hub", 2048)
    out = folder / "out"
    import_shards(root, out, ImportSettings(tuple(files), (CODE,), digests=False))
    return {path.stem: path for path in files}, root, out


def place(root: Path, out: Path) -> Place:
    """Tell where the published folders stood on their machine."""
    mounts = [f"{root}/phase{n}/SlimPajama=/path/to/SlimPajama" for n in (1, 2)]
    mounts += [f"{root}/phase{n}=/path/to" for n in (2, 3)]
    mounts += [
        f"{out}/domains/{name}_train_packed/imported=/path/to/SlimPajama/{name}_train_packed"
        for name in WHOLE
    ]
    return Place(tuple(mounts))


def loaded(path: Path) -> Json:
    """Read a params.yaml as Model Zoo does, by PyYAML."""
    return yaml.safe_load(path.read_text("utf-8"))


def csx(*words: object) -> Result:
    return CliRunner().invoke(main, ["csx", *map(str, words)], catch_exceptions=False)


@pytest.mark.golden
@pytest.mark.parametrize("phase", KNOWN)
def test_each_published_phase_comes_out_as_it_was_published(
    hub: tuple[dict[str, Path], Path, Path], tmp_path: Path, phase: str
) -> None:
    files, root, out = hub
    manifest, told = manifests.read(out / "phases" / phase), tmp_path / "params.yaml"
    zoofile.write(str(files[phase]), manifest, told, "1.9", place(root, out))
    written, wanted = loaded(told), loaded(files[phase])
    assert zoofile.shared_differences(written, wanted) == KNOWN[phase]
    lacking = {
        f"{section}.{key}"
        for section in wanted
        for key in wanted[section]
        if key not in written.get(section, {})
    }
    assert lacking == set()  # nothing that was published is lost on the way


@pytest.mark.golden
@pytest.mark.parametrize("phase", KNOWN)
def test_a_run_that_knows_only_its_settings_gives_the_published_numbers(
    hub: tuple[dict[str, Path], Path, Path], tmp_path: Path, phase: str
) -> None:
    files, root, out = hub
    run = params.load(files[phase])
    run = replace(run, settings=replace(run.settings, dtype="bfloat16", micro_batch=66))
    path = tmp_path / "run" / phase / "run.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(orjson.dumps({"manifest": "", "run": asdict(run), "init": None}))
    manifest, told = manifests.read(out / "phases" / phase), tmp_path / "params.yaml"
    zoofile.write(str(tmp_path / "run"), manifest, told, "1.9", place(root, out))
    written, wanted = loaded(told), loaded(files[phase])
    assert zoofile.shared_differences(written, wanted) == KNOWN[phase]
    assert written["train_input"]["micro_batch_size"] == 66
    assert {*wanted["model"]} - {*written["model"]} == {"attention_kernel"}


@pytest.fixture(scope="module")
def tiny_import(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("tiny")
    root = fake(folder / "hub", "x/data-00000.h5", "y/data-00000.h5")
    import_shards(root, folder / "out", ImportSettings((params_of(folder, "x", "y"),)))
    return manifests.read(folder / "out/phases/p")


def test_numbers_are_written_as_yaml_1_1_reads_numbers(
    tiny_import: Manifest, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run.yaml", optimizer={"eps": 1e-9, "weight_decay_rate": 1e-22})
    out = tmp_path / "p.yaml"
    for dialect in ("1.9", "trainer"):
        written = zoofile.write(str(run), tiny_import, out, dialect)  # type: ignore[arg-type]
        assert loaded(out) == written  # 1e-09 is a text in YAML 1.1
        assert out.read_text().startswith(f"# phase p of hub, manifest {tiny_import.digest}\n")


def test_a_phases_own_settings_and_the_micro_batch_are_told(
    tiny_import: Manifest, tmp_path: Path
) -> None:
    changes = {"phases": {"p": {"runconfig": {"seed": 9}, "optimizer": {"eps": 1e-6}}}}
    run = write_run(tmp_path / "run.yaml", runconfig={"micro_batch": 3}, **changes)
    old = zoofile.write(str(run), tiny_import, tmp_path / "p.yaml")
    assert (old["runconfig"]["seed"], old["optimizer"]["eps"]) == (9, 1e-6)
    assert old["train_input"]["micro_batch_size"] == 3
    assert (old["model"]["mixed_precision"], old["model"]["use_bfloat16"]) == (False, False)
    new = zoofile.write(str(run), tiny_import, tmp_path / "p.yaml", "trainer")["trainer"]
    flags = {"ScopedTrainFlags": {"csx.performance.micro_batch_size": 3}}
    assert new["init"]["callbacks"] == [flags]
    assert new["init"]["precision"]["enabled"] is False
    assert "micro_batch_size" not in new["fit"]["train_dataloader"]


def test_what_is_written_is_a_run_file_of_the_same_settings(
    tiny_import: Manifest, tmp_path: Path
) -> None:
    run, out = params.load(run_file()), tmp_path / "p.yaml"
    zoofile.write(str(run_file()), tiny_import, out)
    again = params.load(out)
    assert (again.model, again.optimizer) == (run.model, run.optimizer)
    assert again.settings.seed == run.settings.seed
    assert again.settings.checkpoint_steps == run.settings.checkpoint_steps


def test_what_is_said_of_the_machine_is_passed_on(tiny_import: Manifest, tmp_path: Path) -> None:
    machine = {"num_csx": 2, "mount_dirs": ["/m"], "job_labels": ["a=b"], "log_steps": 5}
    machine |= {"keep_checkpoints": 3, "threads": 1}
    run = write_run(tmp_path / "run.yaml", runconfig=machine)
    old = zoofile.write(str(run), tiny_import, tmp_path / "p.yaml")["runconfig"]
    assert old == {
        **{"num_csx": 2, "mount_dirs": ["/m"], "job_labels": ["a=b"], "log_steps": 5},
        **{"max_steps": 70, "seed": 1, "checkpoint_steps": 3},
    }
    init = zoofile.write(str(run), tiny_import, tmp_path / "p.yaml", "trainer")["trainer"]["init"]
    cluster = {"num_csx": 2, "mount_dirs": ["/m"], "job_labels": ["a=b"]}
    assert init["backend"] == {"backend_type": "CSX", "cluster_config": cluster}
    assert init["logging"] == {"log_steps": 5}
    source = zoofile.source(str(run), "p")
    asked = replace(source, raw={"runconfig": {"fabric": "cs2"}})
    told = zoofile.sections(asked, tiny_import, Place())
    assert told["runconfig"]["fabric_type_blacklist"] == ["cs3"]
    flags = {"GlobalFlags": {"csx.debug.fabric_type_blacklist": ["cs3"]}}
    assert trainer(told)["trainer"]["init"]["callbacks"] == [flags]


def test_the_verb_writes_notes_what_must_be_known_and_lists_differences(
    tiny_import: Manifest, tmp_path: Path
) -> None:
    assert tiny_import.folder is not None
    out, like = tmp_path / "p.yaml", tmp_path / "like.yaml"
    words = ("params", run_file(), "--manifest", tiny_import.folder, "--out", out)
    told = csx(*words)
    assert told.exit_code == 0
    assert told.stdout == f"{out}: 70 steps of 6 rows, phase p\n"
    assert "note: the public Model Zoo 1.9.1 reads the files of a folder in" in told.stderr
    content = loaded(out)
    content["optimizer"]["eps"] = 0.5
    content["train_input"]["mixture"][0]["data_dir"] = "/elsewhere"
    content["runconfig"]["only_there"] = 1
    like.write_text(yaml.safe_dump(content))
    lines = csx(*words, "--dialect", "1.9", "--like", like).stdout.splitlines()[1:]
    assert [line.split(": ")[1] for line in lines] == [
        "optimizer.eps",
        "train_input.mixture.0.data_dir",
    ]
    told = csx(*words, "--dialect", "trainer", "--mount", f"{tiny_import.folder.parents[2]}=/m")
    assert (told.exit_code, told.stderr) == (0, "")
    assert loaded(out)["trainer"]["fit"]["train_dataloader"]["mixture"][0]["data_dir"] == "/m/hub/x"


def test_what_can_not_be_written_is_one_line(tmp_path: Path, tiny_import: Manifest) -> None:
    exact = small_build() / "phases/prose"
    out = tmp_path / "p.yaml"
    for words, line in (
        ([run_file(), "--manifest", exact], "phase prose: its order is `exact`"),
        ([run_file(), "--manifest", exact, "--dialect", "2"], "--dialect: must be 1.9 or trainer"),
        (["none", "--manifest", tiny_import.folder], "none: no such run file"),
    ):
        told = csx("params", *words, "--out", out)
        assert told.exit_code in {1, 2}
        assert told.stderr.startswith(f"crystalmix: {line}")
        assert told.stderr.count("\n") == 1
    assert not out.exists()
    broken = tmp_path / "run" / "p" / "run.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{}")
    with pytest.raises(DamageError, match="tells no run"):
        zoofile.write(str(tmp_path / "run"), tiny_import, out)
    assert not out.exists()


def test_params_of_the_current_dialect_are_read_with_their_faults(tmp_path: Path) -> None:
    from crystalmix.mixtures.modelzoo import read_params as zooparams

    path = tmp_path / "p.yaml"
    path.write_text("trainer: {init: {loop: {max_steps: 3}}}\n")
    with pytest.raises(RecipeError, match="trainer: must have init.loop.max_steps.*'model' is"):
        zooparams.read(path)
    path.write_text(
        "trainer:\n  init:\n    loop: {max_steps: 3}\n    model: {vocab_size: 5}\n  fit:\n"
        "    train_dataloader:\n      batch_size: 2\n      shuffle: true\n"
        "      shuffle_seed: 1\n      mixture: [{data_dir: x, weight: 1.0}]\n"
    )
    with pytest.raises(RecipeError, match=r"p.yaml:8: train_input.shuffle: only the interleaved"):
        zooparams.read(path)
    with pytest.raises(UsageError, match="--dialect: must be 1.9 or trainer"):
        zoofile.dialect_of("3")
