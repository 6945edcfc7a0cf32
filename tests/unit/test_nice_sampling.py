"""Answers come from the model that is trained, end where it ends them, repeat from the seed, and disturb nothing."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import DistributedType
from dataflex.core.errors import ComponentError
from dataflex.testing import device, tiny_model, tiny_tokenizer
from dataflex_selectors.nice import sampling as module
from dataflex_selectors.nice.prompts import Prompt
from dataflex_selectors.nice.sampling import Sampling, sample_answers
from peft import LoraConfig, get_peft_model

END = 2


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def prompts():
    source = random.Random(0)
    tokens = [tuple(source.randrange(3, 128) for _ in range(length)) for length in (3, 9, 5, 14, 4)]
    return [Prompt(row, ids, (7,), "", "") for row, ids in enumerate(tokens)]


def sampling(**changes):
    return Sampling(**({"samples": 3, "max_new_tokens": 6, "temperature": 1.0, "top_k": 0, "top_p": 1.0} | changes))


def draw(model, prompts, tokenizer, how=None, seed=0, **options):
    return sample_answers(model, prompts, how or sampling(), tokenizer=tokenizer, seed=seed, progress=False, **options)


def test_each_prompt_gets_its_answers_within_the_limit(model, prompts, tokenizer):
    answers = draw(model, prompts, tokenizer)
    assert [len(own) for own in answers] == [3] * 5
    assert all(1 <= len(answer) <= 6 for own in answers for answer in own)
    assert len({answer for own in answers for answer in own}) > 10


def test_answers_repeat_from_the_seed_whatever_the_global_state(model, prompts, tokenizer):
    first = draw(model, prompts, tokenizer)
    torch.manual_seed(99)
    assert draw(model, prompts, tokenizer) == first
    assert draw(model, prompts, tokenizer, seed=1) != first


def test_greedy_answers_are_those_of_each_prompt_alone_so_padding_is_masked(model, prompts, tokenizer):
    together = draw(model, prompts, tokenizer, sampling(top_k=1, samples=1))
    for prompt, (answer,) in zip(prompts, together, strict=True):
        tokens = torch.tensor([prompt.tokens], device=device())
        for token in answer:
            with torch.no_grad():
                assert model(tokens).logits[0, -1].argmax() == token
            tokens = torch.cat([tokens, torch.tensor([[token]], device=device())], dim=1)


def test_answers_follow_the_models_probabilities(model, tokenizer):
    prompt = Prompt(0, (5, 6, 7), (7,), "", "")
    with torch.no_grad():
        model.lm_head.weight.mul_(30)  # an untrained model is too even to tell
        p = model(torch.tensor([prompt.tokens], device=device())).logits[0, -1].softmax(0).cpu().numpy()
    ((*answers,),) = draw(model, [prompt], tokenizer, sampling(samples=2000, max_new_tokens=1))
    counts = np.bincount([answer[0] for answer in answers], minlength=128)
    likely = p > 0.01
    assert likely.sum() > 5
    assert (np.abs(counts - 2000 * p)[likely] < 4.5 * np.sqrt(2000 * p * (1 - p))[likely]).all()


def test_top_k_top_p_and_temperature_narrow_the_choice(model, tokenizer):
    prompt = Prompt(0, (5, 6, 7), (7,), "", "")
    firsts = {
        name: {answer[0] for (*own,) in draw(model, [prompt], tokenizer, how) for answer in own}
        for name, how in {
            "all": sampling(samples=200),
            "top_k": sampling(samples=200, top_k=5),
            "top_p": sampling(samples=200, top_p=0.05),
            "cold": sampling(samples=200, temperature=1e-3),
        }.items()
    }
    assert len(firsts["all"]) > 60
    assert len(firsts["top_k"]) <= 5
    assert len(firsts["top_p"]) < 20
    assert len(firsts["cold"]) == 1


def favouring(model, token):
    """Makes a token likely everywhere."""
    plain = model.lm_head.forward
    model.lm_head.forward = lambda x: plain(x) + 6.0 * torch.nn.functional.one_hot(torch.tensor(token), 128)
    return model


def test_an_answer_ends_with_its_end_token_and_nothing_comes_after(model, prompts, tokenizer):
    answers = [answer for own in draw(favouring(model, END), prompts, tokenizer) for answer in own]
    assert {len(answer) for answer in answers} > {1, 2}
    assert all(END not in answer[:-1] for answer in answers)
    assert all(answer[-1] == END for answer in answers if len(answer) < 6)


def test_the_end_tokens_that_the_model_was_released_with_end_an_answer_too(model, prompts, tokenizer):
    model.generation_config.eos_token_id = [END, 40]
    answers = [answer for own in draw(favouring(model, 40), prompts, tokenizer) for answer in own]
    assert all(40 not in answer[:-1] for answer in answers)
    assert sum(answer[-1] == 40 for answer in answers) > 5


def test_the_models_own_generation_settings_do_not_change_what_is_drawn_and_are_put_back(model, prompts, tokenizer):
    first = draw(model, prompts, tokenizer)
    own = model.generation_config
    own.repetition_penalty, own.top_k, own.min_new_tokens = 5.0, 1, 6
    assert draw(model, prompts, tokenizer) == first
    assert model.generation_config is own
    assert own.top_k == 1


def test_sampling_disturbs_nothing(model, prompts, tokenizer):
    model.train()
    model.config.use_cache = False
    before = {name: t.clone() for name, t in model.state_dict().items()}
    states = (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))
    draw(model, prompts, tokenizer)
    assert all(module.training for module in model.modules())
    assert model.config.use_cache is False
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())) == states


def test_answers_come_from_the_adapter_too(prompts, tokenizer):
    plain = draw(tiny_model(), prompts, tokenizer)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, lora_alpha=64)
    assert draw(get_peft_model(tiny_model(), config), prompts, tokenizer) != plain
    fresh = LoraConfig(r=4, target_modules="all-linear")
    assert draw(get_peft_model(tiny_model(), fresh), prompts, tokenizer) == plain  # it begins as nothing


def rank(number, ranks):
    return SimpleNamespace(
        process_index=number,
        num_processes=ranks,
        device=torch.device("cpu"),
        distributed_type=DistributedType.MULTI_CPU,
        autocast=lambda: torch.autocast("cpu", enabled=False),
        gather=lambda tensor: tensor,
    )


def test_two_ranks_draw_the_answers_that_one_draws(model, prompts, tokenizer, monkeypatch):
    how = sampling(token_budget=40)
    alone = draw(model, prompts, tokenizer, how)
    parts = []

    def values(self, model, score):
        found = {int(row): value for batch, part in self.results(model, score) if not batch.repeated
                 for row, value in zip(batch.rows, part, strict=True)}  # fmt: skip
        parts.append(found)
        return np.zeros((0, how.max_new_tokens), dtype=np.float32)

    monkeypatch.setattr(module.RowPass, "values", values)
    for number in (0, 1):
        draw(model, prompts, tokenizer, how, accelerator=rank(number, 2))
    first, second = parts
    assert first
    assert second
    assert sorted([*first, *second]) == list(range(15))
    together = [tuple(int(t) for t in ({**first, **second})[row] if t >= 0) for row in range(15)]
    assert [together[start : start + 3] for start in range(0, 15, 3)] == alone


def test_a_model_that_cannot_generate_is_refused(prompts, tokenizer):
    with pytest.raises(ComponentError, match=r"Linear holds no model of transformers, .* -> .*such as less"):
        draw(torch.nn.Linear(2, 2), prompts, tokenizer)


def test_without_any_end_token_sampling_is_refused(model, prompts):
    model.generation_config.eos_token_id = None
    with pytest.raises(ComponentError, match="neither the tokenizer nor the model has an end token"):
        draw(model, prompts, SimpleNamespace(eos_token_id=None, pad_token_id=0))


def test_a_tokenizer_without_padding_pads_with_the_end_token(model, prompts, tokenizer):
    bare = SimpleNamespace(eos_token_id=END, pad_token_id=None)
    assert draw(model, prompts, bare, sampling(top_k=1)) == draw(model, prompts, tokenizer, sampling(top_k=1))
