"""Spelling: the bytes that each id of a tokenizer stands for."""

from functools import lru_cache
from typing import Any

Json = dict[str, Any]


def bytes_of(content: Json, added: dict[str, int], vocab: int) -> list[bytes]:
    """Return the bytes of each id of a tokenizer.json; `added` ones as they are spelt."""
    table = [b""] * vocab
    unmap = _byte_level_alphabet() if _is_byte_level(content) else None
    for piece, number in content["model"]["vocab"].items():
        table[number] = _piece_bytes(piece, unmap)
    for literal, number in added.items():
        table[number] = literal.encode()
    return table


def is_text(data: bytes) -> bool:
    """Tell whether bytes are whole characters of UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_byte_level(model: Json) -> bool:
    decoder = model.get("decoder") or {}
    steps = decoder.get("decoders", [decoder])
    return any(step.get("type") == "ByteLevel" for step in steps)


def _piece_bytes(piece: str, unmap: dict[str, int] | None) -> bytes:
    if unmap is not None:
        return bytes(unmap[c] for c in piece) if all(c in unmap for c in piece) else piece.encode()
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode()


@lru_cache(maxsize=1)
def _byte_level_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE: printable bytes as they are, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}
