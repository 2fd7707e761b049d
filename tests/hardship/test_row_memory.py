"""Memory stays small whatever a shard's size, and however many raw files a build has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import corpora

MOST_MB = 600
FEW, MANY = 200, 1000
MOST_KIB = {"build": 20, "verify": 9}  # of a raw file, where processes are small
SOURCE = {"lines": {"files": ["raw"]}}
# Half of the ids are random, so that the deflated rows are large too.
WORK = """
import sys
from pathlib import Path
import numpy as np
from crystalmix.prep.rows import check_rows, scattered_rows, shards, shuffle

folder, rows, msl = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
path, size = folder / "data-00000.h5", shards.block_rows(msl)
rng = np.random.default_rng(1)

def block(count):
    data = np.zeros((count, 3, msl), np.int32)
    data[:, 0, ::2] = rng.integers(0, 50000, (count, (msl + 1) // 2))
    return data

written = shards.write(path, rows, (block(min(size, rows - i)) for i in range(0, rows, size)))
assert written.digest == check_rows.check(path).digest
for _ in range(9):
    scattered_rows.gather([path], np.zeros(size, int), rng.integers(0, rows, size))
inputs = (shuffle.Input("a", path, rows),)
order = shuffle.order(inputs, (0, rows), 1, "web")
made = shuffle.shuffle(inputs, order, folder / "out" / "data-00000.h5")
assert made.rows_sum == written.rows_sum
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024)
"""


@pytest.mark.parametrize(
    ("rows", "msl"),
    [(200_000, 16), (26_000, 2048), (100, 300_000)],
    ids=["many rows", "large shard", "long rows"],
)
def test_a_worker_stays_small(tmp_path: Path, rows: int, msl: int) -> None:
    words = [sys.executable, "-c", WORK, str(tmp_path), str(rows), str(msl)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert int(done.stdout) < MOST_MB


def peak(*words: str | Path) -> int:
    """Run a command and return the KiB that it took at most."""
    process = subprocess.Popen(
        [sys.executable, "-m", "crystalmix", *map(str, words), "--workers", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_maxrss


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Build and verify a source of few and of many files of one line; return what each took."""
    taken: dict[str, list[int]] = {"build": [], "verify": []}
    for count in (FEW, MANY):
        folder = tmp_path_factory.mktemp("files")
        corpora.write_corpus(folder)
        (folder / "raw").mkdir()
        for number in range(count):
            line = f'{{"text": "line {number} of a source with many files"}}\n'
            (folder / "raw" / f"part-{number:05d}.jsonl").write_text(line)
        recipe = corpora.write_recipe(
            folder,
            sources={**dict.fromkeys(corpora.RECIPE["sources"]), **SOURCE},
            domains={**dict.fromkeys(corpora.RECIPE["domains"]), "lines": {"sources": ["lines"]}},
            phases={
                **dict.fromkeys(corpora.RECIPE["phases"]),
                "first": {"batch": 1, "parts": [{"domain": "lines", "epochs": 1}]},
            },
        )
        out = folder / "build"
        taken["build"].append(peak("build", recipe, "--data", folder, "--out", out))
        taken["verify"].append(peak("verify", out))
    return taken


@pytest.mark.parametrize("verb", ["build", "verify"])
def test_a_raw_file_costs_a_process_few_kib(peaks: dict[str, list[int]], verb: str) -> None:
    few, many = peaks[verb]
    assert (many - few) / (MANY - FEW) < MOST_KIB[verb]
