"""``dynamic(trl.SFTTrainer, ...)``: every kind of rows and options, against TRL's own run and against sums by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import datasets
import dynamic_script
import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
import trl
from dataflex import dynamic
from dataflex.core.errors import ConfigError
from dataflex.core.kinds import KINDS, MIXER, ORDER, SELECTOR, WEIGHTER
from dataflex.objective import fused_head
from dataflex.objective.loop_scale import counts_first
from dataflex.run.record import read_trace, read_updates
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.mixer.base_mixer import Mixer
from dataflex.train.selector.base_selector import Selection, Selector
from dataflex.train.trainer import BY_TRAIN_TYPE
from dataflex.train.weighter.base_weighter import Weighter
from sft_rows import ROWS, asked, chat_tokenizer, config, made, rows

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:`gradient_checkpointing` is deprecated"
    ),  # TRL's own default, in transformers 5.24
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # peft asks for it
    pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated"),
]
TRAINED = [kind for kind in KINDS if kind.train_type in BY_TRAIN_TYPE]  # those that a trainer of their own runs
FUSED = bool(fused_head.fused_output())
STEPS = {"warmup_step": 1, "update_step": 1, "update_times": 2}
OPEN = {"max_steps": -1}
BFD = {"packing": True, "packing_strategy": "bfd"}
WRAPPED = {"packing": True, "packing_strategy": "wrapped"}
FREE = {"padding_free": True, "max_length": None}


class Uniform(Weighter):
    """Weighs nothing."""

    draws = False

    def get_weighted_loss(self, losses, *, ctx, model, inputs):
        return losses.mean()


def lora():
    return peft.LoraConfig(r=4, target_modules="all-linear")


def by_first_words(row):
    return row["messages"][0]["content"]


PLAIN = [(kind, {}, {}) for kind in ROWS]
PLAIN += [("text", BFD, {}), ("text", WRAPPED, {}), ("text", FREE, {})]
PLAIN += [("prompt_completion", {"completion_only_loss": False}, {}), ("messages", {"assistant_only_loss": True}, {})]
PLAIN += [("text", {}, {"peft_config": lora}), ("messages", {}, {"formatting_func": lambda: by_first_words})]


@pytest.mark.parametrize(("kind", "changes", "given"), PLAIN, ids=[str(number) for number in range(len(PLAIN))])
def test_a_weighter_that_weighs_nothing_is_trls_run_bit_for_bit_with_its_metrics(tmp_path, kind, changes, given):
    train, given = rows(kind, 24), {name: make() for name, make in given.items()}
    ours = made(
        dynamic(trl.SFTTrainer, weighter=Uniform, weight_objective="token"),
        tmp_path / "o",
        train,
        None,
        changes,
        **given,
    )
    ours.train()
    plain = made(trl.SFTTrainer, tmp_path / "p", train, None, changes, **given)
    plain.train()
    expected = plain.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in ours.model.state_dict().items())
    assert len(logged(ours)) == 3
    for line, other in zip(logged(ours), logged(plain), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert {key: line[key] for key in METRICS} == {key: other[key] for key in METRICS}
        assert line["dataflex/weight/mean"] == 1


METRICS = ("mean_token_accuracy", "entropy", "num_tokens")


def logged(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def losses_by_row(trainer, dataset):
    """Mean loss of each row by itself under the trainer's weights, from logits."""
    found = []
    for row in dataset:
        keys = set(trainer._signature_columns or ()) & set(row) or {"input_ids"}
        batch = trainer.data_collator([{key: row[key] for key in keys}])
        with torch.no_grad():
            logits = trainer.model.eval()(input_ids=batch["input_ids"]).logits[0, :-1].float()
        found.append(F.cross_entropy(logits, batch["labels"][0, 1:]).item())
    return np.array(found)


@pytest.mark.parametrize(
    ("kind", "changes", "given"),
    [case for case in PLAIN[2:] if case[1] not in (BFD, FREE) and not case[2]],
    ids=lambda each: str(each)[:40],
)
def test_scores_of_rows_are_their_losses_one_by_one(tmp_path, kind, changes, given):
    given = {name: make() for name, make in given.items()}
    cls = dynamic(trl.SFTTrainer, selector="loss", **STEPS | {"warmup_step": 0, "update_times": 1})
    done = made(cls, tmp_path, rows(kind, 24), rows(kind, 4, "owl"), changes | OPEN | {"learning_rate": 0.0}, **given)
    done.train()
    saved = np.load(tmp_path / "dataflex_selections" / "step_00000000.npz")
    direct = losses_by_row(done, done.train_dataset)
    assert saved["scores"] == pytest.approx(direct[saved["indices"]], abs=2e-5)


@pytest.mark.parametrize("name", ["less", "near", "tsds", "zeroth"])
def test_selectors_with_a_target_train_on_chats_with_adapters_and_several_targets(tmp_path, name):
    kind = "chat_prompt_completion"
    targets = {"a": rows(kind, 4, "owl"), "b": rows(kind, 3, "dog")}
    done = made(
        dynamic(trl.SFTTrainer, selector=name, **STEPS), tmp_path, rows(kind), targets, OPEN, peft_config=lora()
    )
    done.train()
    assert [line["step"] for line in read_trace(tmp_path)] == [1, 2]
    assert all(0 <= line["mean_token_accuracy"] <= 1 for line in logged(done))


@pytest.mark.parametrize("changes", [BFD, FREE], ids=["bfd", "padding_free"])
@pytest.mark.parametrize(
    ("axis", "name"), [("selector", "loss"), ("selector", "less"), ("mixer", "odm"), ("weighter", "adapt")]
)
def test_rows_that_cannot_be_told_apart_are_refused_with_the_way_out(tmp_path, axis, name, changes):
    keys = STEPS if axis != "weighter" else {}
    train = {"a": rows("text", 24), "b": rows("text", 24, "owl")} if axis == "mixer" else rows("text", 24)
    with pytest.raises(
        ConfigError, match=rf"the {axis} '{name}' looks at single rows .*padding_free=False, and packing_"
    ):
        made(dynamic(trl.SFTTrainer, **{axis: name}, **keys), tmp_path, train, rows("text", 4), changes | OPEN)


@pytest.mark.parametrize("changes", [BFD, WRAPPED], ids=["bfd", "wrapped"])
@pytest.mark.parametrize(
    ("axis", "name"), [("selector", "random"), ("mixer", "static"), ("mixer", "temperature"), ("weighter", "loss")]
)
def test_what_looks_at_no_row_of_a_batch_takes_packed_ones(tmp_path, axis, name, changes):
    keys = STEPS if axis != "weighter" else {}
    name = None if name == "static" else name
    keys = keys | ({"static_mix": True, "train_step": 3} if name is None else {axis: name})
    train = {"a": rows("text", 40), "b": rows("text", 40, "owl")} if axis == "mixer" else rows("text", 40)
    done = made(dynamic(trl.SFTTrainer, **keys), tmp_path, train, None, changes | (OPEN if axis != "weighter" else {}))
    done.train()
    assert done.state.global_step == 3


@pytest.mark.parametrize("changes", [{}, BFD, WRAPPED, FREE], ids=["padded", "bfd", "wrapped", "padding_free"])
def test_documents_are_weighed_by_the_source_that_they_are_of(tmp_path, changes):
    sources = {"a": rows("text", 24), "b": rows("text", 24, "owl")}
    cls = dynamic(trl.SFTTrainer, weighter="dataset", params={"weights": {"a": 1.0, "b": 3.0}})
    done = made(cls, tmp_path, sources, None, changes)
    seen, step = [], done.component.training_step

    def watched(trainer, model, inputs, **kwargs):
        owls = {tuple(row["input_ids"][:8]) for row in trainer.train_dataset.sources[1]} if not changes else None
        found = trainer.sources_of(trainer.batch_rows)
        seen.append(len(found))
        assert len(found) == trainer.samples.number(len(inputs["input_ids"]))
        if owls is not None:
            first = [tuple(row.tolist()) for row in inputs["input_ids"][:, :8]]
            assert [tokens in owls for tokens in first] == (found == 1).tolist()
        return step(trainer, model, inputs, **kwargs)

    done.component.training_step = watched
    done.train()
    assert len(seen) == 6
    assert all(line["dataflex/weight/max"] <= 3 for line in logged(done))


@pytest.mark.parametrize(("name", "kind"), [("odm", "text"), ("odm", "chat_prompt_completion")])
def test_mixers_see_the_losses_that_a_direct_computation_gives(tmp_path, kind, name):
    sources = {"a": rows(kind, 12), "b": rows(kind, 15, "owl")}
    done = made(dynamic(trl.SFTTrainer, mixer=name, **STEPS), tmp_path, sources, None, OPEN | {"learning_rate": 0.0})
    heard, observe = [], done.component.observe

    def listening(step, losses_K, tokens_K):
        heard.append((losses_K.copy(), tokens_K.copy()))
        observe(step, losses_K, tokens_K)

    done.component.observe = listening
    done.train()
    assert len(heard) == 3
    trained = np.concatenate(
        [np.load(file)["indices"] for file in sorted((tmp_path / "dataflex_selections").iterdir())]
    )
    mixed = done.train_dataset
    for (losses_K, tokens_K), step_rows in zip(heard, trained.reshape(3, 4), strict=True):
        assert losses_K == pytest.approx(means_by_source(done, mixed, step_rows), abs=2e-5, nan_ok=True)
        assert tokens_K.sum() > 0


def means_by_source(trainer, mixed, numbers):
    sums, counts = np.zeros(2), np.zeros(2)
    for number in numbers:
        row, source = mixed[int(number)], int(mixed.sources_of(np.array([number]))[0])
        mean = losses_by_row(trainer, [row])[0]
        keys = set(trainer._signature_columns or ()) & set(row)
        count = int((trainer.data_collator([{key: row[key] for key in keys}])["labels"][0, 1:] != -100).sum())
        sums[source], counts[source] = sums[source] + mean * count, counts[source] + count
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


WEIGHTERS = [
    ("loss", {}, "rows"),
    ("adapt", {}, "rows"),
    ("balancer", {}, "sources"),
    ("column", {"column": "w"}, "rows"),
]


@pytest.mark.parametrize(("name", "params", "data"), WEIGHTERS, ids=lambda each: str(each))
def test_every_weighter_trains_and_trls_metrics_stand_beside_its_weights(tmp_path, name, params, data):
    train = rows("text", 24).add_column("w", [1.0 + i % 3 for i in range(24)])
    train = {"a": rows("text"), "b": rows("text", 12, "owl")} if data == "sources" else train
    target = rows("text", 4, "owl")
    done = made(
        dynamic(trl.SFTTrainer, weighter=name, params=params),
        tmp_path,
        train,
        target,
        {"eval_strategy": "steps", "eval_steps": 2},
    )
    done.train()
    assert all({*METRICS, "dataflex/weight/mean"} <= set(line) for line in logged(done))
    assert any("eval_mean_token_accuracy" in entry for entry in done.state.log_history)


def test_a_weighted_step_is_the_sum_by_hand(tmp_path):
    class Third(Uniform):
        def get_weighted_loss(self, losses, *, ctx, model, inputs):
            return (losses * (1.0 + ctx.batch_rows % 3)).mean()

    train = rows("prompt_completion", 8)
    changes = {"max_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 0.0}
    done = made(
        dynamic(trl.SFTTrainer, weighter=Third), tmp_path, train, None, changes | {"gradient_accumulation_steps": 2}
    )
    done.train()
    weighted = losses_by_row(done, done.train_dataset) * (1.0 + np.arange(8) % 3)
    assert logged(done)[0]["loss"] == pytest.approx(weighted.mean(), abs=2e-4)


def test_a_model_given_by_its_path_is_loaded_after_everything_is_checked(tmp_path, monkeypatch):
    tokenizer = chat_tokenizer()
    tiny_model(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    path = str(tmp_path / "model")
    cls = dynamic(trl.SFTTrainer, selector="less", **STEPS)
    done = cls(
        path, args=config(tmp_path / "r", **OPEN), train_dataset=rows("messages"), eval_dataset=rows("messages", 3)
    )
    done.train()
    assert done.state.global_step == 3
    with pytest.raises(ConfigError, match="eval_dataset: is missing; the selector 'less' aims at one"):
        cls(str(tmp_path / "nowhere"), args=config(tmp_path / "s", **OPEN), train_dataset=rows("messages"))


def test_what_is_streamed_is_mixed_and_not_selected(tmp_path):
    streams = {name: rows("text", 12, name).to_iterable_dataset() for name in ("fox", "owl")}
    mixed = dynamic(trl.SFTTrainer, mixer="random", mixture_sample_rule="uniform", **STEPS)
    done = made(mixed, tmp_path / "m", streams, None, OPEN)
    done.train()
    assert done.state.global_step == 3
    for axis in ("selector", "weighter"):
        name = {"selector": "random", "weighter": "loss"}[axis]
        with pytest.raises(ConfigError, match="streaming"):
            made(dynamic(trl.SFTTrainer, **{axis: name}, **STEPS), tmp_path / axis, streams["fox"], None, OPEN)


def test_a_dict_of_splits_is_a_mixture_or_refused(tmp_path):
    splits = datasets.DatasetDict({"code": rows("text"), "prose": rows("text", 12, "owl")})
    done = made(dynamic(trl.SFTTrainer, mixer="static", **STEPS), tmp_path / "m", splits, None, OPEN)
    assert done.mixture_manager.names == ("code", "prose")
    with pytest.raises(
        ConfigError, match=r"found a mapping of datasets \(code, prose\), but train_type: dynamic_select"
    ):
        made(dynamic(trl.SFTTrainer, selector="random", **STEPS), tmp_path / "s", splits, None, OPEN)


class Doubled(Mixer):
    """Weighs the second source twice."""

    draws = False

    def mix(self, model, step_id, **kwargs):
        return np.array([0.5, 0.5])

    def observe(self, step, losses_K, tokens_K):
        self.heard = losses_K

    def loss_weights(self):
        return np.array([1.0, 2.0])


@pytest.mark.parametrize("axis", ["weighter", "mixer"])
def test_a_loss_of_trls_own_is_not_weighed_in_silence(tmp_path, axis):
    train = rows("text") if axis == "weighter" else {"a": rows("text"), "b": rows("text", 12, "owl")}
    keys = {"weighter": "loss"} if axis == "weighter" else {"mixer": Doubled, **STEPS}
    with pytest.raises(ConfigError, match=r"loss_type: is dft, .* -> set loss_type='nll'"):
        made(dynamic(trl.SFTTrainer, **keys), tmp_path, train, None, {"loss_type": "dft"} | OPEN)


def test_a_mixer_that_weighs_has_its_weights_in_the_loss(tmp_path):
    sources = {"a": rows("text", 12), "b": rows("text", 15, "owl")}
    changes = OPEN | {"learning_rate": 0.0}
    done = made(dynamic(trl.SFTTrainer, mixer=Doubled, **STEPS), tmp_path, sources, None, changes)
    done.train()
    trained = np.concatenate(
        [np.load(file)["indices"] for file in sorted((tmp_path / "dataflex_selections").iterdir())]
    )
    for line, step_rows in zip(logged(done), trained.reshape(3, 4), strict=True):
        weights, counts = 1.0 + (step_rows >= 12), np.array([labels_of(done, row) for row in step_rows])
        losses = losses_by_row(done, [done.train_dataset[int(row)] for row in step_rows])
        counted = counts + counts_first(done)  # of these rows, every token has a label
        expected = (losses * counts * weights).sum() / (counted * weights).sum()
        assert line["loss"] == pytest.approx(expected, rel=2e-3)


def labels_of(trainer, number):
    row = trainer.train_dataset[int(number)]
    keys = set(trainer._signature_columns or ()) & set(row)
    return int((trainer.data_collator([{key: row[key] for key in keys}])["labels"][0, 1:] != -100).sum())


@pytest.mark.parametrize("kind", TRAINED, ids=lambda kind: kind.name)
def test_a_run_that_was_stopped_ends_as_the_one_that_was_not(tmp_path, kind):
    name = {SELECTOR: "loss", MIXER: "odm", ORDER: "shuffle", WEIGHTER: "loss"}[kind]
    train = {"a": rows("text"), "b": rows("text", 15, "owl")} if kind is MIXER else rows("text", 16)
    cls = dynamic(trl.SFTTrainer, **{kind.name: name}, **(STEPS if kind is not WEIGHTER else {"train_step": 3}))
    saving = OPEN | {"save_strategy": "steps", "save_steps": 1}
    whole = made(cls, tmp_path / "whole", train, None, saving)
    whole.train()
    later = made(cls, tmp_path / "later", train, None, saving)
    later.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in later.model.state_dict().items())
    state = json.loads((tmp_path / "later" / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3


def test_a_user_who_computes_the_loss_in_a_subclass_of_sfttrainer_is_weighed_too(tmp_path):
    class Own(trl.SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    done = made(dynamic(Own, weighter="loss"), tmp_path, rows("text"), None, {})
    done.train()
    assert logged(done)[-1]["dataflex/weight/max"] > 1
    assert asked(0)


# Inputs of public reports about the like of it; each is named.


def test_weights_of_chats_may_stand_in_a_column_zero_and_negative_ones_too(tmp_path):
    """huggingface/trl 5761 and 5952 (`weighted_nll`), 1186 (columns that are dropped)."""
    train = rows("messages", 12).add_column("weight", [1.0, 0.5, -0.1, 0.0] * 3)
    cls = dynamic(trl.SFTTrainer, weighter="column", params={"column": "weight", "allow_negative": True})
    for folder, changes in (("a", {}), ("b", {"remove_unused_columns": True, "assistant_only_loss": True})):
        done = made(cls, tmp_path / folder, train, None, changes | {"max_steps": 1})
        done.train()
        assert logged(done)[-1]["dataflex/weight/min"] == pytest.approx(-0.1)


def test_a_weight_that_is_a_text_is_refused_with_its_row(tmp_path):
    """hiyouga/LlamaFactory 5033: a row with `"ratio": "0.51"`."""
    train = rows("messages", 4).add_column("ratio", ["0.51"] * 4)
    with pytest.raises(ConfigError, match="ratio"):
        made(dynamic(trl.SFTTrainer, weighter="column", params={"column": "ratio"}), tmp_path, train, None, {})


class InOrder(Selector):
    """The rows as they stand, from easy to hard."""

    draws = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.taken = 0

    def warmup(self, num_samples, replacement=False):
        return self.select(None, 0, num_samples)

    def select(self, model, step_id, num_samples, **kwargs):
        self.taken += num_samples
        return list(range(self.taken - num_samples, self.taken))


@pytest.mark.parametrize("changes", [{}, {"packing": True, "packing_strategy": "wrapped", "max_length": 4}], ids=str)
def test_a_curriculum_is_trained_on_in_its_order(tmp_path, changes):
    """huggingface/trl 2998 and 4564: rows of one, two, three, ... tokens, not shuffled, packed and not."""
    train = datasets.Dataset.from_dict({"input_ids": [[3 + i] * (i + 1) for i in range(12)]})
    done = made(dynamic(trl.SFTTrainer, selector=InOrder, **STEPS), tmp_path, train, None, changes | OPEN)
    seen, collate = [], done.data_collator
    done.data_collator = lambda batch: (seen.extend(row["input_ids"] for row in batch), collate(batch))[1]
    done.train()
    assert seen[-12:] == [row["input_ids"] for row in done.train_dataset][: len(seen[-12:])]


def losses_logged(folder):
    state = json.loads((folder / "checkpoint-3" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.fixture(scope="module")
def by_ranks(tmp_path_factory):
    """The folders of a training script on one rank and on two."""
    folder = tmp_path_factory.mktemp("script")
    one, two = folder / "1", folder / "2"
    dynamic_script.run(one, 1)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, dynamic_script.__file__, str(two), "2"]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return one, two


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["select", "mix", "weigh"])
def test_two_ranks_make_the_decisions_and_the_losses_of_one(by_ranks, kind):
    one, two = (folder / kind for folder in by_ranks)
    assert len(losses_logged(one)) == 3
    assert losses_logged(one) == pytest.approx(losses_logged(two), rel=2e-3)
    if kind == "weigh":
        return
    first, second = (read_updates(folder) for folder in (one, two))
    assert len(first) == 2
    for line, other in zip(first, second, strict=True):
        if kind == "mix":
            assert line["proportions"] == pytest.approx(other["proportions"], abs=5e-5)  # exp of float32 losses
        else:
            assert line["decision_hash"] == other["decision_hash"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["select", "mix", "weigh"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_that_were_stopped_end_with_the_weights_of_those_that_were_not(by_ranks, kind, ranks):
    folder = by_ranks[ranks - 1]
    whole, later = (sorted((folder / name).glob("weights-*.json")) for name in (kind, f"{kind} resumed"))
    assert len(whole) == len(later) == ranks
    assert {file.read_text() for file in later} == {whole[0].read_text()}
    assert not (folder / f"{kind} resumed" / "checkpoint-2").exists(), "it began with the third step"


class ByLevel(Selector):
    """The rows of the highest level of the raw data."""

    @classmethod
    def needs_columns(cls, params):
        return ("level",)

    def select(self, model, step_id, num_samples, *, context, **kwargs):
        levels = context.scores.of("column:level")
        first = np.argsort(-levels, kind="stable")[:num_samples]
        return Selection(first, levels[first])


def with_levels(kind):
    return rows(kind, 24).add_column("level", [(i * 7) % 24 for i in range(24)])


@pytest.mark.parametrize("kind", ROWS)
def test_rows_are_scored_by_a_column_of_the_dataset_whatever_trl_makes_of_it(tmp_path, kind):
    done = made(dynamic(trl.SFTTrainer, selector=ByLevel, **STEPS), tmp_path, with_levels(kind), changes=OPEN)
    done.train()
    saved = np.load(tmp_path / "dataflex_selections" / "step_00000001.npz")
    assert saved["scores"].tolist() == [23, 22, 21, 20]
    assert [(row * 7) % 24 for row in saved["indices"]] == [23, 22, 21, 20]


@pytest.mark.parametrize("packing", [BFD, WRAPPED])
def test_a_column_of_rows_that_trl_packs_is_refused_before_training(tmp_path, packing):
    with pytest.raises(ConfigError, match=r"column:level: rows are packed.* -> set packing: false, or give the scores"):
        made(dynamic(trl.SFTTrainer, selector=ByLevel, **STEPS), tmp_path, with_levels("text"), changes=OPEN | packing)


EVERY_AXIS = {
    "selector": [{"name": "loss", "keep": 0.5, "every": 2}, "loss"],
    "mixer": "odm",
    "order": {"name": "saw", "by": "length", "params": {"window": 2}},
    "weighter": {"name": "loss", "from": 2},
}


@pytest.mark.parametrize("base", ["trl", "plain"])
def test_all_four_axes_at_once(tmp_path, base):
    if base == "trl":
        sources = {"a": rows("messages", 16), "b": rows("messages", 20, "owl")}
        done = made(dynamic(trl.SFTTrainer, **EVERY_AXIS, **STEPS), tmp_path, sources, None, OPEN)
    else:
        sources = {"a": TokenRows(16, lengths=range(6, 17)), "b": TokenRows(20, lengths=range(6, 17), seed=1)}
        sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 1}
        args = tiny_training_args(tmp_path, **sizes, **OPEN)
        done = dynamic(transformers.Trainer, **EVERY_AXIS, **STEPS)(
            tiny_model(), args=args, train_dataset=sources, data_collator=pad_collate
        )
    done.train()
    assert done.state.global_step == 3
    kinds = [(line["step"], line["kind"]) for line in read_trace(tmp_path) if line["kind"] != "loss"]
    first = [(1, kind) for kind in ("filter", "mix", "select", "order")]
    assert kinds == [*first, *((2, kind) for kind in ("mix", "select", "order")), (2, "weight")]
    (weighed,) = (line for line in read_trace(tmp_path) if line["kind"] == "weight")
    assert weighed["samples"] == 4
    assert set(weighed["sources"]) <= {"a", "b"}
    assert len(logged(done)) == 3
