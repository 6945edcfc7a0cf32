"""The special tokens of every tiny tokenizer and model."""

TINY_SPECIAL_TOKENS = {"pad_token": "<|pad|>", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
"""Role -> token, in the order of their ids: pad is 0, begin of text 1, end of text 2, in every tiny model too."""
