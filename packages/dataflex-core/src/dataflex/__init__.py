"""dataflex: training data that changes while a model trains, over any Trainer of transformers and on LLaMA-Factory.

Importing this package loads neither torch nor transformers nor llamafactory; the parts that need them are imported by
their full path (``dataflex.trainer``, ``dataflex.scoring``, ...), or when they are first called:

    from dataflex import dynamic

    trainer = dynamic(SFTTrainer, selector="less", update_step=50, update_times=4)(model, args=..., train_dataset=...)
"""

import warnings
from typing import TYPE_CHECKING, Any

import pluggy

from dataflex.discovery.other_distribution import is_command_line, other_distribution

if TYPE_CHECKING:
    from dataflex.api.dynamic_call import dynamic
    from dataflex.api.run_report import run_report

__all__ = ["__version__", "dynamic", "hookimpl", "run_report"]

__version__ = "0.1.0"

if (_beside := other_distribution()) is not None and not is_command_line():
    warnings.warn(_beside, RuntimeWarning, stacklevel=2)

hookimpl = pluggy.HookimplMarker("dataflex")
"""Marks a function as the implementation of a hook of :mod:`dataflex.core.hookspecs`."""


def __getattr__(name: str) -> Any:
    """Returns ``dynamic`` and ``run_report``, imported when they are asked for: most commands never do."""
    if name == "dynamic":
        from dataflex.api.dynamic_call import dynamic

        return dynamic
    if name == "run_report":
        from dataflex.api.run_report import run_report

        return run_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
