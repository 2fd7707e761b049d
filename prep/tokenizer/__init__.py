"""The room tokenizer."""
