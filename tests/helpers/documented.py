"""Lines of code that a page of the documentation shows, to be run by tests."""

from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
MOST = 10  # lines that a training script needs for a ledger


def block(page: str, holding: str) -> str:
    """Return the one block of a page that holds some words."""
    blocks = (DOCS / page).read_text("utf-8").split("```")[1::2]
    [found] = [each for each in blocks if holding in each]
    return found.partition("\n")[2]


def ours(code: str) -> list[str]:
    """Return the lines of a script that are there for us."""
    words = ("crystalmix", "phase", "ledger", "cm.")
    return [line for line in code.splitlines() if any(word in line for word in words)]
