"""ADAPT: weights by hand from output_hidden_states, when the target is embedded, and what a resumed run knows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataflex.core.errors import ConfigError
from dataflex.objective.hidden import caught_hidden_states, require_hidden_states
from dataflex.testing import TokenRows, pad_collate, tiny_batch, tiny_model
from dataflex_weighters.adapt import AdaptWeighter, adapt_weights
from dataflex_weighters.parts import embedded_target
from weighted_run import weighted

ROWS, TARGET = TokenRows(24, lengths=range(5, 17)), TokenRows(5, lengths=range(4, 9), seed=9)


def phi(model, row):
    """Slow and obvious: one row at a time."""
    with torch.no_grad():
        ids = tiny_batch([row])["input_ids"]
        states = model(ids, output_hidden_states=True).hidden_states[-1][0].cpu()
    weights = torch.arange(1, len(states) + 1) / sum(range(1, len(states) + 1))
    vector = (weights[:, None] * states).sum(0)
    return vector / vector.norm()


def build(folder, params=None, keys=None, target=TARGET, **args):
    return weighted(folder, "adapt", params, ROWS, keys=keys, target=target, **args)


def watched(trainer):
    """Returns a list that fills with (step, row numbers, weights) as the run goes."""
    seen, plain = [], trainer.component.get_weighted_loss

    def get_weighted_loss(losses, **kwargs):
        result = plain(losses, **kwargs)
        (gradient,) = torch.autograd.grad(result, losses, retain_graph=True)
        seen.append((trainer.state.global_step, trainer.batch_rows.rows.tolist(), (gradient * len(losses)).tolist()))
        return result

    trainer.component.get_weighted_loss = get_weighted_loss
    return seen


def test_weights_are_the_sigmoid_of_the_mean_cosine(tmp_path):
    trainer = build(tmp_path, {"temperature": 0.5}, max_steps=1, gradient_accumulation_steps=2)
    seen = watched(trainer)
    trainer.train()
    assert len(seen) == 2
    fresh = tiny_model().eval()
    anchors = torch.stack([phi(fresh, row) for row in TARGET])
    for _, numbers, weights in seen:
        for number, weight in zip(numbers, weights, strict=True):
            cosines = anchors @ phi(fresh, ROWS[number])
            assert weight == pytest.approx(torch.sigmoid(cosines.mean() / 0.5).item(), abs=1e-5)


def test_normalise_scales_a_micro_batch_to_mean_one(tmp_path):
    trainer = build(tmp_path, {"normalise": True}, max_steps=2)
    seen = watched(trainer)
    trainer.train()
    assert len(seen) == 2
    for _, _, weights in seen:
        assert np.mean(weights) == pytest.approx(1, abs=1e-5)
        assert np.std(weights) > 1e-4


def test_the_loss_is_a_mean_and_the_log_has_the_mean_weight(tmp_path):
    trainer = build(tmp_path, {}, max_steps=1, per_device_train_batch_size=8)
    seen = watched(trainer)
    trainer.train()
    line = trainer.state.log_history[0]
    weights = seen[0][2]
    assert line["dataflex/weight/mean"] == pytest.approx(np.mean(weights), rel=1e-5)
    assert line["dataflex/weight/min"] == pytest.approx(min(weights), rel=1e-5)
    assert line["dataflex/weight/max"] == pytest.approx(max(weights), rel=1e-5)
    assert line["loss"] == pytest.approx(np.mean(weights) * np.log(128), rel=0.05)  # not their sum


def test_the_target_is_embedded_every_refresh_steps_after_the_warm_up_and_once_per_step(tmp_path, monkeypatch):
    calls, plain = [], embedded_target.hidden_state_embeddings

    def counted(model, rows, **kwargs):
        calls.append((trainer.state.global_step, len(rows), len(kwargs["indices"])))
        return plain(model, rows, **kwargs)

    monkeypatch.setattr(embedded_target, "hidden_state_embeddings", counted)
    keys = {"warmup_step": 2, "explain_rows": 0}
    trainer = build(tmp_path, {"refresh": 3}, keys, max_steps=9, gradient_accumulation_steps=2)
    trainer.train()
    assert calls == [(2, 5, 5), (5, 5, 5), (8, 5, 5)]
    trainer.train()  # again, and not by the target as it was at the end of the first training
    assert calls[3:] == calls[:3]


def test_anchors_are_drawn_from_all_sets(tmp_path, monkeypatch):
    calls, plain = [], embedded_target.hidden_state_embeddings

    def counted(model, rows, **kwargs):
        calls.append((rows, kwargs["indices"].tolist()))
        return plain(model, rows, **kwargs)

    monkeypatch.setattr(embedded_target, "hidden_state_embeddings", counted)
    other = TokenRows(40, lengths=6, seed=3)
    keys = {"explain_rows": 0}
    trainer = build(tmp_path, {"anchors": 12, "refresh": 1}, keys, target={"a": TARGET, "b": other}, max_steps=2)
    trainer.train()
    first, second = ([indices for rows, indices in calls if rows is other][step] for step in (0, 1))
    assert sum(len(indices) for _, indices in calls) == 24
    assert first != second
    assert max(first + second) < 40


def test_a_resumed_run_goes_on_with_the_target_it_had(tmp_path):
    sizes = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1}
    whole = build(tmp_path / "w", {"refresh": 4}, **sizes)
    whole.train()
    for step in (2, 3, 5):
        resumed = build(tmp_path / str(step), {"refresh": 4}, max_steps=6)
        resumed.train(resume_from_checkpoint=str(tmp_path / "w" / f"checkpoint-{step}"))
        for name, value in whole.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], value), (step, name)


def test_weights_rise_with_the_cosine_and_stay_finite_at_a_tiny_temperature():
    unit = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]), dim=1)
    weights = adapt_weights(unit, torch.tensor([1.0, 0.0]), 1.0)
    assert weights.tolist() == pytest.approx([0.7311, 0.6698, 0.2689], abs=1e-4)
    assert adapt_weights(unit, torch.tensor([1.0, 0.0]), 1e-30).isfinite().all()


@pytest.mark.parametrize(
    ("target", "params", "message"),
    [
        (
            None,
            {},
            "eval_dataset of the adapt weighter: the run has no evaluation set with rows, .* -> set eval_dataset",
        ),
        ({"a": []}, {}, "no evaluation set with rows"),
        (TARGET, {"temperature": 0, "refresh": 0, "anchors": 0, "normalise": 1}, "(?s)4 problems.*anchors.*or null"),
    ],
)
def test_what_it_cannot_aim_at_is_refused(target, params, message):
    with pytest.raises(ConfigError, match=message):
        AdaptWeighter(target, pad_collate, **params)


def test_hidden_states_are_those_of_the_last_forward_and_let_go_of():
    model, batch = tiny_model(), tiny_batch([ROWS[0], ROWS[1]])
    with caught_hidden_states(model) as caught:
        output = model(**batch, output_hidden_states=True)
        assert torch.equal(caught(), output.hidden_states[-1])
    with pytest.raises(ValueError, match="was given nothing"):
        caught()
    assert not model.lm_head._forward_pre_hooks


def test_a_model_that_shows_no_hidden_states_is_refused_before_training(tmp_path):
    said = r"torch_compile: the weighter 'adapt' looks at the hidden states.* -> set"
    with pytest.raises(ConfigError, match=said):
        build(tmp_path, torch_compile=True)
    with pytest.raises(ConfigError, match=r"the weighter 'x' looks at .* LlamaModel names no output layer -> use"):
        require_hidden_states(tiny_model().model, "the weighter 'x'", compiled=False)
