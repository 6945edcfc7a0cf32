"""A model that trains on another loss, or in which rows depend on each other, is refused by the trial of two rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataflex.core.errors import ComponentError
from dataflex.scoring.own_loss import own_losses
from dataflex.scoring.trial import try_embeddings, try_gradients, try_losses
from dataflex.testing import TokenRows, pad_collate, tiny_model
from transformers import BartConfig, BartForCausalLM

ROWS = TokenRows(4, lengths=[7, 12, 5, 9])
TRIALS = [try_losses, try_gradients]


def unshifted():
    sizes = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "d_model": 16}
    return BartForCausalLM(BartConfig(vocab_size=128, pad_token_id=0, **sizes)).eval()


def mixing():
    """The hidden states of a row grow with the number of rows beside it."""
    model = tiny_model()
    model.model.norm.register_forward_hook(lambda module, given, out: out * 20 * len(out))
    return model


@pytest.mark.parametrize("trial", TRIALS)
def test_a_loss_that_is_not_the_next_tokens_is_refused_with_both_numbers(trial):
    with pytest.raises(ComponentError, match=r"BartForCausalLM trains on another loss .* its own is \d.*that one \d"):
        trial(unshifted(), ROWS, pad_collate, None)


BESIDE = r"LlamaForCausalLM gives a row another loss beside other rows.* row 0"
BY_LAYER = "rows of a batch change each other in model"


@pytest.mark.parametrize(("trial", "said"), [(try_losses, BESIDE), (try_gradients, f"{BESIDE}|{BY_LAYER}")])
def test_rows_that_depend_on_their_neighbours_are_refused(trial, said):
    with pytest.raises(ComponentError, match=said):
        trial(mixing(), ROWS, pad_collate, None)


def test_embeddings_that_depend_on_their_neighbours_are_refused():
    model = tiny_model()
    model.model.norm.register_forward_hook(lambda module, given, out: out + len(out) * torch.linspace(0, 1, 32))
    with pytest.raises(ComponentError, match="gives a row other hidden states beside other rows"):
        try_embeddings(model, ROWS, np.arange(2), pad_collate, None, "mean")


@pytest.mark.parametrize("trial", TRIALS)
def test_a_model_in_half_precision_passes(trial):
    trial(tiny_model().bfloat16(), ROWS, pad_collate, None)


def test_a_model_that_adds_the_loss_of_its_routers_is_not_compared():
    model = tiny_model(kind="mixtral")
    model.config.output_router_logits = True
    assert own_losses(model, ROWS, pad_collate, [0]) == [None]
    try_losses(model, ROWS, pad_collate, None)
    model.config.output_router_logits = False
    assert own_losses(model, ROWS, pad_collate, [0])[0] > 0
