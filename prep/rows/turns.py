"""Turns: which turn of which conversation each piece of a row is of, beside every shard of chat.

`data-00007.turns.parquet` has one line per piece of a turn in a row of `data-00007.h5`. It follows
the spans of the shard, cut further where turns begin.
"""

from typing import Any

import numpy as np
import pyarrow as pa

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


def cut(pieces: pa.Table, turns: Any) -> pa.Table:  # noqa: ANN401  a column of lists
    """Cut the pieces of rows (`spans.SPANS`) where turns begin.

    turns: of each piece's document, as `token_blocks.INDEX` has them.
    """
    column = turns.combine_chunks()
    counts = column.value_lengths().to_numpy() // TURN  # (pieces,)
    first, message, role = column.flatten().to_numpy().reshape(-1, TURN).T  # (turns of pieces,)
    piece = np.repeat(np.arange(len(counts)), counts)
    last = np.append(first[1:], 0)
    last[np.cumsum(counts)[counts > 0] - 1] = np.iinfo(np.int64).max
    start, stop, offset = (pieces[name].to_numpy()[piece] for name in ("start", "stop", "offset"))
    low = np.maximum(first, offset)
    high = np.minimum(last, offset + stop - start)
    kept = low < high
    taken = pieces.take(pa.array(piece[kept], pa.int64()))
    names = pa.DictionaryArray.from_arrays(pa.array(role[kept], pa.int8()), pa.array(ROLES))
    columns: dict[str, Any] = {
        "row": taken["row"].combine_chunks(),
        "start": pa.array((start + low - offset)[kept], pa.int32()),
        "stop": pa.array((start + high - offset)[kept], pa.int32()),
        "source": taken["source"].combine_chunks(),
        "document": taken["document"].combine_chunks(),
        "message": pa.array(message[kept], pa.int32()),
        "role": names,
    }
    return pa.table([columns[field.name] for field in TURNS], schema=TURNS)
