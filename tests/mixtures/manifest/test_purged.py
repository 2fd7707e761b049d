"""What purges superseded, whatever the clock said when they were made."""

from itertools import permutations
from pathlib import Path

import pytest

from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical, write_atomic

TIMES = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")


@pytest.mark.parametrize("times", sorted({*permutations(TIMES)}))
def test_purges_follow_each_other_though_the_clock_was_set_back(
    tmp_path: Path, times: tuple[str, ...]
) -> None:
    build = BuildFolder(tmp_path)
    for number, time in enumerate(times):
        pair = {"before": "abc"[number], "after": "bcd"[number]}
        content = {"id": f"{9 - number}", "time": time, "manifests": [pair]}
        sealed = {**content, "digest": receipts.digest(content)}
        write_atomic(purged.log(build) / content["id"] / purged.CERTIFICATE, canonical(sealed))
    assert purged.before(build, "d") == {"a", "b", "c"}
    assert purged.before(build, "b") == {"a"}
