"""Texts to ids and back.

Loading any tokenizer.json, the fast libraries and the proof that they equal the reference, long
texts, special spellings, special ids at a text's head, places where ids may be cut safely, and
training a small tokenizer. Never: permutation for fill-in-the-middle, packing.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.prep.tokenizer import safe_cuts, tokenizer, train_bpe
    from crystalmix.prep.tokenizer.metadata_head import HeadEncoder, Metadata
    from crystalmix.prep.tokenizer.reference import Encode, Ids
    from crystalmix.prep.tokenizer.safe_cuts import Cut, Joints
    from crystalmix.prep.tokenizer.special_spellings import Literals, is_text
    from crystalmix.prep.tokenizer.tokenizer import Tokenizer, TokenizerSettings

__getattr__, __dir__ = lazy_names(__name__)
