"""What the tests ask of a chat template in Jinja: its text, and which of it is learnt."""

from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

OPEN, CLOSE = "\ue000", "\ue001"  # around what is learnt; no text of the tests holds them


class Generation(Extension):
    """Marks the body of `{% generation %}`."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        number = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(number)

    def _marked(self, caller: Any) -> str:
        return f"{OPEN}{caller()}{CLOSE}"


def rendered(
    template: str, messages: list[dict[str, str]], **values: Any
) -> tuple[str, list[bool]]:
    """Return a conversation's text, and of each letter whether it is learnt."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    marked = environment.from_string(template).render(messages=messages, **values)
    text, learnt, on = "", [], False
    for letter in marked:
        if letter in (OPEN, CLOSE):
            on = letter == OPEN
        else:
            text += letter
            learnt.append(on)
    return text, learnt


def _raise(message: str) -> None:
    raise ValueError(message)
