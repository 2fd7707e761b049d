"""A mixture in ten lines of Python: train a tokenizer, build, verify, read the rows of each step.

python examples/first_mixture.py OUT
"""

import sys
from pathlib import Path

import crystalmix as cm
from crystalmix.prep.tokenizer import train_bpe

HERE = Path(__file__).parent
out, data = Path(sys.argv[1]), HERE.parent  # the texts are this repository's own
out.mkdir(parents=True, exist_ok=True)
texts = [path.read_text("utf-8") for path in sorted((data / "docs").glob("*.md"))]
(out / "tokenizer.json").write_bytes(train_bpe.train(texts, 1000))

build = cm.build(
    HERE / "first_mixture.yaml", out / "build", data=data, tokenizer=out / "tokenizer.json"
)
print(*cm.verify(build.path).lines(), sep="\n")

phase = build.phases["first"]
for batch in phase.batches(first=0):
    ids, mask, labels = batch.ids, batch.mask, batch.labels  # (batch, msl) int32
print(f"{phase.manifest.steps} steps of {ids.shape[0]} rows of {ids.shape[1]} tokens")
