"""The trainers: mixins over LLaMA-Factory's own, and over any ``transformers.Trainer``.

    import transformers
    from dataflex.trainer import SelectTrainer, trainer_class

    Trainer = trainer_class(SelectTrainer, transformers.Trainer)
    trainer = Trainer(model=model, args=args, train_dataset=rows, dataflex=spec)

They are one: :class:`DynamicTrainer`, and names of it for runs with one axis. None has a training loop; it overrides
``get_train_dataloader`` where rows are planned and ``compute_loss`` where the loss is weighed or looked at.
"""

from __future__ import annotations

from typing import Any

from dataflex.trainer.dynamic import DynamicTrainer
from dataflex.trainer.names import MixTrainer, ReorderTrainer, SelectTrainer, WeightTrainer

__all__ = [
    "BY_TRAIN_TYPE",
    "DynamicTrainer",
    "MixTrainer",
    "ReorderTrainer",
    "SelectTrainer",
    "WeightTrainer",
    "trainer_class",
]

BY_TRAIN_TYPE: dict[str, type[DynamicTrainer]] = {
    "dynamic_select": SelectTrainer,
    "dynamic_mix": MixTrainer,
    "dynamic_reorder": ReorderTrainer,
    "dynamic_weight": WeightTrainer,
    "dynamic": DynamicTrainer,
}


def trainer_class(mixin: type[DynamicTrainer], base: type[Any]) -> type[Any]:
    """Returns ``base`` with dynamic training: a class whose constructor takes one more keyword, ``dataflex``.

    Args:
        mixin: :class:`SelectTrainer`, :class:`MixTrainer` or :class:`WeightTrainer`.
        base: ``transformers.Trainer`` or a subclass.
    """
    return type(f"{mixin.__name__}[{base.__name__}]", (mixin, base), {"__doc__": mixin.__doc__})
