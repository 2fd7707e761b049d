"""Residual: what a law leaves, learnt by LightGBM (extra `boost`) where that is shown to help."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalmix.prep.runtime.errors import CrystalmixError

Floats = NDArray[np.float64]
LEAST = 64  # runs below which trees have nothing to split
FOLDS = 5
HELP = 0.95  # of the error without trees: what cross-validation must reach
TREES = 200
SETTINGS: dict[str, Any] = {
    "objective": "regression",
    "learning_rate": 0.05,
    "num_leaves": 8,
    "min_data_in_leaf": 10,
    "lambda_l2": 1.0,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
    "seed": 0,
}


@dataclass(frozen=True)
class Residual:
    """Trees per target, None where they do not help; error: theirs against the law's, by target."""

    boosters: tuple[Any, ...]
    error: tuple[float, ...]

    def predict(self, shares: Floats) -> Floats:
        """Return what to add to the law: (mixtures, targets)."""
        none = np.zeros(len(shares))
        told = [none if b is None else np.asarray(b.predict(shares)) for b in self.boosters]
        return np.column_stack(told)

    @property
    def scale(self) -> Floats:
        """What of the law's noise the trees leave: (targets,), 1 where none are used."""
        pairs = zip(self.boosters, self.error, strict=True)
        return np.array([1.0 if trees is None else min(1.0, error) for trees, error in pairs])

    def content(self) -> dict[str, Any]:
        """Return which targets use trees, as JSON has it."""
        return {"used": [b is not None for b in self.boosters], "error": list(self.error)}


def learn(shares: Floats, losses: Floats, left_out: Floats) -> Residual | None:
    """Return trees on the residuals of those targets that they help; None below 64 runs.

    left_out: (runs, targets), each run as the law says it from the others. Trees help where, over
    five folds, they leave less than 0.95 of that error of the law alone. Recommendations stay with
    the law, which is convex.
    """
    if len(shares) < LEAST:
        return None
    rest = losses - left_out  # (runs, targets): honest residuals
    fold = np.arange(len(rest)) % FOLDS
    boosters: list[Any] = []
    errors: list[float] = []
    for target in range(rest.shape[1]):
        held = np.zeros(len(rest))
        for k in range(FOLDS):
            trees = _train(shares[fold != k], rest[fold != k, target])
            held[fold == k] = np.asarray(trees.predict(shares[fold == k]))
        error = float(np.std(rest[:, target] - held) / max(np.std(rest[:, target]), 1e-30))
        errors.append(error)
        boosters.append(_train(shares, rest[:, target]) if error < HELP else None)
    return Residual(tuple(boosters), tuple(errors))


def lightgbm() -> Any:  # noqa: ANN401  LightGBM has no types
    """Return the library; CrystalmixError with the remedy where it is not installed."""
    try:
        import lightgbm as library
    except ModuleNotFoundError as error:
        raise CrystalmixError(
            "lightgbm is not installed; install crystalmix with its extra `boost`, "
            "or fit without the residual"
        ) from error
    return library


def _train(shares: Floats, rest: Floats) -> Any:  # noqa: ANN401
    library = lightgbm()
    return library.train(SETTINGS, library.Dataset(shares, rest), num_boost_round=TREES)
