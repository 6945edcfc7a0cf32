"""The parts of a forecast: declared costs, rows of files, weights of a configuration, FLOPs, and the page's words."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.check import check
from dataflex.config.checks import data_files
from dataflex.config.checks.dataset_entry import entry
from dataflex.config.spec import RunSpec
from dataflex.core.cost import NOTHING, Ahead, Amount, Cost, Work
from dataflex.core.errors import ConfigError
from dataflex.core.kinds import KINDS
from dataflex.core.registry import provided
from dataflex.discovery.component_classes import find
from dataflex.discovery.construct import constructor_parameters
from dataflex.forecast import sampled_rows
from dataflex.forecast.advice import advice
from dataflex.forecast.data_size import Rows, data_size
from dataflex.forecast.entry_texts import row_text
from dataflex.forecast.forecast import MOST, forecast
from dataflex.forecast.kept_rows import kept_rows
from dataflex.forecast.model_size import model_size
from dataflex.forecast.page import page, plain, verdict
from dataflex.forecast.passes_price import CPU_TOUCHED, OPTIMIZER, ROW_GRADIENTS, ROW_NUMBERS, Prices, Rates
from dataflex.forecast.sampled_rows import sampled
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_tokenizer
from dataflex_selectors.near import NearSelector
from datasets import Dataset

AHEAD = Ahead(
    rows=Amount(1000, 100_000, 50_000), asked=Amount(80, 8000, 4000), target=Amount(50, 5000, 2000), updates=4,
    held_out=Amount(100, 10_000, 5000), sources=2, step=Amount(8, 800, 400), steps=10, micro_batches=2, width=512,
    trainable=10**6, model_bytes=4 * 10**6,
)  # fmt: skip
INSTALLED = [(kind, point.name) for kind in KINDS for point in provided(kind)]


def cost(kind, name, ahead=AHEAD, **params):
    known, _ = constructor_parameters(find(kind, name))
    defaults = {n: None if p.default is p.empty else p.default for n, p in known.items()}
    return find(kind, name).cost({**defaults, **params}, ahead)


def selector(name, ahead=AHEAD, **params):
    return cost(KINDS[0], name, ahead, **params)


# --- what components declare


@pytest.mark.parametrize(("kind", "name"), INSTALLED, ids=[f"{kind.name}-{name}" for kind, name in INSTALLED])
def test_each_installed_component_says_what_it_costs_but_those_to_copy(kind, name):
    found = cost(kind, name)
    assert (found is None) == (name == "custom")
    if found is None:
        return
    assert found == cost(kind, name), "the same question has another answer"
    numbers = [found.device_bytes, found.host_bytes, found.state_bytes, found.cache_bytes]
    assert all(np.isfinite(number) and number >= 0 for number in numbers)
    empty = Ahead()  # a run of which nothing is known
    assert cost(kind, name, empty) is not None


def test_candidates_bound_what_less_scores():
    assert selector("less").update.gradients == AHEAD.rows + AHEAD.target
    assert selector("less", candidates=200).update.gradients == AHEAD.rows.of(200) + AHEAD.target
    assert selector("less", candidates=5000).update.gradients == AHEAD.rows + AHEAD.target


def test_seen_losses_cost_only_what_is_too_old():
    assert selector("loss").update.losses == AHEAD.rows
    assert selector("loss", scores="seen").update.losses == NOTHING
    aged = selector("loss", scores="seen", max_age=50).update.losses
    assert aged.rows == pytest.approx(1000 - 50 * 8)


def test_what_is_made_once_or_now_and_then_is_due_then_alone():
    at = [replace(AHEAD, update=n, first=2, every=2) for n in (2, 4, 6, 8, 10)]
    assert [ahead.due() for ahead in at] == [True, False, False, False, False]
    assert [ahead.due(1) for ahead in at] == [True] * 5
    assert [ahead.due(3) for ahead in at] == [True, False, True, False, True]


def test_the_reference_model_is_counted_once_and_a_judge_is_told_of():
    first = selector("rho_loss", reference_model="a/b")
    assert first.update.others == {"a/b": AHEAD.rows}
    assert selector("rho_loss", replace(AHEAD, update=1), reference_model="a/b").update.others == {}
    assert first.update.forward == AHEAD.rows.of(800)
    asked = selector("nice", reward="endpoint", endpoint="http://localhost", prompts=10, samples=4)
    assert asked.notes == ("40 requests to the judge at each update; how long they take is not known",)
    assert asked.update.generated == Amount(40, 40 * 256, 40 * 256)


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize(("embedding", "refresh"), [("ngrams", 1), ("model", 1), ("model", 3)])
def test_near_ranks_when_it_says_that_it_does(embedding, refresh, seen):
    from dataflex.core.context import UpdateContext

    rows, count, updates = TokenRows(50, lengths=12), 8, 11
    near = NearSelector(
        dataset=rows, accelerator=None, data_collator=pad_collate, cache_dir="unused", tokenizer=tiny_tokenizer(),
        eval_dataset=TokenRows(3, lengths=12, seed=5), embedding=embedding, refresh=refresh, exclude_seen=seen,
    )  # fmt: skip
    near.bind("near", 7)
    size, model, ranked = Amount(50, 600, 500), tiny_model(), []
    for update in range(updates):
        before = near._ranked_at
        near.select(model, update, count, context=UpdateContext(update, updates, update, 99, 1e-3, None))
        ranked.append(near._ranked_at != before)
    said = []
    for update in range(updates):
        ahead = Ahead(update=update, updates=updates, rows=size, asked=size.of(count), target=size.of(3), width=32)
        work = selector("near", ahead, embedding=embedding, refresh=refresh, exclude_seen=seen).update
        said.append(bool(work.hidden.rows or work.ngrams.rows))
    assert said == ranked


def test_losses_that_are_shared_are_counted_once_and_other_passes_each_time():
    both = Work(losses=AHEAD.rows) + Work(losses=AHEAD.asked, forward=AHEAD.asked)
    assert (both.losses, both.forward) == (AHEAD.rows, AHEAD.asked)
    assert (both + both).forward == AHEAD.asked.times(2)
    joined = Work(others={"a": AHEAD.step}) + Work(others={"a": AHEAD.step, "b": AHEAD.step})
    assert joined.others == {"a": AHEAD.step.times(2), "b": AHEAD.step}


# --- rows of files

ENTRY = entry("a", {"file_name": "a.json"})
ROWS = [{"instruction": f"question {n}", "input": "", "output": f"answer {n}"} for n in range(5000)]


def write(path, rows=ROWS):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".txt":
        path.write_text("\n".join(row["output"] for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "txt", "parquet", "arrow"])
def test_rows_of_small_files_are_counted_and_taken_from_all_of_the_file(tmp_path, suffix):
    found = sampled([write(tmp_path / f"a.{suffix}")])
    assert (found.count, found.exact) == (5000, True)
    key = "text" if suffix == "txt" else "output"
    numbers = [int(row[key].split()[-1]) for row in found.rows]
    assert 150 <= len(numbers) <= 200
    assert min(numbers) < 100
    assert max(numbers) > 4000


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "txt"])
def test_rows_of_large_files_are_estimated_from_their_size(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(sampled_rows, "LARGEST", 1000)
    monkeypatch.setattr(sampled_rows, "_HEAD", 60_000)
    found = sampled([write(tmp_path / f"a.{suffix}")])
    assert not found.exact
    assert found.count == pytest.approx(5000, rel=0.05)
    assert found.rows


def test_files_that_cannot_be_looked_at_give_no_rows(tmp_path):
    for suffix in ("json", "jsonl", "csv", "txt"):
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(gzip.compress(json.dumps(ROWS).encode()))
        assert sampled([path]) == sampled_rows.Sampled((), None, True)
    for broken in (tmp_path / "b.parquet", tmp_path / "b.arrow"):
        broken.write_bytes(b"PAR1 nothing PAR1")
        assert sampled([broken]).count is None
    assert data_files.FILE_TYPES.keys() == {"arrow", "csv", "json", "jsonl", "parquet", "txt"}, "a type without a test"


def test_what_of_a_row_is_prompt_and_what_is_answer():
    alpaca = {"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]]}
    with_history = entry(
        "x",
        {
            "file_name": "x",
            "columns": {"prompt": "instruction", "query": "input", "response": "output", "history": "history"},
        },
    )
    found = row_text(alpaca, with_history, "sft")
    assert (found.prompt.split(), found.answer.split(), found.turns) == (["a", "b", "d"], ["c", "e"], 2)
    talk = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}] * 2}
    found = row_text(talk, entry("x", {"file_name": "x", "formatting": "sharegpt"}), "sft")
    assert (found.prompt.split(), found.answer.split(), found.turns) == (["a", "a"], ["b", "b"], 2)
    text = row_text({"text": "all of it"}, entry("x", {"file_name": "x", "columns": {"prompt": "text"}}), "pt")
    assert (text.prompt, text.answer) == ("", "all of it")
    assert row_text({}, ENTRY, "sft").answer == ""
    assert (
        row_text({"conversations": "no list"}, entry("x", {"file_name": "x", "formatting": "sharegpt"}), "sft").prompt
        == ""
    )


@pytest.mark.parametrize("formatting", ["alpaca", "sharegpt"])
def test_a_pair_is_two_answers_each_with_all_that_stands_before_it(formatting):
    columns = {"chosen": "yes", "rejected": "no"}
    if formatting == "alpaca":
        columns |= {"prompt": "asked", "history": "before"}
        row = {"asked": "c", "before": [["a", "b"]], "yes": "d", "no": "e"}
    else:
        columns |= {"messages": "conversations"}
        said = [("human", "a"), ("gpt", "b"), ("human", "c")]
        row = {"conversations": [{"from": who, "value": text} for who, text in said]}
        row |= {"yes": {"from": "gpt", "value": "d"}, "no": {"from": "gpt", "value": "e"}}
    given = entry("x", {"file_name": "x", "formatting": formatting, "ranking": True, "columns": columns})
    for stage in ("rm", "dpo"):
        found = row_text(row, given, stage)
        assert sorted(found.prompt.split()) == ["a", "a", "b", "b", "c", "c"]
        assert (found.answer.split(), found.turns) == (["d", "e"], 4)


def test_padding_is_to_the_mean_longest_of_a_batch():
    lengths = np.sort(np.random.default_rng(0).integers(5, 100, 3000)).astype(float)
    rows = Rows("a", 3000, lengths, 1.0, "")
    drawn = np.random.default_rng(1).choice(lengths, (20_000, 4)).max(axis=1).mean()
    assert rows.padded(4) == pytest.approx(drawn, rel=0.01)
    assert rows.padded(1) == pytest.approx(rows.mean)


# --- a run of small files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    tiny_tokenizer().save_pretrained(path / "model")
    tiny_model(512, 64, 4).save_pretrained(path / "model")
    (path / "data").mkdir()
    for name, rows in {"a": ROWS[:400], "b": ROWS[:100], "target": ROWS[:20]}.items():
        write(path / "data" / f"{name}.json", rows)
    info = {name: {"file_name": f"{name}.json"} for name in ("a", "b", "target")}
    info["hub"] = {"hf_hub_url": "nobody/nothing"}
    (path / "data" / "dataset_info.json").write_text(json.dumps(info))
    return path


def checked(folder, **changes):
    config = {
        "model_name_or_path": str(folder / "model"), "stage": "sft", "do_train": True, "dataset": "a",
        "dataset_dir": str(folder / "data"), "eval_dataset": "target", "output_dir": str(folder / "out"),
        "finetuning_type": "lora", "template": "default", "cutoff_len": 64, "per_device_train_batch_size": 4,
        "train_type": "dynamic_select", "component_name": "less", "warmup_step": 2, "update_step": 3, "update_times": 4,
    }  # fmt: skip
    return check({key: value for key, value in (config | changes).items() if value is not None}, folder)


def test_the_share_is_that_of_the_segments_and_the_identity_holds(folder):
    found = forecast(checked(folder))
    assert found.schedule.total == sum(segment.steps for segment in found.segments) == 14
    assert sum(segment.deciding_flops for segment in found.segments) == pytest.approx(found.deciding_flops)
    assert sum(segment.training.equivalent for segment in found.segments) == pytest.approx(found.training_flops)
    assert found.share == found.deciding_flops / (found.deciding_flops + found.training_flops)
    assert found.passes["gradients of rows"].rows == 4 * (400 + 20)
    assert found == forecast(checked(folder)), "the same configuration has another forecast"


def test_flops_are_those_of_the_formulas(folder):
    found = forecast(checked(folder, finetuning_type="full", disable_gradient_checkpointing=True))
    size, data = found.facts.model.size, found.facts.data.sources[0]
    model = tiny_model(512, 64, 4)
    linear = sum(m.weight.numel() for n, m in model.named_modules() if isinstance(m, torch.nn.Linear))
    assert size.weights == size.trainable == sum(p.numel() for p in model.parameters())
    assert (size.body, size.head, size.attended) == (linear - 512 * 64, 512 * 64, 4 * 64)
    length = data.padded(4)
    step = found.segments[1].training
    token = 6 * (size.body + size.head) + 4 * size.attended * length
    assert step.flops == pytest.approx(3 * (4 * length * token + OPTIMIZER * size.trainable))
    amount = data.amount() + found.facts.data.evaluated[0].amount()
    row = 6 * size.body * amount.tokens + 6 * size.head * amount.labels
    row += 4 * size.attended * amount.length * amount.tokens
    assert found.segments[1].deciding["gradients of rows"].equivalent == pytest.approx(
        ROW_GRADIENTS * row + ROW_NUMBERS * CPU_TOUCHED * size.trainable * amount.rows
    )


@pytest.mark.parametrize(
    ("changes", "trainable", "depth"),
    [
        ({"finetuning_type": "full"}, None, 1.0),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 1}, 1, 0.25),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": -1}, 1, 1.0),
        ({"finetuning_type": "lora", "lora_rank": 4, "lora_target": "q_proj,v_proj"}, 4 * 4 * (64 + 64 + 64 + 32), 1.0),
        ({"finetuning_type": "lora", "lora_rank": 4}, 4 * 4 * (2 * 128 + 2 * 96 + 3 * 320), 1.0),
    ],
)
def test_what_is_trained_follows_the_configuration(folder, changes, trainable, depth):
    size = model_size(str(folder / "model"), changes).size
    model = tiny_model(512, 64, 4)
    layer = sum(p.numel() for n, p in model.named_parameters() if ".layers.0." in n)
    expected = (
        sum(p.numel() for p in model.parameters()) if trainable is None else layer if trainable == 1 else trainable
    )
    assert (size.trainable, size.depth) == (expected, depth)


def test_a_token_meets_the_experts_that_it_is_sent_to(tmp_path):
    model = tiny_model(kind="mixtral")
    model.config.save_pretrained(tmp_path)
    size = model_size(str(tmp_path), {"finetuning_type": "full"}).size
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    plain = sum(p.numel() for n, p in model.named_parameters() if p.ndim > 1 and ".experts." not in n)
    embedded = 2 * 128 * 32
    assert size.body == pytest.approx(plain - embedded + experts * 2 / 4)


def test_lora_costs_less_than_the_whole_model_and_fewer_layers_less_still(folder):
    rates, rows = Rates(1e9, 0.0, ""), Amount(10, 1000, 500)

    def gradients(**keys):
        prices = Prices(model_size(str(folder / "model"), keys).size, rates, {}, recomputes=False, ranks=1)
        return prices.of(Work(gradients=rows))["gradients of rows"].flops, prices.step(rows).flops

    whole, lora = gradients(finetuning_type="full"), gradients(finetuning_type="lora", lora_rank=1)
    frozen = gradients(finetuning_type="freeze", freeze_trainable_layers=1)
    assert frozen < lora < whole


PAIR = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
ANSWERS = {"file_name": "pairs.json", "ranking": True, "formatting": "sharegpt", "columns": PAIR}


@pytest.fixture
def pairs(folder, tmp_path):
    """A `dataset_dir` with pairs, and with the same prompts and chosen answers with a tag."""
    texts = [("word " * (3 + n % 5), "yes " * (2 + n % 3), "no " * (1 + n % 4)) for n in range(120)]
    (tmp_path / "data").mkdir()
    rows = [
        {
            "conversations": [{"from": "human", "value": asked}],
            "chosen": {"from": "gpt", "value": yes},
            "rejected": {"from": "gpt", "value": no},
        }
        for asked, yes, no in texts
    ]
    write(tmp_path / "data" / "pairs.json", rows)
    write(tmp_path / "data" / "tagged.json", [{"instruction": a, "output": y, "tag": True} for a, y, _ in texts])
    columns = {"prompt": "instruction", "response": "output"}
    info = {
        "pairs": ANSWERS,
        "plain": {"file_name": "tagged.json", "columns": columns},
        "tagged": {"file_name": "tagged.json", "columns": columns | {"kto_tag": "tag"}},
        "hub": {"hf_hub_url": "nobody/nothing", "ranking": True},
    }
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))

    def of(dataset, **changes):
        given = {"dataset": dataset, "dataset_dir": str(tmp_path / "data"), "component_name": "loss"}
        return forecast(checked(folder, eval_dataset=None, **given, **changes))

    return of


@pytest.mark.parametrize(
    ("changes", "forward"),
    [
        ({"stage": "rm"}, 1),
        ({"stage": "dpo"}, 2),
        ({"stage": "dpo", "pref_loss": "ipo"}, 2),
        ({"stage": "dpo", "pref_loss": "orpo"}, 1),
        ({"stage": "dpo", "pref_loss": "simpo"}, 1),
        ({"stage": "kto"}, 4),
    ],
)
@pytest.mark.llamafactory
def test_a_stage_costs_as_many_passes_as_its_trainer_makes(pairs, changes, forward):
    """Counted by hand: reference and estimate of K are forward passes, of training and of scoring alike."""
    found = pairs("tagged" if changes["stage"] == "kto" else "pairs", finetuning_type="full", **changes)
    size, data = found.facts.model.size, found.facts.data.sources[0]
    answers = 1 if changes["stage"] == "kto" else 2
    assert data.labels == pytest.approx(1.0), "logits are made of prompts too"
    each = 2 * (size.body + size.head) + 2 * size.attended * data.mean / answers
    assert found.passes["forward passes"].flops == pytest.approx(4 * forward * 120 * data.mean * each)
    length = data.padded(4)
    layers, logits = 2 * size.body + 2 * size.attended * length / answers, 2 * size.head
    trained = 2 * (layers + logits) + layers + 2 * (size.body + size.head)  # the layers twice: gradient checkpointing
    step = 4 * length * (trained + (forward - 1) * (layers + logits)) + OPTIMIZER * size.trainable
    assert found.segments[1].training.flops == pytest.approx(3 * step, rel=1e-6)


@pytest.mark.parametrize(
    ("columns", "lengths", "labels"),
    [
        ({"input_ids": [[5, 6, 7]], "labels": [[-100, 6, 7]]}, [3], [2]),
        ({"chosen_input_ids": [[5, 6, 7]], "rejected_input_ids": [[5, 6]], "chosen_labels": [[-100, 6, 7]]}, [5], [5]),
        ({"input_ids": [[5, 6, 7]], "labels": [[-100, 6, 7]], "kto_tags": [True]}, [3], [3]),
    ],
)
def test_tokenised_rows_of_a_stage_are_counted_as_it_runs_over_them(tmp_path, columns, lengths, labels):
    Dataset.from_dict(columns).save_to_disk(str(tmp_path / "kept"))
    (found,) = [counted for _, counted in kept_rows(tmp_path / "kept").values()]
    assert (found.lengths.tolist(), found.labels.tolist()) == (lengths, labels)


@pytest.mark.llamafactory
def test_a_pair_is_as_long_as_two_texts_and_cut_as_two(pairs):
    (pair,) = pairs("pairs", stage="rm").facts.data.sources
    (text,) = pairs("plain").facts.data.sources
    assert 1.5 * text.mean < pair.mean < 2.5 * text.mean
    (cut,) = pairs("pairs", stage="rm", cutoff_len=4).facts.data.sources
    assert cut.lengths.max() == 8
    (unread,) = pairs("hub", stage="dpo").facts.data.sources
    assert unread.mean == 2 * 64
    assert "taken as 128 tokens a row (cutoff_len for each answer)" in unread.how


def test_rows_that_are_nowhere_here_are_taken_at_cutoff_len_and_it_is_said(folder):
    spec = checked(folder, dataset="hub")
    found = forecast(spec)
    assert found.facts.data.sources[0].mean == 64
    assert "the rows of 'hub' are on a hub: taken as 64 tokens a row (cutoff_len)" in page(found, None)
    (said,) = page(found, None).splitlines()[-1:]
    assert said.startswith("deciding will take more than ")
    assert said.endswith("the rows of hub are not counted here -> say how many with --rows N, or set max_samples")
    random = page(forecast(checked(folder, dataset="hub", component_name="random")), None)
    assert random.splitlines()[-1] == "deciding takes nothing worth counting of the compute"
    losses = page(forecast(checked(folder, dataset="hub", component_name="loss")), None)
    assert losses.splitlines()[-1].startswith("what deciding takes is not known: the rows of hub are not counted here")
    assert forecast(spec, rows=1000).passes["gradients of rows"].rows == 4 * 1020
    assert "the train dataset has as many rows as --rows says" in page(forecast(spec, rows=1000), None)
    by_epochs = {"dataset": "hub", "update_times": -1, "num_train_epochs": 1}
    with pytest.raises(ConfigError, match="on a hub -> say how many with --rows N, or set max_samples"):
        forecast(checked(folder, **by_epochs))
    assert forecast(checked(folder, **by_epochs), rows=1000).schedule.total == 250
    assert forecast(checked(folder, **by_epochs, max_samples=80)).schedule.total == 20


def test_a_model_that_is_nowhere_here_leaves_the_shares_as_they_are(folder):
    known = forecast(checked(folder, component_name="loss"))
    unknown = forecast(checked(folder, component_name="loss", model_name_or_path="nobody/nothing"))
    assert unknown.share == pytest.approx(known.share, rel=0.25)
    text = page(unknown, None)
    assert "the configuration of nobody/nothing is not to be had here" in text
    assert "4 characters a token, as the tokenizer of nobody/nothing is not here" in text


def test_a_folder_without_a_vocabulary_counts_by_characters(folder, tmp_path):
    """transformers makes a tokenizer of the configuration alone, for which any text is one token."""
    (tmp_path / "config.json").write_bytes((folder / "model" / "config.json").read_bytes())
    with_tokenizer, without = (
        data_size(checked(folder, model_name_or_path=str(path))) for path in (folder / "model", tmp_path)
    )
    assert "the model's tokenizer" in with_tokenizer.sources[0].how
    assert "4 characters a token" in without.sources[0].how
    assert without.sources[0].mean > 12


def test_shares_repeats_and_misses(folder):
    mixed = {
        "train_type": "dynamic_mix", "component_name": "random", "dataset": "a,b", "eval_dataset": None,
        "init_mixture_proportions": [3.0, 1.0],
    }  # fmt: skip
    found = forecast(checked(folder, **mixed))
    assert found.shares == {"a": 0.75, "b": 0.25}
    a, b = found.facts.data.sources
    assert (found.repeats(a), found.repeats(b)) == (56 * 0.75 / 400, 56 * 0.25 / 100)
    assert found.updates_missed() is None
    even = forecast(checked(folder, **mixed, mixture_sample_rule="uniform"))
    assert even.shares == {"a": 0.5, "b": 0.5}
    chosen = forecast(checked(folder))
    assert chosen.updates_missed() == pytest.approx(4 * (1 - 12 / 400))


def test_rows_held_out_of_the_train_dataset_are_the_target(folder):
    data = data_size(checked(folder, eval_dataset=None, val_size=0.1))
    assert (data.sources[0].count, data.evaluated[0].count) == (360, 40)
    data = data_size(checked(folder, eval_dataset=None, val_size=30))
    assert (data.sources[0].count, data.evaluated[0].count) == (370, 30)


def test_packed_rows_are_full(folder):
    data = data_size(checked(folder, stage="pt", component_name="random", eval_dataset=None))
    (rows,) = data.sources
    assert rows.mean == 64
    assert "packed to 64 tokens" in rows.how
    assert rows.count < 100


def test_long_runs_are_summed_up_from_their_first_updates(folder):
    many = checked(folder, train_step=3 * (MOST + 500), update_times=-1, warmup_step=0, component_name="random")
    spec = replace(many, component=replace(many.component, name="loss", preset="loss"))
    found = forecast(spec)
    assert found.schedule.updates == MOST + 500
    assert found.passes["forward passes"].rows == pytest.approx((MOST + 500) * 400)
    assert f"only the first {MOST:,} updates are looked at" in page(found, None)
    assert found.parts["selector"] == pytest.approx(found.deciding_flops)


def test_ranks_share_the_passes_and_wait_for_what_one_does_alone(folder):
    one, four = (forecast(checked(folder, component_name="near"), ranks=ranks) for ranks in (1, 4))
    assert four.batch == 16
    assert four.deciding_flops > 3 * one.deciding_flops
    same = checked(folder, component_name="loss")
    assert forecast(same, ranks=4).deciding_flops == pytest.approx(forecast(same).deciding_flops)


# --- advice and words


def test_evaluation_rows_that_are_not_counted_are_told_of_where_a_component_aims_at_them(folder):
    assert forecast(checked(folder, eval_dataset="hub")).uncounted == ("hub",)
    assert forecast(checked(folder, eval_dataset="hub", component_name="loss")).uncounted == ()
    assert forecast(checked(folder, eval_dataset="hub", max_samples=50)).uncounted == ()


def test_a_speed_that_no_cpu_has_is_that_of_an_accelerator(folder):
    whole = checked(folder, finetuning_type="full")
    cpu, gpu = forecast(whole), forecast(whole, speed=200e12)
    assert (cpu.facts.rates.device, gpu.facts.rates.device) == ("1 CPU thread", "an accelerator")
    assert gpu.share > cpu.share, "gradients of single rows are bound by memory, which is slower beside an accelerator"


def test_advice_is_counted_and_keeps_what_it_needs(folder):
    found = forecast(checked(folder))
    advised = advice(found)
    key, value = advised.says.split(": ")
    assert key == "candidates"
    assert int(value) >= 2 * 12, "fewer candidates than twice the rows that an update takes"
    assert advised.share == forecast(checked(folder, component={"candidates": int(value)})).share < found.share
    assert verdict(found, advised).endswith(f"`{advised.says}` would make it {round(100 * advised.share)} %")


def test_no_advice_where_deciding_is_cheap_or_nothing_helps(folder):
    assert advice(forecast(checked(folder, component_name="random"))) is None
    cheap = checked(folder, component_name="near", update_step=60, update_times=1)
    assert advice(forecast(cheap, speed=1e6)) is None


def test_seen_losses_are_advised_where_they_save(folder):
    assert advice(forecast(checked(folder, component_name="loss"))).says == "scores: seen"


def test_the_record_has_scores_where_the_selector_gives_some(folder):
    sizes = {name: forecast(checked(folder, component_name=name)).selection_bytes for name in ("less", "random")}
    assert sizes == {"less": 56 * 16, "random": 56 * 8}


def test_a_static_run_decides_nothing(folder):
    keys = {"component_name": None, "warmup_step": None, "update_step": None, "update_times": None}
    found = forecast(checked(folder, **keys, train_type="static", max_steps=10))
    assert (found.share, found.schedule.total, found.schedule.updates) == (0, 10, 0)
    assert page(found, None).splitlines()[-1] == "deciding takes nothing worth counting of the compute"


def test_the_next_trainer_is_refused_in_words(monkeypatch, folder):
    spec = RunSpec(DataflexArguments(), llamafactory={"model_name_or_path": "x"})
    monkeypatch.setenv("USE_V1", "1")
    with pytest.raises(ConfigError, match="USE_V1=1 leaves the run to LLaMA-Factory's next trainer"):
        forecast(spec)


def test_json_holds_plain_finite_numbers(folder):
    for changes in ({}, {"dataset": "hub"}, {"model_name_or_path": "nobody/nothing"}):
        found = forecast(checked(folder, **changes))
        text = json.dumps(plain(found, advice(found)), allow_nan=False)
        assert json.loads(text)["says"].startswith(("deciding", "what deciding"))


def test_a_component_of_no_cost_is_added_to_one_that_has_some():
    assert Cost() == Cost(Work(), Work())
    assert Amount().of(5) == NOTHING
    assert AHEAD.rows.at_most(None) is AHEAD.rows
