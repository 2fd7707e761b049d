"""Verify files of rows without a build: each by itself, for there is no receipt."""

from dataclasses import dataclass
from pathlib import Path

from crystalmix.mixtures.manifest.build_folder import DOMAINS, PHASES, SOURCES
from crystalmix.prep.rows import check_rows
from crystalmix.prep.rows.check_rows import Checked
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.tables import table
from crystalmix.prep.runtime.workers import Fanout

BUILD = (SOURCES, DOMAINS, PHASES)  # what a build's folder holds


@dataclass(frozen=True)
class Report:
    """Results: the sound files, a line for each fault."""

    files: list[Checked]
    faults: list[str]

    def lines(self) -> list[str]:
        """Return the table of the sound files and the faults."""
        rows = [[f.path, f.rows, f.msl, f.tokens, f"sha256 {f.digest}"] for f in self.files]
        shown = table(rows, ["path", "rows", "msl", "tokens", "digest"]) if rows else []
        total = sum(file.rows for file in self.files), sum(file.tokens for file in self.files)
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
        [result for result in results if isinstance(result, Checked)],
        [result for result in results if isinstance(result, str)],
    )


def _check(path: Path) -> Checked | str:
    try:
        return check_rows.check(path)
    except DamageError as error:
        return str(error)
