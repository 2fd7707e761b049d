"""Cards: what a build or run is, in the form that whoever asks for it reads."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crystalmix.prep.runtime.errors import UsageError
from crystalmix.train.record import run_folder
from crystalmix.train.report import (
    ai_act,
    card_file,
    croissant,
    facts,
    hub_cards,
    markdown,
    openlineage,
    spdx,
)
from crystalmix.train.report.facts import Facts
from crystalmix.train.report.words import Blanks
from crystalmix.train.trace.answers import Answer, Grid

FORMS: Final[dict[str, Callable[[Facts, Blanks], list[str]]]] = {
    "md": markdown.card,
    "dataset-card": hub_cards.dataset_card,
    "model-card": hub_cards.model_card,
    "croissant": croissant.croissant,
    "aiact": ai_act.summary,
    "spdx": spdx.spdx,
    "openlineage": openlineage.events,
}


@dataclass(frozen=True)
class Card(Answer):
    """A card. unstated: the fields that nothing answers, which it names as not stated."""

    form: str
    text: str
    unstated: tuple[str, ...]

    def shown(self) -> Iterator[str | Grid]:
        """Yield its lines."""
        yield from self.text.splitlines()


def card(path: Path, form: str, *, about: Path | None = None, build: Path | None = None) -> Card:
    """Return the card of a build or run.

    form: of FORMS. about: the card file. build: where a run's build is, if it was moved. Raises
    UsageError for another form, RecipeError for a fault of the card file.
    """
    if form not in FORMS:
        raise UsageError(f"--as {form}: is no form of a card; use one of {', '.join(FORMS)}")
    card = card_file.read(about)
    run, place = run_folder.run_and_build(path, build)
    blanks = Blanks()
    lines = FORMS[form](facts.gather(run, place, card), blanks)
    return Card(form, "\n".join(lines).rstrip("\n") + "\n", tuple(blanks.names))
