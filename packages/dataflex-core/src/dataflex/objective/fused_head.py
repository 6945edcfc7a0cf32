"""TRL's fused output layer: token losses in place of logits, and a loss that the model does not compute.

From 1.15 on, TRL's SFTTrainer patches the forward of its model (``add_fused_lm_head``). A training forward
then returns log-probabilities of the labels and no logits, the trainer makes its loss of these, and
``model.loss_function`` is never asked. So whoever says how much a token counts is asked here, when the patched forward
returns: the log-probabilities are replaced by one number that makes the trainer's own sum the wanted loss. What TRL
measures (accuracy, entropy, tokens) comes from other fields and stays that of the plain losses.

Can go when TRL computes its loss by ``model.loss_function`` again, or has a hook for token weights.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from dataflex.core.errors import ConfigError
from dataflex.model.label_logits import IGNORED
from dataflex.model.unwrapped import without_adapter
from dataflex.upstream.relied_on import require_fused_head

if TYPE_CHECKING:
    from collections.abc import Sequence

OwnSum = Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None]
"""``own(c_BT, labels_BT)`` -> what the trainer divides by its count of labels; None for the plain sum.

``c_BT``: (B, T) cross entropies at the position before each label, 0 where there is none. They need no gradient where
the trainer makes its loss of something else, and nothing is replaced then.
"""


class FusedHead:
    """A model whose forward TRL has patched, or may patch.

    Args:
        model: The model, inside of an adapter or not, not yet wrapped by an engine.
        output: The class of what the patched forward returns.

    Attributes:
        base: The model whose forward is patched.
        asked: Whether a patched forward was seen since :meth:`begin`.
    """

    def __init__(self, model: Any, output: type) -> None:
        self.base = without_adapter(model)
        self.asked = False
        self._own: OwnSum | None = None
        plain = self.base.forward

        @functools.wraps(plain)  # transformers reads the signature
        def forward(*args: Any, **kwargs: Any) -> Any:
            found = plain(*args, **kwargs)
            if type(found) is output and self._own is not None:
                self._replace(found, kwargs["labels"])
            return found

        self.base.forward = forward

    @contextmanager
    def asking(self, own: OwnSum) -> Iterator[None]:
        """Inside of it, a patched forward asks ``own`` for the sum of its token losses."""
        self._own, self.asked = own, False
        try:
            yield
        finally:
            self._own = None

    @staticmethod
    def divisor(labels_BT: torch.Tensor, counted: torch.Tensor | int | None) -> torch.Tensor:
        """Returns what the trainer divides the sum of a micro-batch by.

        Args:
            labels_BT: Labels before the shift.
            counted: The labels of the step, where the loop counts them.
        """
        count = (labels_BT[:, 1:] != IGNORED).sum() if counted is None else torch.as_tensor(counted)
        return count.to(labels_BT.device).clamp(min=1)

    def _replace(self, output: Any, labels_BT: torch.Tensor) -> None:
        self.asked = True
        assert self._own is not None
        c_BT = F.pad(-output.log_probs.float(), (0, 1))  # (B, T - 1): the last token predicts nothing
        found = self._own(c_BT, labels_BT.to(c_BT.device))
        if found is not None and c_BT.requires_grad:
            output.log_probs = -found.reshape(1, 1)


def require_weighable(args: Any, who: str) -> None:
    """Refuses a loss of TRL's own making, which is no sum that token weights could be put into.

    Args:
        args: The training arguments.
        who: What weighs the loss, in words.

    Raises:
        ConfigError: With the way out.
    """
    found = vars(args).get("loss_type")
    if found == "dft" or (found == "chunked_nll" and fused_output() is None):  # the default of TRL before 1.15
        raise ConfigError(
            f"loss_type: is {found}, a loss that TRL computes itself, so {who} cannot weigh it -> set loss_type='nll'"
        )


def fused_head(model: Any, bases: Sequence[type]) -> FusedHead | None:
    """Returns the head of a model under a trainer of TRL whose release fuses it, else None.

    Args:
        model: The trainer's model, once the trainer underneath is made.
        bases: The classes of the trainer underneath.
    """
    if not any(base.__module__.partition(".")[0] == "trl" for base in bases):
        return None
    output = fused_output()
    return None if output is None else FusedHead(model, output)


def fused_output() -> type | None:
    """Returns the class of what a patched forward returns; None of a TRL that patches none.

    Raises:
        IncompatiblePackagesError: This TRL is to have the class and has it no more.
    """
    require_fused_head()
    found: type | None = vars(importlib.import_module("trl.trainer.utils")).get("FusedCausalLMOutput")
    return found
