"""Fixtures for tests of dataflex and of plugins: a tiny model, a tiny tokenizer, random rows, a collator, arguments.

Models and batches are made on :func:`device`: the CPU, or with ``DATAFLEX_TEST_GPU=1`` the accelerator.

Everything is built on the spot from a seed, so a test needs no download and sees the same numbers every time:

    from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args

    rows = TokenRows(32, lengths=range(8, 25))
    trainer = Trainer(tiny_model(), tiny_training_args(tmp_path), train_dataset=rows, data_collator=pad_collate)

:func:`conformance` holds a component against what a run relies on, and :func:`two_ranks` calls a function on two ranks:

    from dataflex.testing import conformance

    def test_shortest():
        conformance(Shortest, params={"most": 3})

It needs torch and transformers, but no pytest. Nothing is imported before one of these names is asked for: pytest reads
this package at each start, for the fixtures of :mod:`dataflex.testing.pytest_fixtures`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataflex.testing.conformance_call import conformance, conformance_cases
    from dataflex.testing.conformance_report import Conformance, NotConforming
    from dataflex.testing.devices import device
    from dataflex.testing.quiet_arguments import tiny_training_args
    from dataflex.testing.rank_processes import RankError, RankProcesses, two_ranks
    from dataflex.testing.special_tokens import TINY_SPECIAL_TOKENS
    from dataflex.testing.tiny_models import tiny_model, tiny_tokenizer
    from dataflex.testing.tiny_vision import (
        tiny_vision_model,
        tiny_vision_processor,
        write_image_rows,
        write_vision_model,
    )
    from dataflex.testing.token_rows import TokenRows, pad_collate, tiny_batch

__all__ = [
    "TINY_SPECIAL_TOKENS",
    "Conformance",
    "NotConforming",
    "RankError",
    "RankProcesses",
    "TokenRows",
    "conformance",
    "conformance_cases",
    "device",
    "pad_collate",
    "tiny_batch",
    "tiny_model",
    "tiny_tokenizer",
    "tiny_training_args",
    "tiny_vision_model",
    "tiny_vision_processor",
    "two_ranks",
    "write_image_rows",
    "write_vision_model",
]

_HOMES = {
    "conformance_call": ("conformance", "conformance_cases"),
    "conformance_report": ("Conformance", "NotConforming"),
    "devices": ("device",),
    "quiet_arguments": ("tiny_training_args",),
    "rank_processes": ("RankError", "RankProcesses", "two_ranks"),
    "special_tokens": ("TINY_SPECIAL_TOKENS",),
    "tiny_models": ("tiny_model", "tiny_tokenizer"),
    "tiny_vision": ("tiny_vision_model", "tiny_vision_processor", "write_image_rows", "write_vision_model"),
    "token_rows": ("TokenRows", "pad_collate", "tiny_batch"),
}


def __getattr__(name: str) -> Any:
    """Returns what this package offers, imported when it is asked for."""
    for module, names in _HOMES.items():
        if name in names:
            return vars(import_module(f"{__name__}.{module}"))[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
