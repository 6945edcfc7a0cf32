"""DoReMi's proxy: the weights by hand, the gradient that they scale, the reference, the file, resume, refusals."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.kinds import MIXER
from dataflex.core.registry import register_mixer
from dataflex.objective.label_counts import StepCounts
from dataflex.objective.samples import ROWS
from dataflex.objective.source_weights import SourceWeights
from dataflex.planning.mixture import MixtureManager
from dataflex.run.record import read_updates
from dataflex.run.state import load_state, save_state
from dataflex.testing import TokenRows, pad_collate, tiny_batch, tiny_model, tiny_training_args
from dataflex.train.mixer.base_mixer import Mixer
from dataflex.train.trainer import MixTrainer, trainer_class
from dataflex_mixers.doremi.doremi_mixer import DoremiMixer
from dataflex_mixers.doremi.group_dro import ascended, entropy
from dataflex_mixers.doremi.handover import FILE, read_weights
from transformers import Trainer, TrainerCallback

NAMES = ("web", "code", "math")
NAN = math.nan


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    tiny_model(seed=5).save_pretrained(folder)
    return str(folder)


def mixer(reference, folder=".", shares=(0.5, 0.25, 0.25), **params):
    made = DoremiMixer(
        MixtureManager(NAMES, (9, 9, 9), shares, seed=1), Accelerator(cpu=True), str(folder), reference, **params
    )
    made.bind("doremi", 1)
    return made


EXCESS = [(0.2, 0.9, 0.1), (0.3, NAN, 0.4), (0.0, 0.7, NAN), (0.1, 0.5, 0.2)]


def observed(made, excess):
    losses_K = np.array(excess)
    made.observe(1, losses_K, np.where(np.isnan(losses_K), 0, 50))


@pytest.mark.parametrize(("eta", "c"), [(1.0, 1e-3), (0.1, 0.05)])
def test_several_steps_are_those_of_algorithm_1_by_hand(reference, eta, c):
    made = mixer(reference, eta=eta, smoothing=c)
    alpha, lam, total = [1 / 3] * 3, [None] * 3, [0.0] * 3
    for excess in EXCESS:
        observed(made, excess)
        lam = [last if math.isnan(e) else e for e, last in zip(excess, lam, strict=True)]
        raised = [a * math.exp(eta * x) for a, x in zip(alpha, lam, strict=True)]
        alpha = [(1 - c) * r / sum(raised) + c / 3 for r in raised]
        total = [t + a for t, a in zip(total, alpha, strict=True)]
        np.testing.assert_allclose(made.alpha_K, alpha, rtol=1e-12)
    np.testing.assert_allclose(made.average, np.array(total) / 4, rtol=1e-12)
    np.testing.assert_allclose(made.loss_weights(), np.array(alpha) / [0.5, 0.25, 0.25], rtol=1e-12)


def test_a_source_that_was_never_seen_moves_with_the_mean_of_the_others(reference):
    made = mixer(reference, smoothing=0.0)
    observed(made, (0.2, 0.4, NAN))
    np.testing.assert_allclose(made.log_alpha_K, ascended(np.full(3, -np.log(3)), np.array([0.2, 0.4, 0.3]), 1.0, 0.0))
    observed(mixer(reference), (NAN, NAN, NAN))


def test_excess_smoothing_is_a_running_mean_that_starts_at_the_first_value(reference):
    made = mixer(reference, excess_smoothing=0.9)
    for excess in EXCESS[:2]:
        observed(made, excess)
    np.testing.assert_allclose(made.excess_K, [0.9 * 0.2 + 0.1 * 0.3, 0.9, 0.9 * 0.1 + 0.1 * 0.4])


def test_entropy_tells_even_weights_from_a_single_source():
    assert entropy(np.full(4, 0.25)) == pytest.approx(math.log(4))
    assert entropy(np.array([1.0, 0.0])) == pytest.approx(0)


def test_excess_is_clipped_token_by_token(reference):
    made, proxy = mixer(reference), tiny_model(seed=0)
    made.prepare(proxy)
    batch = tiny_batch([TokenRows(4, lengths=range(6, 12))[i] for i in range(4)])
    with torch.no_grad():
        ours = proxy(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
        theirs = tiny_model(seed=5)(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    targets = batch["labels"][:, 1:].clamp(min=0)[..., None]
    c, r = (-logp.gather(-1, targets)[..., 0] for logp in (ours, theirs.log_softmax(-1)))
    mask = batch["labels"][:, 1:] != -100
    losses_BT = torch.nn.functional.pad(torch.where(mask, c, 0.0), (0, 1))
    found = made.token_values(batch, losses_BT)
    expected = torch.where(mask, (c - r).clamp(min=0), 0.0)
    torch.testing.assert_close(found[:, :-1][mask], expected[mask], rtol=1e-4, atol=1e-5)
    clipped = (c - r)[mask] < 0
    assert clipped.any()
    assert not clipped.all()


@register_mixer("fixed_weights")
class FixedWeights(Mixer):
    """Draws evenly and weighs by fixed numbers."""

    def __init__(self, mixture_manager, weights):
        super().__init__(mixture_manager)
        self.weights = np.array(weights, dtype=float)

    def mix(self, model, step_id, **kwargs):
        return np.full(3, 1 / 3)

    def observe(self, step, losses_K, tokens_K):
        pass

    def loss_weights(self):
        return self.weights


def test_the_counts_of_a_step_come_from_the_device_at_once(monkeypatch):
    weights = SourceWeights(lambda: np.array([1.0, 2.0, 4.0]))
    labels = torch.tensor([[5, 5, -100], [-100, 5, 5]])
    sources = [torch.tensor([0, 1]), torch.tensor([2, 0])]
    accelerator = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    moved, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: moved.append(tensor) or cpu(tensor))
    weights.begin_step([{"labels": labels}, {"labels": labels}], [ROWS, ROWS], sources, accelerator)
    assert len(moved) == 1
    # labels of sources 0, 1, 2: 2 + 2, 2, 2; those that are predicted: 1 + 2, 2, 1; samples: 2, 1, 1
    assert weights.counts == StepCounts(2 + 2 * 1 + 4 * 1, 4 + 2 * 2 + 4 * 2, 3 + 2 * 2 + 4 * 1)


class Gradients(TrainerCallback):
    """Keeps the gradients of each step, and the weights they were computed with."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        names = dict(model.named_parameters())
        self.steps.append(
            ({n: p.detach().clone() for n, p in names.items()}, {n: p.grad.clone() for n, p in names.items()})
        )


def sources():
    return {name: TokenRows(30, lengths=range(6, 17), vocab_size=60 + 30 * i, seed=i) for i, name in enumerate(NAMES)}


def run(folder, name, params, accumulation=2, callbacks=(), resume=None, eval_rows=None, loss_func=None, **changes):
    keys = {"warmup_step": 0, "update_step": 2, "update_times": 2, "mixture_sample_rule": "uniform"}
    spec = RunSpec(
        DataflexArguments(train_type="dynamic_mix", component_name=name, **keys),
        ComponentSpec(MIXER, name, name, params),
    )
    sizes = {"per_device_train_batch_size": 12 // accumulation, "gradient_accumulation_steps": accumulation}
    done = trainer_class(MixTrainer, Trainer)(
        model=tiny_model(),
        args=tiny_training_args(
            folder, **({"max_steps": -1, "max_grad_norm": 0.0, "learning_rate": 1e-2} | sizes | changes)
        ),
        train_dataset=sources(),
        eval_dataset=eval_rows,
        data_collator=pad_collate,
        callbacks=list(callbacks),
        compute_loss_func=loss_func,
        dataflex=spec,
    )
    done.train(resume_from_checkpoint=resume)
    return done


def parts_by_hand(folder, weights, accumulation):
    """Returns the gradient of the first step by autograd, and the same of each source's token losses; counts."""
    seen = Gradients()
    done = run(folder, "fixed_weights", {"weights": weights}, accumulation, [seen])
    rows = np.load(folder / "dataflex_selections" / "step_00000000.npz")["indices"][:12]
    mixed, (before, found) = done.train_dataset, seen.steps[0]
    model = tiny_model()
    model.load_state_dict(before)
    sums, counts = [], []
    for k in range(3):
        mine = [mixed[int(r)] for r in rows if mixed.sources_of(np.array([r]))[0] == k]
        model.zero_grad()
        n = 0
        for row in mine:
            logits = model(torch.tensor([row["input_ids"]], device=model.device)).logits[0, :-1]
            labels = torch.tensor(row["labels"][1:], device=model.device)
            torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").backward()
            n += int((labels != -100).sum())
        sums.append({name: p.grad.clone() for name, p in model.named_parameters()})
        counts.append(n)
    return found, sums, counts


@pytest.mark.parametrize("accumulation", [1, 3])
def test_doubling_a_sources_weight_doubles_its_share_of_the_gradient(tmp_path, accumulation):
    for weights in ([1, 1, 1], [2, 1, 1], [1, 0, 4]):
        found, sums, counts = parts_by_hand(tmp_path / str(weights), weights, accumulation)
        total = sum(v * n for v, n in zip(weights, counts, strict=True))
        for name, gradient in found.items():
            expected = sum(v * part[name] for v, part in zip(weights, sums, strict=True)) / total
            torch.testing.assert_close(gradient, expected, rtol=2e-4, atol=1e-7)


def test_equal_weights_are_the_plain_loss_bit_for_bit(tmp_path):
    @register_mixer("no_weights")
    class NoWeights(Mixer):
        def mix(self, model, step_id, **kwargs):
            return np.full(3, 1 / 3)

    plain = run(tmp_path / "p", "no_weights", {})
    equal = run(tmp_path / "e", "fixed_weights", {"weights": [3, 3, 3]})
    a, b = plain.model.state_dict(), equal.model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_evaluation_is_not_weighed(tmp_path):
    rows = TokenRows(8, seed=3)
    weighed = run(tmp_path, "fixed_weights", {"weights": [5, 1, 0]}, eval_rows=rows)
    loss = weighed.evaluate()["eval_loss"]
    plain = Trainer(
        model=weighed.model, args=tiny_training_args(tmp_path / "e"), eval_dataset=rows, data_collator=pad_collate
    )
    assert loss == plain.evaluate()["eval_loss"]


@pytest.mark.parametrize("weights", [[1, NAN, 1], [1, -1, 1]])
def test_weights_that_are_no_weights_stop_the_run_by_name(tmp_path, weights):
    with pytest.raises(ComponentError, match="mixer 'fixed_weights' at step 0: the loss weights are"):
        run(tmp_path, "fixed_weights", {"weights": weights})


def test_a_loss_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="weighs the loss of each source, which use_eaft_loss or a compute_loss_func"):
        run(tmp_path, "fixed_weights", {"weights": [1, 1, 2]}, loss_func=lambda *args, **kwargs: None)


def test_a_proxy_run_writes_the_mean_of_its_weights_and_leaves_the_trace(tmp_path, reference):
    done = run(tmp_path, "doremi", {"reference_model": reference})
    written = json.loads((tmp_path / FILE).read_text())
    assert written["steps"] == 4
    assert written["unit"] == "rows"
    assert list(written["proportions"].values()) == done.component.average.tolist()
    assert sum(written["proportions"].values()) == pytest.approx(1)
    assert max(abs(done.component.average - 1 / 3)) > 1e-3, "the weights have moved"
    first, second = read_updates(tmp_path)
    assert first["weights_entropy"] == pytest.approx(math.log(3))
    assert second["weights_entropy"] < math.log(3)
    assert list(second["proportions"].values()) == pytest.approx([1 / 3] * 3), "rows are drawn by fixed shares"
    assert read_weights(tmp_path, ("math", "web", "code")) == [
        written["proportions"][n] for n in ("math", "web", "code")
    ]


def test_a_proxy_run_resumes_to_the_last_bit(tmp_path, reference):
    params = {"reference_model": reference}
    whole = run(tmp_path / "w", "doremi", params, save_strategy="steps", save_steps=1)
    for step in (1, 3):
        again = run(tmp_path / str(step), "doremi", params, resume=str(tmp_path / "w" / f"checkpoint-{step}"))
        np.testing.assert_array_equal(again.component.average, whole.component.average)
        a, b = whole.model.state_dict(), again.model.state_dict()
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert (tmp_path / "w" / FILE).read_text() == (tmp_path / str(step) / FILE).read_text()


def test_state_survives_a_checkpoint_file(tmp_path, reference):
    first, second = mixer(reference), mixer(reference)
    observed(first, EXCESS[0])
    save_state(tmp_path, {"identity": {}, "component": first.state_dict()})
    second.load_state_dict(load_state(tmp_path)["component"])
    for made in (first, second):
        observed(made, EXCESS[1])
    np.testing.assert_array_equal(first.average, second.average)


def test_what_is_no_reference_model_is_refused(tmp_path, reference):
    with pytest.raises(ConfigError, match=r"reference_model of the doremi mixer: /none is no folder"):
        mixer("/none")
    with pytest.raises(ConfigError, match=r"holds no config.json"):
        mixer(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds an adapter, not a whole model"):
        mixer(str(tmp_path))
    with pytest.raises(ConfigError, match="has 128 output tokens, the model that is trained 64"):
        mixer(reference).prepare(tiny_model(vocab_size=64))


def test_loading_the_reference_draws_nothing_from_the_global_generator(reference):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    made = mixer(reference)
    made.prepare(tiny_model())
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(p.requires_grad for p in made._reference.model.parameters())


def test_a_source_without_a_share_and_wrong_numbers_are_refused(reference):
    with pytest.raises(ConfigError, match="the initial share of code is 0 -> give it a share"):
        mixer(reference, shares=(1, 0, 1))
    with pytest.raises(ConfigError) as error:
        mixer(reference, eta=0, smoothing=-1, excess_smoothing=1)
    assert "3 problems" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist -> train the proxy first"),
        ("{", "cannot be read"),
        ('{"proportions": {"web": 1}}', "no weight for 'code'"),
    ],
)
def test_weights_that_cannot_be_handed_on_are_refused_by_file(tmp_path, content, message):
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(ConfigError, match=f"{FILE}.*{message}"):
        read_weights(tmp_path, NAMES)
