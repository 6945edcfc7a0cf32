"""Which tokens of a row stand for a part of an image or a video: the model puts features of the media in their places.

LLaMA-Factory, as the processors of ``transformers``, writes one such token into ``input_ids`` for each feature, so that
the tokens of a row are its text and its media.
"""

from __future__ import annotations

import torch

from dataflex.model.unwrapped import pretrained_models

_KEYS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
"""What configurations call them."""


def vision_token_ids(model: torch.nn.Module) -> tuple[int, ...]:
    """Returns the tokens that stand for images and videos, ascending; none of a model of text alone.

    Args:
        model: A model of ``transformers``, inside of any wrappers.
    """
    configs = [base.config.to_dict() for base in pretrained_models(model)[:1]]
    found = {config.get(key) for config in configs for key in _KEYS}
    return tuple(sorted(token for token in found if isinstance(token, int) and token >= 0))


def vision_mask(tokens_BT: torch.Tensor, ids: tuple[int, ...]) -> torch.Tensor:
    """Returns which tokens stand for images and videos: (B, T) bool.

    Args:
        tokens_BT: (B, T) ``input_ids``.
        ids: What :func:`vision_token_ids` returned.
    """
    return torch.isin(tokens_BT, torch.tensor(ids, dtype=tokens_BT.dtype, device=tokens_BT.device))
