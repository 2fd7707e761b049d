"""From records to numbered documents with an account of every drop.

The source's settings, its SQL, the scan, the schema, drops, de-duplication across blocks, joining,
and the digests of the input files. Belongs here: `documents.parquet` and what makes it. Never:
token ids.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.prep.documents import (
        about,
        choose,
        conversation_text,
        dropped,
        expressions,
        input_files,
        key_lists,
        lookup,
        merge,
        repair_text,
        scan,
        schema,
        source,
        source_sql,
    )
    from crystalmix.prep.documents.conversation_text import Message
    from crystalmix.prep.documents.input_files import Reading, Seen
    from crystalmix.prep.documents.key_lists import Kept
    from crystalmix.prep.documents.source import Document, Source

__getattr__, __dir__ = lazy_names(__name__)
