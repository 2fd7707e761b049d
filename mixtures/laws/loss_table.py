"""CSV tables of mixtures and of the losses that were measured of each.

One line a run. `share:DOMAIN` holds the share of a domain, `loss:DOMAIN` the loss (nats a token, or
bits a byte) on a validation domain; `run` may name the line, and `draw` its seed: lines of one
value share the effect of that seed. `parameters` and `tokens` may hold the size of the model and
the tokens that it was trained on. Other columns are left alone. Shares of a line that sum to 1
within 0.01 are scaled to 1 (published tables are rounded).
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.laws.scale import Scales
from crystalmix.prep.runtime.atomic_files import regular_bytes, replacing
from crystalmix.prep.runtime.errors import InputError

Floats = NDArray[np.float64]
ROUNDED = 0.01
SCALE = ("parameters", "tokens")


@dataclass(frozen=True)
class LossTable:
    """Mixtures and losses.

    runs: a name for each line. shares: (runs, domains), each summing to 1. losses: (runs, targets),
    without targets where the file has no column of losses. draws: (runs,), a number for each seed;
    None where the file has no column `draw`. scales: size and tokens of each run; None where the
    file has neither column.
    """

    runs: tuple[str, ...]
    domains: tuple[str, ...]
    targets: tuple[str, ...]
    shares: Floats
    losses: Floats
    draws: NDArray[np.int64] | None = None
    scales: Scales | None = None

    def of(self, domains: Sequence[str], targets: Sequence[str]) -> "LossTable":
        """Return the table with its columns in this order; InputError where one is missing."""
        for kind, asked, held in (
            ("share:", domains, self.domains),
            ("loss:", targets, self.targets),
        ):
            missing = [kind + name for name in asked if name not in held]
            if missing:
                raise InputError(f"second table: lacks {', '.join(missing)} of the first; add them")
        extra = [name for name in self.domains if name not in domains]
        if extra and self.shares[:, [self.domains.index(name) for name in extra]].any():
            raise InputError(f"second table: has shares of {', '.join(extra)}, which no fit knows")
        place = [self.domains.index(name) for name in domains]
        aim = [self.targets.index(name) for name in targets]
        shares, losses = (  # in one layout, so that the same numbers give the same bits
            np.ascontiguousarray(one) for one in (self.shares[:, place], self.losses[:, aim])
        )
        return replace(
            self, domains=tuple(domains), targets=tuple(targets), shares=shares, losses=losses
        )


def read(path: Path, shares: str = "share:", losses: str = "loss:") -> LossTable:
    """Read a CSV file; shares, losses: what the names of their columns begin with."""
    try:
        text = regular_bytes(path).decode("utf-8-sig")
        lines = list(csv.DictReader(StringIO(text, newline="")))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: is no CSV in UTF-8: {error}") from None
    columns = [name for name in (lines[0] if lines else {}) if name]
    domains = [name for name in columns if name.startswith(shares)]
    targets = [name for name in columns if name.startswith(losses)]
    if not domains:
        raise InputError(
            f"{path}: has no line with a column `{shares}DOMAIN`; "
            "name the columns so, or say what their names begin with"
        )
    mixtures = _numbers(path, lines, domains)
    totals = mixtures.sum(axis=1)
    for k in np.flatnonzero((np.abs(totals - 1) > ROUNDED) | (mixtures < 0).any(axis=1)):
        rule = f"shares must be at least 0 and sum to 1, got a sum of {totals[k]:g}"
        raise InputError(f"{path}:{k + 2}: {rule}; mend the line or leave it out")
    return LossTable(
        runs=tuple(line.get("run") or str(k + 1) for k, line in enumerate(lines)),
        domains=tuple(name.removeprefix(shares) for name in domains),
        targets=tuple(name.removeprefix(losses) for name in targets),
        shares=mixtures / totals[:, None],
        losses=_numbers(path, lines, targets),
        draws=_draws(lines) if "draw" in columns else None,
        scales=_scales(path, lines, columns),
    )


def _scales(path: Path, lines: list[dict[str, str]], columns: list[str]) -> Scales | None:
    """Return size and tokens of each run; a column that is not there is the same for all."""
    names = [name for name in SCALE if name in columns]
    if not names:
        return None
    held = {name: _numbers(path, lines, [name])[:, 0] for name in names}
    for name, values in held.items():
        for k in np.flatnonzero(values <= 0)[:1]:
            raise InputError(f"{path}:{k + 2}: {name}: must be above 0, got {values[k]:g}")
    return Scales(*(held.get(name, np.ones(len(lines))) for name in SCALE))


def _draws(lines: list[dict[str, str]]) -> NDArray[np.int64]:
    """Number the values of the column `draw`."""
    return np.unique([line["draw"] or "" for line in lines], return_inverse=True)[1]


def write(path: Path, table: LossTable) -> None:
    """Write a table as CSV, numbers in full."""
    names = [f"share:{name}" for name in table.domains]
    names += [f"loss:{name}" for name in table.targets]
    draws = [] if table.draws is None else table.draws.tolist()
    with replacing(path) as place, place.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["run", *names, *(["draw"] if draws else [])])
        for k, (run, shares, losses) in enumerate(
            zip(table.runs, table.shares, table.losses, strict=True)
        ):
            numbers = map(repr, [*shares.tolist(), *losses.tolist()])
            lines.writerow([run, *numbers, *draws[k : k + 1]])


def _numbers(path: Path, lines: list[dict[str, str]], columns: list[str]) -> Floats:
    found = np.empty((len(lines), len(columns)))
    for row, line in enumerate(lines):
        for place, name in enumerate(columns):
            try:
                found[row, place] = float(line[name])
            except (TypeError, ValueError):
                found[row, place] = math.nan
            if not math.isfinite(found[row, place]):
                raise InputError(
                    f"{path}:{row + 2}: {name}: must be a number, got {line[name]!r}; "
                    "mend the line or leave it out"
                )
    return found
