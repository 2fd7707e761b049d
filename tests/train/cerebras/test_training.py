"""cstorch's CPU backend: the original's numbers, torch's ledger, and resumes bit for bit."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from crystalmix.mixtures.manifest.manifest import read
from crystalmix.prep.runtime.errors import (
    CrystalmixError,
    InputError,
    RecipeError,
    RefusalError,
    StaleError,
)
from crystalmix.prep.runtime.types import Json
from crystalmix.train.cerebras.backend import Target, bring_up, cstorch
from crystalmix.train.cerebras.loader import loader
from crystalmix.train.cerebras.own_process import apart
from crystalmix.train.cerebras.phase import maker
from crystalmix.train.cerebras.step import CsxStep, matmul
from crystalmix.train.cerebras.trainer import MDL, CsxTrainer, weights_digest
from crystalmix.train.model.crystal import Crystal
from crystalmix.train.model.optimizer import Linear, OptimSettings
from crystalmix.train.model.processes import World
from crystalmix.train.record import run_folder as folder
from crystalmix.train.runfile import run_file as params
from crystalmix.train.runfile.cluster import Cluster
from crystalmix.train.trace.findings import findings
from crystalmix.train.trainer import session
from crystalmix.train.trainer.trainer import Outcome
from crystalmix.train.weights.hf_names import from_huggingface, to_huggingface
from helpers.crystals import TINY, golden_folder
from helpers.runs import (
    copied_build,
    manifest,
    recorded,
    run_file,
    small_build,
    train,
    weights,
    write_run,
)
from helpers.wafers import NEEDS_CSTORCH

pytestmark = [
    NEEDS_CSTORCH,
    # torch 2.4 warns of what its own checkpoints do
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
    pytest.mark.filterwarnings("ignore:You are using .torch.load:FutureWarning"),
]
PHASES = ("prose", "mixed")
GOLDEN = OptimSettings(
    learning_rate=(Linear(0.0, 0.012, 4), Linear(0.012, 0.00012408, 20)),
    eps=1e-5,
    max_gradient_norm=0.19,
    decoder_kernel=0.0625,
)


class GoldenBatches:
    """The batches of the golden training run, one after the other."""

    def __init__(self, path: str) -> None:
        self.batch = load_file(path)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        step = 0
        while True:
            rows = {k: v.roll(step, 0).roll(5 * step, 1).int() for k, v in self.batch.items()}
            yield {**rows, "rows": torch.full((3, 2), step, dtype=torch.int32)}
            step += 1


def golden_steps(golden: Path, scratch: Path, steps: int) -> tuple[list[Json], dict[str, Tensor]]:
    """Train the golden model on cstorch; return what each step told and the weights after."""
    api, told = cstorch(), []
    bring_up(Target("CPU"), scratch)
    model = Crystal(matmul(TINY))
    model.load_state_dict(from_huggingface(load_file(golden / "weights.safetensors")))
    step = CsxStep(model, GOLDEN)
    data = api.utils.data.DataLoader(GoldenBatches, str(golden / "batch.safetensors"))

    @api.step_closure
    def took(**values: Any) -> None:
        rates = [float(group["lr"]) for group in step.optimizer.param_groups]
        told.append({**{name: value.tolist() for name, value in values.items()}, "rates": rates})

    @api.trace
    def traced(batch: dict[str, Tensor]) -> None:
        took(**vars(step(batch)))

    for batch in api.utils.data.DataExecutor(data, num_steps=steps):
        traced(batch)
    return told, to_huggingface({k: v.detach() for k, v in model.state_dict().items()})


@pytest.mark.golden
def test_eight_steps_are_those_of_model_zoo(tmp_path: Path) -> None:
    golden = golden_folder()
    expected = json.loads((golden / "expected.json").read_bytes())["train_f32"]
    told, after = apart(golden_steps, golden, tmp_path, len(expected))
    for step, (wanted, came) in enumerate(zip(expected, told, strict=True)):
        assert came["loss"] == pytest.approx(wanted["loss"], abs=5e-6)
        assert came["gradient_norm"] == pytest.approx(wanted["grad_norm"], abs=5e-6)
        assert came["learning_rate"] == pytest.approx(wanted["lr_full"], rel=1e-6)
        assert sum(came["row_losses"]) / 3 / 40 == pytest.approx(wanted["loss"], abs=5e-6)
        assert came["rows"] == [[step, step]] * 3
    assert_close(after, load_file(golden / "weights_after_train.safetensors"), atol=2e-6, rtol=0)


def on_cpu(out: Path, stop: int | None = None, **changes: Any) -> Outcome:
    """Train the phase `prose` on cstorch's CPU, in this process."""
    run = params.load(run_file())
    run = replace(run, settings=replace(run.settings, **changes))
    sealed = manifest("prose")
    return CsxTrainer(run, sealed, small_build(), out / "prose", Target("CPU")).train(stop=stop)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of two phases on cstorch's CPU, that nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    said: list[str] = []
    make = maker("cstorch-cpu", str(run_file()))
    session.train(small_build(), str(run_file()), out, phases=PHASES, say=said.append, make=make)
    assert [line.split(":")[0] for line in said] == list(PHASES)
    return out


def test_the_ledger_is_torchs_for_the_same_manifest(whole: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.yaml", model={"attention": "matmul"})
    train(tmp_path, *PHASES, run=run)
    # the second phase begins with weights that already differ a little
    for phase, bound in zip(PHASES, (5e-6, 5e-5), strict=True):
        (steps, rows), (torchs, their_rows) = recorded(whole, phase), recorded(tmp_path, phase)
        assert rows == their_rows
        for ours, theirs in zip(steps, torchs, strict=True):
            for key in ("step", "digest", "chain", "learning_rate"):
                assert ours[key] == theirs[key]
            for key in ("loss", "gradient_norm"):
                # a phase after another begins with weights that already differ a little
                assert ours[key] == pytest.approx(
                    theirs[key], abs=5e-6 if phase == "prose" else 5e-5
                )
            for mine, his in zip(ours["parts"], theirs["parts"], strict=True):
                assert mine == {**his, "loss": pytest.approx(his["loss"], abs=bound)}
    assert findings(small_build(), whole, batches=True) == []


def lines_of(out: Path) -> list[Json]:
    """The metrics of a run, without the clock's."""
    lines = (out / "prose" / "metrics.jsonl").read_bytes().splitlines()
    return [{**json.loads(line), "tokens_per_second": 0} for line in lines]


def test_stops_and_a_death_while_saving_change_no_bit(whole: Path, tmp_path: Path) -> None:
    first, second = apart(on_cpu, tmp_path, 2), apart(on_cpu, tmp_path, 7)
    assert (first.first_step, first.steps, second.first_step, second.steps) == (0, 2, 2, 7)
    newest = folder.latest(tmp_path / "prose" / "checkpoints")
    assert newest is not None
    (newest / folder.STATE).unlink()  # it is written last, so the checkpoint is none
    with (tmp_path / "prose" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 7, "lo')
    rest = apart(on_cpu, tmp_path)
    assert (rest.first_step, rest.steps) == (6, 12)
    assert recorded(tmp_path, "prose") == recorded(whole, "prose")
    assert rest.weights == weights(whole, "prose")
    assert lines_of(tmp_path) == lines_of(whole)


def state_of(path: Path) -> Json:
    """What an .mdl holds, read by cstorch: its loader's state, its step, its weights' digest."""
    state = cstorch().load(str(path))
    return {
        "dataloader": dict(state["dataloader"].items()),
        "global_step": state["global_step"],
        "weights": weights_digest(path),
        "sections": sorted(state),
    }


def test_a_checkpoint_carries_manifest_and_place_and_its_state_seals_them(whole: Path) -> None:
    newest = folder.latest(whole / "mixed" / "checkpoints")
    assert newest is not None
    held, sealed = apart(state_of, newest / MDL), folder.read_state(newest)
    assert held["global_step"] == sealed.step == 16
    assert held["dataloader"] == sealed.loaders
    place = {"manifest": manifest("mixed").digest, "next": 16 * 4, "workers": 1}
    assert sealed.loaders == place
    assert held["weights"] == sealed.weights
    assert held["sections"] == ["dataloader", "global_step", "model", "optimizer", "schedulers"]


def test_half_precision_is_near_and_is_not_the_same(whole: Path, tmp_path: Path) -> None:
    apart(half_precision, tmp_path)
    (short, _), (long, _) = recorded(tmp_path, "prose"), recorded(whole, "prose")
    for ours, theirs in zip(short, long, strict=False):
        assert ours["chain"] == theirs["chain"]
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=0.05)
        assert ours["loss"] != theirs["loss"]


def half_precision(out: Path) -> Outcome:
    return on_cpu(out, 3, dtype="bfloat16")


def test_another_backends_run_is_not_gone_on_with(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(StaleError, match="was begun otherwise .*checkpoints.*another --out"):
        train(whole, "prose")
    train(tmp_path, "prose")
    make = maker("cstorch-cpu", str(run_file()))
    with pytest.raises(StaleError, match="was begun otherwise .*checkpoints.*another --out"):
        session.train(
            small_build(), str(run_file()), tmp_path, phases=["prose"], say=str, make=make
        )
    with pytest.raises(InputError, match=f"holds no {MDL} .another backend trained it"):
        session.train(
            small_build(), str(run_file()), tmp_path, phases=["mixed"], say=str, make=make
        )


def test_a_model_that_is_too_small_and_a_backend_that_is_none_are_refused(tmp_path: Path) -> None:
    small = write_run(tmp_path / "run.yaml", model={"max_position_embeddings": 32})
    make = maker("cstorch-cpu", str(small))
    with pytest.raises(RecipeError, match="max_position_embeddings: must be at least 64"):
        session.train(small_build(), str(small), tmp_path, say=str, make=make)
    wide = write_run(tmp_path / "wide.yaml", runconfig={"num_csx": 9})
    make = maker("csx", str(wide))
    with pytest.raises(RefusalError, match="num_csx: must be at most the batch of 4 rows, got 9"):
        session.train(small_build(), str(wide), tmp_path, say=str, make=make)


def test_a_build_that_changes_under_the_workers_ends_the_run(tmp_path: Path) -> None:
    build = copied_build(tmp_path / "build")
    sealed = read(build / "phases" / "prose")
    make = maker("cstorch-cpu", str(run_file()))
    run = params.load(run_file())
    phase = make(run, sealed, build, tmp_path / "run" / "prose", World())
    other = read(build / "phases" / "mixed")
    with pytest.raises(StaleError, match="this worker sees manifest .* mount the same build"):
        apart(loader, str(other.folder), sealed.digest, str(build))
    rmtree(build / "phases" / "prose")
    with pytest.raises(InputError, match="no such manifest"):
        phase.train()


def test_a_folder_that_workers_cannot_see_is_told_as_the_run_files_fault(tmp_path: Path) -> None:
    target = Target("CSX", Cluster(mount_dirs=(str(tmp_path / "nowhere"),)))
    with pytest.raises(RecipeError, match="runconfig: Mount dir .*nowhere does not exist; correct"):
        apart(bring_up, target, tmp_path)


def test_without_a_cluster_the_error_is_one_line_and_the_whole_is_in_a_file(
    tmp_path: Path,
) -> None:
    make = maker("csx", str(run_file()))
    with pytest.raises(CrystalmixError, match="cstorch failed: config error: mgmt_address") as told:
        session.train(
            small_build(), str(run_file()), tmp_path, phases=["prose"], say=str, make=make
        )
    assert "\n" not in str(told.value)
    failure = (tmp_path / "prose" / "cerebras" / "failure.txt").read_text("utf-8")
    assert failure.startswith("Traceback")
    assert folder.latest(tmp_path / "prose" / "checkpoints") is None
