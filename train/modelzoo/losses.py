"""Losses that a Model Zoo run left: in TensorBoard's event files, or in its logs.

Event files hold them as they were (float32), logs to five places, so events win. Steps count from
1 there: the loss logged at step n is that of the n-th step done. Event files are read here by
hand, for only two numbers of each record are wanted.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path

EVENTS = "events.out.tfevents.*"
TAGS = (b"loss", b"train/loss", b"train_loss")
LOGGED = re.compile(r"\| Train [^|]*?Step=(\d+),.*?Loss=([-+.\dinfaNe]+)")
Field = tuple[int, int | bytes]


def losses(model_dir: Path) -> dict[int, float]:
    """Return the loss of each finished step (counted from 1) that a run's folder tells.

    Of several runs in one folder the last says what a step's loss was.
    """
    told: dict[int, float] = {}
    for path in sorted(model_dir.rglob("*.log"), key=_age):
        for line in path.read_text("utf-8", errors="replace").splitlines():
            if match := LOGGED.search(line):
                told[int(match[1])] = float(match[2])
    for path in sorted(model_dir.rglob(EVENTS), key=_age):
        if "eval" not in path.relative_to(model_dir).parts:
            told.update(_event(record) for record in _records(path) if _event(record)[0])
    return told


def _age(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, path.as_posix()


def _records(path: Path) -> Iterator[bytes]:
    """Yield the records of an event file; one that is still being written ends where it ends."""
    content = path.read_bytes()
    place = 0
    while place + 12 <= len(content):
        (size,) = struct.unpack_from("<Q", content, place)  # length, its crc, bytes, their crc
        end = place + 12 + size + 4
        if end > len(content):
            return
        yield content[place + 12 : end - 4]
        place = end


def _event(record: bytes) -> tuple[int, float]:
    """Return step and loss of an Event message; step 0 where it tells no loss."""
    step, loss = 0, None
    for number, value in _fields(record):
        if number == 2 and isinstance(value, int):
            step = value
        elif number == 5 and isinstance(value, bytes):  # Summary
            for inner, each in _fields(value):
                if inner == 1 and isinstance(each, bytes):  # Summary.Value
                    loss = _scalar(each) if loss is None else loss
    return (0, 0.0) if loss is None else (step, loss)


def _scalar(value: bytes) -> float | None:
    """Return the number of a Summary.Value if its tag is that of the loss."""
    fields = dict(_fields(value))
    number = fields.get(2)
    if fields.get(1) not in TAGS or not isinstance(number, bytes):
        return None
    return struct.unpack("<f", number)[0]


def _fields(message: bytes) -> Iterator[Field]:
    """Yield number and value of each field of a protobuf message: varints, bytes, fixed bytes."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if kind == 2:
            size, place = _varint(message, place)
        elif kind in {1, 5}:
            size = 8 if kind == 1 else 4
        else:
            return  # groups, which no event has
        yield number, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """Return a varint and where it ends; a cut one counts as it stands."""
    value = shift = 0
    while place < len(message):
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            break
    return value, place
