"""Gradients of sources out of training's own backward pass, against one float64 backward pass for each row."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.kinds import MIXER, WEIGHTER
from dataflex.core.registry import register_weighter
from dataflex.interfaces.source_gradients import GradientSketch, SourceGradients
from dataflex.objective.source_sketches import sums_by_source
from dataflex.planning.run_schedule import require_observable
from dataflex.scoring.gradients.projection import Projection
from dataflex.testing import pad_collate, tiny_model
from dataflex.train.weighter.base_weighter import Weighter
from gradient_runs import EXACT, WEIGHTERS, apart, made, row_gradients, sources, trained

CHECKPOINTING = {"gradient_checkpointing": True}
LOOPS = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 3},
    "checkpointing": {**CHECKPOINTING, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "reentrant checkpointing": {**CHECKPOINTING, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
}


@pytest.mark.parametrize("unit", ["token", "row"])
@pytest.mark.parametrize("loop", LOOPS)
def test_what_a_mixer_is_told_are_the_gradients_of_its_sources_rows(loop, unit, tmp_path):
    if unit == "row" and loop != "accumulation":
        pytest.skip("the unit is taken after the loop")
    run = trained(tmp_path, {**EXACT, "unit": unit}, **LOOPS[loop])
    assert [step for step, _ in run.told] == [1, 2, 3, 4]
    assert apart(run, tiny_model(), unit) < 2e-6


@pytest.mark.parametrize("loop", LOOPS)
def test_measuring_changes_no_bit_of_the_weights(loop, tmp_path):
    without = trained(tmp_path / "without", {"every": 0}, **LOOPS[loop])
    measured = trained(tmp_path / "measured", {"proj_dim": None}, **LOOPS[loop])
    assert not without.told
    assert len(measured.told) == 4
    assert all(map(torch.equal, without.weights, measured.weights))
    logged = [[line.get("loss") for line in run.trainer.state.log_history] for run in (without, measured)]
    assert logged[0] == logged[1]


def test_biases_and_a_tied_output_layer_are_measured_too(tmp_path):
    """Qwen2 has biases in its attention; its embedding and its output layer are one matrix here."""
    tied = tiny_model(seed=1, kind="qwen2")
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    tied.lm_head.weight = tied.model.embed_tokens.weight
    other = tiny_model(seed=1, kind="qwen2")
    other.lm_head.weight = other.model.embed_tokens.weight
    run = trained(tmp_path, EXACT, model=tied)
    assert apart(run, other) < 2e-6


@pytest.mark.parametrize("weights", [[1.0, 4.0], [0.25, 1.0]])
def test_the_weights_of_sources_are_taken_out(weights, tmp_path):
    run = trained(tmp_path, {**EXACT, "weights": weights}, gradient_accumulation_steps=2)
    assert apart(run, tiny_model()) < 5e-6


def test_a_source_of_weight_0_has_no_gradient_and_is_not_counted(tmp_path):
    run = trained(tmp_path, {**EXACT, "weights": [1.0, 0.0]})
    for _, told in run.told:
        assert told.rows[1] == told.counts[1] == 0
        assert np.isnan(told.means[1]).all()
        assert not told.sums[1].any()
    assert any(told.rows[0] for _, told in run.told)


@pytest.mark.parametrize("name", WEIGHTERS)
def test_the_weights_of_a_weighter_are_taken_out(name, tmp_path):
    run = trained(tmp_path, EXACT, weighter=WEIGHTERS[name], gradient_accumulation_steps=2)
    assert apart(run, tiny_model()) < 5e-6


@register_weighter("every_third")
class EveryThird(Weighter):
    """3 for every third token of a batch and 0 for the others; divided by Z = 1.5."""

    draws = False
    weighs_tokens = True

    def mean_token_weight(self, batches, *, ctx):
        return 1.5

    def token_weights(self, losses_BT, *, ctx, model, inputs):
        return third(losses_BT)

    def get_weighted_loss(self, losses, *, ctx=None, model=None, inputs=None):
        return (losses * torch.arange(1, len(losses) + 1)).mean()


def third(like_BT):
    return ((torch.arange(like_BT.shape[1]) % 3 == 0).to(like_BT) * 3).expand_as(like_BT)


@pytest.mark.parametrize("unit", ["token", "row"])
def test_the_weights_of_tokens_stay_and_those_of_samples_are_taken_out(unit, tmp_path):
    """A row of which few tokens are trained on has a small gradient, and not that of as many tokens as it has."""
    weighter = ComponentSpec(WEIGHTER, "every_third", "every_third", {})
    run = trained(tmp_path, {**EXACT, "unit": unit}, weighter=weighter, gradient_accumulation_steps=2)
    model = tiny_model()
    for (_, told), step in zip(run.told, run.steps, strict=True):
        model.load_state_dict(step.state)
        model.double().eval()
        expected_KP, rows = [0, 0], [0, 0]
        for batch, numbers in step.batches:
            logp = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
            wanted = batch["labels"].roll(-1, dims=1)
            wanted[:, -1] = -100
            there = wanted != -100
            z_BT = third(logp[..., 0]) / 1.5 * there
            sums_B = -(z_BT * logp.gather(2, wanted.clamp(min=0)[..., None])[..., 0]).sum(dim=1)
            for row, loss, count in zip(numbers.tolist(), sums_B, there.sum(dim=1), strict=True):
                found = torch.autograd.grad(
                    loss / (count if unit == "row" else 1), model.parameters(), retain_graph=True
                )
                expected_KP[row >= 20] += torch.cat([grad.flatten() for grad in found]).numpy()
                rows[row >= 20] += 1
        assert told.rows.tolist() == rows
        for k in range(2):
            scale = np.abs(expected_KP[k]).max() if rows[k] else 1.0
            np.testing.assert_allclose(told.sums[k], expected_KP[k], atol=2e-6 * scale)


def test_what_the_loss_is_multiplied_by_on_its_way_back_is_taken_out(tmp_path):
    """As the loss scale of fp16 does, and engines that divide by the micro-batches."""
    run = made(tmp_path / "scaled", EXACT)
    plain = trained(tmp_path / "plain", EXACT, steps=2)
    backward = run.accelerator.backward
    run.accelerator.backward = lambda loss, **kwargs: backward(loss * 1024, **kwargs)
    run.args.max_grad_norm = 0
    run.train()
    first, expected = run.components.observing_mixer.told[0][1], plain.told[0][1]
    np.testing.assert_allclose(first.sums, expected.sums, rtol=1e-5, atol=1e-7)


def test_a_gradient_that_overflowed_is_left_out_with_its_row(tmp_path, caplog):
    run = made(tmp_path, EXACT, steps=2)
    backward = run.accelerator.backward
    run.accelerator.backward = lambda loss, **kwargs: backward(loss * float("inf"), **kwargs)
    run.train()
    told = run.components.observing_mixer.told
    assert told[0][1].left_out == 4
    assert not told[0][1].rows.any()
    assert run.components.observing_mixer.left_out >= 4
    assert "the gradient of a row that is not finite" in caplog.text


@pytest.mark.parametrize("loop", ["plain", "checkpointing", "reentrant checkpointing"])
def test_lora_matrices_are_measured(loop, tmp_path):
    peft = pytest.importorskip("peft")

    def adapted():
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        torch.manual_seed(3)
        return peft.get_peft_model(tiny_model(seed=1), config)

    run = trained(tmp_path, EXACT, model=adapted(), **LOOPS[loop])
    assert apart(run, adapted()) < 2e-6


@pytest.mark.parametrize("loop", ["plain", "checkpointing", "reentrant checkpointing"])
def test_a_layer_that_two_blocks_share_is_counted_once_for_each_of_its_calls(loop, tmp_path):
    """Under checkpointing, hooks on what is shared are called more often than gradients arrive (pytorch 81296)."""

    def shared():
        model = tiny_model(seed=1)
        model.model.layers[1].mlp = model.model.layers[0].mlp
        return model

    run = trained(tmp_path, EXACT, model=shared(), **LOOPS[loop])
    assert apart(run, shared()) < 2e-6


def test_bf16_differs_by_rounding_alone(tmp_path):
    run = trained(tmp_path, EXACT, bf16=True)
    assert apart(run, tiny_model()) < 3e-2


def test_only_the_steps_that_are_wanted_are_measured(tmp_path):
    run = made(tmp_path, {"every": 3}, steps=6)
    layer = run.model.model.layers[0].mlp.up_proj
    hooks = []
    step = run.training_step

    def training_step(*args, **kwargs):
        hooks.append(len(layer._forward_hooks))
        return step(*args, **kwargs)

    run.training_step = training_step
    run.train()
    assert [step for step, _ in run.components.observing_mixer.told] == [1, 4]
    assert hooks == [1, 0, 0, 1, 0, 0]
    assert not layer._forward_hooks


def test_the_rate_is_that_of_the_step(tmp_path):
    run = trained(tmp_path, {}, lr_scheduler_type="linear", learning_rate=0.4)
    assert [told.learning_rate for _, told in run.told] == pytest.approx([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize("loop", LOOPS)
def test_nothing_of_a_step_is_kept_alive(loop, tmp_path):
    """A hook that holds the graph it hangs in is a leak that no collector finds."""
    kept = []
    run = made(tmp_path, EXACT, **LOOPS[loop])
    run.model.lm_head.register_forward_hook(lambda module, args, output: kept.append(weakref.ref(output)))
    run.train()
    gc.collect()
    assert len(kept) >= 4
    assert sum(each() is not None for each in kept[:-1]) == 0


def test_inner_products_of_sketches_are_unbiased(tmp_path):
    """Over 300 maps the mean lies within five standard errors, for the own product and for that of two sources."""
    model = tiny_model(seed=1)
    shape = {p: name for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    found = []
    for seed in range(300):
        projection = Projection(model, GradientSketch(64, 4), seed, torch.device("cpu"))
        if not found:
            pair = {shape[r.parameter]: torch.randn(2, r.numel, generator=generator) for r in projection.routes}
            mixed = {name: torch.stack([both[0], 0.5 * both[0] + both[1]]) for name, both in pair.items()}
        sums = projection.empty(2, torch.device("cpu"))
        for route in projection.routes:
            both = mixed[route.name]
            factors = projection.factors.get(route.index)
            kept = both if factors is None else torch.stack([factors.project(v.view(route.shape)) for v in both])
            projection.add(route.index, slice(0, 2), kept, sums)
        found.append((sums @ sums.T).numpy())
    exact = sum((both.double() @ both.double().T).numpy() for both in mixed.values())
    spread = np.std(found, axis=0) / np.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - exact) < 5 * spread).all()
    assert (5 * spread < 0.2 * np.abs(exact)).all(), "the test could not see a bias"


def test_sketches_are_near_the_gradients_of_the_run(tmp_path):
    exact = trained(tmp_path / "exact", {**EXACT, "layers": "linear"}, steps=2)
    sketched = trained(tmp_path / "sketched", {"proj_dim": 2048, "factor_dim": 8}, steps=2)
    for (_, mine), (_, theirs) in zip(sketched.told, exact.told, strict=True):
        assert mine.sums.shape[1] <= 2048
        np.testing.assert_allclose(mine.squares, theirs.squares, rtol=0.3)
        np.testing.assert_array_equal(mine.counts, theirs.counts)


def test_rows_that_are_not_trained_on_are_sketched_alike(tmp_path):
    """The mean over rows, from another code path (scoring), is what the rows' gradients of training come to."""
    run = trained(tmp_path, {"proj_dim": 128, "factor_dim": 4}, steps=2, learning_rate=0.0)
    rows = [row for source in sources().values() for row in source]
    mixer = run.trainer.components.observing_mixer
    for (_, told), step in zip(run.told, run.steps, strict=True):
        numbers = torch.cat([rows_B for _, rows_B in step.batches]).tolist()
        trained_on = [rows[number] for number in numbers]
        found = mixer.sketcher.mean_of(run.trainer.model, trained_on, pad_collate, "test")
        np.testing.assert_allclose(found, told.sums.sum(axis=0) / told.counts.sum(), rtol=1e-3, atol=1e-5)
        assert run.trainer.model.training


def test_rows_without_a_label_have_no_mean_gradient(tmp_path):
    run = trained(tmp_path, {}, steps=2)
    rows = [{"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1], "labels": [-100] * 3}]
    with pytest.raises(ComponentError, match="test: no row has a label to predict"):
        run.trainer.components.observing_mixer.sketcher.mean_of(run.trainer.model, rows, pad_collate, "test")


def test_experts_that_see_tokens_of_all_rows_are_left_out_and_named(tmp_path, caplog):
    with caplog.at_level("INFO"):
        run = made(tmp_path, {}, model=tiny_model(kind="mixtral"))
    told = next(record.getMessage() for record in caplog.records if "of the trained numbers" in record.getMessage())
    assert "gradients of" in told
    routes = [route.name for route in run.training_objective._sketches._projected().routes]
    assert routes
    assert not any("expert" in name for name in routes)


def test_every_parameter_is_asked_for_and_one_is_not_known(tmp_path):
    with pytest.raises(ConfigError, match=r"layers: all of the mixer 'gradient_watch' .* set layers: linear"):
        made(tmp_path, EXACT, model=tiny_model(kind="mixtral"))


def test_a_model_without_a_layer_that_can_be_measured_is_refused(tmp_path):
    model = tiny_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    with pytest.raises(ConfigError, match="looks at gradients, and no trained layer of LlamaForCausalLM"):
        made(tmp_path, {}, model=model)


@pytest.mark.parametrize(
    ("args", "found"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"given": {"compute_loss_func": lambda *args, **kwargs: None}}, "compute_loss_func"),
    ],
)
def test_a_loss_that_is_no_mean_of_cross_entropies_is_refused(args, found, tmp_path):
    with pytest.raises(ConfigError, match=f"takes gradients of rows from the training loss; {found}"):
        made(tmp_path, {}, **args)


def test_the_loss_of_a_router_is_refused(tmp_path):
    model = tiny_model(kind="mixtral")
    model.config.output_router_logits = True
    with pytest.raises(ConfigError, match="output_router_logits"):
        made(tmp_path, {}, model=model)


@pytest.mark.parametrize("key", ["use_badam", "use_dft_loss", "torch_compile", "moe_aux_loss_coef", "use_unsloth"])
def test_keys_of_llamafactory_that_hide_gradients_are_refused_before_a_model_is_loaded(key):
    arguments = DataflexArguments(train_type="dynamic_mix", component_name="gradient_watch")
    mixer = ComponentSpec(MIXER, "gradient_watch", "gradient_watch", {})
    with pytest.raises(ConfigError, match=f"^{key}: the mixer 'gradient_watch' takes gradients of rows"):
        require_observable(RunSpec(arguments, mixer, llamafactory={"stage": "sft", key: True}))


def test_counts_of_sources_are_exact_where_the_run_has_products_rounded():
    """As ``tf32: true`` does on a GPU: 4,095 tokens are 4,096 in a product. A CPU may round to bf16 in its place."""
    before = torch.get_float32_matmul_precision()
    more_BX = torch.full((256, 4), 4095.0)
    more_BX[0, 0] = torch.inf
    try:
        torch.set_float32_matmul_precision("medium")
        found_KX = sums_by_source(torch.ones(256, 4096), more_BX, torch.arange(256) % 2, 256)
    finally:
        torch.set_float32_matmul_precision(before)
    assert found_KX[0, -4:].tolist() == [np.inf] + [128 * 4095] * 3
    assert found_KX[1, -4:].tolist() == [128 * 4095] * 4, "what is infinite in one source is so in no other"
    assert not found_KX[2:].any()


def test_sources_without_rows_have_no_mean():
    zeros = np.zeros((2, 3))
    found = SourceGradients(0.1, zeros + 6.0, np.ones(2), np.array([3.0, 0.0]), np.array([1, 0]))
    np.testing.assert_array_equal(found.means, [[2.0] * 3, [np.nan] * 3])


def test_the_oracle_sees_the_padding_of_a_batch(tmp_path):
    """The oracle of this module runs rows one by one; a batch whose padding leaked would differ from it."""
    run = trained(tmp_path, EXACT, steps=2)
    grads_NP, _, labels_N = row_gradients(tiny_model(), run.steps[0])
    assert len({len(batch["input_ids"][0]) for batch, _ in run.steps[0].batches}) == 1
    assert len(set(labels_N.tolist())) > 1
    assert grads_NP.shape[0] == 4
