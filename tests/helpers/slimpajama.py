"""SlimPajama-DC's configurations, as mixtures to place on a corpus."""

from collections.abc import Mapping

from crystalmix.mixtures.ablations.published_mixtures import spread

# SlimPajama-DC (2309.10818), per cent of 330 B tokens. 6 is SlimPajama as it is (its own page says
# so); 2 to 5 were written from memory and not compared with the paper's table: do so before you
# cite them.
SLIMPAJAMA_DC: tuple[dict[str, float], ...] = (
    {"commoncrawl": 100.0},
    {"commoncrawl": 90.9, "github": 9.1},
    {"commoncrawl": 75.8, "github": 24.2},
    {"commoncrawl": 75.8, "wikipedia": 24.2},
    {"commoncrawl": 75.8, "github": 9.1, "book": 7.9, "wikipedia": 7.3},
    {
        "commoncrawl": 52.2,
        "c4": 26.7,
        "github": 5.2,
        "book": 4.2,
        "arxiv": 4.6,
        "wikipedia": 3.8,
        "stackexchange": 3.3,
    },
)


def slimpajama_dc(tokens: Mapping[str, int], number: int) -> dict[str, float]:
    """Return SlimPajama-DC's configuration 1 to 6, spread over the given domains."""
    if number not in range(1, len(SLIMPAJAMA_DC) + 1):
        raise ValueError(f"number: must lie in [1, {len(SLIMPAJAMA_DC)}], got {number}")
    return spread(SLIMPAJAMA_DC[number - 1], tokens)
