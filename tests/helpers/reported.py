"""What pages are made of: a run, builds of several kinds, a stranger's run, an ablation.

`python -m helpers.reported FOLDER` writes each as NAME.html beside NAME.json, what `--json` prints
of it, for the tests that open them in a browser; `a-run` over `a-build` is there to be served.
"""

import sys
from functools import lru_cache
from pathlib import Path
from shutil import copytree, rmtree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import crystalmix as cm
from helpers.ablations import tiny
from helpers.audited import audited_build, audited_run
from helpers.corpora import crystalmix
from helpers.runs import scratch, small_build, undisturbed
from helpers.watched import watched

TAKEN = "seen/twice"
MSL = 16


@lru_cache(maxsize=1)
def redacted() -> Path:
    """Return a view of the audited build without a repository; nobody may change it."""
    folder = scratch()
    (folder / "list").write_text(f"{TAKEN}\n", "utf-8")
    return cm.redact(audited_build(), folder / "list", folder / "redacted").path


@lru_cache(maxsize=1)
def imported() -> Path:
    """Return a build of token ids that another program wrote, whose documents are not known."""
    folder = scratch()
    (folder / "tokens").mkdir()
    rng = np.random.default_rng(1)
    ids = [rng.integers(3, 90, 40).tolist() for _ in range(30)]
    pq.write_table(pa.table({"input_ids": ids}), folder / "tokens" / "web.parquet")
    made = cm.import_tokens(folder / "tokens", folder / "out", kind="parquet", msl=MSL, batch=4)
    return made.path


@lru_cache(maxsize=1)
def strangers() -> Path:
    """Return a run that another program recorded by `cm.Ledger`, without a loss."""
    folder = scratch() / "strangers"
    build = cm.open(small_build())
    assert isinstance(build, cm.Build)
    phase = build.phases["code"]
    with cm.Ledger(folder, phase) as ledger:
        for batch in phase.batches(0, 5):
            tensors = (torch.from_numpy(a).long() for a in (batch.ids, batch.mask, batch.labels))
            ledger.record(batch.step, cm.fed(*tensors))
        ledger.seal()
    return folder


REPORTED = {
    "run": watched,
    "audited": audited_run,
    "build": small_build,
    "redacted": redacted,
    "imported": imported,
    "strangers": strangers,
    "ablation": tiny,
}


def main(folder: Path) -> None:
    """Write the pages and what `--json` prints of each."""
    rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    copytree(small_build(), folder / "a-build", symlinks=True)
    copytree(undisturbed(), folder / "a-run", symlinks=True)
    for name, made in REPORTED.items():
        page = folder / f"{name}.html"
        result = crystalmix("report", made(), "--html", page, "--json")
        assert result.exit_code == 0, result.stderr
        (folder / f"{name}.json").write_text(result.stdout, "utf-8")
        sys.stdout.write(f"{page}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
