"""Fixtures for tests of dataflex and of plugins: a tiny model, a tiny tokenizer, random rows, a collator, arguments.

Models and batches are made on :func:`device`: the CPU, or with ``DATAFLEX_TEST_GPU=1`` the accelerator.

Everything is built on the spot from a seed, so a test needs no download and sees the same numbers every time:

    from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args

    rows = TokenRows(32, lengths=range(8, 25))
    trainer = Trainer(tiny_model(), tiny_training_args(tmp_path), train_dataset=rows, data_collator=pad_collate)

It needs torch and transformers, but no pytest; ``import dataflex`` does not import it.
"""

from dataflex.testing.devices import device
from dataflex.testing.quiet_arguments import tiny_training_args
from dataflex.testing.tiny_models import TINY_SPECIAL_TOKENS, tiny_model, tiny_tokenizer
from dataflex.testing.token_rows import TokenRows, pad_collate, tiny_batch

__all__ = [
    "TINY_SPECIAL_TOKENS",
    "TokenRows",
    "device",
    "pad_collate",
    "tiny_batch",
    "tiny_model",
    "tiny_tokenizer",
    "tiny_training_args",
]
