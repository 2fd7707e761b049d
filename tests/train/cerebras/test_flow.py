"""The whole flow of a run on CS systems, the appliance alone replaced; and one that lies."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crystalmix.mixtures.manifest.manifest import read
from crystalmix.prep.runtime.errors import ClusterError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.cerebras.backend import Target
from crystalmix.train.cerebras.own_process import apart
from crystalmix.train.cerebras.trainer import MDL, CsxTrainer, weights_digest
from crystalmix.train.model.crystal import Crystal, initialise
from crystalmix.train.record import run_folder as folder
from crystalmix.train.runfile import run_file as params
from crystalmix.train.runfile.cluster import Cluster
from crystalmix.train.trace.findings import findings
from crystalmix.train.trainer.trainer import Outcome
from helpers.runs import recorded, write_run
from helpers.wafers import NEEDS_CSTORCH, Lie, StateLie, Topology, Wafers, plan, planned

pytestmark = NEEDS_CSTORCH
STEPS, STOP, BATCH = 50, 20, 6
SETTINGS: Json = {"checkpoint_steps": 10, "keep_checkpoints": 9, "num_csx": 2}


def trained(root: Path, out: Path, wafers: Wafers, stop: int | None = None) -> tuple[Outcome, Json]:
    """Train on a stand-in cluster in this process; return what came of it and what it was asked."""
    run = params.load(root / "run.yaml")
    cluster = Cluster(num_csx=wafers.topology.num_csx, num_workers_per_csx=wafers.topology.workers)
    wafers.install()
    sealed = read(root / "phases" / "plan")
    outcome = CsxTrainer(run, sealed, root, out / "plan", Target("CSX", cluster)).train(stop=stop)
    asked = wafers.asked[0]
    told = {
        "steps": asked.num_iterations,
        "resumed": bool(asked.dataloader.initial_state),
        "fetched": wafers.fetched,
        "weights": weights_digest(out / "plan" / "checkpoints" / "step-00000010" / MDL),
    }
    return outcome, told


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of 50 steps, and a run file."""
    root = tmp_path_factory.mktemp("plan")
    plan(root, STEPS, BATCH)
    write_run(root / "run.yaml", runconfig=SETTINGS)
    return root


def wafers(build: Path, topology: Topology, first: int = 0, **changes: Any) -> Wafers:
    """A stand-in cluster for the plan."""
    sealed, run = read(build / "phases" / "plan"), params.load(build / "run.yaml")
    rates = run.optimizer.learning_rate
    return Wafers(topology, sealed.msl, sealed.batch, rates, first, **changes)


def digest_of_fresh_weights(build: Path) -> str:
    from crystalmix.train.trainer.checkpoint import weights_digest as digest_of

    run = params.load(build / "run.yaml")
    model = Crystal(run.model)
    initialise(model, run.settings.seed)
    return digest_of(model)


def test_fifty_steps_go_through_and_resume_on_other_systems(build: Path, tmp_path: Path) -> None:
    first, told = apart(trained, build, tmp_path, wafers(build, Topology(2, 2)), STOP)
    rest, more = apart(trained, build, tmp_path, wafers(build, Topology(3, 1), STOP), None)
    assert (first.steps, rest.first_step, rest.steps) == (STOP, STOP, STEPS)
    assert (told["steps"], told["resumed"]) == (STOP, False)
    assert (more["steps"], more["resumed"]) == (STEPS - STOP, True)
    names = ["loss", "gradient_norm", "learning_rate", "row_losses", "rows"]
    for name in names:  # every step's witness was asked for, step by step
        assert [k for k, n in more["fetched"] if n == f"output_{name}"] == list(range(30))
    # nothing was computed, so the weights of the .mdl files are those of the start
    assert told["weights"] == first.weights == rest.weights == digest_of_fresh_weights(build)
    steps, rows = recorded(tmp_path, "plan")
    assert [step["step"] for step in steps] == list(range(STEPS))
    assert len(rows) == STEPS * BATCH
    assert findings(build, tmp_path, batches=True) == []
    sealed = [folder.read_state(path) for path in folder.checkpoints(tmp_path / "plan/checkpoints")]
    assert [state.loaders["next"] for state in sealed] == [60, 120, 180, 240, 300]
    assert [state.loaders["workers"] for state in sealed] == [4, 4, 3, 3, 3]
    assert [state.ledger.steps for state in sealed] == [10, 20, 30, 40, 50]


def wrong_rows(step: int, rows: Any) -> Any:
    """From step 4 on, one row is of another place."""
    rows = rows.copy()
    rows[3, 0] += 100 * (step >= 4)
    return rows


def wrong_tokens(step: int, rows: Any) -> Any:
    """From step 4 on, one row holds other tokens."""
    rows = rows.copy()
    rows[3, 1] += step >= 4
    return rows


def disagreeing(step: int) -> Any:
    """Two workers that stand at different places."""
    state = {"manifest": "m", "batch": BATCH, "start": 0, "step": step, "workers": 2, "rows": 30}
    next_ = [step * BATCH, step * BATCH - BATCH]
    return [
        SimpleNamespace(user_state_dict={**state, "worker": n, "next": next_[n]}) for n in (0, 1)
    ]


def lagging(step: int) -> Any:
    """Workers that agree, one step behind of what came back."""
    state = {"manifest": "m", "batch": BATCH, "start": 0, "step": step, "workers": 1}
    state |= {"rows": step * BATCH, "worker": 0, "next": (step - 1) * BATCH}
    return [SimpleNamespace(user_state_dict=state)]


def repeated(step: int, rows: Any) -> Any:
    """The batch of step 4 comes again in step 5."""
    rows = rows.copy()
    rows[:, 0] -= BATCH * (step == 5)
    return rows


LIES: list[tuple[Lie | None, StateLie | None, str]] = [
    (wrong_rows, None, r"step 4: the cluster fed position 127 .1 such rows., the plan says .* 24 "),
    (
        wrong_tokens,
        None,
        r"step 4: 1 of 6 rows held other tokens .* .position 27 first.; mount",
    ),
    (
        repeated,
        None,
        r"step 5: the cluster repeated the batch of step 4, the plan says .* 30 to 35",
    ),
    (None, disagreeing, r"loaders disagree about next .worker 0 60, worker 1 54."),
    (None, lagging, r"the loaders stand at position 54 of manifest m, the steps done end at 60 of"),
]


@pytest.mark.parametrize(
    ("lie", "state_lie", "told"), LIES, ids=["rows", "tokens", "again", "disagree", "lag"]
)
def test_a_lying_cluster_is_caught_and_nothing_of_it_is_sealed(
    lie: Lie | None, state_lie: StateLie | None, told: str, build: Path, tmp_path: Path
) -> None:
    given = {"lie": lie, "state_lie": state_lie, "rows": planned(build, 0, STEPS)}
    with pytest.raises(ClusterError, match=told) as error:
        apart(trained, build, tmp_path, wafers(build, Topology(2, 1), **given), None)
    assert "\n" not in str(error.value)
    assert folder.latest(tmp_path / "plan" / "checkpoints") is None
    assert list((tmp_path / "plan").glob("ledger/*")) == []
