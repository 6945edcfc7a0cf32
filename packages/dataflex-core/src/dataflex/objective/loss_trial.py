"""Whether the loss that a model computes by itself, without a loss function, is the one that its logits give.

Only then can it be weighed by sample from the logits: the mean cross entropy of the next token over all labels, in
which a label is the token after its position and -100 none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dataflex.core.errors import ConfigError
from dataflex.model.label_logits import IGNORED
from dataflex.model.undisturbed import undisturbed
from dataflex.scoring.own_loss import closeness, model_name, own_inputs
from dataflex.scoring.passes.row_pass import Collator

MANY = 2**40
"""A count of labels that no step has."""


class LossTrial:
    """One batch through the model, in eval mode and without gradients.

    Args:
        model: The model, wrapped or not.
        collator: Makes a batch of tensors from a list of rows.
        rows: Rows with labels.
    """

    def __init__(self, model: torch.nn.Module, collator: Collator, rows: Sequence[Mapping[str, Any]]) -> None:
        self._model = model
        self._inputs = own_inputs(model, collator, rows)
        labels_BT = self._inputs.get("labels")
        if labels_BT is not None and len(labels_BT) > 1:
            # The last row keeps one label: a mean over rows is another one than over tokens then.
            labels_BT[-1, (labels_BT[-1] != IGNORED).nonzero()[:-1, 0]] = IGNORED
        self._own, self._logits = self._run(self._inputs)

    def takes_count(self) -> bool:
        """Whether the model divides by the number of labels that the loop counts, where it is given one."""
        count = torch.tensor(MANY, device=next(self._model.parameters()).device)
        found, _ = self._run(self._inputs | {"num_items_in_batch": count})
        return self._own is not None and found is not None and not _alike(found, self._own, closeness(self._model))

    def require(self, who: str, without_labels: bool) -> None:
        """Refuses a model whose loss is not that of its logits.

        Args:
            who: What weighs the loss, in words.
            without_labels: Whether the logits will be those that the model gives where it is given no labels.

        Raises:
            ConfigError: With both losses, or what the model gave in the place of logits.
        """
        name, labels = model_name(self._model), self._inputs.get("labels")
        if labels is None:
            raise ConfigError(f"the collator makes no labels, so {who} has no loss to weigh -> use one that makes them")
        logits = self._run(self._inputs | {"labels": None})[1] if without_labels else self._logits
        if not isinstance(logits, torch.Tensor) or logits.ndim != 3 or logits.shape[:2] != labels.shape:
            given = f"logits of shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else "no logits"
            raise ConfigError(
                f"{name} computes its loss without model.loss_function and gives {given} for labels of shape "
                f"{tuple(labels.shape)}, so {who} cannot weigh it -> use a model class that gives logits by token"
            )
        shifted = logits[:, :-1].float().flatten(0, 1)
        found = float(F.cross_entropy(shifted, labels[:, 1:].flatten().to(shifted.device), ignore_index=IGNORED))
        if self._own is None or not _alike(found, self._own, closeness(self._model)):
            own = "none" if self._own is None else f"{self._own:.4f}"
            raise ConfigError(
                f"{name} computes its loss without model.loss_function by token, and trains on another loss than the "
                f"cross entropy of the next token: of the first rows its own is {own}, that one {found:.4f}, so {who} "
                "cannot weigh it -> use a causal model with the usual loss, or train without weights"
            )

    def _run(self, inputs: dict[str, Any]) -> tuple[float | None, Any]:
        with undisturbed(self._model), torch.no_grad():
            output = self._model(**inputs, use_cache=False, return_dict=True)
        if not isinstance(output, Mapping):
            return None, None
        loss = output.get("loss")
        return None if loss is None else float(loss), output.get("logits")


def _alike(one: float, other: float, close: float) -> bool:
    return bool(np.isclose(one, other, rtol=close, atol=close))
