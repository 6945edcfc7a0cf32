"""What an update would refuse is refused before the first step, for every component that is installed.

The walk goes over the registry, so a new component is in it: with data or a model that no component of its kind can
work with, it may refuse when the trainer is made or when training begins, and never after a step.
"""

from __future__ import annotations

import copy
import random
import re
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import ComponentError, ConfigError, DataflexError
from dataflex.core.kinds import MIXER, SELECTOR, WEIGHTER, Kind
from dataflex.core.ranks import agreement
from dataflex.core.registry import register_selector, register_weighter
from dataflex.discovery.component_classes import find
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_tokenizer, tiny_training_args
from dataflex.train.selector.base_selector import Selector
from dataflex.train.trainer import MixTrainer, SelectTrainer, WeightTrainer, trainer_class
from dataflex.train.weighter.base_weighter import Weighter
from every_component import QUICK, installed
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration, LlamaForCausalLM, Trainer

TRAINERS = {"selector": SelectTrainer, "mixer": MixTrainer, "weighter": WeightTrainer}
TYPES = {"selector": "dynamic_select", "mixer": "dynamic_mix", "weighter": "dynamic_weight"}
SCHEDULE = {"warmup_step": 1, "update_step": 2, "update_times": 1}
GRADIENTS = ("less", "icons", "greats", "cluster_less", "nice")


class Rotated(nn.Module):
    """A trainable matrix in a place for which there is no rule, as OFT's and a convolution's are."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.rotation = inner, nn.Parameter(torch.eye(inner.in_features))

    def forward(self, x):
        return self.inner(x @ self.rotation)


class Summed(nn.Module):
    """A trainable vector that is no scale or shift of outputs: seen on a batch alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.vector = inner, nn.Parameter(torch.full((inner.out_features,), 0.5))

    def forward(self, x):
        return self.inner(x) * self.vector * self.vector


class Mixed(nn.Module):
    """A trainable vector that counts the rows of the batch in: no row has a gradient of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.vector = inner, nn.Parameter(torch.full((inner.out_features,), 0.5))

    def forward(self, x):
        return self.inner(x) + self.vector * x.mean(dim=0, keepdim=True)


def wrapped(wrapper):
    model = tiny_model()
    attention = model.model.layers[0].self_attn
    attention.o_proj = wrapper(attention.o_proj)
    return model


def unlabelled(rows):
    return [row | {"labels": [-100] * len(row["labels"])} for row in rows]


def made(
    kind: Kind,
    name: str,
    folder,
    *,
    params=None,
    rows=None,
    target=None,
    model=None,
    accumulation=2,
    collator=pad_collate,
    **changes,
):
    trains = TYPES[kind.name]
    keys = SCHEDULE if kind is not WEIGHTER else {"warmup_step": 1, "train_step": 3}
    arguments = DataflexArguments(train_type=trains, component_name=name, **keys)
    spec = RunSpec(arguments, ComponentSpec(kind, name, name, QUICK.get(name, {}) | (params or {})))
    rows = TokenRows(32) if rows is None else rows
    cls = find(kind, name)
    apart = kind is MIXER or (kind is WEIGHTER and cls.needs_sources(spec.component.params))
    return trainer_class(TRAINERS[kind.name], Trainer)(
        model=tiny_model() if model is None else model,
        args=tiny_training_args(folder, max_steps=-1, gradient_accumulation_steps=accumulation, **changes),
        train_dataset={"a": rows, "b": rows} if apart else rows,
        eval_dataset=TokenRows(4, seed=9) if target is None else target,
        processing_class=tiny_tokenizer(),
        data_collator=collator,
        dataflex=spec,
    )


def refused_before_a_step(make) -> str:
    """Returns what the refusal says; fails where there is none, or a step was done before it."""
    trainers: list[Any] = []

    def run() -> None:
        trainers.append(make())
        trainers[0].train()

    with pytest.raises(DataflexError) as caught:
        run()
    assert all(trainer.state.global_step == 0 for trainer in trainers), str(caught.value)
    return str(caught.value)


NEEDS = {  # a parameter without which these cannot be made
    "rho_loss": lambda folder: {"file": saved(folder / "il.npy", np.zeros(32))},
    "scores": lambda folder: {"file": saved(folder / "scores.npy", np.arange(32.0))},
    "column": lambda folder: {"file": saved(folder / "weights.npy", np.ones(32))},
    "schedule": lambda folder: {"points": [{"at": 0, "proportions": {"a": 0.5, "b": 0.5}}]},
}
ELSEWHERE = {"dynamic_moe", "doremi", "static"}  # need another model, another run, or no update
ELSEWHERE |= {"rho_tokens", "token_column", "spans"}  # need another model, or rows with weights of tokens or markers


def saved(path, values) -> str:
    np.save(path, values)
    return str(path)


def needed(name, folder):
    return NEEDS[name](folder) if name in NEEDS else {}


SELECTORS = [name for name in installed(SELECTOR) if not find(SELECTOR, name).takes_rewards]  # of prompts, elsewhere
NEED_NO_LABELS = {"random", "custom", "scores", "infobatch"}  # they look at no row
FROM_TOKENS = {"near", "tsds", "deita", "semdedup", "dsir"}  # these look at tokens alone, with their defaults
LEARN_FROM_LABELS = [name for name in SELECTORS if name not in NEED_NO_LABELS]


@pytest.mark.parametrize("name", LEARN_FROM_LABELS)
def test_rows_without_labels_are_refused_before_a_step(name, tmp_path):
    rows = unlabelled(TokenRows(32))
    found = refused_before_a_step(lambda: made(SELECTOR, name, tmp_path, rows=rows, params=needed(name, tmp_path)))
    assert "only 0 of 32 have a label" in found


@pytest.mark.parametrize("name", [name for name in LEARN_FROM_LABELS if name != "tsds"])  # which may repeat rows
def test_fewer_labelled_rows_than_an_update_wants_are_refused_before_a_step(name, tmp_path):
    rows = [*TokenRows(8), *unlabelled(TokenRows(24, seed=2))]  # an update wants 16
    found = refused_before_a_step(lambda: made(SELECTOR, name, tmp_path, rows=rows, params=needed(name, tmp_path)))
    assert "16 rows are wanted, but only 8 of 32 have a label" in found


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("wrapper", [Rotated, Summed])
def test_a_parameter_without_a_rule_is_no_reason_to_refuse(name, wrapper, tmp_path):
    made(SELECTOR, name, tmp_path, model=wrapped(wrapper))


@pytest.mark.parametrize("name", GRADIENTS)
def test_rows_without_a_gradient_of_their_own_are_refused_when_the_trainer_is_made(name, tmp_path):
    message = f"selector '{name}': rows of a batch change each other in model.layers.0.self_attn.o_proj"
    with pytest.raises(ComponentError, match=re.escape(message)):
        made(SELECTOR, name, tmp_path, model=wrapped(Mixed))


@pytest.mark.parametrize("name", [name for name in GRADIENTS if name not in ("icons", "greats")])
def test_an_optimizer_without_moments_is_refused_before_a_step(name, tmp_path):
    found = refused_before_a_step(lambda: made(SELECTOR, name, tmp_path, optim="sgd"))
    assert "the optimizer SGD keeps no Adam moments" in found
    assert "-> gradient_type: sgd" in found


@pytest.mark.parametrize("name", ["less", "icons", "nice", "zeroth"])
def test_fewer_candidates_than_an_update_wants_are_refused_when_the_trainer_is_made(name, tmp_path):
    with pytest.raises(ComponentError, match="16 rows are wanted at an update, and candidates: 5 are looked at"):
        made(SELECTOR, name, tmp_path, params={"candidates": 5})


class NoLosses(nn.Module):
    """Gives logits of another shape than its input: no row has a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        logits = self.inner(torch.ones(len(input_ids), 4))
        return {"loss": logits.sum(), "logits": logits}


@pytest.mark.parametrize("name", [name for name in LEARN_FROM_LABELS if name not in FROM_TOKENS])
def test_a_model_without_a_loss_for_each_row_is_refused_when_the_trainer_is_made(name, tmp_path):
    with pytest.raises(ComponentError, match=r"model|NoLosses"):
        made(SELECTOR, name, tmp_path, model=NoLosses(), params=needed(name, tmp_path))


@pytest.mark.parametrize("name", ["near", "tsds", "cluster_less"])
def test_a_model_without_hidden_states_is_refused_when_the_trainer_is_made(name, tmp_path):
    with pytest.raises(ComponentError, match="NoLosses gives no hidden state"):
        made(SELECTOR, name, tmp_path, model=NoLosses(), params={"embedding": "model"})


def test_a_reference_model_that_cannot_be_loaded_is_refused_when_the_trainer_is_made(tmp_path):
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere" / "config.json").write_text("{}")
    with pytest.raises(ComponentError, match=r"reference_model: .*nowhere cannot be loaded"):
        made(SELECTOR, "rho_loss", tmp_path, params={"reference_model": str(tmp_path / "nowhere")})


def test_too_few_scores_are_refused_when_the_trainer_is_made(tmp_path):
    scores = np.where(np.arange(32) < 5, 1.0, np.nan)
    with pytest.raises(ComponentError, match="16 rows are wanted, but only 5 of 32 have a score"):
        made(SELECTOR, "scores", tmp_path, params={"file": saved(tmp_path / "few.npy", scores)})


def test_hidden_states_that_no_gradient_reaches_are_refused_when_the_trainer_is_made(tmp_path):
    model = tiny_model()
    model.requires_grad_(False)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    with pytest.raises(ComponentError, match="no gradient reaches the hidden states -> train more"):
        made(WEIGHTER, "balancer", tmp_path, model=model)


def test_a_model_that_does_not_show_its_routing_is_refused_when_the_trainer_is_made(tmp_path):
    model = tiny_model(kind="mixtral")

    class Silent(type(model)):
        def forward(self, input_ids=None, attention_mask=None, labels=None, output_router_logits=None, **kwargs):
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)

    held_out = {name: TokenRows(2, seed=4) for name in ("a", "b")}
    made(MIXER, "dynamic_moe", tmp_path, target=held_out, model=tiny_model(kind="mixtral"))
    model.__class__ = Silent
    with pytest.raises(ConfigError, match="Silent does not show where it sends tokens"):
        made(MIXER, "dynamic_moe", tmp_path, target=held_out, model=model)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in (MIXER, SELECTOR, WEIGHTER) for name in installed(kind) if name not in ELSEWHERE],
)
def test_a_state_that_cannot_be_saved_is_refused_when_the_trainer_is_made(kind, name, tmp_path, monkeypatch):
    monkeypatch.setattr(find(kind, name), "state_dict", lambda self: {"what": {"to_do": lambda: None}})
    with pytest.raises(ComponentError, match=rf"{kind.name} '{name}': its state_dict\(\)\['what'\]\['to_do'\] is of"):
        made(kind, name, tmp_path, params=needed(name, tmp_path), save_strategy="steps")


@register_selector("growing_state")
class GrowingState(Selector):
    """Has a state that cannot be saved once it has selected."""

    kept: Any = None

    def select(self, model, step_id, num_samples, **kwargs):
        self.kept = lambda: None
        return np.arange(num_samples)

    def state_dict(self):
        return {"kept": self.kept}


def test_a_state_that_cannot_be_saved_after_an_update_is_refused_at_that_update(tmp_path):
    trainer = made(SELECTOR, "growing_state", tmp_path, save_strategy="steps", save_steps=100)
    with pytest.raises(ComponentError, match="selector 'growing_state': its state_dict"):
        trainer.train()
    assert trainer.state.global_step == SCHEDULE["warmup_step"]


@register_weighter("asked")
class Asked(Weighter):
    """Notes that it was asked, and draws from the global generators while it is."""

    asked = 0

    def __init__(self, refuses: bool = False) -> None:
        super().__init__()
        self.refuses = refuses

    def check_run(self, model, run):
        assert not model.training
        self.asked += 1
        torch.rand(3)
        if self.refuses:
            raise ConfigError("not with this model -> take another")

    def get_weighted_loss(self, losses, *, ctx=None, model=None, inputs=None):
        return losses.mean()


def test_a_component_of_somebody_elses_is_asked_once_and_its_refusal_is_said(tmp_path):
    trainer = made(WEIGHTER, "asked", tmp_path)
    assert trainer.component.asked == 1
    assert trainer.model.training
    trainer.train()
    assert trainer.component.asked == 1
    with pytest.raises(ConfigError, match="not with this model -> take another"):
        made(WEIGHTER, "asked", tmp_path, params={"refuses": True})


def of_transformers(hook) -> bool:
    """Whether it is one of those that transformers leaves in a model which was asked for all hidden states."""
    return hook.__module__.startswith("transformers.")


@pytest.mark.parametrize("name", SELECTORS)
def test_the_trial_leaves_no_trace(name, tmp_path):
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    flags = [p.requires_grad for p in model.parameters()]
    trainer = made(SELECTOR, name, tmp_path, model=model, params=needed(name, tmp_path))
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    trainer.components.require_fitting()  # once more: the trainer underneath seeds while it is made
    trainer.early.made(trainer._dataflex_rows_of_an_update())
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_equal(np.random.get_state(), states[1])
    assert random.getstate() == states[2]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    hooks = [hook for m in model.modules() for own in (m._forward_hooks, m._forward_pre_hooks) for hook in own.values()]
    assert [hook for hook in hooks if not of_transformers(hook)] == []


@register_weighter("plain_mean")
class PlainMean(Weighter):
    def get_weighted_loss(self, losses, *, ctx=None, model=None, inputs=None):
        return losses.mean()


def test_a_loss_that_cannot_be_weighed_is_refused_in_the_first_step_of_the_warm_up(tmp_path):
    model = tiny_model()

    class OwnLoss(type(model)):
        def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
            output = super().forward(input_ids=input_ids, attention_mask=attention_mask)
            output["loss"] = output["logits"].square().mean()
            return output

    model.__class__ = OwnLoss
    found = refused_before_a_step(lambda: made(WEIGHTER, "plain_mean", tmp_path, model=model))
    assert "computes its loss without model.loss_function" in found


@pytest.mark.parametrize(("told", "said"), [([None, "too large"], "rank 1 raised: too large"), ([None, None], None)])
def test_a_refusal_on_another_rank_stops_this_one(told, said, monkeypatch):
    ranks = SimpleNamespace(num_processes=2)
    monkeypatch.setattr(agreement, "gather_object", lambda own: [*own, *told[1:]])
    if said is None:
        agreement.on_every_rank(ranks, lambda: None)
        return
    with pytest.raises(DataflexError, match=said):
        agreement.on_every_rank(ranks, lambda: None)


def test_a_rank_that_refuses_has_told_the_others_before_it_raises(monkeypatch):
    told = []

    def refuse():
        raise ConfigError("too large -> take another")

    monkeypatch.setattr(agreement, "gather_object", lambda own: told.extend(own) or [*own, None])
    with pytest.raises(ConfigError, match="too large -> take another"):
        agreement.on_every_rank(SimpleNamespace(num_processes=2), refuse)
    assert told == ["too large -> take another"]


def text_rows():
    return datasets.Dataset.from_list([row | {"text": "a text"} for row in TokenRows(32)])


def strict_collate(rows):
    """As collators of transformers do, makes a tensor of every column."""
    return pad_collate(rows) | {key: torch.tensor([row[key] for row in rows]) for key in rows[0] if key == "text"}


def test_a_column_that_the_model_does_not_take_reaches_the_collator_neither_in_training_nor_in_scoring(tmp_path):
    trainer = made(SELECTOR, "loss", tmp_path, rows=text_rows(), collator=strict_collate)
    trainer.train()
    assert trainer.state.global_step == trainer.schedule.total


@pytest.mark.parametrize("kind", [SELECTOR, WEIGHTER])
def test_a_collator_that_raises_is_named_before_training(kind, tmp_path):
    with pytest.raises(ConfigError, match=r"data_collator: strict_collate raised .*, on two rows of the train"):
        made(kind, "loss", tmp_path, rows=text_rows(), collator=strict_collate, remove_unused_columns=False)


def encoder_decoder():
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1, "decoder_attention_heads": 1}
    return BartForConditionalGeneration(BartConfig(vocab_size=128, d_model=8, pad_token_id=0, **sizes))


LOOK_AT_THE_MODEL = [
    (kind, name)
    for kind in (SELECTOR, MIXER, WEIGHTER)
    for name in installed(kind)
    if name not in ELSEWHERE and (kind is WEIGHTER or find(kind, name).reads_batches is True or name in ("ado", "odm"))
]


@pytest.mark.parametrize(("kind", "name"), LOOK_AT_THE_MODEL, ids=[name for _, name in LOOK_AT_THE_MODEL])
def test_an_encoder_decoder_is_refused_by_name_when_the_trainer_is_made(kind, name, tmp_path):
    with pytest.raises(DataflexError) as found:
        made(kind, name, tmp_path, model=encoder_decoder(), params=needed(name, tmp_path))
    assert "BartForConditionalGeneration is an encoder-decoder" in str(found.value)


@pytest.mark.parametrize("name", ["random", "scores"])
def test_a_selector_that_does_not_look_at_the_model_trains_an_encoder_decoder(name, tmp_path):
    trainer = made(SELECTOR, name, tmp_path, model=encoder_decoder(), params=needed(name, tmp_path))
    trainer.train()
    assert trainer.state.global_step == trainer.schedule.total


class Flattened(LlamaForCausalLM):
    """Shifts and flattens before it asks its loss function, as Moshi of transformers 5.6 does."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask)
        if labels is not None:
            output["loss"] = self.loss_function(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), 128)
        return output


def test_a_loss_of_tokens_that_are_shifted_twice_is_refused_when_the_trainer_is_made(tmp_path):
    model = tiny_model()
    model.__class__ = Flattened
    with pytest.raises(ConfigError, match=r"Flattened .* by token, and trains on another loss"):
        made(WEIGHTER, "plain_mean", tmp_path, model=model)
