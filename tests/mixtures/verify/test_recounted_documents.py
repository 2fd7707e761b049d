"""Documents recounted batch by batch: what a pass over the whole table counts, in little memory."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from crystalmix.mixtures.verify import accounts
from crystalmix.mixtures.verify.accounts import Check, DocumentCounts
from crystalmix.prep.runtime import randomness, receipts

BLOCKS = (30, 0, 5, 41, 12, 1, 28, 0)


def write(path: Path, digests: list[bytes | None], group: int) -> None:
    numbers = np.arange(len(digests))
    columns = [numbers, pa.array(digests, pa.binary(16)), numbers % 5, numbers % 7]
    names = ["document", "digest", "characters", "bytes"]
    pq.write_table(pa.table(columns, names), path, row_group_size=group)


@pytest.mark.parametrize("extra", [-3, 0, 4])
def test_each_block_is_digested_and_equal_texts_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: int
) -> None:
    rng = randomness.stream(1, "digests")
    texts = [bytes([i]) * 8 + rng.bytes(8) for i in range(0, 256, 4) for _ in range(2)]
    digests = [texts[i] for i in rng.integers(0, len(texts), sum(BLOCKS) + extra)]
    write(tmp_path / "documents.parquet", digests, 19)
    monkeypatch.setattr(accounts, "BATCH_ROWS", 7)
    monkeypatch.setattr(accounts, "RANGE_DOCUMENTS", 5)
    check = Check(tmp_path / "documents.parquet", None, None, BLOCKS, distinct=True)
    counts = accounts.recount(check)
    assert isinstance(counts, DocumentCounts)
    blocks, first = list[tuple[str, int]](), 0
    for size in BLOCKS:
        own = digests[first : first + size]
        blocks.append((xxhash.xxh3_128_hexdigest(b"".join(own)), len(own)))
        first += size
    numbers = range(len(digests))
    assert counts == DocumentCounts(
        documents=len(digests),
        characters=sum(i % 5 for i in numbers),
        bytes=sum(i % 7 for i in numbers),
        content=receipts.digest(blocks),
        dense=True,
        repeated=sum(count - 1 for count in Counter(digests).values()),
    )


MEASURE = """
import sys
from pathlib import Path
from crystalmix.mixtures.verify import accounts
accounts.RANGE_DOCUMENTS = 1 << 16
check = accounts.Check(Path(sys.argv[1]), None, None, (int(sys.argv[2]),), distinct=True)
assert accounts.recount(check).repeated == 0
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024)
"""


def test_memory_does_not_grow_with_a_source(tmp_path: Path) -> None:
    """A pass over the whole file took 160 MB more for four million documents than for few."""
    peaks: list[int] = []
    for count in (1 << 17, 1 << 21):
        path = tmp_path / "documents.parquet"
        digests = np.random.default_rng(count).integers(0, 256, (count, 16), np.uint8)
        column = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(16), count, [None, pa.py_buffer(digests.tobytes())]
        )
        numbers = np.arange(count)
        table = pa.table({"document": numbers, "digest": column, "characters": numbers})
        pq.write_table(
            table.append_column("bytes", table["characters"]), path, row_group_size=65536
        )
        words = [sys.executable, "-c", MEASURE, str(path), str(count)]
        peaks.append(int(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] - peaks[0] < 40, peaks
