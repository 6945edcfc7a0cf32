"""The hidden states of all samples of an optimizer step before it is made: one forward pass more, without gradients.

For weighters that compare the samples of an accumulated step by their hidden states; see
:mod:`dataflex.objective.step_losses` for those that compare losses. The pass runs in eval mode and makes no logits.

Letters: S samples of the step on this rank, L tokens of a sample, H width of the model, D numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device

from dataflex.model.autocast import autocast
from dataflex.model.hidden_states import last_hidden_states
from dataflex.model.undisturbed import undisturbed
from dataflex.objective.samples import Samples, one_by_one
from dataflex.scoring.passes.row_pass import without_replicas

Embed = Callable[[torch.Tensor, Mapping[str, Any]], torch.Tensor]
"""``embed(hidden_SLH, inputs) -> (S, D)``, of a micro-batch whose ``inputs`` have a sample in each row."""


def step_embeddings(
    model: torch.nn.Module,
    batches: Sequence[tuple[Mapping[str, Any], Samples]],
    accelerator: Accelerator,
    embed: Embed,
) -> torch.Tensor:
    """Returns the embeddings of all samples of this rank's micro-batches: (S, D), in the order of training.

    Every rank calls it with as many batches, as sharded engines need it.

    Args:
        model: The model being trained. It is left as it was.
        batches: The micro-batches of the step, and what their samples are.
        accelerator: For the device and mixed precision.
        embed: Makes embeddings of hidden states.
    """
    model = without_replicas(model)
    found = []
    with undisturbed(model), torch.no_grad(), last_hidden_states(model) as forward:
        for batch, samples in batches:
            inputs = dict(send_to_device(dict(batch), accelerator.device))
            given = {key: value for key, value in inputs.items() if key != "labels"}
            with autocast(accelerator):
                hidden_BTH = forward(given)
            found.append(embed(samples.apart(hidden_BTH), one_by_one(inputs, samples)))
    return torch.cat(found)
