"""What the stages of a build share: the recipe, the places, the workers, and folders on the way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.recipes.recipe import Domain, Recipe
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.runtime.workers import Fanout
from crystalmix.prep.tokenizer.tokenizer import Tokenizer

Item = TypeVar("Item")


@dataclass(frozen=True)
class Context:
    """One build: what, from where, to where, by whom."""

    recipe: Recipe
    root: Path
    out: Path
    pool: Fanout
    tokenizer: Tokenizer

    @property
    def folder(self) -> BuildFolder:
        """The layout of the build."""
        return BuildFolder(self.out)

    @property
    def controls(self) -> tuple[int, ...]:
        """Every id that no text can give."""
        return tuple(int(i) for i in self.tokenizer.controls)

    def run(
        self, work: Callable[[Item], Json], groups: Sequence[Sequence[Item]], label: str
    ) -> list[list[Json]]:
        """Run the items of all groups in one fan-out; return the results group by group."""
        flat = [item for group in groups for item in group]
        results = self.pool.map(work, flat, label)
        return (
            [[next(results) for _ in group] for group in groups] if flat else [[] for _ in groups]
        )


@dataclass
class Folder:
    """One folder of rows on its way through the stages: a domain, or one FIM epoch of it."""

    name: str
    domain: Domain
    epoch: int
    path: Path
    recipe: Json
    receipt: Json | None = field(default=None)

    def __post_init__(self) -> None:
        self.receipt = receipts.fresh(self.path, self.recipe)

    @property
    def mark(self) -> str:
        """The digest that this folder's work items carry."""
        return receipts.digest(self.recipe)

    @property
    def sealed(self) -> Json:
        """The receipt of a finished folder."""
        if self.receipt is None:
            raise RuntimeError(f"{self.path} is not sealed yet")
        return self.receipt

    def seal(self, results: list[Json], account: Json) -> None:
        """Write the receipt: every shard's entry, the account, the digest of the content."""
        files = [entry for result in results for entry in result["files"]]
        _remove_others(self.path, {entry["name"] for entry in files})
        shards = [entry for entry in files if entry["name"].endswith(".h5")]
        content = {
            "account": {"rows": sum(entry["rows"] for entry in shards), **account},
            "content": receipts.digest([[entry["rows"], entry["digest"]] for entry in shards]),
        }
        self.receipt = receipts.seal(self.path, self.recipe, files, content)


def tokenizer_identity(tokenizer: Tokenizer) -> Json:
    """Return what must stay the same of a tokenizer: fingerprint, canary, control ids."""
    return {
        "fingerprint": tokenizer.fingerprint,
        "canary": tokenizer.canary,
        "vocab": tokenizer.vocab,
        "controls": tokenizer.controls.tolist(),
        "special": tokenizer.special,
        "pad": tokenizer.pad,
    }


def shard_files(folder: Path) -> list[Path]:
    """Return the files of a folder's shards and what lies beside them, marks left out, sorted."""
    found = (path for pattern in ("data-*", "examples_*") for path in folder.glob(pattern))
    return sorted(path for path in found if path.suffix != ".done")


def rows_files(receipt: Json) -> list[Json]:
    """Return the entries of a receipt's shards, in order."""
    return [entry for entry in receipt["files"] if entry["name"].endswith(".h5")]


def summed(results: Sequence[Json], keys: Sequence[str]) -> Json:
    """Add up counts of several results."""
    return {key: sum(result[key] for result in results) for key in keys}


def _remove_others(folder: Path, names: set[str]) -> None:
    """Remove shards that an earlier, unfinished build with other settings left behind."""
    for path in shard_files(folder):
        if path.name not in names:
            path.unlink()
