"""Prompts planned under TRL's GRPO and RLOO: their sampler, their rewards, resuming, and what is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
import trl
from dataflex import dynamic
from dataflex.core.errors import CheckpointError, ConfigError
from dataflex.core.schedule import Steps
from dataflex.planning import run_schedule
from dataflex.planning.step_rows import StepRows
from dataflex.rows.row_numbers import ROW_NUMBERS, NumberedRow, NumberingRows
from dataflex.run.record import read_trace
from dataflex.train.mixer.base_mixer import Mixer
from dataflex.train.selector.base_selector import Selector
from dataflex.train.weighter.base_weighter import Weighter
from dataflex.upstream import online_trainers
from dataflex.upstream.online_trainers import Generation, online_stage
from packaging.version import Version

from tests.unit.online_runs import STEPS, online_trainer, prompts, reward

pytestmark = [
    pytest.mark.skipif(Version(trl.__version__) < Version("0.24"), reason="prompts are planned from TRL 0.24 on"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Passing `generation_config`"),
    pytest.mark.filterwarnings("ignore:This trainer will soon be moved"),
]
STAGES = ["grpo", "rloo"]
SPREAD = {"selector": "reward_spread", **STEPS}


class InOrder(Selector):
    """The next rows of the dataset, round and round, and what it was asked."""

    draws = False

    def __init__(self, **run: Any) -> None:
        super().__init__(**run)
        self.asked: list[int] = []

    def select(self, model, step_id, num_samples, **kwargs):
        start = sum(self.asked)
        self.asked.append(num_samples)
        return np.arange(start, start + num_samples) % len(self.dataset)


class Hears(Mixer):
    """Takes both sources alike and keeps what it observes."""

    draws = False

    def __init__(self, mixture_manager) -> None:
        super().__init__(mixture_manager)
        self.heard: list[tuple[int, Any, Any]] = []

    def mix(self, model, step_id, **kwargs):
        return np.array([0.5, 0.5])

    def observe(self, step, losses_K, tokens_K):
        self.heard.append((step, losses_K.copy(), tokens_K.copy()))


def spied(given: list[tuple[list[str], list[float]]]):
    """A reward function that keeps the prompts and rewards of each generation."""

    def rewarding(prompts, completions, kind, **more):
        found = reward(prompts, completions, kind, **more)
        given.append((list(prompts), found))
        return found

    return rewarding


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("stage", STAGES)
def test_the_rows_of_a_plan_in_their_order_are_trls_own_run_bit_for_bit(stage, tmp_path):
    rows, ours_saw, plain_saw = prompts(16), [], []
    ours = online_trainer(
        stage, tmp_path / "o", rows, {"selector": InOrder, **STEPS}, reward_funcs=spied(ours_saw), shuffle_dataset=False
    )
    ours.train()
    plain = online_trainer(stage, tmp_path / "p", rows, None, reward_funcs=spied(plain_saw), shuffle_dataset=False)
    plain.train()
    assert ours_saw == plain_saw
    assert len(ours_saw) == 8
    expected = weights(plain)
    assert all(torch.equal(value, expected[name]) for name, value in weights(ours).items())
    assert ours.component.asked == [4, 4, 4, 4]


@pytest.mark.parametrize(
    ("settings", "asked", "generations"),
    [
        ({"steps_per_generation": 4}, [2, 2, 2, 2], 4),  # of 4 prompts, each of which serves two steps
        ({"num_iterations": 2}, [2, 2, 2, 2], 4),
        ({"steps_per_generation": 1}, [4, 4, 4, 4], 16),  # two generations of one prompt in each step
    ],
)
def test_prompts_are_asked_for_by_generation_and_given_as_trl_gives_them(settings, asked, generations, tmp_path):
    rows, ours_saw, plain_saw = prompts(16), [], []
    asked = [4, 4, 4, 4] if "steps_per_generation" in settings else asked
    for name, axes, saw in (("o", {"selector": InOrder, **STEPS}, ours_saw), ("p", None, plain_saw)):
        made = online_trainer(
            "grpo", tmp_path / name, rows, axes, reward_funcs=spied(saw), shuffle_dataset=False, **settings
        )
        made.train()
        if axes:
            assert made.component.asked == asked
    assert ours_saw == plain_saw
    assert len(ours_saw) == generations


@pytest.mark.parametrize("stage", STAGES)
def test_rewards_are_kept_by_the_row_that_was_sampled(stage, tmp_path):
    rows, saw = prompts(12), []
    made = online_trainer(stage, tmp_path, rows, SPREAD, reward_funcs=spied(saw))
    made.train()
    place = {text: number for number, text in enumerate(rows["prompt"])}
    sums, counts = np.zeros(12), np.zeros(12, dtype=int)
    for said, given in saw:
        for text, value in zip(said, given, strict=True):
            sums[place[text]] += value
            counts[place[text]] += 1
    kept = made.rollouts.rewards
    assert kept.sums.tolist() == sums.tolist()
    assert kept.counts.tolist() == counts.tolist()
    assert counts.sum() == 8 * 2 * 4
    assert kept.binary


def test_reward_functions_are_weighed_and_one_that_gives_none_is_left_out(tmp_path):
    def half(prompts, completions, **more):
        return [None if n % 2 else 0.5 for n, _ in enumerate(completions)]

    def nothing(prompts, completions, **more):
        return [None] * len(completions)

    rows = prompts(8)
    both = online_trainer(
        "grpo", tmp_path / "a", rows, SPREAD, reward_funcs=[half, nothing], reward_weights=[2.0, 5.0], max_steps=2
    )
    both.train()
    kept = both.rollouts.rewards
    assert (kept.counts.sum(), kept.sums.sum()) == (8, 8.0)  # half of 16 answers, each 2 x 0.5


def test_the_record_has_rewards_by_source_and_the_texts_of_prompts(tmp_path):
    sources = {
        "easy": prompts(8).map(lambda row: {"kind": 1}),
        "mixed": prompts(8, "blue").map(lambda row: {"kind": 2}),
    }
    made = online_trainer("grpo", tmp_path, sources, {"mixer": Hears, "selector": "reward_spread", **STEPS})
    made.train()
    lines = [line for line in read_trace(tmp_path) if line["kind"] == "reward"]
    assert [line["step"] for line in lines] == list(range(8))
    assert all(line["sources"]["easy"] == {
        "prompts": 1, "answers": 4, "reward": 1.0, "spread": 0.0, "alike": 1.0
    } for line in lines)  # fmt: skip
    assert any(line["sources"]["mixed"]["spread"] > 0 for line in lines)
    texts = [json.loads(line) for line in Path(tmp_path, "dataflex_rows.jsonl").read_text().splitlines()[1:]]
    assert {line["text"] for line in texts} == set(sources["easy"]["prompt"]) | set(sources["mixed"]["prompt"])
    for step, spread_K, answers_K in made.components.observing_mixer.heard:
        assert spread_K[0] == 0
        assert spread_K[1] == lines[step - 1]["sources"]["mixed"]["spread"] or answers_K.tolist() == [4, 4]


def test_a_step_that_reuses_a_generation_shows_the_mixer_no_rewards(tmp_path):
    sources = {"a": prompts(8), "b": prompts(8, "blue")}
    made = online_trainer("grpo", tmp_path, sources, {"mixer": Hears, **STEPS}, num_iterations=2, max_steps=4)
    made.train()
    heard = made.components.observing_mixer.heard
    assert [answers_K.tolist() for _, _, answers_K in heard] == [[4, 4], [0, 0], [4, 4], [0, 0]]
    assert np.isnan(heard[1][1]).all()


@pytest.mark.parametrize("lacking", ["a", "b"])
def test_a_reward_function_is_given_the_columns_of_every_source_and_none_where_one_has_no_such(lacking, tmp_path):
    given = []

    def solved(prompts, completions, solution="not given", **more):
        given.extend(zip(prompts, solution, strict=True))
        return [None if each is None else 1.0 for each in solution]

    sources = {"a": prompts(8), "b": prompts(8, "blue")}
    sources = {
        name: rows if name == lacking else rows.add_column("solution", [f"of {p}" for p in rows["prompt"]])
        for name, rows in sources.items()
    }
    made = online_trainer("grpo", tmp_path, sources, {"mixer": "random", **STEPS}, max_steps=4, reward_funcs=solved)
    made.train()
    without = {"a": "red", "b": "blue"}[lacking]
    assert given
    assert all((said is None) == prompt.startswith(without) for prompt, said in given)
    assert all(said in (None, f"of {prompt}") for prompt, said in given)


def test_odm_learns_from_the_spread_of_each_source(tmp_path):
    easy, mixed = prompts(12).map(lambda row: {"kind": 1}), prompts(12, "blue").map(lambda row: {"kind": 2})
    made = online_trainer(
        "grpo", tmp_path, {"easy": easy, "mixed": mixed},
        {"mixer": {"name": "odm", "params": {"smoothing": 0.0}}, **STEPS},
        max_steps=16, per_device_train_batch_size=8,
    )  # fmt: skip
    made.train()
    mixing = [line for line in read_trace(tmp_path) if line["kind"] == "mix"]
    assert mixing[-1]["losses"]["easy"] == 0
    assert mixing[-1]["proportions"]["mixed"] > mixing[-1]["proportions"]["easy"]


AXES = {
    "a selector": SPREAD,
    "random rows": {"selector": "random", **STEPS},
    "two sources": {"mixer": "odm", "selector": "reward_spread", "order": "shuffle", **STEPS},
    "a filter": {"selector": [{"name": "reward_spread", "keep": 0.5}, {"name": "random"}], **STEPS},
    "an order": {"selector": "random", "order": {"name": "sorting", "by": "reward", "over": "stretch"}, **STEPS},
    "neighbours": {"selector": {"name": "reward_spread", "params": {"neighbours": 2, "max_age": 3}}, **STEPS},
}


RESUMED = [(name, 3, {}) for name in AXES]  # in the middle of a segment
RESUMED += [
    ("two sources", 3, {"num_iterations": 2}),
    ("a selector", 3, {"steps_per_generation": 4}),
]  # of a generation


@pytest.mark.parametrize(("name", "save", "settings"), RESUMED, ids=str)
def test_a_run_that_is_resumed_ends_bit_for_bit_as_one_that_was_not(name, save, settings, tmp_path):
    rows: Any = prompts(16)
    axes: dict[str, Any] = AXES[name]
    if "mixer" in axes:
        rows = {"a": prompts(9), "b": prompts(12, "blue")}
    whole_saw, resumed_saw = [], []
    keys = {"save_strategy": "steps", "save_steps": save, "max_steps": 6, **settings}
    whole = online_trainer("grpo", tmp_path / "w", rows, axes, reward_funcs=spied(whole_saw), **keys)
    whole.train()
    resumed = online_trainer("grpo", tmp_path / "r", rows, axes, reward_funcs=spied(resumed_saw), **keys)
    resumed.train(resume_from_checkpoint=str(tmp_path / "w" / f"checkpoint-{save}"))
    assert resumed_saw == whole_saw[len(whole_saw) - len(resumed_saw) :]
    assert 0 < len(resumed_saw) < len(whole_saw)
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())
    for key in ("sums", "squares", "counts", "steps"):
        assert vars(resumed.rollouts.rewards)[key].tolist() == vars(whole.rollouts.rewards)[key].tolist()


@pytest.mark.parametrize(
    ("name", "ends", "settings"),
    [
        ("a selector", 3, {"steps_per_generation": 4}),
        ("two sources", 5, {"num_iterations": 2}),
        ("random rows", 1, {"steps_per_generation": 3, "generation_batch_size": None}),
        ("random rows", 2, {"steps_per_generation": 3, "generation_batch_size": None}),
    ],
    ids=str,
)
def test_a_run_that_ended_inside_of_a_generation_goes_on_as_one_that_did_not_end(name, ends, settings, tmp_path):
    rows: Any = {"a": prompts(9), "b": prompts(12, "blue")} if name == "two sources" else prompts(16)
    axes: dict[str, Any] = AXES[name]
    if settings.get("steps_per_generation") == 3:  # 3 micro-batches of 2: generations of 3 steps hold two of them
        axes = axes | {"update_step": 3}
    whole_saw, first_saw, more_saw = [], [], []
    keys = {"save_strategy": "steps", "save_steps": ends, "lr_scheduler_type": "constant", **settings}
    whole = online_trainer("grpo", tmp_path / "w", rows, axes, reward_funcs=spied(whole_saw), max_steps=9, **keys)
    whole.train()
    ended = online_trainer("grpo", tmp_path / "r", rows, axes, reward_funcs=spied(first_saw), max_steps=ends, **keys)
    ended.train()
    longer = online_trainer("grpo", tmp_path / "r", rows, axes, reward_funcs=spied(more_saw), max_steps=9, **keys)
    longer.train(resume_from_checkpoint=str(tmp_path / "r" / f"checkpoint-{ends}"))
    assert longer.state.global_step == 9
    assert first_saw + more_saw == whole_saw
    expected = weights(whole)
    assert all(torch.equal(value, expected[key]) for key, value in weights(longer).items())
    assert longer.rollouts.rewards.steps.tolist() == whole.rollouts.rewards.steps.tolist()


def test_a_checkpoint_inside_of_a_generation_holds_its_answers_and_others_do_not(tmp_path):
    made = online_trainer(
        "grpo", tmp_path, prompts(16), SPREAD, num_iterations=2, save_strategy="steps", save_steps=1, max_steps=2
    )
    kept: dict[int, Any] = {}
    state = made.rollouts.state_dict

    def noted():
        found = state()
        kept[made.state.global_step] = found["left"]
        return found

    made.rollouts.state_dict = noted
    made.train()
    assert kept[2] is None
    assert len(kept[1]) == 1
    assert {"completion_ids", "advantages"} <= set(kept[1][0][0])


def test_a_second_training_by_the_same_trainer_begins_with_no_rewards(tmp_path):
    made = online_trainer("grpo", tmp_path, prompts(16), SPREAD, max_steps=4)
    made.train()
    first = made.rollouts.rewards.counts.sum()
    made._dataflex_state.forget()
    assert (first, made.rollouts.rewards.counts.sum()) == (32, 0)


@pytest.mark.parametrize(
    ("generation", "steps"),
    [
        (Generation(2, 4, 2, 2), 1),
        (Generation(2, 4, 4, 2), 2),
        (Generation(4, 4, 3, 2), 3),
        (Generation(4, 4, 1, 4), 1),
    ],
)
def test_the_shortest_stretch_between_updates_is_the_least_that_whole_generations_fill(generation, steps):
    fits = (n for n in itertools.count(1) if n * generation.accumulation % generation.every == 0)
    assert generation.unit == next(fits) == steps
    assert generation.boundary("update_step", steps * 3) is None


@pytest.mark.parametrize(("rows", "every", "accumulation"), [(6, 2, 2), (2, 4, 2), (4, 3, 2), (4, 1, 4), (1, 8, 1)])
def test_rows_of_steps_are_what_a_count_of_micro_batches_finds(rows, every, accumulation):
    counted = StepRows(rows, every, accumulation)
    for steps in range(20):
        taken = sum(1 for micro in range(steps * accumulation) if micro % every == 0)
        assert counted.of(steps) == taken * rows
        done, served = counted.done(steps)
        assert done + (rows if served else 0) == counted.of(steps)
        assert served == steps * accumulation % every
    assert counted.per_step * every == rows * accumulation


@pytest.mark.parametrize(("more", "rows"), [({}, 2), ({"steps_per_generation": 4}, 4)])
def test_a_component_is_told_the_prompts_of_a_step_and_not_its_answers(more, rows, tmp_path):
    made = online_trainer("grpo", tmp_path, prompts(16), {"selector": InOrder, **STEPS}, max_steps=4, **more)
    context = made.update_context(0, 1, 4)
    assert context.step_rows == rows
    made.train()
    assert made.component.asked == [2 * 2] * 2 if not more else [4] * 2


def test_a_checkpoint_of_generations_of_other_prompts_is_refused(tmp_path):
    first = online_trainer("grpo", tmp_path, prompts(16), SPREAD, max_steps=4, save_strategy="steps", save_steps=2)
    first.train()
    other = online_trainer("grpo", tmp_path, prompts(16), SPREAD, max_steps=4, num_generations=2)
    with pytest.raises(CheckpointError, match=r"generation: .*'num_generations': 4.* in the checkpoint, .*: 2"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_checkpoint_of_rewards_of_another_measure_is_refused(tmp_path):
    first = online_trainer("grpo", tmp_path, prompts(16), SPREAD, max_steps=4, save_strategy="steps", save_steps=2)
    first.train()
    other = online_trainer("grpo", tmp_path, prompts(16), SPREAD, max_steps=4, reward_weights=[2.5])
    with pytest.raises(CheckpointError, match=r"rewards: reward x 1 in the checkpoint, reward x 2\.5 now"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_an_update_inside_of_a_generation_is_refused_with_the_numbers(tmp_path):
    with pytest.raises(ConfigError) as refused:
        online_trainer(
            "grpo", tmp_path, prompts(16), {"selector": "random", **STEPS, "warmup_step": 1, "update_step": 3},
            steps_per_generation=4,
        )  # fmt: skip
    said = str(refused.value)
    assert "update_step: is 3, and the trainer samples answers for 4 micro-batches" in said
    assert "after a multiple of 2 steps -> set update_step: 2 or 4, or another steps_per_generation" in said
    assert "warmup_step: is 1," in said
    assert "set warmup_step: 2, or" in said


def test_a_run_without_updates_inside_of_generations_may_end_inside_of_one(tmp_path):
    made = online_trainer("grpo", tmp_path, prompts(16), SPREAD, steps_per_generation=4, max_steps=7)
    made.train()
    assert made.rollouts.rewards.counts.sum() == 4 * 4 * 4


def test_more_prompts_at_once_than_there_are_is_refused_with_what_fits(tmp_path):
    with pytest.raises(
        ConfigError, match=r"asks for 20 prompts at once .* the dataset has 7 -> an update every 3 steps"
    ):
        online_trainer("grpo", tmp_path, prompts(7), {"selector": "random", **STEPS, "update_step": 10}, max_steps=20)


def test_epochs_are_counted_in_prompts(tmp_path):
    made = online_trainer("grpo", tmp_path, prompts(17), SPREAD, max_steps=-1, num_train_epochs=3)
    plain = online_trainer("grpo", tmp_path / "p", prompts(17), None, max_steps=-1, num_train_epochs=3)
    plain.train()
    assert made.schedule.total == plain.state.max_steps == 24


class Times(Weighter):
    """A weighter."""

    def get_weighted_loss(self, losses, *, ctx, model, inputs):
        return losses.mean()


REFUSED = {
    "weighs the loss of rows": {"weighter": Times},
    "looks at the loss or the tokens": {"selector": "loss", **STEPS},
    "asks for losses of tokens": {"selector": "zeroth", **STEPS},
    "found 'loss', and the rows": {"order": {"name": "sorting", "by": "loss"}, **STEPS},
    "found 'length', and the rows": {"order": {"name": "sorting", "by": "length"}, **STEPS},
    "asks for loss curves": {"mixer": "ado", **STEPS},
    "found 'seen:5', and the rows": {"order": {"name": "sorting", "by": "seen:5"}, **STEPS},
    "asks for losses of held-out rows": {"mixer": {"name": "odm", "params": {"reward": "eval_loss"}}, **STEPS},
    "objective_proportions: weigh the loss of the sources": {"mixer": "odm", "objective_proportions": [1, 1], **STEPS},
    "mixture_unit: found 'tokens'": {"mixer": "temperature", "mixture_unit": "tokens", **STEPS},
    "mixture_by: found 'cluster:2'": {"mixer": "odm", "mixture_by": "cluster:2", **STEPS},
}


@pytest.mark.parametrize(("said", "axes"), REFUSED.items())
def test_what_needs_a_loss_of_rows_is_refused_with_the_reason(said, axes, tmp_path):
    rows = {"a": prompts(8), "b": prompts(8)} if "mixer" in axes and "mixture_by" not in axes else prompts(8)
    with pytest.raises(ConfigError) as refused:
        online_trainer("grpo", tmp_path, rows, axes)
    assert said in str(refused.value)
    assert "stage grpo are prompts" in str(refused.value)
    assert " -> " in str(refused.value)


class WeighsSources(Mixer):
    """Weighs the loss of sources, and says of its class nothing that would show it."""

    def mix(self, model, step_id, **kwargs):
        return np.array([0.5, 0.5])

    def loss_weights(self):
        return np.array([1.0, 9.0])


class LooksAtGradients(WeighsSources):
    """Goes by gradients."""

    loss_weights = Mixer.loss_weights

    def observe_gradients(self, step, gradients):
        pass


class LooksAtLogits(WeighsSources):
    """Goes by logits."""

    loss_weights = Mixer.loss_weights

    def logit_values(self, inputs, losses_BT, logits_BTV):
        return losses_BT


@pytest.mark.parametrize(
    ("mixer", "said"),
    [
        (WeighsSources, "weighs the loss of each source"),
        (LooksAtGradients, "looks at gradients"),
        (LooksAtLogits, "looks at logits"),
    ],
)
def test_what_a_mixer_would_be_asked_of_a_loss_is_not_left_out_in_silence(mixer, said, tmp_path):
    with pytest.raises(ConfigError, match=f"{said}, and the rows of this trainer are prompts.* -> use a mixer"):
        online_trainer("grpo", tmp_path, {"a": prompts(8), "b": prompts(8)}, {"mixer": mixer, **STEPS})


def test_rewards_are_refused_where_no_answer_is_sampled(tmp_path):
    for axes in ({"selector": "reward_spread"}, {"order": {"name": "sorting", "by": "reward"}}):
        made = dynamic(transformers.Trainer, **axes, **STEPS)
        with pytest.raises(ConfigError, match=r"goes by the rewards of sampled answers, and this trainer samples none"):
            made(model=None, args=transformers.TrainingArguments(str(tmp_path)), train_dataset=[{"input_ids": [1]}])


def test_streams_of_prompts_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"train_dataset"):
        online_trainer("grpo", tmp_path, prompts(8).to_iterable_dataset(), SPREAD)
    rows = {"a": prompts(8).to_iterable_dataset(), "b": prompts(8).to_iterable_dataset()}
    with pytest.raises(ConfigError, match=r"is a stream, whose prompts cannot be told apart"):
        online_trainer("grpo", tmp_path, rows, {"mixer": "random", **STEPS})


def test_a_subclass_is_known_unless_it_makes_its_batches_itself(tmp_path):
    class Own(trl.GRPOTrainer):
        """A trainer of a user's own."""

    class OwnBatches(trl.GRPOTrainer):
        """One with a loader of its own."""

        def _get_train_sampler(self, dataset=None):
            return super()._get_train_sampler(dataset)

    assert online_stage(Own) == "grpo"
    assert online_stage(trl.SFTTrainer) is None
    dynamic(Own, **SPREAD)
    with pytest.raises(ConfigError, match=r"OwnBatches overrides _get_train_sampler of GRPOTrainer, .* -> take"):
        dynamic(OwnBatches, **SPREAD)


def test_an_older_trl_is_refused_by_its_release(monkeypatch):
    monkeypatch.setattr(online_trainers, "version_of", lambda name: "0.23.1")
    with pytest.raises(ConfigError, match=r"trl: found 0.23.1, and prompts are planned from 0.24.0 on"):
        dynamic(trl.GRPOTrainer, **SPREAD)


def test_evaluation_samples_answers_that_are_not_kept(tmp_path):
    made = online_trainer("grpo", tmp_path, prompts(16), SPREAD, per_device_eval_batch_size=4, max_steps=2)
    made.train()
    before = made.rollouts.rewards.counts.sum()
    made.evaluate(prompts(4, "blue"))
    assert made.rollouts.rewards.counts.sum() == before == 16


def test_a_row_of_the_users_is_never_written_to():
    rows = [{"prompt": "a", "kind": 0}]
    batch = NumberingRows(list)([NumberedRow(rows[0], 5), NumberedRow(rows[0], 5)])
    assert [row.pop(ROW_NUMBERS) for row in batch] == [5, 5]
    assert rows == [{"prompt": "a", "kind": 0}]


def test_a_schedule_of_prompts_has_pieces_of_whole_generations(tmp_path, monkeypatch):
    monkeypatch.setattr(run_schedule, "PIECE", 12)
    made = online_trainer(
        "grpo", tmp_path, prompts(16), {"order": "shuffle", "update_times": 0}, steps_per_generation=4, max_steps=12
    )
    assert made.schedule.longest % made.rollouts.generation.unit == 0
    made.train()
    assert made.rollouts.rewards.counts.sum() == 6 * 4 * 4
    assert Steps(0, 2, -1, 12, 1.0).plan(4).total == 12


def test_datasets_of_prompts_stay_as_they_are(tmp_path):
    rows = prompts(8)
    before = rows.to_dict()
    online_trainer("grpo", tmp_path, rows, SPREAD, max_steps=2).train()
    assert rows.to_dict() == before
    assert isinstance(rows, datasets.Dataset)
