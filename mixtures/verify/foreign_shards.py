"""Verify files of rows without a build: each by itself, for there is no receipt."""

from dataclasses import asdict, dataclass
from pathlib import Path

from crystalmix.mixtures.manifest.build_folder import DOMAINS, PHASES, SOURCES
from crystalmix.prep.rows import check_rows
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.tables import table
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.runtime.workers import Fanout

BUILD = (SOURCES, DOMAINS, PHASES)  # what a build's folder holds


@dataclass(frozen=True)
class Report:
    """Results: an entry for each sound file, a line for each fault."""

    files: list[Json]
    faults: list[str]

    def lines(self) -> list[str]:
        """Return the table of the sound files and the faults."""
        keys = ("path", "rows", "msl", "tokens")
        rows = [[*(file[key] for key in keys), f"sha256 {file['digest']}"] for file in self.files]
        shown = table(rows, [*keys, "digest"]) if rows else []
        total = (sum(file[key] for file in self.files) for key in ("rows", "tokens"))
        sound = "sound: {} files, {:,} rows, {:,} tokens".format(len(rows), *total)
        return [*shown, *(self.faults or [sound])]


def verify(path: Path, *, workers: int = 1) -> Report | None:
    """Check an HDF5 file, or a folder of them; None where the path holds a build, or neither."""
    if any((path / place).exists() for place in BUILD):
        return None
    files = check_rows.find(path)
    if not files:
        return None
    with Fanout(workers) as pool:
        results = list(pool.map(_check, files, "verify"))
    return Report(
        [result for result in results if "fault" not in result],
        [result["fault"] for result in results if "fault" in result],
    )


def _check(path: Path) -> Json:
    try:
        return asdict(check_rows.check(path))
    except DamageError as error:
        return {"fault": str(error)}
