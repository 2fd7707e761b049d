"""The folder layout of a build.

    sources/<source>/documents.parquet               what was kept of a source
    domains/<domain>/epoch-<n>/spans (+ data-*.h5)   packed (and document-level FIM) rows
                                                     (of documents with over n copies)
    domains/<domain>/epoch-<n>-fim/...               row-level FIM, where the recipe has it
    domains/<domain>/shuffled/data-*.h5 + origin     shuffled over all epochs
    domains/<domain>/joined/...                      epochs in their order, where no shuffle is set
    domains/<domain>/imported/...                    links to shards of another program
    phases/<phase>/manifest.json                     one sealed manifest per phase
    phases/sealed.json                               the set of phases, by digest
    phases/receipts.json                             digests of the receipts
    lookup/sources/<source>/                         sorted names and digests of its documents
    lookup/domains/<domain>/epoch-<n>[-fim]/         which documents each packed shard holds
    about.json                                       what the recipe says of sources, for cards
    tokenizer.json                                   the tokenizer, byte for byte
    mixtures/<name>/...                              another mixture: a build of links and phases
    store/...                                        what was made, by content (`prep/store`)
    history/<state>/...                              what the build was before: a build of links

Rows that are shuffled or joined are written there alone: the folders that they come from hold spans
and layouts, and a receipt with an entry of each shard. Every folder below sources and domains is
sealed by a receipt; it is a link to its place in the store, or the folder itself in builds from
before there was one. Lookups follow from these.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import TEMPORARY
from crystalmix.prep.runtime.receipts import Receipt, Shard
from crystalmix.prep.runtime.types import Within, frozen

SOURCES: Final = "sources"
DOMAINS: Final = "domains"
PHASES: Final = "phases"
MANIFEST: Final = "manifest.json"
DOCUMENTS: Final = "documents.parquet"
TOKENIZER: Final = "tokenizer.json"
IMPORTED: Final = "imported"
LOOKUP: Final = "lookup"
MIXTURES: Final = "mixtures"
STORE: Final = "store"
HISTORY: Final = "history"
ALL_DOCUMENTS: Final = f"{SOURCES}/*/{DOCUMENTS}"  # a pattern below the build


@frozen
class BuildFolder:
    """Paths of a build; nothing is opened or made."""

    path: Path
    lookup = Within(LOOKUP)  # what finds a few documents among all: it follows from the rest
    phase_set = Within(PHASES, "sealed.json")  # the seal over the set of phases
    receipt_set = Within(PHASES, "receipts.json")  # the seal over the receipts
    tokenizer = Within(TOKENIZER)  # the build's own copy of its tokenizer
    store = Within(STORE)  # the artifacts of this build, or a link to the store that it shares
    history = Within(HISTORY)  # what the build was before

    def source(self, name: str) -> Path:
        """Return the folder of a source."""
        return self.path / SOURCES / name

    def documents(self, source: str) -> Path:
        """Return the documents of a source."""
        return self.source(source) / DOCUMENTS

    def domain(self, name: str) -> Path:
        """Return the folder of a domain, which holds one folder per stage and epoch."""
        return self.path / DOMAINS / name

    def packed(self, domain: str, epoch: int = 0) -> Path:
        """Return the folder of a domain's packed rows of one FIM epoch."""
        return self.domain(domain) / f"epoch-{epoch}"

    def row_fim(self, domain: str, epoch: int = 0) -> Path:
        """Return the folder of the same rows after row-level FIM."""
        return self.domain(domain) / f"epoch-{epoch}-fim"

    def shuffled(self, domain: str) -> Path:
        """Return the folder of a domain's shuffled rows."""
        return self.domain(domain) / "shuffled"

    def joined(self, domain: str) -> Path:
        """Return the folder of a domain's epochs one after the other."""
        return self.domain(domain) / "joined"

    def imported(self, domain: str) -> Path:
        """Return the folder of links to another program's shards."""
        return self.domain(domain) / IMPORTED

    def phase(self, name: str) -> Path:
        """Return the folder of a phase."""
        return self.path / PHASES / name

    def manifest(self, phase: str) -> Path:
        """Return the manifest of a phase."""
        return self.phase(phase) / MANIFEST

    def mixture(self, name: str) -> "BuildFolder":
        """Return another mixture over the rows of this build."""
        return BuildFolder(self.path / MIXTURES / name)

    @property
    def within(self) -> "BuildFolder | None":
        """The build that this is a mixture over, or was before; None for a build of its own.

        A folder that users keep builds in may be called `mixtures` or `history`, too.
        """
        outer = BuildFolder(self._named.parent.parent)
        inside = self._named.parent.name in (MIXTURES, HISTORY) and (outer.path / DOMAINS).is_dir()
        return outer if inside else None

    @property
    def is_past(self) -> bool:
        """Whether this is what a build was before, or a mixture over that."""
        outer = self.within
        return outer is not None and (self._named.parent.name == HISTORY or outer.is_past)

    @property
    def _named(self) -> Path:
        """The path with the name of its parent, which `build` alone lacks."""
        return self.path if self.path.parent.name else self.path.absolute()

    def places(self) -> list[Path]:
        """Return the folders that hold its files: its own, and those of the build it is within.

        Of a redacted build also those of the build that it is a view of.
        """
        return [self.path, *self._linked()]

    def _linked(self) -> list[Path]:
        """Return where links of this folder lead: its store, and the build it is within."""
        places = [self.store.resolve()] if self.store.exists() else []
        home = self.within
        if home is None and (sources := self.path / SOURCES).is_symlink():
            home = BuildFolder(sources.resolve().parent)
        if home is not None:
            places += [home.path / DOMAINS, home.path / SOURCES, *home._linked()]
        return places

    def states(self) -> list["BuildFolder"]:
        """Return the builds that this one was before, by the time they were superseded."""
        if (outer := self.within) is not None and self._named.parent.name == MIXTURES:
            return [state.mixture(self.path.name) for state in outer.states()]
        paths = [path for path in self.history.glob("*") if not path.name.startswith(".")]
        return [BuildFolder(path) for path in sorted(paths, key=_age)]

    def manifests(self) -> list[Path]:
        """Return the manifests that exist, sorted by path."""
        return sorted(self.path.glob(f"{PHASES}/*/{MANIFEST}"))

    def folders(self) -> list[Path]:
        """Return the folders of sources, domains' stages and phases that exist, sorted."""
        patterns = (f"{SOURCES}/*", f"{DOMAINS}/*/*", f"{PHASES}/*")
        return sorted(path for pattern in patterns for path in self.path.glob(pattern))

    def sealed(self) -> list[Path]:
        """Return the folders that have a receipt, sorted."""
        return sorted(path for path in self._receipted() if (path / receipts.NAME).exists())

    def unsealed(self) -> list[Path]:
        """Return the folders of sources and domains that hold files but no receipt, sorted."""
        return sorted(
            path
            for path in self._receipted()
            if not (path / receipts.NAME).exists() and any(p.is_file() for p in path.rglob("*"))
        )

    def _receipted(self) -> Iterator[Path]:
        for pattern in (f"{SOURCES}/*", f"{DOMAINS}/*/*"):
            for path in self.path.glob(pattern):
                if TEMPORARY.search(path.name) is None:  # else a killed build left it
                    yield path


def _age(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, path.name


def rows_files(receipt: Receipt) -> list[Shard]:
    """Return a receipt's shards that are files, in order."""
    return [Shard.of(entry) for entry in receipt.files if entry["name"].endswith(".h5")]


def shards_of(receipt: Receipt) -> list[Shard]:
    """Return a receipt's shards in order, of rows that are not written here too."""
    return [*receipt.shards] or rows_files(receipt)
