"""Words of cards: values as text, tables in Markdown, and the list of what is not stated."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from json import dumps

from crystalmix.prep.runtime.tables import visible

UNSTATED = "not stated"


@dataclass
class Blanks:
    """The fields that a card has no evidence for, in the order in which it asks for them."""

    names: list[str] = field(default_factory=list[str])

    def say(self, name: str, value: object) -> str:
        """Return a value as text; without one note the field, and say that it is not stated."""
        text = words(value)
        if not text:
            if name not in self.names:
                self.names.append(name)
            return UNSTATED
        return text

    def section(self) -> list[str]:
        """Return the end of a card: which fields are not stated."""
        if not self.names:
            return ["## Not stated", "", "Every field is stated.", ""]
        return ["## Not stated", "", *(f"- {name}" for name in self.names), ""]


def words(value: object) -> str:
    """Return a value as text, nothing where there is none.

    >>> words(12345), words(None), words(False), words(("en", "de"))
    ('12,345', '', 'no', 'en, de')
    """
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (tuple, list)):
        return ", ".join(words(item) for item in value)  # pyright: ignore[reportUnknownVariableType]
    return visible(str(value), keep="\n")


def program_version() -> str:
    """Return the version of this program as it is installed, `unknown` where it is not."""
    try:
        return version("crystalmix")
    except PackageNotFoundError:
        return "unknown"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a table in Markdown, and an empty line."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = [words(cell).replace("|", "\\|").replace("\n", " ") or "-" for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def yaml_head(values: dict[str, object]) -> list[str]:
    """Return the YAML head of a card, every text in quotes so that YAML reads it as text."""
    lines = ["---"]
    for key, value in values.items():
        if isinstance(value, list):
            lines += [f"{key}:", *(f"- {dumps(item)}" for item in value)]  # pyright: ignore[reportUnknownVariableType]
        elif value is not None:
            lines.append(f"{key}: {dumps(value)}")
    return [*lines, "---", ""]
