"""Weights of rows, sources and samples over TRL, whose newer releases compute the loss from a fused output layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import trl
from dataflex import dynamic
from dataflex.train.mixer.base_mixer import Mixer
from dataflex.train.selector.base_selector import Selection, Selector
from dataflex.train.weighter.base_weighter import Weighter
from sft_rows import made, rows

V = (1.0, 3.0)


class Rescales(Selector):
    """Takes the first rows, and weighs them by their place."""

    weighs = True

    def warmup(self, num_samples, replacement=False):
        return np.arange(num_samples) % len(self.dataset)

    def select(self, model, step_id, num_samples, **kwargs):
        return Selection(np.arange(num_samples), weights=1.0 + np.arange(num_samples) / 4)


class Weighs(Mixer):
    """Weighs sources, and keeps what it observes."""

    def mix(self, model, step_id, **kwargs):
        return np.array([0.5, 0.5])

    def observe(self, step, losses_K, tokens_K):
        self.losses_K, self.tokens_K = losses_K, tokens_K

    def loss_weights(self):
        return np.array(V)


class ByRow(Weighter):
    """Weighs samples by the numbers of their rows."""

    def get_weighted_loss(self, losses, *, ctx, model, inputs):
        return (losses * (1.0 + ctx.batch_rows % 3)).mean()


def by_hand(done, numbers, u, by):
    """Returns the loss of a step, and the sums of cross entropies and tokens by source."""
    above, below, sums, tokens = 0.0, 0.0, np.zeros(2), np.zeros(2)
    for place, number in enumerate(numbers):
        row = done.train_dataset[int(number)]
        keys = set(done._signature_columns or ()) & set(row) or {"input_ids"}
        batch = done.data_collator([{key: row[key] for key in keys}])
        with torch.no_grad():
            logits = done.model.eval()(input_ids=batch["input_ids"]).logits[0, :-1].float()
        costs = F.cross_entropy(logits, batch["labels"][0, 1:], reduction="sum").item()
        m = int((batch["labels"][0, 1:] != -100).sum())
        k = int(number >= len(done.train_dataset.sources[0]))
        b = 1 / m if by == "sample" else 1.0
        above += b * V[k] * u[place] * (1.0 + number % 3) * costs
        below += b * V[k] * m
        sums[k], tokens[k] = sums[k] + costs, tokens[k] + m
    return above / below, sums / tokens, tokens


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("by", ["sample", "token"])
@pytest.mark.parametrize("selects", [False, True], ids=["", "rows"])
def test_weights_of_rows_sources_and_samples_are_the_sum_by_hand(tmp_path, selects, by, micro):
    axes = {"mixer": Weighs, "weighter": ByRow} | ({"selector": Rescales} if selects else {})
    cls = dynamic(trl.SFTTrainer, **axes, weight_objective=by, warmup_step=0, update_step=1, update_times=1)
    sizes = {"max_steps": -1, "per_device_train_batch_size": 8 // micro, "gradient_accumulation_steps": micro}
    sources = {"a": rows("prompt_completion", 12), "b": rows("prompt_completion", 12, "owl")}
    done = made(cls, tmp_path, sources, None, sizes | {"learning_rate": 0.0})
    done.train()
    found = np.load(tmp_path / "dataflex_selections" / "step_00000000.npz")
    u = found["weights"] if selects else np.ones(8)
    loss, losses_K, tokens_K = by_hand(done, found["indices"], u, by)
    logged = next(line["loss"] for line in done.state.log_history if "loss" in line)
    assert logged == pytest.approx(loss, abs=2e-4)
    mixer = done.training_objective.parts.mixer.mixer
    np.testing.assert_allclose(mixer.losses_K, losses_K, rtol=1e-4)
    assert mixer.tokens_K.tolist() == tokens_K.tolist()
