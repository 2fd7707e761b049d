"""The ledger: which rows each step consumed, and what came of it.

Steps are recorded after the optimiser step and held until the next checkpoint, when they are
sealed as `ledger/rows-<first>-<last>.parquet` and `ledger/steps-<first>-<last>.parquet`, so that a
crash never records a step that no checkpoint covers. On resume, segments past the checkpoint are
cut. Each step's digest is chained to the one before: chain = sha256(previous chain, batch digest).
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mixtures.manifest import Manifest, RowRefs
from prep.errors import DamageError
from prep.receipts import describe
from prep.spans import write as write_table

Json = dict[str, Any]
NAMES = pa.dictionary(pa.int32(), pa.string())
ROWS = pa.schema(
    [
        ("step", pa.int32()),
        ("slot", pa.int32()),  # place in the batch
        ("part", NAMES),
        ("shard", NAMES),  # path relative to the build
        ("row", pa.int32()),
        ("epoch", pa.int32()),
    ]
)
PART = pa.struct(
    [("part", pa.string()), ("rows", pa.int32()), ("tokens", pa.int64()), ("loss", pa.float64())]
)
STEPS = pa.schema(
    [
        ("step", pa.int32()),
        ("loss", pa.float64()),  # sum of masked nll / batch / msl
        ("gradient_norm", pa.float64()),  # before clipping
        ("learning_rate", pa.float64()),
        ("digest", pa.string()),  # of the batch's bytes
        ("chain", pa.string()),
        ("parts", pa.list_(PART)),  # rows, loss-carrying tokens, mean nll of those
    ]
)


@dataclass(frozen=True)
class Step:
    """What one step consumed and gave; parts: per part of the manifest, those with rows."""

    step: int
    refs: RowRefs
    digest: str
    loss: float
    gradient_norm: float
    learning_rate: float
    parts: tuple[Json, ...]


class Ledger:
    """The ledger of one phase of one run."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.chain = first_chain(manifest.digest)
        self.next_step = 0
        self._rows: list[pa.Table] = []
        self._steps: list[Json] = []

    def truncate(self, step: int, chain: str) -> None:
        """Go back to a checkpoint: steps from `step` on are cut, the chain goes on from there."""
        for path in segments(self.folder):
            if first_and_last(path)[1] >= step:
                path.unlink()
        self.chain, self.next_step = chain, step
        self._rows, self._steps = [], []

    def record(self, step: Step) -> str:
        """Take down a finished step and return the chain; steps must come one after the other."""
        if step.step != self.next_step:
            raise RuntimeError(f"ledger expects step {self.next_step}, got {step.step}")
        self.chain = next_chain(self.chain, step.digest)
        self._rows.append(self._row_table(step))
        self._steps.append(
            {
                "step": step.step,
                "loss": step.loss,
                "gradient_norm": step.gradient_norm,
                "learning_rate": step.learning_rate,
                "digest": step.digest,
                "chain": self.chain,
                "parts": list(step.parts),
            }
        )
        self.next_step += 1
        return self.chain

    def seal(self) -> Json:
        """Write what was recorded since the last seal; return the state for a checkpoint."""
        if self._steps:
            first, last = self._steps[0]["step"], self._steps[-1]["step"]
            name = f"{first:08d}-{last:08d}.parquet"
            rows = pa.concat_tables(self._rows, promote_options="default").unify_dictionaries()
            write_table(self.folder / f"rows-{name}", rows.combine_chunks())
            steps = pa.Table.from_pylist(self._steps, schema=STEPS)
            write_table(self.folder / f"steps-{name}", steps)
            self._rows, self._steps = [], []
        files = [describe(path) for path in segments(self.folder)]
        return {"chain": self.chain, "steps": self.next_step, "files": files}

    def _row_table(self, step: Step) -> pa.Table:
        refs, count = step.refs, len(step.refs.row)
        names = pa.array([part.name for part in self.manifest.parts])
        columns = {
            "step": pa.array(np.full(count, step.step), pa.int32()),
            "slot": pa.array(np.arange(count), pa.int32()),
            "part": pa.DictionaryArray.from_arrays(pa.array(refs.part, pa.int32()), names),
            "shard": pa.DictionaryArray.from_arrays(
                pa.array(refs.shard, pa.int32()), pa.array(self.manifest.paths)
            ),
            "row": pa.array(refs.row, pa.int32()),
            "epoch": pa.array(refs.epoch, pa.int32()),
        }
        return pa.table(columns, schema=ROWS)


def first_chain(manifest: str) -> str:
    """Return the chain before step 0: it hangs on the manifest's digest."""
    return sha256(manifest.encode()).hexdigest()


def next_chain(chain: str, batch: str) -> str:
    """Return the chain after a step that consumed the batch with this digest."""
    return sha256(f"{chain} {batch}".encode()).hexdigest()


def segments(folder: Path, kind: str = "*") -> list[Path]:
    """Return the sealed files of a ledger, sorted: `rows`, `steps` or both."""
    return sorted(folder.glob(f"{kind}-*-*.parquet"))


def first_and_last(path: Path) -> tuple[int, int]:
    """Return the first and last step of a segment, from its name."""
    _, first, last = path.stem.split("-")
    return int(first), int(last)


def read(folder: Path, kind: str) -> pa.Table:
    """Read all `rows` or `steps` of a ledger in order; DamageError names a broken segment."""
    tables: list[pa.Table] = []
    for path in segments(folder, kind):
        try:
            tables.append(pq.read_table(path))
        except (pa.ArrowException, OSError) as error:
            brief = str(error).splitlines()[0]
            raise DamageError(
                f"{path}: can't be read ({brief}); restore it or train again"
            ) from None
    if not tables:
        raise DamageError(f"{folder}: holds no {kind}; train first")
    return pa.concat_tables(tables)
