"""Weights by row and by source: column and dataset, and the row numbers that reach them through any collator."""

from __future__ import annotations

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from dataflex.core.errors import ConfigError
from dataflex.core.registry import register_weighter
from dataflex.rows.views import MixedSources
from dataflex.testing import TokenRows, pad_collate, tiny_batch, tiny_model, tiny_training_args
from dataflex.train.weighter.base_weighter import Weighter
from dataflex_weighters.column import ColumnWeighter, column_of
from dataflex_weighters.dataset import DatasetWeighter
from dataflex_weighters.loss import LossWeighter
from transformers import Trainer
from weighted_run import weighted

ROWS = 24


def run(name, folder, rows, params=None, keys=None, **args):
    done = weighted(folder, name, params, rows, keys=keys, **args)
    done.train()
    return done


def weights(done):
    return {name: value.clone() for name, value in done.model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def plain(folder, rows, **args):
    done = Trainer(
        model=tiny_model(), args=tiny_training_args(folder, **args), train_dataset=rows, data_collator=pad_collate
    )
    done.train()
    return done


@register_weighter("remembers_rows")
class RemembersRows(Weighter):
    """Checks that each row of the batch is the row of the train dataset that its number says."""

    def __init__(self, dataset):
        super().__init__()
        self.dataset, self.seen = dataset, []

    def get_weighted_loss(self, losses, *, ctx, model, inputs):
        assert set(inputs) == {"input_ids", "attention_mask", "labels"}
        for number, tokens in zip(ctx.batch_rows.tolist(), inputs["input_ids"].tolist(), strict=True):
            row = self.dataset[number]["input_ids"]
            assert list(row) == tokens[: len(row)]
            self.seen.append(number)
        return losses.mean()


def as_arrow(rows):
    return datasets.Dataset.from_list([{**rows[i], "note": i} for i in range(len(rows))])


@pytest.mark.parametrize("make", [lambda rows: rows, as_arrow, lambda rows: {"a": rows, "b": TokenRows(9, seed=3)}])
@pytest.mark.parametrize("args", [{}, {"gradient_accumulation_steps": 3}, {"dataloader_num_workers": 1}])
def test_a_batchs_row_numbers_are_those_of_its_rows(tmp_path, make, args):
    """24 or 33 rows: batches that fill the steps, as transformers 4.51 leaves out others at the end of a pass."""
    rows = make(TokenRows(ROWS, lengths=range(5, 17)))
    done = run("remembers_rows", tmp_path, rows, max_steps=-1, num_train_epochs=2, **args)
    total = len(done.train_dataset)
    assert sorted(set(done.component.seen)) == list(range(total))
    assert len(done.component.seen) == 2 * total


def test_rows_are_grouped_by_length_as_in_a_static_run(tmp_path):
    rows = TokenRows(ROWS, lengths=range(5, 30))
    by_length = (
        {"train_sampling_strategy": "group_by_length"}
        if "train_sampling_strategy" in tiny_training_args(tmp_path).to_dict()
        else {"group_by_length": True}
    )
    static = plain(tmp_path / "s", rows, **by_length)
    ours = run("loss", tmp_path / "w", rows, keys={"warmup_step": 100}, **by_length)
    assert same(weights(ours), weights(static))


def test_a_weight_of_one_for_each_row_is_the_static_run_bit_for_bit(tmp_path):
    rows = as_arrow(TokenRows(ROWS, lengths=16)).add_column("weight", np.ones(ROWS))
    static = plain(tmp_path / "s", rows, gradient_accumulation_steps=2)
    ours = run("column", tmp_path / "w", rows, gradient_accumulation_steps=2)
    assert same(weights(ours), weights(static))


def test_a_column_weighs_each_row_by_its_own_number(tmp_path):
    """A row of weight 0 is as good as not there: with all weight on one source, the other's rows teach nothing."""
    rows = TokenRows(ROWS, lengths=16)
    weight = np.zeros(ROWS)
    weight[5] = 3.0
    np.save(tmp_path / "w.npy", weight)
    full = {"max_steps": 1, "per_device_train_batch_size": ROWS, "optim": "sgd", "max_grad_norm": 0.0}
    ours = run("column", tmp_path / "w", rows, {"file": str(tmp_path / "w.npy")}, **full)
    model = tiny_model()
    batch = tiny_batch([rows[5]])
    loss = model(**batch).loss * 3 / ROWS
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights(ours)[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
def test_weights_are_read_from_each_kind_of_file(tmp_path, suffix):
    values, file = np.arange(1, ROWS + 1) / 4, tmp_path / f"w{suffix}"
    if suffix == ".npy":
        np.save(file, values)
    elif suffix == ".npz":
        np.savez(file, weight=values, other=values * 2)
    else:
        pq.write_table(pa.table({"other": values * 2, "weight": values}), file)
    found = ColumnWeighter(TokenRows(ROWS), file=str(file)).weights_N
    assert found.tolist() == values.tolist()
    scaled = ColumnWeighter(TokenRows(ROWS), file=str(file), normalise=True).weights_N
    assert scaled.mean() == pytest.approx(1, abs=1e-6)


def test_a_column_is_found_in_plain_rows_and_in_each_source():
    rows = [{**TokenRows(4)[i], "score": i / 2} for i in range(4)]
    assert ColumnWeighter(rows, column="score").weights_N.tolist() == [0, 0.5, 1, 1.5]
    mixed = MixedSources({"a": rows, "b": datasets.Dataset.from_list(rows[::-1])})
    assert ColumnWeighter(mixed, column="score").weights_N.tolist() == [0, 0.5, 1, 1.5, 1.5, 1, 0.5, 0]


@pytest.mark.parametrize(
    ("values", "params", "message"),
    [
        ([1.0] * (ROWS - 1), {}, "has 23 numbers and no column row, for 24 rows of the train dataset"),
        ([1.0, np.nan] + [1.0] * 22, {}, r"the weight of 1 row \(1\) is no finite number"),
        ([1.0, 1.0, -0.5] + [1.0] * 21, {}, r"the weight of 1 row \(2\) is negative -> set allow_negative: true"),
        ([np.inf] + [1.0] * 23, {}, r"the weight of 1 row \(0\) is no finite number"),
        ([1.0, 1e300, -1e300] + [1.0] * 21, {}, r"the weight of 2 rows \(1, 2\) is more than 32 bits hold, 3.4e\+38"),
        ([1e-300] * 23 + [1e38], {"normalise": True}, None),
        (
            [-1e38, 1e38, 1e-5] + [0.0] * 21,
            {"allow_negative": True, "normalise": True},
            "normalise .*divided by",
        ),
        ([0.0] * ROWS, {}, "the mean weight is 0, so nothing would be learnt"),
        ([-1.0] * ROWS, {"allow_negative": True, "normalise": True}, "the mean weight is -1"),
        ([1.0] * ROWS, {"allow_negative": 1, "normalise": "no"}, "(?s)2 problems.*allow_negative.*normalise"),
    ],
)
def test_bad_weights_are_refused_with_the_row(tmp_path, values, params, message):
    np.save(tmp_path / "w.npy", np.array(values))
    if message is None:
        made = ColumnWeighter(TokenRows(ROWS), file=str(tmp_path / "w.npy"), **params)
        assert made.weights_N.mean() == pytest.approx(1)
        return
    with pytest.raises(ConfigError, match=message):
        ColumnWeighter(TokenRows(ROWS), file=str(tmp_path / "w.npy"), **params)


def test_a_missing_column_or_file_names_what_is_there(tmp_path):
    with pytest.raises(ConfigError, match=r"no column 'weight' but attention_mask, input_ids, labels -> .* as a file"):
        ColumnWeighter(TokenRows(3))
    with pytest.raises(ConfigError, match=r"no column 'wieght' but .* -> did you mean 'weight'\?"):
        ColumnWeighter([{"input_ids": [1], "weight": 1.0}], column="wieght")
    with pytest.raises(ConfigError, match=r"file of the column weighter: .*nope\.npy cannot be read"):
        ColumnWeighter(TokenRows(3), file=str(tmp_path / "nope.npy"))
    with pytest.raises(ConfigError, match=r"ends in '\.csv'; allowed: \.npy, \.npz, \.parquet"):
        ColumnWeighter(TokenRows(3), file="w.csv")
    pq.write_table(pa.table({"score": [1.0, 2.0, 3.0]}), tmp_path / "w.parquet")
    with pytest.raises(ConfigError, match="no column 'weight' but score; needed: weight"):
        ColumnWeighter(TokenRows(3), file=str(tmp_path / "w.parquet"))


def test_negative_weights_are_kept_where_they_are_allowed():
    rows = [{"input_ids": [1, 2], "weight": w} for w in (-1.0, 3.0)]
    assert ColumnWeighter(rows, allow_negative=True).weights_N.tolist() == [-1, 3]


def sources():
    return {"a": TokenRows(10, lengths=16), "b": TokenRows(30, lengths=16, seed=2)}


def test_each_source_has_its_weight_and_the_others_the_default():
    mixed = MixedSources(sources())
    assert DatasetWeighter(mixed, {"b": 3}).by_source.tolist() == [1, 3]
    assert DatasetWeighter(mixed, {"b": 3}, default=0).by_source.tolist() == [0, 3]
    scaled = DatasetWeighter(mixed, {"b": 3}, normalise=True).by_source
    assert scaled @ mixed.sizes / 40 == pytest.approx(1)
    assert scaled[1] / scaled[0] == pytest.approx(3)


def test_a_source_of_weight_zero_teaches_nothing(tmp_path):
    ones = run("dataset", tmp_path / "1", sources(), max_steps=2)
    static = plain(tmp_path / "s", MixedSources(sources()), max_steps=2)
    assert same(weights(ones), weights(static))
    lengths = {"max_steps": 1, "per_device_train_batch_size": 40, "optim": "sgd", "max_grad_norm": 0.0}
    only_a = run("dataset", tmp_path / "a", sources(), {"weights": {"b": 0.0, "a": 4.0}}, **lengths)
    alone = plain(tmp_path / "p", sources()["a"], **(lengths | {"per_device_train_batch_size": 10}))
    for name, value in weights(alone).items():
        torch.testing.assert_close(weights(only_a)[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("dataset", "params", "message"),
    [
        (TokenRows(3), {}, "TokenRows, does not say which source a row comes from -> give the trainer a mapping"),
        (MixedSources(sources()), {"weights": {"c": 1}}, "weights.c of the dataset weighter: no such source; .* a, b"),
        (MixedSources(sources()), {"weights": {"a": -1}}, "weights.a of the dataset weighter: found -1"),
        (
            MixedSources(sources()),
            {"weights": {"a": 1e300}},
            "weights.a of the dataset weighter: found 1e.300",
        ),
        (
            MixedSources(sources()),
            {"default": 1e300},
            "default of the dataset weighter: found 1e.300",
        ),
        (MixedSources(sources()), {"weights": [1, 2]}, r"found \[1, 2\], allowed: source: weight"),
        (MixedSources(sources()), {"weights": {"a": 0, "b": 0}}, "no source has rows and a weight above 0"),
        (MixedSources(sources()), {"default": -1, "normalise": 0}, "(?s)2 problems.*default.*normalise"),
    ],
)
def test_dataset_refuses_what_it_cannot_weigh(dataset, params, message):
    with pytest.raises(ConfigError, match=message):
        DatasetWeighter(dataset, **params)


def test_who_needs_sources_says_so():
    assert DatasetWeighter.needs_sources({})
    assert LossWeighter.needs_sources({"level": "source"})
    assert not LossWeighter.needs_sources({})
    assert not ColumnWeighter.needs_sources({})
    with pytest.raises(ConfigError, match="dataset of the loss weighter: the train dataset, NoneType, does not say"):
        LossWeighter(level="source")


def test_a_column_is_the_one_that_the_rows_show_and_not_the_one_in_the_file():
    stored = datasets.Dataset.from_dict({"weight": [1.0, 2.0, 3.0], "input_ids": [[5]] * 3})
    shown = stored.with_transform(lambda rows: {key: [2 * v for v in values] for key, values in rows.items()})
    assert column_of(stored, "weight").tolist() == [1.0, 2.0, 3.0]
    assert column_of(shown, "weight").tolist() == [2.0, 4.0, 6.0]
