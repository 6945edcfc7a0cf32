"""The class that ``dynamic`` returns: one of our mixins over the user's trainer, with the run in it."""

from __future__ import annotations

import copyreg
from functools import cache
from typing import Any

from dataflex.api.fitting import require_fitting
from dataflex.api.keywords import Keywords
from dataflex.api.run import CheckedRun, checked_run
from dataflex.api.run_report import Reported
from dataflex.trainer import BY_TRAIN_TYPE, DynamicTrainer
from dataflex.upstream.online_trainers import online_stage, require_known
from dataflex.upstream.stage_loss import stage_name


class DynamicType(type):
    """The class of these classes: it shows what they train with, and lets them be pickled with the call's arguments."""

    recipe: tuple[type[Any], CheckedRun]

    def __repr__(cls) -> str:
        """Returns the call that makes it."""
        if "recipe" not in vars(cls):  # a subclass of a user's own
            return super().__repr__()
        base, run = cls.recipe
        return f"dynamic({base.__name__}, {', '.join(f'{key}={_shown(value)}' for key, value in _shown_keys(run))})"


def dynamic_class(base: type[Any], run: CheckedRun) -> type[Any]:
    """Returns the class.

    Args:
        base: ``transformers.Trainer`` or a subclass.
        run: What it is to train with.
    """
    mixin, online = BY_TRAIN_TYPE[run.spec.arguments.train_type], online_stage(base)
    if online is not None:
        require_known(base)

    def __init__(self: DynamicTrainer, *args: Any, **kwargs: Any) -> None:  # noqa: N807  # of the class below
        kwargs = self.named(args, kwargs)
        require_fitting(run, kwargs, online or stage_name(base))
        super(made, self).__init__(dataflex=run.spec, **kwargs)

    body = {
        "__init__": __init__,
        "__module__": base.__module__,
        "__doc__": f"{base.__name__} with dynamic training. {mixin.__doc__}",
        "recipe": (base, run),
    }
    of_base: Any = type(base)
    made: type[Any] = _metaclass(of_base)(f"Dynamic{base.__name__}", (mixin, base, Reported), body)
    return made


@cache
def _metaclass(of_base: Any) -> type[DynamicType]:
    """Returns a class for classes over a trainer whose own class is ``of_base``, and has pickle make them anew."""
    found = DynamicType if of_base is type else type("DynamicType", (DynamicType, of_base), {})
    copyreg.pickle(found, _pickled)  # a text is allowed: the name of an ordinary class
    return found


def _pickled(cls: DynamicType) -> str | tuple[Any, ...]:
    if "recipe" not in vars(cls):
        return cls.__qualname__
    base, run = cls.recipe
    return rebuilt, (base, run.keywords)


def rebuilt(base: type[Any], keywords: Keywords) -> type[Any]:
    """Returns the class again in the process that a pickled one has come to."""
    return dynamic_class(base, checked_run(base, keywords))


def _shown_keys(run: CheckedRun) -> list[tuple[str, Any]]:
    return list(run.keywords.items())


def _shown(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)
