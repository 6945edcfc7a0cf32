"""Classes that compute their loss by themselves, as Mamba's do: weighed by their logits, or refused for what it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import ConfigError
from dataflex.core.kinds import MIXER
from dataflex.core.registry import register_mixer
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.mixer.base_mixer import Mixer
from dataflex.train.trainer import MixTrainer, trainer_class
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, Trainer
from weighted_run import weighted

ROWS = TokenRows(24, lengths=range(6, 17), prompt=3)
WHOLE = TokenRows(24, lengths=range(6, 17), prompt=0)  # the first token has a label too, which is never predicted
SGD = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 3}


def mean(logits, labels, count=None):
    sums = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return sums / ((labels[:, 1:] != -100).sum() if count is None else count)


class ByItself(LlamaForCausalLM):
    """The mean over the labels of the micro-batch, whatever the loop counts."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask)
        if labels is not None:
            output["loss"] = self.own(output.logits, labels, **kwargs)
        output["logits"] = self.given(output.logits)
        return output

    def given(self, logits):
        return logits

    def own(self, logits, labels, **kwargs):
        return mean(logits, labels)


class Counting(ByItself):
    """The same over the labels that the loop counts, where it does."""

    def own(self, logits, labels, num_items_in_batch=None, **kwargs):
        return mean(logits, labels, num_items_in_batch)


class OverRows(ByItself):
    def own(self, logits, labels, **kwargs):
        return torch.stack([mean(logits[i : i + 1], labels[i : i + 1]) for i in range(len(labels))]).mean()


class Unshifted(ByItself):
    def own(self, logits, labels, **kwargs):
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


class WithoutLogits(ByItself):
    def given(self, logits):
        return None


class LastLogits(ByItself):
    def given(self, logits):
        return logits[:, -1:]


def of(cls, lora=False):
    model = tiny_model()
    model.__class__ = cls
    torch.manual_seed(0)
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(model, adapter) if lora else model


def trained(folder, name="loss", params=None, rows=ROWS, **given):
    done = weighted(folder, name, params, rows, **(SGD | given))
    done.train()
    return done


def static(folder, model, **args):
    done = Trainer(
        model=model,
        args=tiny_training_args(folder, **(SGD | args)),
        train_dataset=WHOLE,
        data_collator=pad_collate,
    )
    done.train()
    return done


def logged(done, key="loss"):
    return [line[key] for line in done.state.log_history if key in line]


def weights_of(done):
    return dict(done.model.state_dict())


def require_same(ours, theirs):
    np.testing.assert_allclose(logged(ours), logged(theirs), rtol=1e-5)
    for name, value in weights_of(theirs).items():
        torch.testing.assert_close(weights_of(ours)[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("logits", ["full", "chunked"])
@pytest.mark.parametrize(
    ("cls", "lora", "objective", "accumulation"),
    [(ByItself, False, "sample", 2), (ByItself, True, "token", 1), (Counting, False, "token", 3)],
)
def test_weights_on_a_loss_of_the_class_are_those_on_a_loss_function(
    tmp_path, cls, lora, objective, accumulation, logits
):
    keys = {"weight_logits": logits, "weight_objective": objective, "warmup_step": 0}
    args = {"gradient_accumulation_steps": accumulation}
    ours = trained(tmp_path / "o", model=of(cls, lora), keys=keys, **args)
    theirs = trained(tmp_path / "t", model=of(LlamaForCausalLM, lora), keys=keys, **args)
    assert logged(ours, "dataflex/weight/max")[0] > 1.01
    require_same(ours, theirs)


@pytest.mark.parametrize("logits", ["full", "chunked"])
@pytest.mark.parametrize(("cls", "accumulation"), [(ByItself, 1), (Counting, 1), (Counting, 3)])
def test_uniform_weights_are_the_plain_loss(tmp_path, cls, accumulation, logits):
    keys = {"weight_logits": logits, "weight_objective": "token"}
    args = {"gradient_accumulation_steps": accumulation}
    ours = trained(tmp_path / "o", params={"strategy": "uniform"}, rows=WHOLE, model=of(cls), keys=keys, **args)
    require_same(ours, static(tmp_path / "s", of(cls), **args))


@pytest.mark.parametrize("logits", ["full", "chunked"])
@pytest.mark.parametrize("cls", [ByItself, Counting])
def test_the_warm_up_is_the_plain_run(tmp_path, cls, logits):
    keys = {"weight_logits": logits, "warmup_step": 3}
    ours = trained(tmp_path / "o", rows=WHOLE, model=of(cls), keys=keys, gradient_accumulation_steps=2)
    require_same(ours, static(tmp_path / "s", of(cls), gradient_accumulation_steps=2))


def test_a_step_is_the_same_however_it_is_split_where_the_class_takes_no_count(tmp_path):
    keys, params = {"weight_objective": "token"}, {"scope": "step"}
    parts = trained(
        tmp_path / "p", params=params, model=of(ByItself), keys=keys,
        per_device_train_batch_size=2, gradient_accumulation_steps=3,
    )  # fmt: skip
    whole = trained(tmp_path / "w", params=params, model=of(ByItself), keys=keys, per_device_train_batch_size=6)
    require_same(parts, whole)


def test_evaluation_is_the_class_s_own(tmp_path):
    args = {"eval_strategy": "steps", "eval_steps": 3, "target": TokenRows(6, seed=5)}
    found = [trained(tmp_path / cls.__name__, model=of(cls), **args) for cls in (ByItself, LlamaForCausalLM)]
    ours, theirs = (logged(done, "eval_loss") for done in found)
    assert len(ours) == 1
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (
            OverRows,
            r"OverRows .* on another loss than .* its own is \d\.\d{4}, that one \d.* 'loss' cannot weigh",
        ),
        (Unshifted, r"Unshifted .* trains on another loss than the cross entropy of the next token"),
        (WithoutLogits, r"WithoutLogits .* gives no logits for labels of shape \(2, \d+\)"),
        (LastLogits, r"LastLogits .* gives logits of shape \(2, 1, 128\) for labels"),
    ],
)
def test_what_is_not_the_loss_of_the_logits_is_refused_when_the_trainer_is_made(tmp_path, cls, said):
    with pytest.raises(ConfigError, match=said):
        weighted(tmp_path, "loss", None, ROWS, model=of(cls), **SGD)


class FusedInTraining(LlamaForCausalLM):
    """Asks its loss function where it is looked at, and none once it trains: as models that a kernel has patched."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        if not self.training:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask)
        output["loss"] = mean(output.logits, labels)
        return output


def test_a_loss_that_is_fused_once_the_model_trains_is_refused_in_the_first_step(tmp_path):
    for make in (lambda: trained(tmp_path / "w", model=of(FusedInTraining)), lambda: mixed(tmp_path, FusedInTraining)):
        with pytest.raises(ConfigError, match="FusedInTraining computes its loss without"):
            make()


@register_mixer("weighs_by_number")
class ByNumber(Mixer):
    def mix(self, model, step_id, **kwargs):
        return self.mixture_manager.proportions

    def observe(self, step, losses_K, tokens_K):
        self.seen = losses_K

    def loss_weights(self):
        return np.array([1.0, 3.0])


@register_mixer("weighs_unobserved")
class Unobserved(ByNumber):
    """Weighs, and does not override ``observe``."""

    observe = Mixer.observe


def mixed(folder, cls, mixer="weighs_by_number"):
    keys = {"warmup_step": 0, "update_step": 2, "update_times": 2, "mixture_sample_rule": "uniform"}
    done = trainer_class(MixTrainer, Trainer)(
        model=of(cls),
        args=tiny_training_args(folder, gradient_accumulation_steps=2, **SGD),
        train_dataset={"a": ROWS, "b": TokenRows(24, lengths=range(5, 12), seed=1)},
        data_collator=pad_collate,
        dataflex=RunSpec(
            DataflexArguments(train_type="dynamic_mix", component_name=mixer, **keys),
            ComponentSpec(MIXER, mixer, mixer, {}),
        ),
        overwrite_output_dir=True,
    )
    done.train()
    return done


def test_a_mixer_that_weighs_sources_weighs_a_loss_of_the_class(tmp_path):
    ours, theirs = (mixed(tmp_path / cls.__name__, cls) for cls in (ByItself, LlamaForCausalLM))
    require_same(ours, theirs)
    np.testing.assert_allclose(ours.component.seen, theirs.component.seen, rtol=1e-5)


def test_a_mixer_that_weighs_sources_and_observes_nothing_weighs_them_too(tmp_path):
    require_same(
        *(mixed(tmp_path / name, LlamaForCausalLM, name) for name in ("weighs_by_number", "weighs_unobserved"))
    )


def test_a_mixer_that_weighs_sources_refuses_another_loss_when_the_trainer_is_made(tmp_path):
    with pytest.raises(ConfigError, match=r"Unshifted .* so the mixer 'weighs_by_number' cannot weigh it"):
        mixed(tmp_path, Unshifted)
