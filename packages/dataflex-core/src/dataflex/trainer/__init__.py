"""The trainers: mixins over LLaMA-Factory's own, and over any ``transformers.Trainer``.

    import transformers
    from dataflex.trainer import SelectTrainer, trainer_class

    Trainer = trainer_class(SelectTrainer, transformers.Trainer)
    trainer = Trainer(model=model, args=args, train_dataset=rows, dataflex=spec)

None of them has a training loop; they override ``get_train_dataloader`` (select, mix) or ``compute_loss`` (weight).
"""

from __future__ import annotations

from typing import Any

from dataflex.trainer.dynamic import DynamicTrainer
from dataflex.trainer.mix_trainer import MixTrainer
from dataflex.trainer.select_trainer import SelectTrainer
from dataflex.trainer.weight_trainer import WeightTrainer

__all__ = ["BY_TRAIN_TYPE", "DynamicTrainer", "MixTrainer", "SelectTrainer", "WeightTrainer", "trainer_class"]

BY_TRAIN_TYPE: dict[str, type[DynamicTrainer]] = {
    "dynamic_select": SelectTrainer,
    "dynamic_mix": MixTrainer,
    "dynamic_weight": WeightTrainer,
}


def trainer_class(mixin: type[DynamicTrainer], base: type[Any]) -> type[Any]:
    """Returns ``base`` with dynamic training: a class whose constructor takes one more keyword, ``dataflex``.

    Args:
        mixin: :class:`SelectTrainer`, :class:`MixTrainer` or :class:`WeightTrainer`.
        base: ``transformers.Trainer`` or a subclass.
    """
    return type(f"{mixin.__name__}[{base.__name__}]", (mixin, base), {"__doc__": mixin.__doc__})
