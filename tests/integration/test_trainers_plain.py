"""The mixins over a plain ``transformers.Trainer``: exact steps, exact parity with the static run, exact resume."""

from __future__ import annotations

import json
import re
from typing import ClassVar

import datasets
import numpy as np
import pytest
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import CheckpointError, ComponentError, ConfigError
from dataflex.core.kinds import MIXER, SELECTOR, WEIGHTER
from dataflex.core.registry import register_selector, register_weighter
from dataflex.run.record import read_trace
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.selector.base_selector import Selection, Selector
from dataflex.train.trainer import MixTrainer, SelectTrainer, WeightTrainer, trainer_class
from dataflex.train.weighter.base_weighter import Weighter
from transformers import Trainer, TrainerCallback

ROWS = 64


def static_order(size: int, seed: int = 42) -> np.ndarray:
    """The rows as the seedable random sampler of accelerate draws them in its first epoch."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).numpy()


@register_selector("as_static")
class AsStatic(Selector):
    """Returns the static order, after doing everything a selector must not leave traces of."""

    def warmup(self, num_samples, replacement=False):
        return static_order(len(self.dataset))[:num_samples]

    def select(self, model, step_id, num_samples, **kwargs):
        assert not any(module.training for module in model.modules())
        torch.rand(7)
        np.random.rand(7)
        with torch.no_grad():
            model(input_ids=torch.tensor([[5, 6, 7]]))
        start = step_id * 8
        return Selection(static_order(len(self.dataset))[start : start + num_samples], np.arange(num_samples) / 10)


def model():
    """Dropout on: a draw too many or too few from the global generator changes every loss after it."""
    tiny = tiny_model()
    for layer in tiny.model.layers:
        layer.self_attn.attention_dropout = 0.1
    return tiny


def args(folder, **changes):
    sizes = {"max_steps": -1, "gradient_accumulation_steps": 2, "num_train_epochs": 1, "learning_rate": 1e-2}
    return tiny_training_args(folder, **(sizes | changes))


def select_spec(name="as_static", params=None, **keys):
    keys = {"warmup_step": 2, "update_step": 3, "update_times": 2} | keys
    arguments = DataflexArguments(train_type="dynamic_select", component_name=name, **keys)
    return RunSpec(arguments, ComponentSpec(SELECTOR, name, name, params or {}))


def trainer(mixin, spec, folder, rows=None, **changes):
    rows = TokenRows(ROWS, lengths=16) if rows is None else rows
    return trainer_class(mixin, Trainer)(
        model=model(),
        args=args(folder, **changes),
        train_dataset=rows,
        eval_dataset=None if changes.get("eval_strategy") is None else TokenRows(4, lengths=16, seed=9),
        data_collator=pad_collate,
        dataflex=spec,
    )


def losses(done):
    return [entry["loss"] for entry in done.state.log_history if "loss" in entry]


def weights(done):
    return {name: value.clone() for name, value in done.model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_selecting_the_static_order_is_the_static_run_bit_for_bit(tmp_path, accumulation):
    sizes = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    static = Trainer(
        model=model(),
        args=args(tmp_path / "s", **sizes),
        train_dataset=TokenRows(ROWS, lengths=16),
        data_collator=pad_collate,
    )
    static.train()
    dynamic = trainer(SelectTrainer, select_spec(), tmp_path / "d", **sizes)
    dynamic.train()
    assert losses(dynamic) == losses(static)
    assert len(losses(dynamic)) == 8
    assert same(weights(dynamic), weights(static))
    assert dynamic.state.epoch == static.state.epoch == 1.0


def test_updates_happen_at_the_planned_steps_and_leave_a_record(tmp_path):
    done = trainer(SelectTrainer, select_spec(), tmp_path)
    done.train()
    lines = read_trace(tmp_path)
    assert [line["step"] for line in lines] == [2, 5]
    assert all(line["kind"] == "select" and line["component"] == "as_static" for line in lines)
    assert all(line["num_samples"] == 24 and line["distinct"] == 24 for line in lines)
    assert lines[0]["scores"]["max"] == pytest.approx(2.3)
    assert lines[0]["decision_hash"] != lines[1]["decision_hash"]
    saved = sorted((tmp_path / "dataflex_selections").iterdir())
    assert [path.name for path in saved] == ["step_00000000.npz", "step_00000002.npz", "step_00000005.npz"]
    assert "scores" not in np.load(saved[0])
    assert (np.concatenate([np.load(path)["indices"] for path in saved]) == static_order(ROWS)).all()
    assert any("dataflex/score/mean" in entry for entry in done.state.log_history)


@pytest.mark.parametrize("step", range(1, 9))
def test_resuming_from_any_step_ends_with_the_same_weights(tmp_path_factory, step, whole_run):
    folder, expected = whole_run
    resumed = trainer(SelectTrainer, select_spec("loss"), tmp_path_factory.mktemp("resumed"), save_steps=1)
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert same(weights(resumed), expected)
    assert resumed.state.global_step == 8


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    done = trainer(SelectTrainer, select_spec("loss"), folder, save_strategy="steps", save_steps=1)
    done.train()
    return folder, weights(done)


def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path, whole_run):
    other = trainer(SelectTrainer, select_spec("loss", {"focus": "low"}), tmp_path, learning_rate=1e-4)
    with pytest.raises(CheckpointError) as error:
        other.train(resume_from_checkpoint=str(whole_run[0] / "checkpoint-4"))
    assert "params: {} in the checkpoint, {'focus': 'low'} now" in str(error.value)
    assert "learning_rate: 0.01 in the checkpoint, 0.0001 now" in str(error.value)


def test_epochs_repeat_the_schedule_and_evaluation_follows_them(tmp_path):
    spec = RunSpec(select_spec().arguments, select_spec("random").component, epochs=2)
    done = trainer_class(SelectTrainer, Trainer)(
        model=model(),
        args=args(tmp_path, eval_strategy="epoch"),
        train_dataset=TokenRows(ROWS, lengths=16),
        eval_dataset=TokenRows(4, lengths=16, seed=9),
        data_collator=pad_collate,
        dataflex=spec,
    )
    done.train()
    assert [line["step"] for line in read_trace(tmp_path)] == [2, 5, 10, 13]
    assert [entry["step"] for entry in done.state.log_history if "eval_loss" in entry] == [8, 16]
    assert [entry["epoch"] for entry in done.state.log_history if "eval_loss" in entry] == [1.0, 2.0]


class Seen(TokenRows):
    """Remembers which rows the loader asked for."""

    def __init__(self, count, log, name, **kwargs):
        super().__init__(count, **kwargs)
        self.log, self.name = log, name

    def __getitem__(self, row):
        self.log.append((self.name, row))
        return super().__getitem__(row)


def mix_spec(name="random", **keys):
    keys = {"warmup_step": 2, "update_step": 3, "update_times": 2} | keys
    component = None if name is None else ComponentSpec(MIXER, name, name)
    return RunSpec(DataflexArguments(train_type="dynamic_mix", component_name=name, **keys), component)


def test_trained_rows_are_the_planned_proportions_within_one_row_per_segment(tmp_path):
    log: list[tuple[str, int]] = []
    sources = {"a": Seen(11, log, "a", lengths=16), "b": Seen(90, log, "b", lengths=16)}
    trainer(MixTrainer, mix_spec(init_mixture_proportions=(0.3, 0.7)), tmp_path, rows=sources).train()
    shares = [{"a": 0.3, "b": 0.7}, *(line["proportions"] for line in read_trace(tmp_path))]
    for (start, stop), share in zip([(0, 16), (16, 40), (40, 64)], shares, strict=True):
        segment = [name for name, _ in log[start:stop]]
        for name in "ab":
            assert abs(segment.count(name) - share[name] * (stop - start)) < 1 + 1e-9
    from_a = [row for name, row in log if name == "a"]
    assert len(from_a) > 11
    for start in range(0, len(from_a), 11):  # pass after pass in the order of training, over the borders of segments
        part = from_a[start : start + 11]
        assert len(set(part)) == len(part)


def test_an_epoch_of_a_mixture_is_a_pass(tmp_path):
    log: list[tuple[str, int]] = []
    sizes = {"a": 50, "b": 100, "c": 69}
    sources = {name: Seen(size, log, name, lengths=4) for name, size in sizes.items()}
    spec = mix_spec(None, static_mix=True, mixture_sample_rule="stratified", update_times=-1)
    seen: list[int] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.epoch == int(state.epoch):
                seen.append(len(set(log)))

    run = trainer(MixTrainer, spec, tmp_path, rows=sources, num_train_epochs=2)
    run.add_callback(Watch())
    run.train()
    assert run.state.global_step == 2 * 28
    assert seen == [219, 219]


def test_a_mixed_run_resumes_exactly(tmp_path):
    sources = {"a": TokenRows(11, lengths=16), "b": TokenRows(90, lengths=16, seed=2)}
    whole = trainer(MixTrainer, mix_spec(), tmp_path / "w", rows=sources, save_strategy="steps", save_steps=1)
    whole.train()
    for step in (1, 2, 4, 5, 8):
        resumed = trainer(MixTrainer, mix_spec(), tmp_path / str(step), rows=sources)
        resumed.train(resume_from_checkpoint=str(tmp_path / "w" / f"checkpoint-{step}"))
        assert same(weights(resumed), weights(whole)), step


def streamed(rows: TokenRows, told: int | None) -> datasets.IterableDataset:
    """The rows as a stream, whose split says how many it has, as those of a hub do."""
    stream = datasets.Dataset.from_list([rows[i] for i in range(len(rows))]).to_iterable_dataset()
    if told is not None:
        info = datasets.SplitInfo("train", num_examples=told)
        stream._info.splits, stream._split = datasets.splits.SplitDict({"train": info}), datasets.Split.TRAIN
    return stream.map(lambda row: row)


def stream_run(folder, told, **changes):
    rows = {"a": TokenRows(20, lengths=6), "b": TokenRows(12, lengths=6, seed=2)}
    sources = {name: streamed(part, len(part) if told else None) for name, part in rows.items()}
    spec = mix_spec(None, static_mix=True, mixture_sample_rule="uniform", train_step=8, update_times=-1)
    return trainer(MixTrainer, spec, folder, rows=sources, **changes)


@pytest.mark.parametrize("told", [True, False])
def test_the_epoch_of_streams_is_that_of_their_rows_or_else_of_the_run(tmp_path, told):
    done = stream_run(tmp_path, told)
    done.train()
    epochs = [entry["epoch"] for entry in done.state.log_history if "loss" in entry]
    passes = 8 / (32 / 8) if told else 1.0  # 8 steps of 8 rows
    assert epochs == pytest.approx([passes * step / 8 for step in range(1, 9)])
    assert done.state.epoch == passes


@pytest.mark.parametrize("key", ["eval_strategy", "save_strategy", "logging_strategy"])
def test_once_an_epoch_is_refused_where_no_stream_says_how_long_it_is(tmp_path, key):
    with pytest.raises(ConfigError, match=f"{key}: is epoch, but a stream has no end .* -> set {key}: steps"):
        stream_run(tmp_path / "untold", False, **{key: "epoch"})
    if key == "save_strategy":
        done = stream_run(tmp_path / "told", True, save_strategy="epoch")
        done.train()
        assert sorted(path.name for path in (tmp_path / "told").glob("checkpoint-*")) == [
            "checkpoint-4",
            "checkpoint-8",
        ]


def test_a_static_mixture_makes_no_update(tmp_path):
    sources = {"a": TokenRows(11, lengths=16), "b": TokenRows(90, lengths=16, seed=2)}
    done = trainer(MixTrainer, mix_spec(None, static_mix=True, train_step=4), tmp_path, rows=sources)
    done.train()
    assert done.state.global_step == 4
    assert read_trace(tmp_path) == []


def weight_spec(name="loss", params=None, **keys):
    arguments = DataflexArguments(train_type="dynamic_weight", component_name=name, **keys)
    return RunSpec(arguments, ComponentSpec(WEIGHTER, name, name, params or {}))


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_uniform_weighter_is_the_static_run_bit_for_bit(tmp_path, accumulation):
    rows, sizes = TokenRows(ROWS, lengths=16), {"gradient_accumulation_steps": accumulation}
    static = Trainer(model=model(), args=args(tmp_path / "s", **sizes), train_dataset=rows, data_collator=pad_collate)
    static.train()
    weighted = trainer(WeightTrainer, weight_spec(params={"strategy": "uniform"}), tmp_path / "w", rows=rows, **sizes)
    weighted.train()
    assert losses(weighted) == losses(static)
    assert same(weights(weighted), weights(static))


def test_weighing_begins_after_warmup_and_train_step_ends_the_run(tmp_path):
    rows = TokenRows(ROWS, lengths=range(6, 17))
    runs = {}
    for warmup in (0, 3, 6):
        done = trainer(WeightTrainer, weight_spec(warmup_step=warmup, train_step=6), tmp_path / str(warmup), rows=rows)
        done.train()
        runs[warmup] = losses(done)
    assert len(runs[6]) == 6
    assert runs[3][:3] == runs[6][:3]
    assert runs[3][3] != runs[6][3]
    assert runs[0][0] != runs[6][0]


def test_the_objective_is_the_same_for_every_accumulation(tmp_path):
    rows, seen = TokenRows(ROWS, lengths=range(6, 17)), []
    for batch in (8, 4, 2):
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 8 // batch, "max_steps": 2}
        done = trainer_class(WeightTrainer, Trainer)(
            model=tiny_model(),
            args=args(tmp_path / str(batch), **sizes),
            train_dataset=rows,
            data_collator=pad_collate,
            dataflex=weight_spec("custom"),
        )
        done.train()
        seen.append(losses(done))
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)
    assert seen[0] == pytest.approx(seen[2], rel=1e-5)


@register_weighter("vector")
class Vector(Weighter):
    def get_weighted_loss(self, losses, *, ctx=None, model=None, inputs=None):
        return losses * 2


@register_weighter("constant")
class Constant(Weighter):
    def get_weighted_loss(self, losses, *, ctx=None, model=None, inputs=None):
        return losses.mean().detach()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vector", r"weighter 'vector' at step 0 returned \(4,\); expected one number"),
        ("constant", "weighter 'constant' at step 0 returned a number that does not depend on losses"),
    ],
)
def test_a_bad_answer_of_a_weighter_stops_the_run(tmp_path, name, message):
    with pytest.raises(ComponentError, match=message):
        trainer(WeightTrainer, weight_spec(name), tmp_path).train()


@register_selector("raises")
class Raises(Selector):
    def select(self, model, step_id, num_samples, **kwargs):
        raise KeyError("oops")


@register_selector("greedy")
class Greedy(Selector):
    def select(self, model, step_id, num_samples, **kwargs):
        return range(1, num_samples)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"selector 'raises' at update 0 \(step 2\) raised KeyError: 'oops'"),
        ("greedy", r"selector 'greedy' at update 0 \(step 2\) returned 23 rows; expected 24"),
    ],
)
def test_a_faulty_selector_stops_the_run_by_name(tmp_path, name, message):
    with pytest.raises(ComponentError, match=message):
        trainer(SelectTrainer, select_spec(name), tmp_path).train()
    assert json.dumps(read_trace(tmp_path)) == "[]"


@register_selector("raises_in_the_third")
class RaisesInTheThird(Selector):
    asked: ClassVar[list[tuple[int, int]]] = []

    def select(self, model, step_id, num_samples, **kwargs):
        context = kwargs["context"]
        self.asked.append((context.update, context.step))
        if len(self.asked) == 3:
            raise KeyError("oops")
        return range(num_samples)


def test_log_trace_metrics_errors_and_components_number_an_update_alike(tmp_path, caplog):
    RaisesInTheThird.asked.clear()
    run = trainer(SelectTrainer, select_spec("raises_in_the_third", update_times=4), tmp_path)
    with caplog.at_level("INFO", "dataflex"), pytest.raises(ComponentError) as error:
        run.train()
    assert RaisesInTheThird.asked == [(0, 2), (1, 5), (2, 8)]
    trace = [(line["update"], line["step"]) for line in read_trace(tmp_path)]
    metrics = [entry["dataflex/update"] for entry in run.state.log_history if "dataflex/update" in entry]
    found = [re.match(r"update (\d+) of 4 at step (\d+): .*; next at step (\d+)", line) for line in caplog.messages]
    log = [tuple(map(int, line.groups())) for line in found if line]
    assert (trace, metrics, log) == ([(0, 2), (1, 5)], [0, 1], [(0, 2, 5), (1, 5, 8)])
    assert str(error.value) == "selector 'raises_in_the_third' at update 2 (step 8) raised KeyError: 'oops'"


class CountsLoaders(TrainerCallback):
    """How many train loaders the accelerator holds at the end of each step."""

    def __init__(self, of):
        self.of, self.held = of, []

    def on_step_end(self, args, state, control, **kwargs):
        self.held.append(len(self.of.accelerator._dataloaders))


@pytest.mark.parametrize("raises", [False, True])
def test_loaders_of_segments_that_are_over_are_let_go(tmp_path, raises):
    RaisesInTheThird.asked.clear()
    run = trainer(
        SelectTrainer, select_spec("raises_in_the_third" if raises else "as_static", update_times=2 + raises), tmp_path
    )
    count = CountsLoaders(run)
    run.add_callback(count)
    if raises:
        with pytest.raises(ComponentError):
            run.train()
    else:
        run.train()
    assert count.held == [1] * 8, (
        "a segment's rows and batches stay in memory as long as the accelerator holds its loader"
    )
    assert run.accelerator._dataloaders == []


def test_the_log_says_which_update_is_the_last(tmp_path, caplog):
    with caplog.at_level("INFO", "dataflex"):
        trainer(SelectTrainer, select_spec(), tmp_path).train()
    assert [re.sub(r"\d+\.\d s", "N s", line) for line in caplog.messages if line.startswith("update ")] == [
        "update 0 of 2 at step 2: as_static chose 24 of 64 rows in N s; next at step 5",
        "update 1 of 2 at step 5: as_static chose 24 of 64 rows in N s; the last one",
    ]


def test_what_cannot_be_planned_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"asks for 72 rows at once \(9 steps of 8 rows\).*has 64.*replacement: true"):
        trainer(SelectTrainer, select_spec("random", update_step=9), tmp_path)
    trainer(SelectTrainer, select_spec("random", {"replacement": True}, update_step=9), tmp_path)
    with pytest.raises(ConfigError, match="the train dataset is empty"):
        trainer(SelectTrainer, select_spec(), tmp_path, rows=[])
    with pytest.raises(ConfigError, match="a stream has neither numbers nor an end -> set streaming: false"):
        trainer(SelectTrainer, select_spec(), tmp_path, rows=iter([]))
    with pytest.raises(ConfigError, match="needs two sources or more"):
        trainer(MixTrainer, mix_spec(), tmp_path, rows={"a": TokenRows(4)})
    with pytest.raises(ConfigError, match="the source b has no rows"):
        trainer(MixTrainer, mix_spec(), tmp_path, rows={"a": TokenRows(4), "b": []})
    with pytest.raises(ConfigError, match="auto_find_batch_size: is True, but what train_type: dynamic_select plans"):
        trainer(SelectTrainer, select_spec(), tmp_path, auto_find_batch_size=True)


def test_streams_are_refused_in_the_words_of_validate(tmp_path):
    sources = {name: streamed(TokenRows(4), None) for name in "ab"}
    uniform = {"mixture_sample_rule": "uniform"}
    with pytest.raises(ConfigError, match="dataloader_num_workers: found 2, but a stream is read in order"):
        trainer(MixTrainer, mix_spec(**uniform), tmp_path, rows=sources, dataloader_num_workers=2)
    with pytest.raises(
        ConfigError, match="mixture_sample_rule: mixture asks for the sizes of the sources, which streams"
    ):
        trainer(MixTrainer, mix_spec(), tmp_path, rows=sources)
    with pytest.raises(ConfigError, match="streaming: the mixer 'temperature' asks for the sizes"):
        trainer(MixTrainer, mix_spec("temperature", **uniform), tmp_path, rows=sources)
    with pytest.raises(ConfigError, match="train_step: is missing, and a stream has no end"):
        trainer(MixTrainer, mix_spec(None, static_mix=True, **uniform, update_times=-1), tmp_path, rows=sources)
    with pytest.raises(ConfigError, match="streaming: a checkpoint of train_type: dynamic_weight knows its dataset by"):
        trainer(WeightTrainer, weight_spec(), tmp_path, rows=sources["a"])


@pytest.mark.parametrize("rule", ["mixture", "uniform", "stratified"])
def test_proportions_that_are_not_one_for_each_source_are_refused_under_any_rule(tmp_path, rule):
    sources = {"a": TokenRows(4), "b": TokenRows(4)}
    spec = mix_spec(mixture_sample_rule=rule, init_mixture_proportions=(1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match=r"init_mixture_proportions: found 3 numbers for 2 datasets \(a, b\)"):
        trainer(MixTrainer, spec, tmp_path, rows=sources)


def test_the_log_says_what_a_mixture_begins_with(tmp_path, caplog):
    sources = {"a": TokenRows(4), "b": TokenRows(12)}
    caplog.set_level("DEBUG", "dataflex")
    trainer(MixTrainer, mix_spec(None, static_mix=True), tmp_path, rows=sources)
    trainer(MixTrainer, mix_spec(None, static_mix=True, init_mixture_proportions=(1.0, 1.0)), tmp_path, rows=sources)
    assert "the mixture begins with the sizes of its sources in rows: a 0.250, b 0.750" in caplog.messages
    assert "the mixture begins with init_mixture_proportions: a 0.500, b 0.500" in caplog.messages


@pytest.mark.parametrize(("mixin", "spec"), [(WeightTrainer, weight_spec()), (MixTrainer, mix_spec("odm"))])
def test_several_gpus_in_one_process_are_refused_where_the_losses_of_rows_are_needed(tmp_path, mixin, spec):
    arguments = args(tmp_path)
    arguments._n_gpu = 2
    rows = TokenRows(ROWS) if mixin is WeightTrainer else {"a": TokenRows(4), "b": TokenRows(4)}
    kwargs = {"model": model(), "args": arguments, "train_dataset": rows, "data_collator": pad_collate}
    with pytest.raises(ConfigError, match=r"one process would train on 2 GPUs \(nn.DataParallel\)"):
        trainer_class(mixin, Trainer)(**kwargs, dataflex=spec)


@pytest.mark.parametrize("name", ["random", None])
def test_a_mixer_that_does_not_look_at_losses_may_have_several_gpus(tmp_path, name):
    arguments = args(tmp_path)
    arguments._n_gpu = 2
    rows = {"a": TokenRows(4), "b": TokenRows(4)}
    kwargs = {"model": model(), "args": arguments, "train_dataset": rows, "data_collator": pad_collate}
    spec = mix_spec(name, static_mix=name is None)
    assert trainer_class(MixTrainer, Trainer)(**kwargs, dataflex=spec).segments.step_rows.of(1) == 2 * 4 * 2
