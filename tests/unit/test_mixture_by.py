"""Sources of one dataset: by the labels of a column or a file, and by groups of rows that are alike."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
from accelerate import Accelerator
from dataflex import dynamic
from dataflex.config.arguments import DataflexArguments
from dataflex.config.mixture_sources import MixtureBy, parse_mixture_by, parse_shares, share_problems
from dataflex.config.spec import RunSpec
from dataflex.core.errors import CheckpointError, ConfigError, InvalidConfigError, Problem
from dataflex.core.named_sources import MOST_SOURCES
from dataflex.core.source_labels import labels_of_values, read_label_file
from dataflex.rows.label_columns import labels_of_column
from dataflex.rows.source_words import in_brackets, source_words, standing_out
from dataflex.rows.split_sources import by_row_number, in_given_order, split
from dataflex.rows.views import MixedSources
from dataflex.run.row_file import RowFile
from dataflex.run.row_values import placed
from dataflex.scoring.k_means import k_means
from dataflex.scoring.ngrams import ngram_embeddings
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_tokenizer, tiny_training_args
from dataflex.testing.small_trainers import small_trainer
from dataflex.train.trainer import MixTrainer, trainer_class
from dataflex.train.weighter.base_weighter import Weighter
from dataflex.trainer.clustered_rows import by_size, clustered_sources, kept_codes, save_sources
from rank_group import on_ranks, one_thread
from torch.utils.data import SequentialSampler
from transformers import Trainer

STEPS = {"warmup_step": 1, "update_step": 1, "update_times": 3}
FAMILIES = ("low", "high", "low", "mid", "low", "high")


def family_rows(count: int = 42, seed: int = 0) -> tuple[list[dict[str, list[int]]], list[str]]:
    """Rows of three families with tokens of their own, mixed; and the family of each."""
    first = {"low": 3, "mid": 40, "high": 80}
    rows, labels = [], []
    for number in range(count):
        label = FAMILIES[number % len(FAMILIES)]
        row = TokenRows(1, vocab_size=30, lengths=12 + number % 3, seed=seed + number)[0]
        row = {k: v if k == "attention_mask" else [t if t < 0 else t + first[label] for t in v] for k, v in row.items()}
        rows.append(row)
        labels.append(label)
    return rows, labels


# --- labels


def test_labels_are_sorted_by_name_or_as_numbers():
    assert labels_of_values(["b", "a", "b"], "k", "o").names == ("a", "b")
    assert labels_of_values(["b", "a", "b"], "k", "o").codes.tolist() == [1, 0, 1]
    assert labels_of_values([10, 9, 10], "k", "o").names == ("9", "10")
    assert labels_of_values(["10", "9"], "k", "o").names == ("10", "9"), "texts, by their letters"
    assert labels_of_values([" a", "a ", "b"], "k", "o").codes.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["a", None, "b", ""], r"2 rows \(1, 3\) of there have no label; every row needs a text or a whole number"),
        (["a", float("nan")], "1 row .1. of there have no label"),
        (["a", 1.5], "1 row .1. of there have the label 1.5"),
        (["a", ["b"]], r"1 row .1. of there have the label \['b'\]"),
        ([True, False], "have the label True"),
        (["a", "a"], "all 2 rows of there have the label a, so there is one source -> name what tells rows apart"),
        (list(range(MOST_SOURCES + 1)), f"found {MOST_SOURCES + 1} different labels in .* 0, 1, 2, ...; at most 1000"),
    ],
)
def test_labels_that_make_no_sources_are_refused(values, said):
    with pytest.raises(ConfigError, match=f"mixture_by: column:x: .*{said}"):
        labels_of_values(values, "column:x", "there")


@pytest.mark.parametrize("suffix", [".json", ".npy", ".txt"])
def test_a_label_file_of_each_kind_gives_the_same(tmp_path, suffix):
    labels, path = ["b", "a", "b"], tmp_path / f"labels{suffix}"
    if suffix == ".npy":
        np.save(path, np.array(labels))
    else:
        path.write_text(json.dumps(labels) if suffix == ".json" else "b\na\nb\n")
    found = read_label_file(path, 3)
    assert (found.names, found.codes.tolist()) == (("a", "b"), [1, 0, 1])
    with pytest.raises(ConfigError, match=r"has 3 labels, and the train dataset 4 rows .* write column:NAME"):
        read_label_file(path, 4)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("labels.json", b'{"a": 1}', "it holds a dict; needed: a list with a label for each row"),
        ("labels.json", b"[1, 2", "cannot be read"),
        ("labels.npy", b"no array", "cannot be read: it is no file that numpy.save wrote"),
        ("labels.txt", b"a\n\nb\n", "1 row .1. of .*labels.txt have no label"),
    ],
)
def test_a_label_file_that_is_none_is_refused_by_name(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_label_file(tmp_path / name)
    with pytest.raises(ConfigError, match="there is no such file"):
        read_label_file(tmp_path / "none.json")


def test_an_archive_is_no_label_file_whatever_its_name(tmp_path):
    with open(tmp_path / "labels.npy", "wb") as file:
        np.savez(file, labels=np.arange(3))
    with pytest.raises(ConfigError, match=r"cannot be read: it is no \.npy file but an archive"):
        read_label_file(tmp_path / "labels.npy")


def test_an_array_of_floats_or_of_two_dimensions_is_no_label_file(tmp_path):
    for number, array in enumerate((np.zeros(3), np.zeros((3, 2), dtype=np.int64))):
        np.save(tmp_path / f"{number}.npy", array)
        with pytest.raises(ConfigError, match="needed: a text or a whole number for each row"):
            read_label_file(tmp_path / f"{number}.npy")


def test_a_class_of_minus_one_is_no_label():
    features = datasets.Features({"topic": datasets.ClassLabel(names=["a", "b"])})
    dataset = datasets.Dataset.from_dict({"topic": [1, -1, 0, None]}, features=features)
    with pytest.raises(ConfigError, match=r"column:topic: 2 rows \(1, 3\) of the train dataset have no label"):
        labels_of_column(dataset, "topic")


@pytest.mark.parametrize("kind", ["text", "class", "number", "rows"])
def test_the_labels_of_a_column_of_any_kind(kind):
    given = {"text": ["b", "a", "b"], "class": [1, 0, 1], "number": [7, 2, 7], "rows": ["b", "a", "b"]}[kind]
    features = None
    if kind == "class":
        features = datasets.Features({"topic": datasets.ClassLabel(names=["a", "b"])})
    dataset: Any = datasets.Dataset.from_dict({"topic": given}, features=features)
    if kind == "rows":
        dataset = [dict(row) for row in dataset]
    found = labels_of_column(dataset, "topic")
    assert found.names == (("2", "7") if kind == "number" else ("a", "b"))
    assert found.codes.tolist() == [1, 0, 1]
    with pytest.raises(ConfigError, match="no column 'topics' but topic -> did you mean 'topic'"):
        labels_of_column(dataset, "topics")


def test_a_column_of_lists_is_no_label():
    with pytest.raises(ConfigError, match=r"have the label \['a'\]"):
        labels_of_column(datasets.Dataset.from_dict({"topic": [["a"], ["b"]]}), "topic")


def test_a_view_of_a_stored_dataset_is_read_in_the_order_of_the_view():
    dataset = datasets.Dataset.from_dict({"topic": ["a", "b", "c", "b"]}).select([3, 2, 0])
    assert labels_of_column(dataset, "topic").codes.tolist() == [1, 2, 0]


# --- rows by source


def split_rows(count=42):
    rows, labels = family_rows(count)
    return split(rows, labels_of_values(labels, "k", "o")), rows, labels


def test_rows_are_sorted_by_source_and_known_by_the_order_as_given():
    found, rows, labels = split_rows()
    assert found.names == ("high", "low", "mid")
    for number in range(len(found)):
        given = int(found.given[number])
        assert found[number] == rows[given]
        assert found.names[int(found.sources_of(np.array([number]))[0])] == labels[given]
    assert [found.names[code] for code in found.codes] == labels
    assert [in_given_order(found)[number] for number in range(len(rows))] == rows
    assert all(np.diff(part.rows).min() > 0 for part in found.sources), "inside of a source they keep their order"
    assert in_given_order(rows) is rows


def test_a_file_of_numbers_is_for_the_rows_in_the_order_as_given():
    """Taken for the order of the sources, every score would be another row's, and nothing would say so."""
    found, rows, _ = split_rows()
    values = np.arange(len(rows), dtype=np.float64)
    np.testing.assert_array_equal(placed("file", "f", RowFile(values, None, {}), found), found.given)
    shuffled = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_array_equal(placed("file", "f", RowFile(values[shuffled], shuffled, {}), found), found.given)
    np.testing.assert_array_equal(by_row_number(found, values), found.given)


def test_prepared_sources_keep_the_order_as_given_unless_rows_are_gone():
    found, _, _ = split_rows()
    parts = dict(zip(found.names, found.sources, strict=True))
    assert (found.with_sources(parts).given == found.given).all()  # type: ignore[attr-defined]
    fewer = parts | {"low": [found[0]]}
    assert type(found.with_sources(fewer)) is MixedSources


# --- the keys


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "found 3, allowed: column:NAME"),
        ("column", "allowed: column:NAME | file:PATH | cluster:K"),
        ("colum:a", "did you mean 'column'"),
        ("column: ", "nothing stands behind the colon"),
        ("cluster:1", "a whole number from 2 to 1000"),
        ("cluster:1001", "a whole number from 2 to 1000"),
        ("cluster:2.5", "a whole number from 2 to 1000"),
        ("file:none.json", "does not exist"),
    ],
)
def test_a_wrong_mixture_by_is_one_problem(tmp_path, value, said):
    found = parse_mixture_by(value, tmp_path)
    assert isinstance(found, Problem)
    assert said in str(found)


def test_a_right_mixture_by_is_taken_apart(tmp_path):
    (tmp_path / "l.json").write_text("[]")
    for value, kind, argument in [
        ("column: topic", "column", "topic"), ("cluster:08", "cluster", "8"),
        ("file:l.json", "file", str(tmp_path / "l.json")), ("column:a:b", "column", "a:b"),
    ]:  # fmt: skip
        kept = parse_mixture_by(value, tmp_path)
        assert MixtureBy.of(DataflexArguments(mixture_by=kept)) == MixtureBy(kind, argument)  # type: ignore[arg-type]
    assert MixtureBy.of(DataflexArguments()) is None


def test_shares_by_name_are_for_every_source_and_no_other():
    key = "init_mixture_proportions"
    assert share_problems(key, {"a": 1, "b": 2}, ("b", "a")) == []
    assert "names no share of b -> give every source one; 0" in str(share_problems(key, {"a": 1}, ("a", "b"))[0])
    assert "did you mean 'maths'" in str(share_problems(key, {"math": 1, "b": 1}, ("maths", "b"))[0])
    assert "found 1 numbers for 2 datasets (a, b)" in str(share_problems(key, (1.0,), ("a", "b"))[0])
    for wrong in ({}, {"a": -1}, {"a": "x"}, {"a": 0, "b": 0}, {1.5: 1}):
        assert isinstance(parse_shares(key, wrong), Problem), wrong
    assert parse_shares(key, {1: 2, "b": 3}) == {"1": 2.0, "b": 3.0}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"mixer": "static", "mixture_by": "cluster:3", "mixture_embedding": "ngram"}, "did you mean 'ngrams'"),
        (
            {"mixer": "static", "mixture_by": "column:t", "mixture_embedding": "model"},
            "remove it, or write",
        ),
        ({"selector": "random", "objective_proportions": [1, 1]}, "train_type: dynamic_select has no mixture"),
        (
            {"mixer": "static", "mixture_by": "cluster:2", "init_mixture_proportions": {"a": 1}},
            "found the source a, and the sources are cluster_1, cluster_2",
        ),
    ],
)
def test_keys_that_do_not_fit_are_refused_by_dynamic(keys, said):
    with pytest.raises(InvalidConfigError, match=said):
        dynamic(Trainer, **keys, **STEPS)


def test_without_a_mixture_or_a_weighter_mixture_by_is_said_to_have_no_effect(caplog):
    dynamic(Trainer, selector="random", mixture_by="column:a", **STEPS)
    assert "mixture_by: no effect with train_type: dynamic_select" in caplog.text


# --- runs


def stored(count=42):
    rows, labels = family_rows(count)
    return datasets.Dataset.from_list([row | {"topic": label} for row, label in zip(rows, labels, strict=True)]), labels


def trained(folder, rows, **given):
    trainer = small_trainer(folder, rows, **(STEPS | given))
    trainer.train()
    return trainer


def test_a_run_by_column_is_that_of_the_same_sources_as_datasets(tmp_path):
    dataset, labels = stored()
    by_column = trained(tmp_path / "a", dataset, mixer="loss", mixture_by="column:topic")
    parts = {
        name: dataset.select([row for row, label in enumerate(labels) if label == name])
        for name in ("high", "low", "mid")
    }
    named = trained(tmp_path / "b", parts, mixer="loss")
    assert by_column.mixture_manager.names == named.mixture_manager.names
    for mine, theirs in zip(by_column.model.parameters(), named.model.parameters(), strict=True):
        assert (mine == theirs).all()


@pytest.mark.parametrize(
    ("axes", "rows"),
    [
        ({"weighter": "dataset", "params": {"weights": {"high": 2.0, "low": 1.0, "mid": 0.5}}, "train_step": 3}, "one"),
        ({"mixer": "static", "selector": "loss", "order": {"name": "sorting", "by": "column:level"}} | STEPS, "one"),
        ({"mixer": "static", "weighter": "loss"} | STEPS, "one"),
        ({"static_mix": True, "train_step": 3}, "one"),
    ],
)
def test_other_axes_know_the_sources(tmp_path, axes, rows):
    dataset, _ = stored()
    dataset = dataset.add_column("level", list(range(len(dataset))))
    trainer = small_trainer(tmp_path, dataset, mixture_by="column:topic", **axes)
    trainer.train()
    about = json.loads((tmp_path / "dataflex_run.json").read_text())
    assert [source["name"] for source in about["sources"]] == ["high", "low", "mid"]


@pytest.mark.parametrize("by", ["column:topic", "cluster:3"])
@pytest.mark.parametrize("in_turn", [True, False])
def test_a_run_that_only_weighs_trains_on_the_rows_of_a_static_run(by, in_turn, tmp_path):
    """Not source after source where the loader does not shuffle, nor in another order where it does."""
    dataset, _ = stored(24)
    base = InTurn if in_turn else Trainer
    made = {"args": tiny_training_args(tmp_path, max_steps=3), "train_dataset": dataset, "data_collator": pad_collate}
    trainer = dynamic(base, weighter=RowNumbers, mixture_by=by)(model=tiny_model(), **made)
    tokens = []
    trainer.components.weighter.tokens = tokens
    trainer.train()
    plain = base(model=tiny_model(), **made)
    expected = [row for batch in plain.get_train_dataloader() for row in batch["input_ids"].tolist()]
    assert [row for row, _ in tokens] == expected[: len(tokens)]
    rows = trainer.train_dataset
    assert all(row[: len(rows[number]["input_ids"])] == list(rows[number]["input_ids"]) for row, number in tokens)


class InTurn(Trainer):
    """Takes rows in the order of the dataset."""

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)


NUMBERS = np.arange(24)


class RowNumbers(Weighter):
    """Keeps the tokens of each row that it is shown, and its number."""

    draws = False

    def get_weighted_loss(self, losses, *, ctx, model, inputs):
        self.tokens += zip(inputs["input_ids"].tolist(), ctx.of_batch(NUMBERS).tolist(), strict=True)
        return losses.mean()


def test_a_score_file_is_read_in_the_order_as_given_by_an_order(tmp_path):
    dataset, _ = stored()
    np.save(tmp_path / "scores.npy", np.arange(len(dataset), dtype=np.float64))
    by = {"order": {"name": "sorting", "by": f"file:{tmp_path / 'scores.npy'}"}}
    trainer = trained(tmp_path / "run", dataset, mixer="static", mixture_by="column:topic", **by)
    scores = trainer.shared_scores.at_update().of(f"file:{tmp_path / 'scores.npy'}")
    np.testing.assert_array_equal(scores, trainer.train_dataset.given)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            {"a": TokenRows(4), "b": TokenRows(4)},
            "a mapping of datasets .a, b., and mixture_by makes the",
        ),
        (datasets.Dataset.from_dict({"topic": ["a"]}).to_iterable_dataset(), "streaming: found true, but mixture_by"),
        ([], "the train dataset is empty"),
    ],
    ids=["several", "stream", "empty"],
)
def test_rows_that_cannot_be_sorted_are_refused(tmp_path, rows, said):
    with pytest.raises(ConfigError, match=said):
        small_trainer(tmp_path, rows, mixer="static", mixture_by="column:topic", **STEPS)


def test_clusters_of_no_rows_and_shares_for_others_are_refused_where_a_run_is_made_by_hand(tmp_path):
    keys = {"mixer": "static", "mixture_by": "cluster:2"} | STEPS
    with pytest.raises(ConfigError, match="needs a train dataset"):
        small_trainer(tmp_path, None, **keys)
    made = dynamic(Trainer, **keys)
    spec = made.recipe[1].spec
    wrong = replace(spec, arguments=replace(spec.arguments, init_mixture_proportions=(1.0, 1.0, 1.0)))
    trainer = trainer_class(MixTrainer, Trainer)
    args = tiny_training_args(tmp_path, max_steps=-1)
    with pytest.raises(ConfigError, match=r"found 3 numbers for 2 datasets .cluster_1, cluster_2."):
        trainer(tiny_model(), args, train_dataset=family_rows()[0], data_collator=pad_collate, dataflex=wrong)


def test_a_checkpoint_of_other_labels_is_refused(tmp_path):
    dataset, labels = stored()
    (tmp_path / "l.json").write_text(json.dumps(labels))
    keys = {"mixer": "static", "mixture_by": f"file:{tmp_path / 'l.json'}"}
    trained(tmp_path / "run", dataset, **keys, args={"save_strategy": "steps", "save_steps": 2})
    swapped = list(labels)
    swapped[0], swapped[1] = swapped[1], swapped[0]  # the sizes stay
    (tmp_path / "l.json").write_text(json.dumps(swapped))
    trainer = small_trainer(tmp_path / "run", dataset, **keys, **STEPS)
    with pytest.raises(CheckpointError, match="row labels"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


# --- clusters


def host(rows, folder, accelerator=None, count=3, **changes):
    keys = DataflexArguments("dynamic_mix", mixture_by=f"cluster:{count}", mixture_embedding="ngrams")
    given = {
        "spec": RunSpec(keys), "accelerator": accelerator or Accelerator(cpu=True), "seed": 3, "model": tiny_model(),
        "output_dir": str(folder), "args": SimpleNamespace(resume_from_checkpoint=None), "processing_class": None,
        "scoring_collator": pad_collate,
    }  # fmt: skip
    return SimpleNamespace(**(given | changes))


def test_clusters_are_those_of_k_means_over_the_ngrams_the_largest_first(tmp_path):
    rows, labels = family_rows()
    found = clustered_sources(host(rows, tmp_path), rows)
    assert found.names == ("cluster_1", "cluster_2", "cluster_3")
    assert found.sizes.tolist() == sorted(found.sizes.tolist(), reverse=True)
    tokens = [np.array(row["input_ids"]) for row in rows]
    nearest = k_means(ngram_embeddings(tokens, 1024), 3, np.random.default_rng(0))[:, 0]
    pairs = set(zip(found.codes.tolist(), nearest.tolist(), strict=True))
    assert len(pairs) == 3, "the same groups, whatever their numbers"
    assert len(set(zip(found.codes.tolist(), labels, strict=True))) == 3, "and here they are the families"


def test_groups_are_numbered_by_size_and_then_by_their_first_row():
    assert by_size(np.array([5, 2, 2, 7, 7, 7, 5])).tolist() == [1, 2, 2, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("rows", "count", "said"),
    [
        ([TokenRows(1)[0]] * 5, 2, "the rows fall into 1 different groups, as many of them are the same -> leave"),
        ([*[TokenRows(1)[0]] * 5, TokenRows(1, seed=1)[0]], 3, "fall into 2 different groups.* -> write cluster:2"),
        ([TokenRows(1)[0]] * 2, 3, "the train dataset has 2 rows -> write fewer groups"),
    ],
)
def test_more_groups_than_there_are_different_rows_are_refused(tmp_path, rows, count, said):
    with pytest.raises(ConfigError, match=f"mixture_by: cluster:{count}: .*{said}"):
        clustered_sources(host(rows, tmp_path, count=count), rows)


def test_kept_groups_are_taken_for_the_same_rows_and_key_only(tmp_path, monkeypatch):
    rows, _ = family_rows()
    first = clustered_sources(host(rows, tmp_path), rows)
    save_sources(tmp_path, first)
    assert kept_codes([tmp_path / "none", tmp_path], first.about, len(rows)).tolist() == first.codes.tolist()
    assert kept_codes([tmp_path], "other", len(rows)) is None
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "dataflex_sources.npz").write_bytes(b"cut off")
    assert kept_codes([tmp_path / "bad"], first.about, len(rows)) is None
    monkeypatch.setattr("dataflex.trainer.clustered_rows.k_means", lambda *a: pytest.fail("they are kept"))
    again = clustered_sources(host(rows, tmp_path), rows)
    assert again.digest == first.digest
    for changed in (host(rows, tmp_path, count=2), host(rows, tmp_path, seed=4)):
        with pytest.raises(pytest.fail.Exception):
            clustered_sources(changed, rows)


def test_clusters_by_hidden_states_depend_on_the_model_and_stay_when_it_is_trained(tmp_path):
    rows, _ = family_rows(24)
    keys = {"mixer": "static", "mixture_by": "cluster:2", "mixture_embedding": "model"}
    save = {"save_strategy": "steps", "save_steps": 2}
    trainer = trained(tmp_path / "run", rows, **keys, args=save)
    again = small_trainer(tmp_path / "run", rows, **keys, **STEPS, args=save)
    assert again.train_dataset.digest == trainer.train_dataset.digest
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for mine, theirs in zip(again.model.parameters(), trainer.model.parameters(), strict=True):
        assert (mine == theirs).all()
    moved = tmp_path / "moved"
    elsewhere = small_trainer(
        moved, rows, **keys, **STEPS, args={"resume_from_checkpoint": str(tmp_path / "run" / "checkpoint-2")}
    )
    assert elsewhere.train_dataset.about == trainer.train_dataset.about
    other = small_trainer(tmp_path / "run", rows, model=tiny_model(seed=9), **keys, **STEPS, overwrite_output_dir=True)
    assert other.train_dataset.about != trainer.train_dataset.about


def test_forming_clusters_disturbs_nothing(tmp_path):
    rows, _ = family_rows(24)
    keys = {"mixer": "static", **STEPS}
    plain = trained(tmp_path / "a", dict(zip(("x", "y"), (rows[:12], rows[12:]), strict=True)), **keys)
    for name, embedding in (("b", "ngrams"), ("c", "model")):
        made = small_trainer(tmp_path / name, rows, mixture_by="cluster:2", mixture_embedding=embedding, **keys)
        assert made.model.training == plain.model.training or not made.model.training
        assert all(parameter.grad is None for parameter in made.model.parameters())
        for mine, theirs in zip(made.model.parameters(), tiny_model().parameters(), strict=True):
            assert (mine == theirs).all()


def grouped(accelerator, folder):
    rows, _ = family_rows()
    found = {}
    for embedding in ("ngrams", "model"):
        keys = DataflexArguments("dynamic_mix", mixture_by="cluster:3", mixture_embedding=embedding)
        made = clustered_sources(host(rows, folder / embedding, accelerator, spec=RunSpec(keys)), rows)
        found[embedding] = made.codes
    return found


def test_two_ranks_form_the_groups_of_one(tmp_path):
    answers = on_ranks(grouped, 2, tmp_path)
    with one_thread():
        alone = grouped(None, tmp_path)
    for answer in answers:
        for name, codes in alone.items():
            np.testing.assert_array_equal(answer[name], codes, err_msg=name)


# --- words


def test_words_that_stand_out_are_those_that_other_sources_lack():
    found = [{"the": 10, "def": 9, "rare": 1}, {"the": 10, "recipe": 4}]
    first, second = standing_out(found, [10, 10])
    assert first[0] == "def"
    assert second == ("recipe", "the")
    assert standing_out([{"same": 2}, {"same": 2}], [2, 2])[0] == ("same",), "of none that stands out, the commonest"
    assert in_brackets(("a", "b")) == " (a, b)"
    assert in_brackets(()) == ""


class ReadOnce(dict):
    """Counts of words that are gone through, and never looked up from another source."""

    def get(self, word, default=None):
        raise AssertionError("a thousand sources with as many words each are a thousand million looks")


def test_words_of_many_sources_are_those_of_the_formula_with_one_look_at_each_count():
    rng, read = np.random.default_rng(0), [7, 10, 3, 200, 41]
    found = [
        ReadOnce({f"w{number}": int(rng.integers(1, size + 1)) for number in rng.permutation(30)[:20]}) for size in read
    ]
    for number, words in enumerate(standing_out(found, read)):
        scores = {}
        for word, rows in found[number].items():
            shares = [own[word] / size if word in own else 0.0 for own, size in zip(found, read, strict=True)]
            scores[word] = rows * np.log(rows / read[number] / np.mean(shares))
        assert list(words) == sorted(scores, key=lambda word: (-scores[word], -found[number][word], word))[:4]


def test_without_a_tokenizer_there_are_no_words_and_with_one_they_are_read_of_each_source():
    tokenizer = tiny_tokenizer(["apple pear plum", "hammer nail saw"] * 9)
    texts = ["apple pear", "hammer nail", "plum apple", "saw hammer"]
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in texts]
    found = split(rows, labels_of_values(["f", "t", "f", "t"], "k", "o"))
    assert source_words(found, None, 1) == {}
    words = source_words(found, tokenizer, 1)
    assert words["f"][0] == "apple"
    assert words["t"][0] == "hammer"
