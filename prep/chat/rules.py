"""Rules: what becomes of odd turns before a conversation is written; every case is counted."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from crystalmix.prep.chat.settings import ChatSettings, Choice, Template
from crystalmix.prep.documents.conversation_text import GAP, Message
from crystalmix.prep.runtime.errors import RefusalError

INSERTED = -1  # the number of a system text that no record holds


@dataclass(frozen=True)
class Turn:
    """A message on its way to ids; number: its place in the record's list."""

    number: int
    message: Message

    @property
    def role(self) -> str:
        """Who speaks."""
        return self.message.role


Turns = list[Turn]


class Rules:
    """Apply the rules of a domain's chat settings; counts what is met and what is dropped.

    cases: conversations by what is odd in them, whatever becomes of it. dropped: by reason.
    """

    def __init__(self, settings: ChatSettings, template: Template) -> None:
        self.settings, self.template = settings, template
        self.cases: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    def apply(self, messages: Sequence[Message], place: str) -> Turns | None:
        """Return the turns to write, None where the conversation is dropped.

        Raises RefusalError, naming the place, for turns of tools that the template can't write.
        """
        turns = [Turn(number, message) for number, message in enumerate(messages)]
        steps: tuple[Callable[[Turns], Turns | None], ...] = (
            lambda turns: self._tools(turns, place),
            self._forged,
            self._late_system,
            self._empty,
            self._same_role,
            self._first_assistant,
            self._last_user,
        )
        for step in steps:
            answer = step(turns)
            if answer is None:
                return None
            turns = answer
        if not any(turn.role != "system" for turn in turns):
            return self._drop("no_turn")
        return self._with_system(turns)

    def _drop(self, reason: str) -> None:
        self.dropped[reason] += 1

    def _decide(
        self, case: str, choice: Choice, turns: Turns, odd: Sequence[Turn], count: str = ""
    ) -> Turns | None:
        """Keep the odd turns, or leave them or the conversation out; count that there are some."""
        if not odd:
            return turns
        self.cases[count or case] += 1
        if choice == "drop":
            return self._drop(case)
        return turns if choice == "keep" else [turn for turn in turns if turn not in odd]

    def _tools(self, turns: Turns, place: str) -> Turns | None:
        lacking = [
            turn
            for turn in turns
            if turn.role in ("tool", "tool_call", "system")
            and not getattr(self.template, turn.role)
        ]
        if not lacking:
            return turns
        if self.settings.tools == "refuse":
            number, role = lacking[0].number + 1, lacking[0].role
            raise RefusalError(
                f"{place}: message {number} is of role {role}, for which the template has no "
                "pieces; give it some, or `tools: drop` in the domain's `chat` leaves such out"
            )
        self.cases["tools"] += 1
        return self._drop("tools")

    def _forged(self, turns: Turns) -> Turns | None:
        markers = self.template.markers
        texts = [turn.message.text for turn in turns if turn.role != "text"]
        if any(marker in text for marker in markers for text in texts):
            self.cases["forged"] += 1
            return self._drop("forged")
        return turns

    def _late_system(self, turns: Turns) -> Turns | None:
        odd = [turn for turn in turns[1:] if turn.role == "system"]
        return self._decide("late_system", self.settings.late_system, turns, odd)

    def _empty(self, turns: Turns) -> Turns | None:
        odd = [turn for turn in turns if not turn.message.text]
        return self._decide("empty", self.settings.empty, turns, odd)

    def _same_role(self, turns: Turns) -> Turns | None:
        kept: Turns = []
        twice = False
        for turn in turns:
            same = bool(kept) and kept[-1].role == turn.role and turn.role not in ("tool", "text")
            twice |= same
            if same and self.settings.same_role == "join":
                before = kept[-1].message
                text = before.text + GAP + turn.message.text
                learn = turn.message.learn if before.learn is None else before.learn
                kept[-1] = Turn(kept[-1].number, replace(before, text=text, learn=learn))
            else:
                kept.append(turn)
        if twice:
            self.cases["same_role"] += 1
            if self.settings.same_role == "drop":
                return self._drop("same_role")
        return kept

    def _first_assistant(self, turns: Turns) -> Turns | None:
        spoken = [turn for turn in turns if turn.role != "system"]
        odd: Turns = []
        for turn in spoken:
            if turn.role in ("user", "text"):
                break
            odd.append(turn)
        return self._decide("first_assistant", self.settings.first_assistant, turns, odd)

    def _last_user(self, turns: Turns) -> Turns | None:
        odd: Turns = []
        for turn in reversed(turns):
            if turn.role in ("assistant", "tool_call", "text"):
                break
            if turn.role != "system" or turn is not turns[0]:
                odd.append(turn)
        return self._decide("last_user", self.settings.last_user, turns, odd)

    def _with_system(self, turns: Turns) -> Turns:
        text = self.settings.system
        if text is None or turns[0].role in ("system", "text"):
            return turns
        self.cases["system_default"] += 1
        return [Turn(INSERTED, Message("system", text)), *turns]
