"""Weights of tokens over ``trl.SFTTrainer``: a column beside ``input_ids``, and markers in the text."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
import trl
from dataflex import dynamic
from dataflex.objective.loop_scale import counts_first
from dataflex.testing import tiny_model
from sft_rows import chat_tokenizer, made

pytestmark = [
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
TEXTS = [f"question {i} <think>so {'very ' * i}much</think> answer {i}" for i in range(8)]


def rows(tokenizer):
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    weights = [[(i + t) % 3 / 2 for t in range(len(own))] for i, own in enumerate(ids)]
    return datasets.Dataset.from_dict({"input_ids": ids, "token_weights": weights})


def first_loss(done):
    return next(line["loss"] for line in done.state.log_history if "loss" in line)


def expected(done, data, weights):
    """The weighted mean of the losses of all tokens but the first of each row, by plain loops.

    Where the plain loss counts the label of the first token, which is never predicted, this one does as well.
    """
    model, above, below = tiny_model(len(chat_tokenizer())).eval(), 0.0, 0.0
    for ids, own in zip(data["input_ids"], weights, strict=True):
        with torch.no_grad():
            logp = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
        for t in range(1, len(ids)):
            above, below = above - own[t] * logp[t - 1, ids[t]].item(), below + own[t]
    tokens = sum(map(len, data["input_ids"]))
    return above / below * ((tokens - len(data)) / tokens if counts_first(done) else 1)


@pytest.mark.parametrize("sizes", [(8, 1), (2, 4)])
def test_a_column_beside_the_tokens_weighs_them(tmp_path, sizes):
    data = rows(chat_tokenizer())
    changes = {"per_device_train_batch_size": sizes[0], "gradient_accumulation_steps": sizes[1], "max_steps": 1}
    cls = dynamic(trl.SFTTrainer, weighter="token_column")
    done = made(cls, tmp_path, data, changes=changes)
    done.train()
    assert first_loss(done) == pytest.approx(expected(done, data, data["token_weights"]), rel=1e-4)


def test_markers_in_the_text_weigh_what_is_between_them(tmp_path):
    data = rows(chat_tokenizer())
    part = {"component": "spans", "params": {"between": [{"start": "<think>", "end": "</think>", "weight": 0.25}]}}
    changes = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 1}
    done = made(dynamic(trl.SFTTrainer, weighter=part), tmp_path, data.remove_columns("token_weights"), changes=changes)
    done.train()
    weights = done.components.weighter.weights_of(np.arange(8))
    assert all(set(own.tolist()) == {0.25, 1.0} for own in weights)
    assert first_loss(done) == pytest.approx(expected(done, data, weights), rel=1e-4)
