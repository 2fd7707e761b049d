"""Weights in and out in public formats: Hugging Face names and config, safetensors, .mdl files.

Never: training, Model Zoo's params.yaml.
"""
