"""The bundled templates: how public models write conversations, as pieces."""

from crystalmix.prep.chat.settings import Piece, Template

TEXT = "TEXT"
EOS = Piece(token="eos", learn=True)


def _chatml(role: str) -> tuple[str | Piece, ...]:
    end = Piece(token="<|im_end|>", learn=True)
    return ("<|im_start|>", Piece(text=f"{role}\n"), TEXT, end, Piece(text="\n"))


def _llama_3(role: str) -> tuple[str | Piece, ...]:
    header = ("<|start_header_id|>", Piece(text=role), "<|end_header_id|>", Piece(text="\n\n"))
    return (*header, TEXT, Piece(token="<|eot_id|>", learn=True))


TEMPLATES: dict[str, Template] = {
    # CrystalChat: special ids alone between the texts; only the last turn teaches to end.
    "crystal": Template(
        begin=("bos",),
        system=("<|sys_start|>", TEXT, "<|sys_end|>"),
        user=("<|im_start|>", TEXT, "<|im_end|>"),
        assistant=(TEXT,),
        end=(EOS,),
        alone=True,
    ),
    "chatml": Template(
        system=_chatml("system"),
        user=_chatml("user"),
        assistant=_chatml("assistant"),
        tool=_chatml("tool"),
    ),
    # Llama 2 tells roles by texts: a conversation that holds one of them is left out.
    "llama-2": Template(
        system=("bos", Piece(text="[INST] <<SYS>>\n"), TEXT, Piece(text="\n<</SYS>>\n\n")),
        user_after_system=(TEXT, Piece(text=" [/INST] ")),
        user=("bos", Piece(text="[INST] "), TEXT, Piece(text=" [/INST] ")),
        assistant=(TEXT, Piece(text=" "), EOS),
        markers=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    ),
    "llama-3": Template(
        begin=("bos",),
        system=_llama_3("system"),
        user=_llama_3("user"),
        assistant=_llama_3("assistant"),
    ),
    # Texts joined as they are: prompt and completion.
    "plain": Template(begin=("bos",), system=(TEXT,), user=(TEXT,), assistant=(TEXT,), end=(EOS,)),
}


def template_of(name: str | Template) -> Template:
    """Return a template: one of ours by name, or the one that is given."""
    return TEMPLATES[name] if isinstance(name, str) else name
