"""What purges superseded, whatever the clock said when they were made."""

from itertools import permutations
from pathlib import Path

import pytest

from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.prep.runtime.atomic_files import canonical, write_atomic

TIMES = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")


@pytest.mark.parametrize("times", sorted({*permutations(TIMES)}))
def test_purges_follow_each_other_though_the_clock_was_set_back(
    tmp_path: Path, times: tuple[str, ...]
) -> None:
    build = BuildFolder(tmp_path)
    numbers = dict.fromkeys(("documents", "dropped", "shards", "rows", "tokens"), 0)
    words = dict.fromkeys(("stays", "not_reached", "not_verified", "not_read"), ())
    for number, time in enumerate(times):
        pair = purged.ChangedManifest(".", "one", "abc"[number], "bcd"[number])
        certificate = purged.Certificate(
            id=f"{9 - number}",
            time=time,
            schema=1,
            request="",
            finished=time,
            by="a test",
            list="",
            names="kept",
            files=(),
            manifests=(pair,),
            **numbers,
            **words,
        ).sealed()
        place = purged.log(build) / certificate.id / purged.CERTIFICATE
        write_atomic(place, canonical(certificate.content()))
    assert purged.before(build, "d") == {"a", "b", "c"}
    assert purged.before(build, "b") == {"a"}
