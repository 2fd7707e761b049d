"""Counts of filters that receipts hold: what is protected, how often documents are taken."""

from crystalmix.prep.runtime.types import Content, frozen


@frozen
class EvaluationFile:
    """Protection of one evaluation file, in items: records with text.

    protected: items with a run in the index. short: items whose texts all have too few words. The
    others have runs of few distinct words only.
    """

    file: str
    items: int
    protected: int
    short: int


@frozen
class IndexCounts:
    """Account of an index.

    short: texts with fewer words than a run. plain: runs left out for their few distinct words.
    files: protection of each evaluation file.
    """

    texts: int
    runs: int
    short: int
    plain: int
    files: tuple[EvaluationFile, ...] = ()  # of older versions


@frozen
class Bucket:
    """Documents of one bucket of percentiles: how many, and how often they are taken.

    low: their least number. asked: epochs of a document, on average. copies: how often all of them
    together are taken; bytes: of the copies' texts.
    """

    low: float
    documents: int
    asked: float
    copies: int
    bytes: int


@frozen
class CopyCounts:
    """What a source's documents come to.

    missing: documents without a number. most: the greatest count of copies. buckets: of the
    documents with one, from the lowest percentiles to the highest; those without any are left out.
    """

    documents: int
    missing: int
    most: int
    buckets: tuple[Bucket, ...]

    def content(self) -> Content:
        """Return them as JSON."""
        return {**vars(self), "buckets": [dict(vars(bucket)) for bucket in self.buckets]}
