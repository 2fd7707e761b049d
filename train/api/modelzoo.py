"""Model Zoo and CS systems: params.yaml, runs as ledgers, checkpoints, a lowered step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.train.api.checks import Place, existing

if TYPE_CHECKING:
    from crystalmix.mixtures.modelzoo.train_input import Reader
    from crystalmix.train.cerebras.lower import Lowered
    from crystalmix.train.modelzoo.harvest import Harvest


@dataclass(frozen=True)
class Params:
    """A params.yaml that was written; notes: what to mind; differences: from the one to be like."""

    manifest: Manifest
    notes: tuple[str, ...]
    differences: tuple[str, ...]


@dataclass(frozen=True)
class Converted:
    """A checkpoint that was converted; moments: whether it holds those of the optimiser."""

    parameters: int
    moments: bool


def write_params(
    run: Place,
    manifest: Place,
    out: Place,
    *,
    dialect: str = "1.9",
    mounts: Sequence[str] = (),
    links: Place | None = None,
    reader: Reader | None = None,
    like: Place | None = None,
) -> Params:
    """Write the params.yaml with which Model Zoo consumes a manifest's rows in its order.

    run: a run file, a preset or a run. dialect: 1.9, or trainer (2.x). mounts: HERE=THERE, a
    folder's path where it runs. links: make links here where a part takes some shards only. reader:
    whose `data_subset` is meant. like: a params.yaml to compare with. Raises RefusalError for a
    manifest that is not in the order `cerebras`.
    """
    from crystalmix.mixtures.manifest.manifest import read
    from crystalmix.mixtures.modelzoo.train_input import Place as Placed
    from crystalmix.prep.runtime import yaml_settings
    from crystalmix.train.modelzoo import write_params as writer

    sealed = read(existing(manifest))
    place = Placed(
        mounts=tuple(mounts), links=None if links is None else Path(links), reader=reader
    )
    content = writer.write(str(run), sealed, Path(out), writer.dialect_of(dialect), place)
    differences: list[str] = []
    if like is not None:
        theirs = yaml_settings.plain(yaml_settings.load(existing(like)))
        differences = writer.shared_differences(content, theirs)
    return Params(sealed, tuple(writer.notes(sealed, content)), tuple(differences))


def convert_checkpoint(source: Place, out: Place, *, run: Place | None = None) -> Converted:
    """Convert a checkpoint between Cerebras' .mdl, a folder of ours, and .safetensors, exactly.

    run: the run file, for a checkpoint folder and for an optimiser.
    """
    from crystalmix.train.modelzoo import convert_checkpoint as converter

    checkpoint = converter.convert(existing(source), Path(out), None if run is None else str(run))
    count = sum(tensor.numel() for tensor in checkpoint.state.values())
    return Converted(count, bool(checkpoint.moments) and Path(out).suffix != converter.SAFE)


def harvest(
    model_dir: Place,
    build: Place,
    out: Place,
    *,
    phase: str | None = None,
    state: Place | None = None,
    digests: bool = True,
    assume: bool = False,
    note: Callable[[str], object] = lambda _: None,
) -> Harvest:
    """Turn a Model Zoo run, finished or running, into a ledger that `cm.open` reads.

    phase: which one it trained, if the build has several. state: of 1.9, its save_iter_state_path.
    digests: read every row. Its checkpoints must prove that its loader stood where the manifest
    says; assume: or be taken on trust, which the ledger says for ever.
    """
    from crystalmix.train.modelzoo import harvest as harvesting

    return harvesting.harvest(
        existing(model_dir),
        existing(build),
        Path(out),
        phase=phase,
        state=existing(state),
        digests=digests,
        assume=assume,
        note=note,
    )


def validate_step(
    run: Place, *, phase: str | None = None, batch: int | None = None, msl: int | None = None
) -> Lowered:
    """Lower a whole training step for a CS system without one, and check what comes out.

    run: a run, a run file or a preset. batch, msl: rows of a step, tokens of a row.
    """
    from crystalmix.train.cerebras import lower

    return lower.validate(str(run), phase, batch, msl)
