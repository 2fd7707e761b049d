"""Turns: which turn of which conversation each piece of a row is of, beside every shard of chat.

`data-00007.turns.parquet` has one line per piece of a turn in a row of `data-00007.h5`. It follows
the spans of the shard, cut further where turns begin.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from crystalmix.prep.rows.placed_rows import Owners, expanded
from crystalmix.prep.rows.token_blocks import TURN

KIND = "turns"  # of the side file
ROLES = ("begin", "system", "user", "assistant", "tool", "text", "end")
TURNS = pa.schema(
    [
        ("row", pa.int32()),  # row within the shard
        ("start", pa.int32()),  # first token of the piece in the row
        ("stop", pa.int32()),
        ("source", pa.dictionary(pa.int16(), pa.string())),
        ("document", pa.int64()),
        ("message", pa.int32()),  # number in the record's list of messages, -1 of none of them
        ("role", pa.dictionary(pa.int8(), pa.string())),
    ]
)


def cut(pieces: pa.Table, owners: Owners) -> pa.Table:
    """Cut the pieces of rows (`spans.SPANS`) where turns begin; owners: the documents of each.

    A document's first turn begins at its first id, so that no piece reaches into another's turns.
    """
    documents, owner = owners.documents, owners.numbers
    column: Any = documents["turns"].combine_chunks()
    counts = column.value_lengths().to_numpy() // TURN  # (documents,)
    first, message, role = column.flatten().to_numpy().reshape(-1, TURN).T  # (turns,)
    tokens = documents["tokens"].to_numpy()
    base, stop_turn = np.cumsum(tokens) - tokens, np.cumsum(counts)
    last = np.append(first[1:], 0)
    last[stop_turn[counts > 0] - 1] = np.iinfo(np.int64).max
    begins = first + np.repeat(base, counts)  # ascending over all documents
    start, stop, offset = (pieces[name].to_numpy() for name in ("start", "stop", "offset"))
    place = base[owner] + offset
    turn = np.searchsorted(begins, place, side="right") - 1  # that a piece begins in
    behind = np.searchsorted(begins, place + stop - start)
    piece, turn = expanded(behind - turn, turn)
    low = np.maximum(first[turn], offset[piece])
    high = np.minimum(last[turn], (offset + stop - start)[piece])
    kept = low < high
    piece, turn, low, high = piece[kept], turn[kept], low[kept], high[kept]
    shift = (start - offset)[piece]
    taken = pieces.select(["row", "source", "document"]).take(pa.array(piece, pa.int64()))
    names = pa.DictionaryArray.from_arrays(pa.array(role[turn], pa.int8()), pa.array(ROLES))
    columns: dict[str, Any] = {
        "row": taken["row"].combine_chunks(),
        "start": pa.array(low + shift, pa.int32()),
        "stop": pa.array(high + shift, pa.int32()),
        "source": taken["source"].combine_chunks(),
        "document": taken["document"].combine_chunks(),
        "message": pa.array(message[turn], pa.int32()),
        "role": names,
    }
    return pa.table([columns[field.name] for field in TURNS], schema=TURNS)
