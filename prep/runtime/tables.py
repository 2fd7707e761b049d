"""Plain-text tables, numbers in words, and texts from data as they can be shown."""

import os
import re
import sys
from collections.abc import Sequence

NARROWEST = 8  # a column of text is cut no shorter
# Controls, separators of lines, and what turns the direction of writing: they would move a
# terminal's cursor, end a line, or show a name as another one.
UNSEEN = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufffe\uffff\ud800-\udfff]")
SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def visible(text: str, keep: str = "") -> str:
    r"""Return a text from data with its control characters spelt out; keep: those that stay.

    >>> visible("red \x1b[31m\u202e\n")
    'red \\x1b[31m\\u202e\\n'
    """
    return UNSEEN.sub(lambda found: found[0] if found[0] in keep else _spelt(found[0]), text)


def _spelt(character: str) -> str:
    number = ord(character)
    return SHORT.get(character, rf"\x{number:02x}" if number < 0x100 else rf"\u{number:04x}")


def table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> list[str]:
    """Lay out a table: text to the left, numbers to the right.

    On a terminal that is too narrow the widest columns of text are cut, with an ellipsis; nothing
    is cut where the output is piped.

    >>> table([["a", 1], ["bc", 20]], ["name", "n"])
    ['name   n', 'a      1', 'bc    20']
    """
    cells = [[visible(str(cell)) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(head))]
    if (room := terminal_width()) is not None:
        widths = _fitted(widths, numeric, room)
    return [
        "  ".join(
            cell.rjust(width) if right else _cut(cell, width).ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]


def terminal_width() -> int | None:
    """Return the columns of the terminal that stdout is; None where it is none, or has no size."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError):
        return None


def _fitted(widths: Sequence[int], numeric: Sequence[bool], room: int) -> list[int]:
    """Return widths whose sum fits: the widest column of text gives way, one place at a time."""
    fitted = list(widths)
    over = sum(fitted) + 2 * (len(fitted) - 1) - room
    text = [i for i, right in enumerate(numeric) if not right]
    for _ in range(over):
        widest = max(text, key=lambda i: fitted[i], default=None)
        if widest is None or fitted[widest] <= NARROWEST:
            break
        fitted[widest] -= 1
    return fitted


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else f"{cell[: width - 1]}…"


def _is_number(cell: object) -> bool:
    text = str(cell).replace(",", "").replace("%", "").replace("-", "").strip()
    return not isinstance(cell, str) or not text or text.replace(".", "").isdigit()


def format_hours(hours: float) -> str:
    """Return hours with as many digits as say something.

    >>> format_hours(1234.56), format_hours(0.0123), format_hours(1e-6)
    ('1,234.6', '0.012', 'under 0.001')
    """
    if hours >= 1:
        return f"{hours:,.1f}"
    return f"{hours:.2g}" if hours >= 0.001 else "under 0.001"


def counted(count: int, one: str, more: str = "") -> str:
    """Return a count with its word.

    >>> counted(1, "row"), counted(2, "entry", "entries")
    ('1 row', '2 entries')
    """
    return f"{count:,} {one if count == 1 else more or one + 's'}"
