"""Sources scanned and merged as a build does it, and raw files of several formats."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from crystalmix.prep.documents import expressions
from crystalmix.prep.documents import merge as numbering
from crystalmix.prep.documents import scan as documents
from crystalmix.prep.documents import source as sources
from crystalmix.prep.documents import source_sql as query
from crystalmix.prep.documents.schema import BlockAccount
from crystalmix.prep.documents.source import Document, Source
from crystalmix.prep.runtime.types import Json

Compression = Literal["lz4", "zstd"] | None
ROWS = [{"text": f"text {i} é", "n": i, "m": {"set": "ab"[i % 2]}} for i in range(2500)]
TEXTS = [row["text"] for row in ROWS]


@dataclass
class Scanned:
    """A source, scanned and merged as a build does it."""

    root: Path
    source: Source
    accounts: list[Json] = field(default_factory=list)
    out: Path | None = None

    def __post_init__(self) -> None:
        out = self.out or self.root / "out"
        self.blocks = sources.blocks(self.source, self.root)
        expressions.check(self.source)
        parts: list[Path] = []
        told: list[BlockAccount] = []
        for i, block in enumerate(self.blocks):
            parts.append(out / f"block-{i}.parquet")
            told.append(documents.scan(self.source, self.root, block, parts[-1]))
        self.accounts += map(asdict, told)
        query.check_answers(self.source, told)
        self.path = out / "documents.parquet"
        numbering.merge(self.source, parts, self.path)

    @property
    def rows(self) -> list[Json]:
        return pq.read_table(self.path).to_pylist()

    @property
    def dropped(self) -> Json:
        return {k: v for account in self.accounts for k, v in account["dropped"].items()}

    def texts(self, block: int = 0) -> list[Document]:
        first = sum(account["documents"] for account in self.accounts[:block])
        rows = (first, first + self.accounts[block]["documents"])
        name = self.blocks[block]
        return list(documents.texts(self.source, self.root, name, self.path, rows))


def texts(made: Scanned) -> list[str]:
    return [each.text for block in range(len(made.blocks)) for each in made.texts(block)]


def arrow_file(path: Path, *, stream: bool, compression: Compression = None) -> Path:
    table = pa.Table.from_pylist(ROWS)
    options = pa.ipc.IpcWriteOptions(compression=compression)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(str(path), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=999)
    return path
