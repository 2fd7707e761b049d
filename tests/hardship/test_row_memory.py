"""Memory: writing, reading, checking and shuffling rows stay small whatever a shard's size."""

import subprocess
import sys
from pathlib import Path

import pytest

MOST_MB = 600
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
