"""The ledger: the rows that each step consumed, with its loss, norm and learning rate.

Steps are recorded after the optimiser step and held until the next checkpoint, when they are
sealed as `ledger/rows-<first>-<last>.parquet` and `ledger/steps-<first>-<last>.parquet`, so that a
crash never records a step that no checkpoint covers. On resume, segments past the checkpoint are
cut, and those it sealed must be as they were. Each step's digest is chained to the one before:
chain = sha256(previous chain, batch digest). A skipped step has no rows, and SKIPPED as its digest.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crystalmix.mixtures.manifest.manifest import Manifest, RowRefs
from crystalmix.prep.rows.spans import write as write_table
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.receipts import FileEntry
from crystalmix.prep.runtime.types import Content
from crystalmix.train.record.run_folder import SealedLedger, check_files

SKIPPED = "skipped"  # the digest of a skipped step
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
        ("skipped", pa.bool_()),  # no rows, and null in loss, norm and rate
    ]
)


@dataclass(frozen=True)
class PartLoss:
    """A part of a step: rows, loss-carrying tokens, their mean nll; None for what is not known."""

    part: str
    rows: int
    tokens: int | None
    loss: float | None


@dataclass(frozen=True)
class Step:
    """What one step consumed and gave; parts: of the manifest, those with rows."""

    step: int
    refs: RowRefs
    digest: str
    loss: float
    gradient_norm: float
    learning_rate: float
    parts: tuple[PartLoss, ...]
    skipped: bool = False


@dataclass(frozen=True)
class Consumed:
    """What a step of another program's run consumed; None for what that run does not record."""

    step: int
    refs: RowRefs
    digest: str | None
    loss: float | None
    parts: tuple[PartLoss, ...]
    gradient_norm: float | None = None
    learning_rate: float | None = None
    skipped: bool = False


class Ledger:
    """The ledger of one phase of one run."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.chain = first_chain(manifest.digest)
        self.next_step = 0
        self._names = pa.array([part.name for part in manifest.parts], pa.string())
        self._paths = pa.array(manifest.paths, pa.string())
        self._files: list[FileEntry] = []  # the sealed segments, as they were
        self._rows: list[Step | Consumed] = []
        self._steps: list[Content] = []

    def truncate(self, sealed: SealedLedger | None = None) -> None:
        """Go back to what a checkpoint sealed (to nothing without one): all else is cut.

        Raises DamageError where a sealed segment is not what it was.
        """
        sealed = sealed or SealedLedger(first_chain(self.manifest.digest), 0, ())
        again = f"restore it, or remove {self.folder.parent} and train this phase again"
        check_files(self.folder, sealed.files, again)
        names = {entry.name for entry in sealed.files}
        for path in segments(self.folder):
            if path.name not in names:
                path.unlink()
        self.chain, self.next_step = sealed.chain, sealed.steps
        self._files, self._rows, self._steps = list(sealed.files), [], []

    def record(self, step: Step | Consumed) -> str:
        """Record a finished step and return the chain; steps must be consecutive."""
        if step.step != self.next_step:
            raise RuntimeError(f"ledger expects step {self.next_step}, got {step.step}")
        self.chain = next_chain(self.chain, step.digest)
        if not step.skipped:
            self._rows.append(step)
        self._steps.append(
            {
                "step": step.step,
                "loss": None if step.skipped else step.loss,
                "gradient_norm": None if step.skipped else step.gradient_norm,
                "learning_rate": None if step.skipped else step.learning_rate,
                "digest": step.digest,
                "chain": self.chain,
                "parts": [asdict(part) for part in step.parts],
                "skipped": step.skipped,
            }
        )
        self.next_step += 1
        return self.chain

    def seal(self) -> SealedLedger:
        """Write what was recorded since the last seal; return the state for a checkpoint."""
        if self._steps:
            first, last = self._steps[0]["step"], self._steps[-1]["step"]
            steps = pa.Table.from_pylist(self._steps, schema=STEPS)
            for kind, table in (("rows", self._row_table()), ("steps", steps)):
                path = self.folder / f"{kind}-{first:08d}-{last:08d}.parquet"
                write_table(path, table)
                self._files.append(FileEntry.of(path))
            self._rows, self._steps = [], []
        return SealedLedger(self.chain, self.next_step, tuple(self._files))

    def _row_table(self) -> pa.Table:
        """Return the rows since the last seal; the names of all shards are taken in once."""
        if not self._rows:
            return ROWS.empty_table()
        counts = [len(step.refs.row) for step in self._rows]
        part, shard, row, epoch = (
            pa.array(np.concatenate([getattr(step.refs, name) for step in self._rows]), pa.int32())
            for name in ("part", "shard", "row", "epoch")
        )
        columns = {
            "step": pa.array(np.repeat([step.step for step in self._rows], counts), pa.int32()),
            "slot": pa.array(np.concatenate([np.arange(count) for count in counts]), pa.int32()),
            "part": pa.DictionaryArray.from_arrays(part, self._names),
            "shard": pa.DictionaryArray.from_arrays(shard, self._paths),
            "row": row,
            "epoch": epoch,
        }
        return pa.table(columns, schema=ROWS)


def first_chain(manifest: str) -> str:
    """Return the chain before step 0: it hangs on the manifest's digest."""
    return sha256(manifest.encode()).hexdigest()


def next_chain(chain: str, batch: str | None) -> str:
    """Return the chain after a step that consumed the batch with this digest, if it is known."""
    return sha256(f"{chain} {batch}".encode()).hexdigest()


def segments(folder: Path, kind: str = "*") -> list[Path]:
    """Return the sealed files of a ledger, sorted: `rows`, `steps` or both."""
    return sorted(folder.glob(f"{kind}-*-*.parquet"))


def read(folder: Path, kind: str, only: Collection[str] | None = None) -> pa.Table:
    """Read all `rows` or `steps` of a ledger in order; DamageError names a broken segment.

    only: the names of the segments to read, all by default.
    """
    paths = [path for path in segments(folder, kind) if only is None or path.name in only]
    if not paths:
        raise DamageError(f"{folder}: holds no {kind}; train first")
    return pa.concat_tables([_read(path, {"rows": ROWS, "steps": STEPS}[kind]) for path in paths])


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = pq.read_table(path)
        table.validate(full=True)  # texts that are no UTF-8, places beyond a dictionary
    except (pa.ArrowException, OSError) as error:
        brief = str(error).splitlines()[0]
        raise DamageError(f"{path}: can't be read ({brief}); restore it or train again") from None
    if not table.schema.equals(schema):
        fields = ", ".join(f"{field.name} {field.type}" for field in table.schema)
        raise DamageError(f"{path}: is no ledger (it has {fields}); restore it or train again")
    return table
