"""``dynamic``: a trainer of transformers, with the data that it trains on chosen while it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from dataflex.api.keywords import Keywords, signature
from dataflex.api.run import checked_run

if TYPE_CHECKING:
    from typing import Unpack

    from transformers import Trainer

    T = TypeVar("T", bound=Trainer)


def dynamic(base: type[T], **keywords: Unpack[Keywords]) -> Callable[..., T]:
    """Returns ``base`` as a class that trains dynamically: with selectors, a mixer, an order, a weighter, or several.

        trainer = dynamic(SFTTrainer, selector="less", warmup_step=10, update_step=50, update_times=4)(
            model, args=args, train_dataset=rows, eval_dataset=target
        )

    Everything that the call tells is checked now, as ``dataflex-cli validate`` checks a YAML: keywords, steps, the
    component and its parameters. What only the trainer's arguments tell (evaluation rows for a component that aims at
    some, the names of the sources, the total of the steps) is checked when it is made, before a model given by its path
    is loaded.

    Args:
        base: ``transformers.Trainer`` or a subclass, such as ``trl.SFTTrainer``.
        **keywords: ``selector``, ``mixer``, ``order`` and ``weighter``: a name or preset as in ``component_name``, a
            class, the path of a plugin file that registers one, or ``{"name": ..., "params": {...}}``, which may say
            ``every``, ``from``, ``keep``, ``by`` and ``over`` as in a YAML; ``selector`` may be a list of these.
            ``params`` are parameters of the component, where there is one. The others are the keys of
            docs/configuration.md, with the defaults that they have there. Datasets go to the class that is returned.

    Returns:
        A subclass of ``base`` that takes its arguments, with ``target_dataset``, ``overwrite_output_dir`` and, with a
        mixer, ``mixer_eval_dataset``. With a mixer ``train_dataset`` is a mapping from source names to datasets; with a
        weighter it may be one. It can be subclassed and pickled.

    Raises:
        InvalidConfigError: Every problem that was found, in the words of ``dataflex-cli validate``.
        TypeError: ``base`` is no trainer of transformers.
    """
    run = checked_run(base, keywords)
    from dataflex.api.classes import dynamic_class  # here, as it imports torch and transformers

    made: Callable[..., T] = dynamic_class(base, run)
    return made


vars(dynamic)["__signature__"] = signature()
