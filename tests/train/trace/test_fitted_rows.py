"""Documents to rows to steps and back, for fitted rows, against the raw texts."""

import orjson
import zstandard

import crystalmix as cm
from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings, load
from crystalmix.train.loader.batches import Share
from helpers.masked import alone, masked_build, phase


def texts() -> dict[tuple[str, int], str]:
    """Return every prose text by file and record, read anew."""
    root, found = masked_build().parent, dict[tuple[str, int], str]()
    for path in sorted(root.glob("slimpajama/**/*.zst")):
        lines = zstandard.ZstdDecompressor().decompress(path.read_bytes(), 1 << 24).split(b"\n")
        for number, line in enumerate(lines):
            if line and (text := orjson.loads(line)["text"]):
                found[path.relative_to(root).as_posix(), number] = text
    return found


def opened() -> cm.Run:
    run = cm.open(alone())
    assert isinstance(run, cm.Run)
    return run


def test_a_steps_pieces_are_the_texts_that_its_rows_hold() -> None:
    """Packing invariants 1 and 9."""
    tokenizer = load(TokenizerSettings(str(masked_build() / "tokenizer.json")))
    bos, eos = tokenizer.id_of("bos"), tokenizer.id_of("eos")
    whole = {key: [bos, *tokenizer.encode(text), eos] for key, text in texts().items()}
    share, run, cut = Share(phase(), masked_build()), opened(), 0
    for step in range(phase().steps):
        batch = share.read(step)
        held = [0] * phase().batch
        for piece in run.step("prose", step).content():
            ids = batch.ids[piece["slot"], piece["start"] : piece["stop"]].tolist()
            document = whole[piece["file"], piece["record"]]
            offsets = range(0, len(document), phase().msl)
            assert any(document[offset : offset + phase().msl] == ids for offset in offsets)
            cut += len(ids) < len(document)
            held[piece["slot"]] += len(ids)
        padding = (batch.ids == tokenizer.pad).sum(axis=1)
        assert [*held] == [phase().msl - int(count) for count in padding]
    assert cut


def test_a_documents_steps_are_those_whose_rows_hold_it() -> None:
    """Packing invariant 9."""
    run = opened()
    steps: dict[tuple[str, int], set[int]] = {}
    for step in range(phase().steps):
        for piece in run.step("prose", step).content():
            steps.setdefault((piece["file"], piece["record"]), set()).add(step)
    for (file, record), wanted in list(steps.items())[::7]:
        told = run.document(f"{file}#{record}").steps
        assert told is not None
        assert {one.step for one in told if one.phase == "prose"} == wanted
