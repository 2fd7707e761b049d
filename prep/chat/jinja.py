"""The Jinja template of the same meaning, as `chat_template` of an exported tokenizer.

It writes messages of roles system, user, assistant and tool, and marks what is learnt by
`{% generation %}`. A tokenizer that reads special tokens out of texts takes a message's spelling
of them for control ids: our own rows never do.
"""

from crystalmix.prep.chat.settings import ChatSettings, Piece, pieces
from crystalmix.prep.chat.templates import template_of

SPELT = {"bos": "bos_token", "eos": "eos_token"}
ROLES = ("system", "user", "assistant", "tool")
FAULT = "'no pieces for a message of role ' ~ message['role']"


def jinja(settings: ChatSettings) -> str:
    """Return the template of chat settings; learnt: turns of the roles that `loss` names.

    Rules about odd turns are not part of it: it writes the messages it is given.
    """
    template = template_of(settings.template)
    every = settings.loss == "all"
    lines = [_pieces(pieces(template.begin), learnt=every, every=every)]
    if settings.system is not None:
        inserted = _pieces(
            pieces(template.system), learnt=False, every=every, message=settings.system
        )
        lines += [
            "{%- if not messages or messages[0]['role'] != 'system' -%}",
            inserted,
            "{%- endif -%}",
        ]
    lines += ["{%- for message in messages -%}"]
    word = "if"
    for role in ROLES:
        turn = pieces(getattr(template, role))
        if not turn:
            continue
        learnt = role in settings.learnt_roles
        lines.append(f"{{%- {word} message['role'] == '{role}' -%}}")
        first = _turn_end(turn, settings)
        if role == "user" and template.user_after_system:
            after = pieces(template.user_after_system)
            before = "loop.previtem is defined and loop.previtem['role'] == 'system'"
            if settings.system is not None:
                before += " or loop.first"
            lines += [f"{{%- if {before} -%}}", _pieces(after, learnt=learnt, every=every)]
            lines += ["{%- else -%}", first + _pieces(turn, learnt, every), "{%- endif -%}"]
        else:
            rest = turn[1:] if first else turn
            lines.append(first + _pieces(rest, learnt=learnt, every=every))
        word = "elif"
    lines += [
        "{%- else -%}",
        "{{- raise_exception(" + FAULT + ") -}}",
        "{%- endif -%}",
        "{%- endfor -%}",
    ]
    assistant = pieces(template.assistant)
    opening = assistant[: [piece.is_message for piece in assistant].index(True)]
    end = _end(pieces(template.end), settings)
    lines += ["{%- if add_generation_prompt -%}", _pieces(opening, learnt=False, every=False)]
    lines += ["{%- else -%}", end, "{%- endif -%}"]
    return "".join(lines)


def _turn_end(turn: tuple[Piece, ...], settings: ChatSettings) -> str:
    """Return a turn's first token, learnt behind a response, where `turn_end` asks for it."""
    if not settings.turn_end or settings.loss == "all" or turn[0].token is None:
        return ""
    token = _spelt(turn[0], None)
    before = "loop.previtem is defined and loop.previtem['role'] == 'assistant'"
    return f"{{%- if {before} -%}}{_learnt(token)}{{%- else -%}}{token}{{%- endif -%}}"


def _end(end: tuple[Piece, ...], settings: ChatSettings) -> str:
    if settings.loss == "all":
        return _pieces(end, learnt=True, every=True)
    roles = [role for role in ROLES if role in settings.learnt_roles]
    named = " or ".join(f"messages[-1]['role'] == '{role}'" for role in roles) or "false"
    on, off = _pieces(end, learnt=True, every=False), _pieces(end, learnt=False, every=False)
    return on if on == off else f"{{%- if {named} -%}}{on}{{%- else -%}}{off}{{%- endif -%}}"


def _pieces(turn: tuple[Piece, ...], learnt: bool, every: bool, message: str | None = None) -> str:
    """Return pieces as Jinja, those that are learnt marked."""
    text = ""
    for piece in turn:
        spelt = _spelt(piece, message)
        text += _learnt(spelt) if every or (learnt and piece.learnt) else spelt
    return text.replace("{%- endgeneration -%}{%- generation -%}", "")


def _learnt(text: str) -> str:
    return f"{{%- generation -%}}{text}{{%- endgeneration -%}}"


def _spelt(piece: Piece, message: str | None) -> str:
    if piece.is_message:
        return (
            "{{- message['content'] -}}" if message is None else f"{{{{- {_quoted(message)} -}}}}"
        )
    if piece.token in SPELT:
        return f"{{{{- {SPELT[piece.token]} -}}}}"
    return f"{{{{- {_quoted(piece.token or piece.text or '')} -}}}}"


def _quoted(text: str) -> str:
    """Return a text as a Jinja string."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped.replace(chr(13), chr(92) + 'r')}'"
