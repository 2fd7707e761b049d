"""Weights in and out in public formats: Hugging Face names and config, safetensors, .mdl files.

Never: training, Model Zoo's params.yaml.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.train.weights import hf_export, hf_import, hf_names, hub_push, mdl, release
    from crystalmix.train.weights.hf_export import Exported
    from crystalmix.train.weights.hub_push import Upload
    from crystalmix.train.weights.release import Released

__getattr__, __dir__ = lazy_names(__name__)
