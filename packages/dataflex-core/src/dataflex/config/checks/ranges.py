"""What LLaMA-Factory's and transformers' types do not say of a value: from where to where it may go.

Each bound is where LLaMA-Factory, transformers, datasets or torch raise, or where nothing is trained. Values that work,
however odd, are within: ``save_steps: 0`` never saves, ``max_grad_norm: 0`` and ``.inf`` do not clip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

MOST = 2**63 - 1
"""The largest whole number of a key that has no smaller bound: more than that no library takes."""
MOST_STEPS = 2**31 - 1


@dataclass(frozen=True)
class Bounds:
    """From where to where a number may go.

    Attributes:
        least: The least number; None for no bound.
        most: The largest; None for no bound.
        above: Whether ``least`` itself is out.
        below: Whether ``most`` itself is out.
        infinite: Whether ``.inf`` may stand there.
    """

    least: float | None = None
    most: float | None = None
    above: bool = False
    below: bool = False
    infinite: bool = False

    def holds(self, value: float) -> bool:
        """Returns whether the number is within the bounds."""
        if math.isnan(value) or (math.isinf(value) and not self.infinite):
            return False
        low = self.least is None or value > self.least or (value == self.least and not self.above)
        high = self.most is None or value < self.most or (value == self.most and not self.below)
        return low and high

    def said(self, noun: str) -> str:
        """Returns the bounds in words, after what they are of."""
        if self.least is not None and self.most is not None:
            low = f"above {_plain(self.least)}" if self.above else f"from {_plain(self.least)}"
            return f"{noun} {low} {'below' if self.below else 'to'} {_plain(self.most)}"
        if self.least is not None:
            return f"{noun} {'above' if self.above else 'of at least'} {_plain(self.least)}"
        return noun


_POSITIVE = Bounds(1)
_NOT_NEGATIVE = Bounds(0)
_SHARE = Bounds(0, 1)
_BETA = Bounds(0, 1, below=True)

RANGES: Mapping[str, Bounds] = {
    # how much is trained
    "per_device_train_batch_size": _POSITIVE,
    "per_device_eval_batch_size": _POSITIVE,
    "gradient_accumulation_steps": _POSITIVE,
    "max_steps": Bounds(-1, MOST_STEPS),
    "num_train_epochs": _NOT_NEGATIVE,
    "early_stopping_steps": _POSITIVE,
    "ddp_timeout": _POSITIVE,
    # the data
    "cutoff_len": _POSITIVE,
    "max_samples": _POSITIVE,
    "val_size": _NOT_NEGATIVE,  # and see checks/values
    "buffer_size": _POSITIVE,
    "preprocessing_num_workers": _POSITIVE,
    "dataloader_num_workers": _NOT_NEGATIVE,
    "dataloader_prefetch_factor": _POSITIVE,
    "seed": Bounds(0, 2**32 - 1),
    "data_seed": Bounds(0, MOST),
    # steps or, below 1, shares of them
    "logging_steps": _NOT_NEGATIVE,
    "eval_steps": _NOT_NEGATIVE,
    "save_steps": Bounds(-1),
    "warmup_steps": _NOT_NEGATIVE,
    "warmup_ratio": _SHARE,
    "torch_empty_cache_steps": _POSITIVE,
    "eval_accumulation_steps": _POSITIVE,
    # the optimizer
    "learning_rate": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "adam_beta1": _BETA,
    "adam_beta2": _BETA,
    "adam_epsilon": _NOT_NEGATIVE,
    "max_grad_norm": Bounds(infinite=True),
    "label_smoothing_factor": _SHARE,
    "loraplus_lr_embedding": _NOT_NEGATIVE,
    "badam_update_ratio": _SHARE,
    "badam_switch_interval": Bounds(-1),
    "galore_rank": _POSITIVE,
    "galore_update_interval": _POSITIVE,
    "apollo_rank": _POSITIVE,
    "apollo_update_interval": _POSITIVE,
    # the model
    "lora_rank": _POSITIVE,
    "lora_dropout": _SHARE,
    "module_dropout": _SHARE,
    "oft_rank": _NOT_NEGATIVE,
    "oft_block_size": _NOT_NEGATIVE,
    "quantization_bit": _POSITIVE,
    "image_max_pixels": _POSITIVE,
    "image_min_pixels": _POSITIVE,
    "video_max_pixels": _POSITIVE,
    "video_min_pixels": _POSITIVE,
    "video_fps": Bounds(0, above=True),
    "video_maxlen": _POSITIVE,
    "audio_sampling_rate": _POSITIVE,
    # generation
    "eval_num_beams": _POSITIVE,
    "num_beams": _POSITIVE,
    "generation_max_length": _POSITIVE,
    "generation_num_beams": _POSITIVE,
    "temperature": _NOT_NEGATIVE,
    "top_p": _SHARE,
    "repetition_penalty": Bounds(0, above=True),
    # preference losses
    "dpo_label_smoothing": Bounds(0, 1, below=True),
    "ppo_epochs": _POSITIVE,
    "ppo_buffer_size": _POSITIVE,
    # processes
    "ray_num_workers": _POSITIVE,
}
"""Key -> its bounds, for both integers and floats."""

STEPS_OR_SHARES = frozenset({"logging_steps", "eval_steps", "save_steps"})
"""Above 1 they count steps, so they are whole."""

WHOLE_FLOATS = frozenset({
    "lora_alpha", "ddp_timeout", "image_max_pixels", "image_min_pixels", "video_max_pixels", "video_min_pixels",
})  # fmt: skip
"""Whole numbers that may be written with a point, as nothing counts with them."""


def bounds(key: str) -> Bounds:
    """Returns the bounds of a key."""
    return RANGES.get(key, Bounds())


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"
