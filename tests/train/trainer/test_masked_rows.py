"""Training on rows whose attention is masked between documents: what each document alone gives."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.rows.spans import path_of
from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.loader.batches import Share
from crystalmix.train.loader.datasets import RowDataset, StepDataset
from crystalmix.train.model.crystal import batch_loss
from crystalmix.train.trace.findings import findings
from crystalmix.train.trainer.batches import Batches
from crystalmix.train.trainer.trainer import Trainer
from helpers.masked import alone, masked_build, phase, trainer
from helpers.runs import recorded, run_file, write_run
from helpers.worlds import SHARED_WORK, run_of, train_together


def expected(manifest: Manifest, step: int) -> list[list[int]]:
    """Lengths of the pieces of a step's rows, by spans joined to origins one by one."""
    refs = manifest.step(step)
    lengths: list[list[int]] = []
    for part, shard, row in zip(refs.part, refs.shard, refs.row, strict=True):
        path = masked_build() / manifest.paths[shard]
        number = int(row)
        origin = path_of(path, "origin")
        if origin.exists():
            line = pq.read_table(origin).to_pylist()[number]
            path, number = path.parent.parent / line["origin"], line["origin_row"]
        spans = [s for s in pq.read_table(path_of(path)).to_pylist() if s["row"] == number]
        edges = sorted({0, manifest.msl, *(s["start"] for s in spans), *(s["stop"] for s in spans)})
        masked = manifest.masked[part]
        lengths.append(np.diff(edges).tolist() if masked else [manifest.msl])
    return lengths


def test_pieces_of_rows_follow_from_spans_through_the_shuffle() -> None:
    manifest = phase()
    assert sorted(manifest.masked) == [False, True, True]
    share = Share(manifest, masked_build())
    counts: set[int] = set()
    for step in range(manifest.steps):
        batch, ours = share.read(step), Batches(manifest, masked_build())[step]
        wanted = expected(manifest, step)
        assert batch.pieces is not None
        assert ours.pieces is not None
        assert [row.tolist() for row in batch.pieces] == wanted
        assert [row.tolist() for row in ours.pieces] == wanted
        ends = np.cumsum([0, *(size for row in wanted for size in row)])
        assert batch.cu_seqlens.tolist() == ends.tolist()
        assert (batch.documents.reshape(-1)[ends[:-1]] == np.arange(len(ends) - 1)).all()
        assert (batch.positions.reshape(-1)[ends[:-1]] == 0).all()
        counts |= {len(row) for row in wanted}
    assert len(counts) > 2


def test_datasets_hand_boundaries_on() -> None:
    share = Share(phase(), masked_build())
    batch, sample = share.read(3), next(iter(StepDataset(share, start=3)))
    for name in ("positions", "documents", "cu_seqlens"):
        assert torch.equal(sample[name], torch.from_numpy(getattr(batch, name)))
    row = RowDataset(share)[3 * phase().batch + 2]
    assert row["positions"].tolist() == batch.positions[2].tolist()
    assert row["documents"].tolist() == (batch.documents[2] - batch.documents[2][0]).tolist()
    assert "cu_seqlens" not in row


def gradients(trainer: Trainer) -> list[Tensor]:
    return [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("micro", [None, 2, 1])
def test_a_step_has_the_gradients_of_each_document_alone(micro: int | None, tmp_path: Path) -> None:
    """Packing invariant 6."""
    ours = trainer(tmp_path, write_run(tmp_path / "run.yaml", runconfig={"micro_batch": micro}))
    batch = ours.batches[2]
    losses = ours.gradients(batch)
    got = gradients(ours)
    ours.model.zero_grad()
    rows: list[Tensor] = []
    for number, lengths in enumerate(expected(phase(), 2)):
        columns = [x[number].split(lengths) for x in (batch.ids, batch.labels, batch.mask)]
        alone = [ours.model(*(x[None] for x in piece)) for piece in zip(*columns, strict=True)]
        rows.append(torch.cat(alone, dim=1))
    nll = torch.cat(rows)
    batch_loss(nll).backward()
    torch.testing.assert_close(
        losses, nll.detach().sum(1, dtype=torch.float64), atol=1e-4, rtol=1e-6
    )
    for mine, wanted in zip(got, gradients(ours), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-6, rtol=1e-5)


def test_a_run_on_masked_rows_is_proven_like_any_other() -> None:
    """Packing invariant 9."""
    steps, _ = recorded(alone(), "prose")
    assert len(steps) == phase().steps
    assert findings(masked_build(), alone(), batches=True) == []


@pytest.mark.parametrize("parallel", SHARED_WORK)
def test_two_processes_lose_what_one_loses(parallel: str, tmp_path: Path) -> None:
    """Packing invariant 6."""
    wanted = str(masked_build()), str(run_of(parallel)), str(tmp_path), ("prose",), 6
    train_together(2, wanted)
    pairs = zip(recorded(tmp_path, "prose")[0], recorded(alone(), "prose")[0], strict=False)
    for mine, other in pairs:
        assert mine["digest"] == other["digest"]
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert mine["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch's own
@pytest.mark.parametrize("how", [{"recompute": True}, {"compile": True}, {"dtype": "bfloat16"}])
def test_other_ways_of_computing_mask_too(how: Json, tmp_path: Path) -> None:
    one = trainer(tmp_path, write_run(tmp_path / "run.yaml", runconfig=how))
    losses = one.gradients(one.batches[1])
    other = trainer(tmp_path / "plain", run_file())
    close = 2e-2 if "dtype" in how else 1e-5
    torch.testing.assert_close(losses, other.gradients(other.batches[1]), atol=0, rtol=close)


def test_rows_without_spans_can_not_be_masked(tmp_path: Path) -> None:
    import shutil

    shutil.copytree(masked_build(), tmp_path / "build")
    for path in (tmp_path / "build").glob("domains/*/*/*.spans.parquet"):
        path.unlink()
    with pytest.raises(InputError, match="which says where documents begin"):
        Batches(phase(), tmp_path / "build")[0]
