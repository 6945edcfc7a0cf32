"""``rho_tokens``: the tokens that are taken, by the numbers of three programs, by brute force, and in a run."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from dataflex.core.cost import Ahead, Amount
from dataflex.core.errors import CheckpointError, ComponentError, ConfigError
from dataflex.core.registry import register_weighter
from dataflex.model.label_logits import IGNORED
from dataflex.objective.label_counts import predicted
from dataflex.testing import TokenRows, pad_collate, tiny_model
from dataflex_weighters.parts import kept_token_losses
from dataflex_weighters.parts.kept_token_losses import KeptTokenLosses
from dataflex_weighters.rho_tokens import RhoTokensWeighter, kept_tokens, selected
from golden_numbers import golden_cases
from rank_group import on_ranks
from weighted_run import weighted

CASES = golden_cases("rho_tokens")
ROWS = TokenRows(24, lengths=range(6, 17), prompt=3)


def cases(program):
    found = [case for case in CASES if case["program"] == program]
    assert found
    return [pytest.param(case, id=case["name"]) for case in found]


def padded(rows, fill):
    T = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (T - len(row))] for row in rows], dtype=torch.float64)


def taken(excess_BT, there_BT, level, share, least):
    """The positions that are taken, (row, position), through the function that training uses."""
    B, T = excess_BT.shape
    groups = torch.zeros(B, T, dtype=torch.int64) if level == "global" else torch.arange(B)[:, None].expand(B, T)
    S = 1 if level == "global" else B
    counts = np.array([int((there_BT & (groups == s)).sum()) for s in range(S)])
    kept = torch.from_numpy(kept_tokens(counts, share, least))
    groups = groups.masked_fill(~there_BT, S)
    found = selected(excess_BT.flatten(), groups.flatten(), kept).view(B, T)
    return found.nonzero().tolist()


def by_hand(excess_BT, there_BT, level, share, least):
    """Slow and obvious."""
    B, T = excess_BT.shape
    groups = (
        [[(i, t) for i in range(B) for t in range(T)]]
        if level == "global"
        else [[(i, t) for t in range(T)] for i in range(B)]
    )
    found = []
    for group in groups:
        group = [(i, t) for i, t in group if there_BT[i, t]]
        k = min(len(group), max(least, math.floor(share * len(group) + 1e-9)))
        found += sorted(group, key=lambda at: (-float(excess_BT[at]), at))[:k]
    return sorted(map(list, found))


# -- the numbers of other programs


@pytest.mark.parametrize("case", cases("TokenCleaning"))
def test_the_tokens_of_token_cleaning_are_taken(case):
    given, params, wanted = case["inputs"], case["params"], case["outputs"]
    labels = padded(given["labels"], IGNORED)
    excess = padded(given["model_losses"], 0.0) - padded(given["reference_losses"], 0.0)
    np.testing.assert_allclose(excess.numpy(), padded(wanted["excess"], 0.0).numpy(), atol=1e-9)
    found = taken(excess, labels != IGNORED, params["level"], params["share"], least=0)
    assert found == wanted["selected_sorted"]
    assert len(found) == wanted["num_selected"]


def test_a_short_row_is_trained_on_although_token_cleaning_takes_none_of_it():
    """`int(count * share)` of a row of one or two tokens is 0 there; here one token is taken at least."""
    case = next(case for case in CASES if case["name"] == "share 0.3: int() may give zero; row by row")
    labels = padded(case["inputs"]["labels"], IGNORED) != IGNORED
    excess = padded(case["inputs"]["model_losses"], 0.0) - padded(case["inputs"]["reference_losses"], 0.0)
    ours = taken(excess, labels, "sample", 0.3, least=1)
    assert {row for row, _ in case["outputs"]["selected_sorted"]} < {row for row, _ in ours} == {0, 1, 2}


@pytest.mark.parametrize("case", cases("rho-1-reproduce"))
def test_the_tokens_and_the_loss_of_rho_1_reproduce(case):
    given, wanted = case["inputs"], case["outputs"]
    targets = torch.tensor(given["targets"])
    model, reference = (
        torch.nn.functional.cross_entropy(
            torch.tensor(given[key], dtype=torch.float64).flatten(0, 1), targets.flatten(), reduction="none"
        ).view(targets.shape)
        for key in ("model_logits", "reference_logits")
    )
    np.testing.assert_allclose(model.numpy(), wanted["model_losses"], rtol=1e-7)
    np.testing.assert_allclose(reference.numpy(), wanted["reference_losses"], rtol=1e-7)
    found = taken(model - reference, torch.ones_like(targets, dtype=torch.bool), "sample", case["params"]["share"], 1)
    by_row = [sorted(t for i, t in found if i == row) for row in range(len(targets))]
    key = next(key for key in wanted if key.startswith("selected_per_row"))
    assert by_row == [sorted(row) for row in wanted[key]]
    loss = torch.stack([model[i, t] for i, t in found]).mean()
    assert loss.item() == pytest.approx(wanted["loss"], rel=1e-7)


@pytest.mark.parametrize("case", cases("selective-language-modeling"))
def test_selective_language_modeling_ranks_by_raw_logits_which_is_not_done_here(case):
    """Its excess has no softmax normaliser, ties at the edge are all kept, and a small share fails. Not so here."""
    given, wanted, share = case["inputs"], case["outputs"], case["params"]["share"]
    targets = torch.tensor(given["targets"])
    logits, others = (torch.tensor(given[key], dtype=torch.float64) for key in ("model_logits", "reference_logits"))
    log_p = [torch.log_softmax(each, -1).gather(-1, targets[..., None])[..., 0] for each in (logits, others)]
    excess = log_p[1] - log_p[0]
    ours = taken(excess, torch.ones_like(targets, dtype=torch.bool), "sample", share, 1)
    assert ours == by_hand(excess, torch.ones_like(targets, dtype=torch.bool), "sample", share, 1)
    assert len(ours) == len(targets) * max(1, math.floor(share * targets.shape[1]))
    if "error" in wanted:  # no token of a row: a loss all the same
        return
    raw = (others - logits).gather(-1, targets[..., None])[..., 0]  # what that program ranks by
    edge = torch.tensor(wanted["threshold_per_row"], dtype=torch.float64)[:, None]
    k = int(share * targets.shape[1])
    torch.testing.assert_close(raw.sort(dim=1, descending=True).values[:, k - 1 : k], edge, atol=1e-6, rtol=0)
    theirs = (raw >= edge - 1e-6).nonzero().tolist()
    assert torch.stack([-log_p[0][i, t] for i, t in theirs]).mean().item() == pytest.approx(wanted["loss"], rel=1e-6)
    assert (theirs == ours) == case["name"].startswith("excess")  # there the order happens to be the same


# -- the function


@pytest.mark.parametrize("seed", range(20))
def test_any_shape_share_and_ties_as_by_hand(seed):
    rng = np.random.default_rng(seed)
    B, T = rng.integers(1, 6), rng.integers(1, 9)
    excess = torch.from_numpy(rng.integers(-3, 4, (B, T)) / 2.0)  # many ties
    there = torch.from_numpy(rng.random((B, T)) < rng.choice([0.0, 0.3, 0.7, 1.0]))
    for level in ("global", "sample"):
        for share in (0.01, 0.29, 0.3, 0.6, 1.0):
            for least in (0, 1):
                assert taken(excess, there, level, share, least) == by_hand(excess, there, level, share, least)


def test_a_share_is_rounded_down_as_written_and_not_as_floats_have_it():
    assert kept_tokens(np.array([10, 100, 100, 1, 0]), 0.3).tolist() == [3, 30, 30, 1, 0]
    assert kept_tokens(np.array([100]), 0.29).tolist() == [29]  # int(0.29 * 100) is 28
    assert kept_tokens(np.array([7]), 1.0).tolist() == [7]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"reference_model": None}, "reference_model of the rho_tokens weighter: found None, allowed: a text"),
        (
            {"reference_model": "/no/such/folder"},
            "reference_model of the rho_tokens weighter: there is no folder /no/such/folder",
        ),
        (
            {"reference_model": "x", "share": 0},
            "share of the rho_tokens weighter: found 0, allowed: a number above 0 and at most 1",
        ),
        (
            {"reference_model": "x", "scope": "step"},
            "scope of the rho_tokens weighter: found 'step', allowed: batch, row",
        ),
        ({"reference_model": "x", "cached": 1}, "cached of the rho_tokens weighter: found 1, allowed: true, false"),
        (
            {"reference_model": "x", "cache_dtype": "bf16"},
            "cache_dtype of the rho_tokens weighter: found 'bf16', allowed: float32, float16",
        ),
        ({"reference_model": "x", "token_budget": 0}, "token_budget of the rho_tokens weighter: found 0"),
    ],
)
def test_a_bad_parameter_is_refused_by_key_found_and_allowed(params, message):
    with pytest.raises(ConfigError, match=message):
        RhoTokensWeighter(ROWS, None, pad_collate, "/tmp", **params)


def test_the_cost_is_one_pass_of_the_reference_or_one_over_each_step():
    rows, step = Amount(100, 1000, 500), Amount(8, 80, 40)
    ahead = Ahead(rows=rows, step=step, steps=20, model_bytes=7)
    params = {"reference_model": "ref", "cached": True, "cache_dtype": "float16"}
    once = RhoTokensWeighter.cost(params, ahead)
    assert once.update.others == {"ref": rows}
    assert once.cache_bytes == 2 * 1000 + 8 * 100
    each = RhoTokensWeighter.cost(params | {"cached": False}, ahead)
    assert each.step.others == {"ref": step}
    assert not each.update.others


# -- in a run


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    torch.manual_seed(7)
    tiny_model(seed=7).save_pretrained(folder)
    return str(folder)


@register_weighter("told_rho_tokens")
class Told(RhoTokensWeighter):
    """Notes the rows of each micro-batch."""

    rows: list

    def mean_token_weight(self, batches, *, ctx):
        Told.rows += [batch.rows.tolist() for batch in batches]
        return super().mean_token_weight(batches, ctx=ctx)


def run(folder, params, rows=ROWS, keys=None, name="rho_tokens", **args):
    plain = {
        "max_steps": 3,
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": 4,
    }
    done = weighted(folder, name, params, rows, keys=keys, **(plain | args))
    done.train()
    return done


def losses(done):
    return [line["loss"] for line in done.state.log_history if "loss" in line]


def weights_of(done):
    return torch.cat([p.detach().flatten() for p in done.model.parameters()])


def token_losses(model, row):
    """The losses of a row alone, at the tokens that are predicted: position -> loss."""
    ids, labels = torch.tensor([row["input_ids"]]), row["labels"]
    with torch.no_grad():
        logp = torch.log_softmax(model.eval()(input_ids=ids).logits[0].double(), -1)
    return {t: -logp[t - 1, ids[0, t]].item() for t in range(1, len(labels)) if labels[t] != IGNORED}


def expected_loss(reference, rows, micro_batches, scope, share):
    """The loss of the first step by plain loops in float64."""
    from transformers import AutoModelForCausalLM

    other, model = AutoModelForCausalLM.from_pretrained(reference), tiny_model()
    above, below = 0.0, 0
    for numbers in micro_batches:
        own = [token_losses(model, rows[n]) for n in numbers]
        there = [token_losses(other, rows[n]) for n in numbers]
        groups = [list(range(len(numbers)))] if scope == "batch" else [[i] for i in range(len(numbers))]
        for group in groups:
            tokens = [(own[i][t] - there[i][t], own[i][t]) for i in group for t in own[i]]
            tokens = sorted(tokens, reverse=True)[: max(1, math.floor(share * len(tokens) + 1e-9))]
            above += sum(loss for _, loss in tokens)
            below += len(tokens)
    return above / below


@pytest.mark.parametrize("scope", ["batch", "row"])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_loss_of_a_step_is_that_of_plain_loops(tmp_path, reference, scope, cached, accumulation):
    params = {"reference_model": reference, "scope": scope, "cached": cached, "share": 0.4}
    Told.rows = []
    done = run(tmp_path, params, name="told_rho_tokens", max_steps=1, gradient_accumulation_steps=accumulation)
    micro = Told.rows[:accumulation]
    wanted = expected_loss(reference, ROWS, micro, scope, 0.4)
    assert losses(done)[0] == pytest.approx(wanted, rel=2e-5)


def test_the_log_says_once_what_share_of_the_tokens_is_trained_on(tmp_path, reference, caplog):
    with caplog.at_level(logging.INFO, logger="dataflex"):
        run(tmp_path, {"reference_model": reference, "scope": "row", "share": 0.4}, name="told_rho_tokens")
    (said,) = [record.getMessage() for record in caplog.records if "tokens of its first step" in record.getMessage()]
    counts = [sum(label != IGNORED for label in ROWS[row]["labels"][1:]) for row in Told.rows[-3]]
    taken = sum(max(1, math.floor(0.4 * count + 1e-9)) for count in counts)
    share = f"{100 * taken / sum(counts):.1f} %"
    assert said.endswith(
        f"trains on {taken} of the {sum(counts)} tokens of its first step, {share} (share: 0.4, scope: row)"
    )


def test_a_share_of_one_is_the_plain_run_bit_for_bit(tmp_path, reference):
    ours = run(tmp_path / "o", {"reference_model": reference, "share": 1.0}, gradient_accumulation_steps=2)
    plain = run(tmp_path / "p", {}, keys={"weight_objective": "token"}, name="custom", gradient_accumulation_steps=2)
    assert losses(ours) == losses(plain)
    assert torch.equal(weights_of(ours), weights_of(plain))


def test_losses_on_disk_are_those_of_each_batch_and_without_logits_it_is_the_same_run(tmp_path, reference):
    params = {"reference_model": reference}
    kept = run(tmp_path / "k", params)
    for other in (
        run(tmp_path / "e", params | {"cached": False}),
        run(tmp_path / "h", params | {"cache_dtype": "float16"}),
        run(tmp_path / "c", params, keys={"weight_logits": "chunked"}),
        run(tmp_path / "b", params, rows=[ROWS[i] for i in range(24)]),
    ):
        np.testing.assert_allclose(losses(other), losses(kept), rtol=1e-4)
    assert kept.components.weighter._reference is None


def test_the_losses_of_all_rows_are_computed_once_and_never_for_another_model_or_other_rows(tmp_path, reference):
    def made(model, rows, collate=pad_collate, dtype="float32", part=None):
        kept = KeptTokenLosses(str(tmp_path), dtype, None)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.float*")}
        kept.read_or_make(model, rows, collate, None, "test")
        after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.float*")}
        return kept, before != after

    model = tiny_model(seed=7)
    kept, new = made(model, ROWS)
    assert new
    every = kept.losses_of(np.arange(24))
    for row, found in enumerate(every):
        wanted = token_losses(model, ROWS[row])
        assert {t for t in range(len(found)) if not np.isnan(found[t])} == set(wanted)
        np.testing.assert_allclose([found[t] for t in wanted], list(wanted.values()), rtol=1e-5)
    again, new = made(tiny_model(seed=7), ROWS)
    assert not new
    for one, other in zip(every, again.losses_of(np.arange(24)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert made(tiny_model(seed=8), ROWS)[1]
    assert made(model, TokenRows(24, lengths=range(6, 17), prompt=3, seed=1))[1]
    assert made(model, ROWS, dtype="float16")[1]


def test_rows_that_are_padded_on_the_left_have_the_losses_of_rows_alone(tmp_path):
    def left(rows):
        T = max(len(row["input_ids"]) for row in rows) + 3
        fill = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
        return {k: torch.tensor([[v] * (T - len(row[k])) + list(row[k]) for row in rows]) for k, v in fill.items()}

    kept = KeptTokenLosses(str(tmp_path), "float32", None)
    model = tiny_model(seed=7)
    kept.read_or_make(model, ROWS, left, None, "test")
    for row, found in enumerate(kept.losses_of(np.arange(24))):
        there = np.flatnonzero(~np.isnan(found))
        assert there.tolist() == [t for t in range(1, len(found)) if ROWS[row]["labels"][t] != IGNORED]


def test_rows_part_by_part_are_the_rows_at_once(tmp_path, monkeypatch):
    model, found = tiny_model(seed=7), []
    for size in (2**22, 40):
        monkeypatch.setattr(kept_token_losses, "_PART", size)
        kept = KeptTokenLosses(str(tmp_path / str(size)), "float32", None)
        kept.read_or_make(model, ROWS, pad_collate, None, "test")
        found.append(np.asarray(kept.losses))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_a_reference_that_is_not_sound_is_refused(tmp_path, reference):
    broken = tiny_model(seed=7)
    with torch.no_grad():
        broken.lm_head.weight[5] = torch.nan
    broken.save_pretrained(tmp_path / "broken")
    for cached in (True, False):
        with pytest.raises((ComponentError, ConfigError), match="NaN"):
            run(tmp_path / str(cached), {"reference_model": str(tmp_path / "broken"), "cached": cached})
    small = tiny_model(vocab_size=64)
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(ComponentError, match="knows 64 tokens, and the dataset has token"):
        run(tmp_path / "s", {"reference_model": str(tmp_path / "small")})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ComponentError, match=r"reference_model: .*empty cannot be loaded"):
        run(tmp_path / "n", {"reference_model": str(tmp_path / "empty")})


def test_a_reference_with_other_tokens_is_refused_before_training(tmp_path, reference):
    from dataflex_weighters.parts.reference_model import require_same_tokens
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    def saved(name, words):
        vocabulary = {word: number for number, word in enumerate(words)}
        made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")))
        tiny_model().save_pretrained(tmp_path / name)
        made.save_pretrained(tmp_path / name)
        return made

    own = saved("own", "abcd")
    saved("longer", "abcdef")
    saved("other", "abdc")
    require_same_tokens(str(tmp_path / "own"), own)
    require_same_tokens(str(tmp_path / "longer"), own)
    require_same_tokens(reference, own)  # holds no tokenizer: a warning
    with pytest.raises(ComponentError, match="2 is 'c' here and 'd' there, 3 is 'd' here and 'c' there"):
        require_same_tokens(str(tmp_path / "other"), own)


def test_a_resumed_run_must_have_the_same_reference(tmp_path, reference):
    done = run(tmp_path, {"reference_model": reference})
    weighter = done.components.weighter
    state = weighter.state_dict()
    weighter.load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"reference_model: .* holds other weights than when the checkpoint"):
        weighter.load_state_dict({"reference": "another"})


def test_a_resumed_run_ends_as_the_run_in_one_go(tmp_path, reference):
    whole = run(tmp_path / "w", {"reference_model": reference}, max_steps=4, save_steps=2, save_strategy="steps")
    again = weighted(
        tmp_path / "w2", "rho_tokens", {"reference_model": reference}, ROWS, max_steps=4, optim="sgd",
        learning_rate=0.1, max_grad_norm=0.0, per_device_train_batch_size=4,
    )  # fmt: skip
    again.train(resume_from_checkpoint=str(tmp_path / "w" / "checkpoint-2"))
    assert torch.equal(weights_of(again), weights_of(whole))


# -- on ranks


def on_one(accelerator, folder):
    """The weights of two micro-batches of rows that are dealt out to the ranks."""
    from types import SimpleNamespace

    from dataflex.interfaces.weighter import MicroBatch
    from dataflex.objective.samples import ROWS as SAMPLES

    found = {}
    for scope in ("batch", "row"):
        weighter = RhoTokensWeighter(ROWS, accelerator, pad_collate, str(folder), "none", 0.4, scope)
        generator = torch.Generator().manual_seed(3)
        kept = weighter._kept
        starts = np.concatenate([[0], np.cumsum([len(ROWS[n]["input_ids"]) for n in range(24)])])
        kept.losses, kept.starts = torch.randint(0, 5, (int(starts[-1]),), generator=generator).float().numpy(), starts
        rank, ranks = accelerator.process_index, accelerator.num_processes
        share = 6 // ranks
        numbers = [list(range(start + rank * share, start + (rank + 1) * share)) for start in (0, 6)]
        batches = [MicroBatch(pad_collate([ROWS[n] for n in part]), SAMPLES, torch.tensor(part)) for part in numbers]
        context = SimpleNamespace(accelerator=accelerator, samples=SAMPLES, micro_batch=0)
        found[f"{scope} mean"] = np.array(weighter.mean_token_weight(batches, ctx=context))
        for number, batch in enumerate(batches):
            context.micro_batch = number
            labels = batch.inputs["labels"]
            c = torch.zeros(labels.shape).masked_fill(~predicted(labels), 0.0)
            z = weighter.token_weights(c, ctx=context, model=None, inputs=batch.inputs)
            for place, row in enumerate(numbers[number]):
                found[f"{scope} row {row}"] = z[place, : len(ROWS[row]["input_ids"]) - 1].numpy()
    return found


def test_two_ranks_take_the_tokens_that_one_takes(tmp_path):
    alone = on_one(Accelerator(cpu=True), tmp_path)
    both = on_ranks(on_one, 2, tmp_path)
    for name, value in alone.items():
        found = [rank[name] for rank in both if name in rank]
        assert found
        for each in found:
            np.testing.assert_array_equal(each, value)
    assert float(alone["batch mean"]) == pytest.approx(0.4, abs=0.02)
