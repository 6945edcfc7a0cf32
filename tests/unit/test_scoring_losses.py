"""Losses of many rows at once equal those of one row at a time, and looking at the model leaves no trace."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import DistributedType
from dataflex.core.errors import ComponentError
from dataflex.model import label_losses
from dataflex.model.unwrapped import is_sharded
from dataflex.scoring import (
    default_token_budget,
    label_positions,
    logits_at_labels,
    per_sample_losses,
    sample_means,
    token_losses,
    undisturbed,
)
from dataflex.scoring.passes import row_pass
from dataflex.scoring.passes.batch_plan import Batch
from dataflex.scoring.passes.budget import CPU_TOKENS, learned_limit
from dataflex.scoring.passes.row_pass import _Memory, _within_memory
from dataflex.testing import TokenRows, pad_collate, tiny_batch, tiny_model, tiny_tokenizer
from dataflex_selectors.parts.whole_weights import whole_weights
from peft import LoraConfig, get_peft_model
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DataCollatorForLanguageModeling,
    Gemma2Config,
    Gemma2ForCausalLM,
)

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def rows():
    return TokenRows(23, lengths=range(6, 40), prompt=4)


@torch.no_grad()
def one_by_one(model, dataset):
    """The oracle: each row alone, the loss that the model itself computes from labels, in eval mode."""
    training = model.training
    model.eval()
    found = [model(**tiny_batch([row]), use_cache=False).loss.item() for row in dataset]
    model.train(training)
    return np.array(found, dtype=np.float32)


def score(model, dataset, **options):
    return per_sample_losses(model, dataset, **({"collator": pad_collate, "progress": False} | options))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_losses_equal_the_models_own_one_row_at_a_time(rows, kind):
    model = tiny_model(kind=kind)
    found = score(model, rows)
    assert found.shape == (23,)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, one_by_one(model, rows), **CLOSE)


@pytest.mark.parametrize("budget", [1, 40, 100, 100_000])
def test_losses_do_not_depend_on_the_batching(rows, budget):
    model = tiny_model()
    np.testing.assert_allclose(score(model, rows, token_budget=budget), score(model, rows), **CLOSE)


def test_losses_do_not_depend_on_the_padding_side(rows):
    def pad_left(batch):
        return {key: _flipped(value) for key, value in pad_collate([_reversed(row) for row in batch]).items()}

    model = tiny_model()
    np.testing.assert_allclose(score(model, rows, collator=pad_left), score(model, rows), **CLOSE)


def _reversed(row):
    return {key: value[::-1] for key, value in row.items()}


def _flipped(tensor):
    return tensor.flip(1)


def test_losses_follow_the_rows_order_and_the_indices_asked_for(rows):
    model = tiny_model()
    order = [7, 0, 22, 7]
    np.testing.assert_allclose(score(model, rows, indices=order), score(model, rows)[order], **CLOSE)
    np.testing.assert_allclose(score(model, [rows[i] for i in order]), score(model, rows)[order], **CLOSE)


def test_losses_of_no_rows_are_empty(rows):
    assert score(tiny_model(), rows, indices=[]).shape == (0,)


def test_masked_prompts_do_not_count(rows):
    model = tiny_model()
    unmasked = [{**row, "labels": row["input_ids"]} for row in rows]
    assert (np.abs(score(model, unmasked) - score(model, rows)) > 1e-4).all()
    np.testing.assert_allclose(score(model, unmasked), one_by_one(model, unmasked), **CLOSE)


def test_a_row_without_labels_is_nan_and_hurts_no_other(rows):
    model = tiny_model()
    dataset = list(rows)
    dataset[3] = {**dataset[3], "labels": [-100] * len(dataset[3]["labels"])}
    found = score(model, dataset)
    assert np.flatnonzero(np.isnan(found)).tolist() == [3]
    expected = score(model, rows)
    np.testing.assert_allclose(np.delete(found, 3), np.delete(expected, 3), **CLOSE)


def test_a_label_on_the_first_token_alone_is_never_predicted():
    row = {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [5, -100, -100]}
    assert np.isnan(score(tiny_model(), [row])).all()


def test_a_dataset_whose_rows_all_lack_labels_is_all_nan(rows):
    assert np.isnan(score(tiny_model(), [{**row, "labels": [-100] * len(row["labels"])} for row in rows])).all()


def test_losses_through_lora_equal_the_models_own(rows):
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False)
    model = get_peft_model(tiny_model(), config)
    model.train()
    found = score(model, rows)
    np.testing.assert_allclose(found, one_by_one(model, rows), **CLOSE)
    with model.disable_adapter():
        assert np.abs(score(model, rows) - found).max() > 1e-3


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")  # it has not
def test_a_trained_output_layer_of_peft_is_used(rows):
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(tiny_model(), config)
    with torch.no_grad():
        model.get_output_embeddings().modules_to_save["default"].weight.mul_(2)
    np.testing.assert_allclose(score(model, rows), one_by_one(model, rows), **CLOSE)


def test_a_model_that_caps_its_logits_is_scored_with_the_cap(rows):
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, final_logit_softcapping=0.05))
    np.testing.assert_allclose(score(model, rows), one_by_one(model, rows), **CLOSE)


class Plain(torch.nn.Module):
    """No ``transformers`` model: an embedding and a linear layer, logits in a tuple."""

    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Embedding(128, 8), torch.nn.Linear(8, 128)

    def forward(self, input_ids, attention_mask):
        return (self.head(self.body(input_ids)),)


def test_a_plain_module_takes_the_general_route(rows):
    model = Plain()
    expected = []
    for row in rows:
        logits = model(torch.tensor([row["input_ids"]]), None)[0][0, :-1]
        expected.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row["labels"][1:])).item())
    np.testing.assert_allclose(score(model, rows), expected, **CLOSE)


def test_without_its_output_embeddings_a_model_gives_the_same_losses(rows, monkeypatch):
    model = tiny_model()
    expected = score(model, rows)
    monkeypatch.setattr(type(model), "get_output_embeddings", lambda self: None)
    np.testing.assert_allclose(score(model, rows), expected, **CLOSE)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_model_gets_no_hook_that_would_be_traced_into_its_code(in_place):
    model = tiny_model()
    compiled = torch.compile(model, backend="eager")
    if in_place:
        model.model.compile(backend="eager")  # as transformers compiles parts
        compiled = model
    with logits_at_labels(compiled):
        assert not model.lm_head._forward_pre_hooks
    plain = tiny_model()
    with logits_at_labels(plain):
        assert plain.lm_head._forward_pre_hooks


def test_a_collator_without_labels_per_token_is_refused(rows):
    def without(batch):
        return {key: value for key, value in pad_collate(batch).items() if key != "labels"}

    with pytest.raises(ComponentError, match="gives no labels per token"):
        score(tiny_model(), rows, collator=without)


def test_the_output_layer_sees_label_positions_only(rows):
    model = tiny_model()
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[:2].numel()))
    score(model, rows)
    assert sum(seen) == sum(sum(label != -100 for label in row["labels"][1:]) for row in rows)


def test_no_hook_stays_on_the_model(rows):
    model = tiny_model()
    score(model, rows)
    assert not model.lm_head._forward_pre_hooks


def test_language_modelling_collator_works_as_it_is():
    tokenizer = tiny_tokenizer(["some words to train on, a few"], vocab_size=259)
    dataset = [{"input_ids": tokenizer("x" * n)["input_ids"], "attention_mask": [1] * n} for n in (3, 9, 17)]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False, pad_to_multiple_of=8)
    model = tiny_model(vocab_size=259)
    expected = one_by_one(model, [{**row, "labels": row["input_ids"]} for row in dataset])
    np.testing.assert_allclose(score(model, dataset, collator=collator), expected, **CLOSE)


def test_rows_are_safe_from_collators_that_change_them():
    dataset = [dict(row) for row in TokenRows(4)]

    def greedy(batch):
        collated = pad_collate(batch)
        for row in batch:
            row.pop("labels")
        return collated

    score(tiny_model(), dataset, collator=greedy)
    assert all("labels" in row for row in dataset)


def test_nothing_is_disturbed_by_scoring_in_the_middle_of_training(rows):
    config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5)
    model = get_peft_model(tiny_model(), config)
    model.train()
    model.base_model.model.model.layers[0].eval()  # a part that somebody froze keeps its own mode
    model(**tiny_batch([rows[0]])).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    values = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    before = _state(model)
    score(model, rows)
    assert _state(model) == before
    for name, parameter in model.named_parameters():
        assert parameter.grad is gradients[name]
        assert name not in values or torch.equal(parameter.grad, values[name])


def _state(model):
    return (
        [module.training for module in model.modules()],
        torch.get_rng_state().tolist(),
        random.getstate(),
        str(np.random.get_state()),
        model.config.use_cache,
        torch.is_grad_enabled(),
    )


def test_undisturbed_gives_eval_mode_and_takes_back_what_the_block_did():
    model = tiny_model()
    model.train()
    model.model.layers[1].mlp.eval()
    before = _state(model)
    with undisturbed(model):
        assert not any(module.training for module in model.modules())
        model.config.use_cache = not model.config.use_cache
        model.train()
        torch.rand(3), np.random.rand(3), random.random()  # draws from all three generators
    assert _state(model) == before


def test_undisturbed_takes_back_when_the_block_raises():
    model = tiny_model()
    model.train()
    before = _state(model)

    def fail():
        torch.rand(3)
        model(**tiny_batch([TokenRows(1)[0]])).loss.backward()
        raise KeyError

    with pytest.raises(KeyError), undisturbed(model):
        fail()
    assert _state(model) == before
    assert all(p.grad is None for p in model.parameters())


def test_undisturbed_refuses_gradients_left_behind_and_clears_them():
    model = tiny_model()
    message = r"left in \.grad of model\.embed_tokens\.weight and \d+ more; .*autograd"
    with pytest.raises(ComponentError, match=message), undisturbed(model):
        model(**tiny_batch([TokenRows(1)[0]])).loss.backward()
    assert all(p.grad is None for p in model.parameters())


def test_undisturbed_refuses_gradients_added_to_existing_ones():
    model = tiny_model()
    batch = tiny_batch([TokenRows(1)[0]])
    model(**batch).loss.backward()
    with pytest.raises(ComponentError, match=r"left in \.grad"), undisturbed(model):
        model(**batch).loss.backward()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_model_with_broken_weights_is_named_with_the_rows(bad):
    model = tiny_model()
    dataset = [{"input_ids": [i, i + 1], "attention_mask": [1, 1], "labels": [i, i + 1]} for i in (3, 5, 7, 9)]
    with torch.no_grad():
        model.model.embed_tokens.weight[[5, 9]] = bad
    with pytest.raises(ComponentError, match="NaN or infinite for 2 of 3 rows, first for row 3 -> "):
        score(model, dataset, indices=[0, 3, 1])


def test_an_encoder_decoder_is_refused(rows):
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1, "decoder_attention_heads": 1}
    model = BartForConditionalGeneration(BartConfig(vocab_size=128, d_model=8, **sizes))
    with pytest.raises(ComponentError, match="BartForConditionalGeneration is an encoder-decoder"):
        score(model, rows)


def test_logits_that_do_not_belong_to_the_tokens_are_refused(rows):
    class Pooled(Plain):
        def forward(self, input_ids, attention_mask):
            return (self.head(self.body(input_ids)).mean(1, keepdim=True),)

    with pytest.raises(ComponentError, match=r"one vector of logits per input token"):
        score(Pooled(), rows)


def test_out_of_memory_halves_the_batches_and_goes_on(rows, monkeypatch, caplog):
    expected, seen = score(tiny_model(), rows), _limited_memory(monkeypatch, tokens=100)
    with caplog.at_level("WARNING", logger="dataflex"):
        found = score(tiny_model(), rows, token_budget=350)
    np.testing.assert_allclose(found, expected, **CLOSE)
    assert max(seen) <= 100
    assert "out of memory" in caplog.text
    assert len(caplog.records) <= 3  # the budget stays down: it is not found anew for each batch


def test_what_one_pass_has_learnt_of_the_memory_holds_for_the_next_ones(rows, monkeypatch, caplog):
    expected, model = score(tiny_model(), rows), tiny_model()
    _limited_memory(monkeypatch, tokens=100)
    score(model, rows, token_budget=350)
    caplog.clear()
    for _ in range(2):
        found = score(model, rows, token_budget=350)
    assert not caplog.records
    np.testing.assert_allclose(found, expected, **CLOSE)
    assert learned_limit(model, False) <= 350 // 2
    assert learned_limit(model, True) is None  # of the other kind of pass nothing is known
    assert learned_limit(tiny_model(), False) is None


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), RuntimeError("NPU out of memory. Tried to allocate 2 G")])
@pytest.mark.parametrize("most", [1, 3, 7])
def test_halving_gives_every_row_once_in_order_and_never_more_than_fits(error, most):
    lengths = np.array([4, 4, 4, 4, 4, 3, 3, 2, 1])
    batches, tried = [Batch(np.arange(5)), Batch(np.array([5, 6, 7])), Batch(np.array([8]), repeated=True)], []

    def scored(places):
        tried.append(len(places))
        if len(places) > most:
            raise error
        return places.tolist()

    memory = _Memory(torch.nn.Linear(1, 1), False, 10**9, True, torch.device("cpu"))
    found = list(_within_memory(scored, batches, lengths, memory))
    assert [row for _, result in found for row in result] == list(range(9))
    assert all(batch.rows.tolist() == result for batch, result in found)
    assert [batch.repeated for batch, _ in found] == [False] * (len(found) - 1) + [True]
    failed = [size for size in tried if size > most]
    assert failed == sorted(failed, reverse=True)
    assert len(failed) <= 3  # 5, then 2 or 3: the limit is half of what did not fit, not of what is left


def test_another_error_of_the_device_is_not_taken_for_a_lack_of_memory():
    def broken(places):
        raise RuntimeError("an illegal memory access was encountered")

    memory = _Memory(torch.nn.Linear(1, 1), False, 10**9, True, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        list(_within_memory(broken, [Batch(np.arange(2))], np.array([1, 1]), memory))


def test_one_row_that_does_not_fit_is_an_error_with_a_way_out(rows, monkeypatch):
    _limited_memory(monkeypatch, tokens=10)
    with pytest.raises(ComponentError, match=r"out of memory while scoring 1 rows of \d+ tokens -> .*token_budget"):
        score(tiny_model(), rows)


def test_a_sharded_engine_stops_at_out_of_memory_because_its_ranks_must_not_differ(rows, monkeypatch):
    seen = _limited_memory(monkeypatch, tokens=100)
    monkeypatch.setattr(row_pass, "is_sharded", lambda accelerator: True)
    with pytest.raises(ComponentError, match="token_budget"):
        score(tiny_model(), rows, token_budget=350)
    assert not seen


def _limited_memory(monkeypatch, tokens):
    """Makes every model run out of memory above so many tokens; returns the list of the sizes that went well."""
    seen = []
    real = label_losses.logits_at_labels

    class Limited:
        def __init__(self, model):
            self.context = real(model)

        def __enter__(self):
            forward = self.context.__enter__()

            def limited(inputs, positions, shape):
                if shape.numel() > tokens:
                    raise torch.OutOfMemoryError
                seen.append(shape.numel())
                return forward(inputs, positions, shape)

            return limited

        def __exit__(self, *error):
            return self.context.__exit__(*error)

    monkeypatch.setattr(label_losses, "logits_at_labels", Limited)
    return seen


def test_token_losses_equal_the_log_softmax_whatever_the_chunk(monkeypatch):
    torch.manual_seed(0)
    logits, targets = torch.randn(37, 11) * 4, torch.randint(11, (37,))
    expected = -logits.log_softmax(-1)[torch.arange(37), targets]
    for chunk in (1, 50, 2**20):
        monkeypatch.setattr("dataflex.model.cross_entropy.CPU_CHUNK", chunk)
        torch.testing.assert_close(token_losses(logits, targets), expected)
    assert token_losses(logits[:0], targets[:0]).shape == (0,)
    assert token_losses(logits.bfloat16(), targets).dtype == torch.float32


def test_sample_means_are_over_each_rows_own_labels():
    labels = torch.tensor([[9, 1, -100, 2], [9, -100, -100, -100], [-100, -100, 3, -100]])
    positions, targets = label_positions(labels)
    assert positions.tolist() == [0, 2, 9]
    assert targets.tolist() == [1, 2, 3]
    means = sample_means(torch.tensor([1.0, 3.0, 5.0]), positions, labels.shape)
    torch.testing.assert_close(means, torch.tensor([2.0, torch.nan, 5.0]), equal_nan=True)


def test_logits_at_labels_are_the_models_own_at_these_positions(rows):
    model = tiny_model().eval()
    batch = tiny_batch([rows[0], rows[1]])
    labels = batch.pop("labels")
    positions, _ = label_positions(labels)
    with torch.no_grad(), logits_at_labels(model) as forward:
        found = forward(batch, positions, labels.shape)
    with torch.no_grad():
        torch.testing.assert_close(found, model(**batch).logits.flatten(0, 1)[positions])


def stage(number):
    plugin = SimpleNamespace(zero_stage=number)
    state = SimpleNamespace(deepspeed_plugin=plugin)
    return SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, state=state, num_processes=2)


@pytest.mark.parametrize(("number", "sharded"), [(0, False), (1, False), (2, False), (3, True)])
def test_zero_1_and_2_leave_the_weights_whole_for_scoring_and_for_selectors_alike(number, sharded):
    assert is_sharded(stage(number)) is sharded
    assert (whole_weights(stage(number), "why") is not None) is sharded


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps", "privateuseone"])
def test_every_kind_of_accelerator_gets_the_budget_of_its_own_memory(monkeypatch, kind):
    """NPUs are one of torch's "privateuseone" devices."""
    model = tiny_model()  # on the device of the tests, which is asked for as well
    module = SimpleNamespace(get_device_properties=lambda device: SimpleNamespace(total_memory=8 * 2**30))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 8 * 2**30)
    model.config.vocab_size = 152_000
    weight = SimpleNamespace(device=torch.device(kind), ndim=2)
    monkeypatch.setattr(model, "parameters", lambda: iter([weight]))
    forward, backward = default_token_budget(model), default_token_budget(model, gradients=True)
    assert forward == 8 * 2**30 // 8 // (6 * 152_000) != CPU_TOKENS
    assert 256 <= backward < forward


def test_a_gradient_pass_has_a_smaller_budget_the_more_its_layers_keep(monkeypatch):
    small, large = tiny_model(layers=1), tiny_model(layers=8)
    assert default_token_budget(small, gradients=True) < default_token_budget(small)
    monkeypatch.setattr("dataflex.scoring.passes.budget.device_memory", lambda device: 2**27)
    for model in (small, large):
        weight = SimpleNamespace(device=torch.device("cuda"), ndim=2)
        monkeypatch.setattr(model, "parameters", lambda weight=weight: iter([weight]))
    assert default_token_budget(large, gradients=True) < default_token_budget(small, gradients=True)


def test_the_default_budget_on_a_gpu_shrinks_with_its_memory_and_with_the_vocabulary(monkeypatch):
    model = tiny_model()
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    assert default_token_budget(model) == 1024
    monkeypatch.setattr(model, "parameters", lambda: iter([on_gpu]))

    def budget(gigabytes, vocabulary):
        properties = SimpleNamespace(total_memory=gigabytes * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        model.config.vocab_size = vocabulary
        return default_token_budget(model)

    assert budget(80, 32_000) == 16384
    assert 8192 < budget(80, 152_000) < 16384
    assert 2048 < budget(24, 152_000) < 4096
    assert budget(2, 256_000) == 1024
