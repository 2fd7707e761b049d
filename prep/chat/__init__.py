"""Chat: conversations to ids, by a template that no text can forge, with loss where it belongs.

Templates as pieces of special tokens and text, the rules for odd turns, rendering to ids with runs
of loss and turns, long conversations cut at turn ends, and the Jinja template of the same meaning.
Never: reading records (that is `prep/documents`), packing, training.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.prep.chat import encode, jinja, render, settings, templates
    from crystalmix.prep.chat.counts import ChatCounts
    from crystalmix.prep.chat.encode import ChatEncoder
    from crystalmix.prep.chat.render import Renderer
    from crystalmix.prep.chat.rules import Rules, Turn
    from crystalmix.prep.chat.settings import ChatSettings

__getattr__, __dir__ = lazy_names(__name__)
