"""What a cluster says it did, held against the plan: the ledger takes down nothing else.

Two witnesses. Each step gives back the (position, digest) of the rows that went through it; each
checkpoint gives the state of every worker's loader. A step that consumed other rows, other
contents, or one batch twice, and workers that disagree, end the run with one line.
"""

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from crystalmix.prep.runtime.errors import ClusterError
from crystalmix.prep.runtime.types import Json

Numbers = NDArray[np.int32]
REMEDY = "its rows are not taken down; go on from the last checkpoint, and report the cluster"


class PlanEndError(ClusterError):
    """A worker was asked for a step that the plan does not have."""


def row_digests(rows: Numbers) -> Numbers:
    """Return a digest of each row's bytes, 31 bits of xxh3-128: rows (B, 3, msl) -> (B,) int32."""
    return shortened(b"".join(xxhash.xxh3_128_digest(row.tobytes()) for row in rows))


def shortened(digests: bytes) -> Numbers:
    """Cut digests of 16 bytes, as `train.trainer.batches` has them, to 31 bits each: (B,) int32."""
    return (np.frombuffer(digests, dtype=">u4")[::4] & 0x7FFFFFFF).astype(np.int32)


def places(step: int, came: Numbers, digests: Numbers) -> NDArray[np.int64]:
    """Return where in `came` each row of the plan is, given a step's rows as they came back.

    came: (B, 2) int32, position and digest, in any order: systems may give theirs in turn.
    digests: (B,) of the planned rows. Raises ClusterError where the two differ.
    """
    batch = len(digests)
    planned = np.arange(step * batch, (step + 1) * batch)
    if came.shape != (batch, 2):
        raise ClusterError(
            f"step {step}: {came.shape} row ids came back for {batch} rows; {REMEDY}"
        )
    order = np.argsort(came[:, 0], kind="stable")
    positions = came[order, 0].astype(np.int64)
    if not np.array_equal(positions, planned):
        raise ClusterError(f"step {step}: {_other(positions, planned)}; {REMEDY}")
    wrong = np.flatnonzero(came[order, 1] != digests)
    if len(wrong):
        first = int(planned[wrong[0]])
        raise ClusterError(
            f"step {step}: {len(wrong)} of {batch} rows held other tokens than the build's "
            f"(position {first} first); mount the same build on the workers, and go on from the "
            "last checkpoint"
        )
    return order


def _other(positions: NDArray[np.int64], planned: NDArray[np.int64]) -> str:
    """Say what came instead of the wanted positions; both sorted."""
    first, batch = int(planned[0]), len(planned)
    plan = f"the plan says positions {first} to {first + batch - 1}"
    inside, times = np.unique(positions, return_counts=True)
    if len(inside) == batch and positions[0] % batch == 0 and positions[-1] - positions[0] < batch:
        other = int(positions[0]) // batch
        word = "repeated" if positions[0] < first else "ran ahead to"
        return f"the cluster {word} the batch of step {other}, {plan}"
    if times.max() > 1:
        return f"the cluster fed position {int(inside[times.argmax()])} {times.max()} times, {plan}"
    strange = inside[~np.isin(inside, planned)]
    return f"the cluster fed position {int(strange[0])} ({len(strange)} such rows), {plan}"


def agreed(states: Sequence[Json]) -> Json:
    """Return the one state that all workers' loaders are in: manifest, next position, workers.

    Raises ClusterError where two disagree, one is missing, or their rows do not add up.
    """
    for key in ("manifest", "batch", "start", "step", "next", "workers"):
        values = {state["worker"]: state[key] for state in states}
        if len(set(values.values())) > 1:
            text = ", ".join(f"worker {w} {value}" for w, value in sorted(values.items())[:4])
            raise ClusterError(f"the workers' loaders disagree about {key} ({text}); {REMEDY}")
    first = states[0]
    numbers = sorted(state["worker"] for state in states)
    if numbers != list(range(first["workers"])):
        raise ClusterError(
            f"{first['workers']} workers were to tell their state, {numbers} did; {REMEDY}"
        )
    rows, planned = sum(state["rows"] for state in states), first["step"] * first["batch"]
    if rows != planned:
        raise ClusterError(
            f"the workers streamed {rows} rows in {first['step']} steps of {first['batch']}, not "
            f"{planned}; {REMEDY}"
        )
    return {"manifest": first["manifest"], "next": first["next"], "workers": first["workers"]}


def check_loader(state: Json, manifest: str, next_position: int) -> None:
    """Hold the loaders' state at a checkpoint against the plan; ClusterError names both."""
    if (state["manifest"], state["next"]) != (manifest, next_position):
        raise ClusterError(
            f"the loaders stand at position {state['next']} of manifest {state['manifest'][:12]}, "
            f"the steps done end at {next_position} of {manifest[:12]}; {REMEDY}"
        )


def check_rate(step: int, came: float, planned: float) -> None:
    """Hold the learning rate that a step used against the schedule's; ClusterError names both."""
    # cstorch computes it in float32
    if not abs(came - planned) <= 1e-5 * abs(planned) + 1e-9:
        raise ClusterError(
            f"step {step}: learned at rate {came:.9g}, the schedule says {planned:.9g}; {REMEDY}"
        )
