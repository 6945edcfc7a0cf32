"""What a run leaves on disk for a report: facts, metrics, segments, texts, scores; also killed, failed and on ranks."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.utils import set_seed
from dataflex import dynamic
from dataflex.core.errors import ComponentError, StoppedError
from dataflex.core.files import LAST_SCORES, METRICS, ROWS, RUN, SEGMENTS, TRACE
from dataflex.run.heard_warnings import HeardWarnings
from dataflex.run.record import RunRecord, read_trace
from dataflex.run.record_files import FILES
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_tokenizer, tiny_training_args
from dataflex.train.selector.base_selector import Selection, Selector
from dataflex.train.weighter.base_weighter import Weighter
from dataflex.trainer import row_recording, trained_rows
from dataflex.utils import secret_values
from rank_group import on_ranks
from transformers import Trainer, TrainerCallback

UPDATES = {"warmup_step": 2, "update_step": 2, "update_times": 2}
ARGS = {"per_device_train_batch_size": 4, "logging_steps": 2, "max_steps": 6}
TIMES = ("seconds", "explain_seconds", "updated", "starts", "at")


def stored(count, **sizes):
    rows = TokenRows(count, **sizes)
    return datasets.Dataset.from_list([dict(rows[row]) for row in range(count)])


def two_sources():
    return {"a": stored(20), "b": stored(30, lengths=range(5, 20), seed=1)}


RUNS = {
    "dynamic_select": ({"selector": "loss", **UPDATES}, lambda: stored(30, lengths=range(5, 20))),
    "dynamic_mix": ({"mixer": "odm", **UPDATES}, two_sources),
    "dynamic_reorder": ({"order": {"component": "saw", "by": "length"}}, lambda: stored(30, lengths=range(5, 20))),
    "dynamic_weight": ({"weighter": "loss"}, two_sources),
    "dynamic": (
        {
            "selector": [{"component": "loss", "keep": 0.5}, "less"],
            "mixer": "odm",
            "order": {"component": "saw", "by": "loss", "over": "stretch"},
            "weighter": "loss",
            **UPDATES,
        },
        two_sources,
    ),
}
"""A run of every train_type."""


def build(folder, run="dynamic_select", rows=None, *, tokenizer=True, keys=None, callbacks=None, cls=Trainer, **args):
    axes, data = RUNS[run] if isinstance(run, str) else (run, lambda: stored(30))
    given = {"processing_class": tiny_tokenizer()} if tokenizer else {}
    return dynamic(cls, **axes | (keys or {}))(
        model=tiny_model(),
        args=tiny_training_args(folder, **ARGS | args),
        train_dataset=data() if rows is None else rows,
        eval_dataset=stored(6, seed=3),
        data_collator=pad_collate,
        callbacks=callbacks,
        **given,
    )


def facts_of(folder):
    return json.loads((Path(folder) / RUN).read_text())


def lines_of(folder, name):
    path = Path(folder) / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def timeless(found):
    """Returns it without what is another number each time."""
    if isinstance(found, dict):
        return {
            key: timeless(value)
            for key, value in found.items()
            if not (key in (*TIMES, "run") or "runtime" in key or "per_second" in key or key.endswith("/seconds"))
        }
    return [timeless(value) for value in found] if isinstance(found, list) else found


def record_of(folder):
    """Returns everything that the record says, but for times and the run's name."""
    found = {name: timeless(lines_of(folder, name)) for name in (METRICS, SEGMENTS, ROWS, TRACE)}
    if (Path(folder) / LAST_SCORES).exists():
        with np.load(Path(folder) / LAST_SCORES) as scores:
            found["scores"] = [scores["scores"].tobytes(), int(scores["step"])]
    return found | {"facts": timeless(facts_of(folder))}


@pytest.mark.parametrize("run", RUNS)
def test_a_run_of_every_kind_says_what_it_is_how_far_it_came_and_what_it_trained_on(tmp_path, run):
    trainer = build(tmp_path, run, eval_strategy="steps", eval_steps=3, save_strategy="steps", save_steps=4)
    trainer.train()
    facts, segments = facts_of(tmp_path), lines_of(tmp_path, SEGMENTS)
    assert facts["version"] == 1
    assert (facts["run"], facts["train_type"], facts["status"], facts["error"]) == (
        trainer.run_id,
        run,
        "finished",
        None,
    )
    assert (facts["step"], facts["total_steps"], facts["batch"], facts["world_size"]) == (6, 6, 4, 1)
    assert [start["step"] for start in facts["starts"]] == [0]
    kinds = {line["kind"] for line in read_trace(tmp_path)} - {"loss"}
    assert {part["kind"] for part in facts["parts"]} == kinds | ({"order"} if run == "dynamic_reorder" else set())
    assert set(facts["seconds"]) == {"training", "deciding", "saving", "evaluating"}
    assert facts["seconds"]["evaluating"] > 0
    assert facts["seconds"]["saving"] > 0
    sources = {source["name"]: source for source in facts["sources"]}
    assert facts["rows"] == sum(source["rows"] for source in sources.values())
    chosen = [np.load(tmp_path / "dataflex_selections" / line["file"])["indices"] for line in segments]
    assert [line["rows"] for line in segments] == [len(rows) for rows in chosen]
    assert [line["distinct"] for line in segments] == [len(set(rows.tolist())) for rows in chosen]
    assert sum(line["steps"] for line in segments) == 6
    lengths = [len(trainer.train_dataset[int(row)]["input_ids"]) for row in np.concatenate(chosen)]
    assert sum(line["tokens"] for line in segments) == sum(lengths) == facts["tokens"]
    of_sources = [of for line in segments for of in line["sources"].values()]
    assert sum(of["rows"] for of in of_sources) == 24
    assert sum(of["tokens"] for of in of_sources) == sum(lengths)
    assert set(sources) == ({"train"} if run in ("dynamic_select", "dynamic_reorder") else {"a", "b"})
    metrics = lines_of(tmp_path, METRICS)
    assert timeless(metrics) == timeless([{**line} for line in trainer.state.log_history])
    assert all(later["seconds"] >= line["seconds"] for line, later in pairwise(metrics))


def written(lines):
    return {(line.get("row"), line.get("target")) for line in lines[1:]}


@pytest.mark.parametrize("run", RUNS)
def test_the_record_of_a_killed_run_that_is_resumed_is_that_of_a_run_that_was_never_stopped(tmp_path, run, monkeypatch):
    monkeypatch.setattr(trained_rows, "STRETCH", 4)
    monkeypatch.setattr(row_recording, "ALL", 10)  # notable rows alone
    args = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    build(tmp_path / "whole", run, **args).train()
    killed = tmp_path / "killed"
    build(killed, run, **args).train()  # its record goes on past the checkpoint: what follows must be taken back
    for later in killed.glob("checkpoint-*"):
        if int(later.name.split("-")[1]) > 3:
            shutil.rmtree(later)
    (killed / ROWS).write_bytes((killed / ROWS).read_bytes()[:-5])  # it was killed while it wrote
    build(killed, run, **args).train(resume_from_checkpoint=str(killed / "checkpoint-3"))
    expected, found = record_of(tmp_path / "whole"), record_of(killed)
    for line in (*expected[METRICS], *found[METRICS]):
        for key in ("loss", "grad_norm", "train_loss"):  # transformers adds them up from the checkpoint on
            line.pop(key, None)
    for name, value in expected.items():
        if name == ROWS:  # the last one, which was cut off, comes again when it is notable again
            assert value[0] == found[name][0]
            assert written(found[name]) <= written(value)
        else:
            assert found[name] == value, name
    assert [start["step"] for start in facts_of(killed)["starts"]] == [0, 3]


@pytest.mark.parametrize("mixed", [False, True])
def test_what_a_selector_says_of_its_choice_is_in_the_trace_line_of_its_update(tmp_path, mixed):
    axes = {"selector": "infobatch", **UPDATES} | ({"mixer": "odm"} if mixed else {})
    build(tmp_path, axes, two_sources() if mixed else stored(30)).train()
    first = next(line for line in lines_of(tmp_path, TRACE) if line["kind"] == "select")
    begun = first["passes_begun"]
    named = begun if mixed else {"all": begun}
    assert {name: own[0]["of"] for name, own in named.items()} == ({"a": 20, "b": 30} if mixed else {"all": 30})
    for (own,) in named.values():  # rows of the warm-up may be learnt already
        assert own["pass"] == 1
        assert 0 <= own["left_out"] <= 8
    later = [line for line in lines_of(tmp_path, TRACE) if line["kind"] == "select"][1:]
    assert later
    assert not any("passes_begun" in line for line in later), "no pass begins there"
    assert not any(line.get("weighs_losses") for line in lines_of(tmp_path, TRACE))


@pytest.mark.parametrize("damage", ["emptied", "cut", "flipped", "nonsense"])
def test_damaged_files_of_the_record_stop_no_run(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(row_recording, "ALL", 10)
    build(tmp_path, save_strategy="steps", save_steps=3).train()
    damages = {
        "emptied": lambda content: b"",
        "cut": lambda content: content[: len(content) // 2],
        "flipped": lambda content: content[:40] + bytes([content[40] ^ 16]) + content[41:],
        "nonsense": lambda content: b'{"run": "x", "starts": 3, "step": null, "row": [], "target": {}}\n' * 3,
    }
    for name in FILES:
        if (tmp_path / name).exists() and name != TRACE:
            (tmp_path / name).write_bytes(damages[damage]((tmp_path / name).read_bytes()))
    build(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    facts = facts_of(tmp_path)
    assert (facts["status"], facts["step"], facts["starts"][-1]["step"]) == ("finished", 6, 3)
    assert [line["step"] for line in lines_of(tmp_path, SEGMENTS)][-1:] == [4]
    assert lines_of(tmp_path, METRICS)[-1]["step"] == 6
    assert len(lines_of(tmp_path, ROWS)) > 1


def test_a_run_does_not_end_because_its_record_cannot_be_written_and_says_so_once(tmp_path, monkeypatch, caplog):
    def full(self, lines):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunRecord, "metrics", full)
    monkeypatch.setattr(RunRecord, "segment_line", full)
    trainer = build(tmp_path)
    trainer.train()
    assert trainer.state.global_step == 6
    said = [record.getMessage() for record in caplog.records if "gaps" in record.getMessage()]
    assert said == ["the record of this run has gaps, as it cannot be written: [Errno 28] No space left on device"]
    assert facts_of(tmp_path)["status"] == "finished"


def test_the_text_of_a_target_row_is_written_once(tmp_path):
    trainer = build(tmp_path)
    trainer.recording.target("before training", 0, [5, 6])
    trainer.add_callback(Targets(trainer))
    trainer.train()
    targets = [line for line in lines_of(tmp_path, ROWS) if "target" in line]
    text = tiny_tokenizer().decode([40, 41], skip_special_tokens=True)
    assert targets == [{"set": "eval", "target": 3, "tokens": 2, "text": text, "cut": False}]
    assert "target" in lines_of(tmp_path, ROWS)[-1], "behind the rows"


class Targets(TrainerCallback):
    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, *args, **kwargs):
        self.trainer.recording.target("eval", 3, [40, 41])


class Breaks(TrainerCallback):
    def __init__(self, error):
        self.error = error

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise self.error


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("no\nmore  room"), "failed", "ValueError: no more room"),
        (ComponentError("selector 'x' returned 3 rows"), "failed", "ComponentError: selector 'x' returned 3 rows"),
        (StoppedError("stopped by SIGTERM"), "stopped", "StoppedError: stopped by SIGTERM"),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt"),
    ],
)
def test_how_a_run_was_broken_off_is_written_down_and_it_raises_what_it_raised(tmp_path, error, status, said):
    with pytest.raises(type(error)):
        build(tmp_path, callbacks=[Breaks(error)]).train()
    facts = facts_of(tmp_path)
    assert (facts["status"], facts["error"], facts["step"]) == (status, said, 3)
    assert len(lines_of(tmp_path, ROWS)) == 31, "the texts of the rows are there all the same"


def test_a_run_that_a_callback_ends_before_its_time_is_stopped(tmp_path):
    class Ends(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    build(tmp_path, callbacks=[Ends()]).train()
    assert facts_of(tmp_path)["status"] == "stopped"


def test_a_run_that_was_refused_leaves_the_facts_of_another_alone(tmp_path):
    build(tmp_path).train()
    before = (tmp_path / RUN).read_text()
    with pytest.raises(Exception, match="output_dir"):
        build(tmp_path).train()
    assert (tmp_path / RUN).read_text() == before


def test_what_another_run_left_is_moved_aside_with_its_record(tmp_path):
    build(tmp_path, save_strategy="steps", save_steps=6).train()
    old = facts_of(tmp_path)["run"]
    trainer = build(tmp_path, save_strategy="steps", save_steps=6)
    trainer._dataflex_folder._overwrites = True
    trainer.train()
    aside = tmp_path / "dataflex_replaced" / old
    kept = {name for name in FILES if (aside / name).exists()}
    assert kept == {name for name in FILES if (tmp_path / name).exists()}
    assert {RUN, METRICS, SEGMENTS, ROWS, LAST_SCORES, TRACE} == kept
    assert facts_of(tmp_path)["run"] == lines_of(tmp_path, ROWS)[0]["run"] != old


class Warns(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        logging.getLogger("dataflex").warning("the %s is high", "fever")
        logging.getLogger("transformers.trainer").warning("a token of https://me:hush-hush@host")
        logging.getLogger("dataflex").info("nothing")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        if state.global_step == 1:
            for number in range(200):
                logging.getLogger("dataflex").warning("number %d", number)


def test_warnings_are_counted_by_text_without_secrets_and_users_see_them_as_before(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "transformers")  # an earlier test of this process may have asked for errors alone
    handlers, shown = list(logging.getLogger("transformers").handlers), warnings.showwarning
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        build(tmp_path, callbacks=[Warns()]).train()
    heard = {line["text"]: line["times"] for line in facts_of(tmp_path)["warnings"]}
    assert heard["the fever is high"] == 6
    assert heard["DeprecationWarning: old"] == 6 == len([each for each in seen if str(each.message) == "old"])
    assert [times for text, times in heard.items() if text.startswith("a token of")] == [6]
    assert "hush-hush" not in (tmp_path / RUN).read_text()
    assert "nothing" not in heard
    assert len(heard) == 100
    assert (logging.getLogger("transformers").handlers, warnings.showwarning) == (handlers, shown)


def test_a_warning_whose_arguments_do_not_fit_its_text_stops_nobody(caplog):
    heard, logger = HeardWarnings(), logging.getLogger("dataflex")
    with heard.listening(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger, "propagate", False)  # pytest's own handler raises
        logger.warning("step %d", "x")
        logger.warning("step %d", 3)
    assert heard.lines() == [{"text": "step 3", "times": 1}]


def test_no_secret_is_in_any_file_of_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(secret_values, "_known", set())
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    monkeypatch.setenv("OLDPWD", f"{tmp_path}/gone")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path))
    tokenizer = tiny_tokenizer()
    tokenizer.decode = lambda ids, **kwargs: "my key is hf_0123456789abcdef"
    trainer = build(tmp_path, callbacks=[Breaks(ValueError("refused: hf_0123456789abcdef"))])
    trainer.processing_class = tokenizer
    with pytest.raises(ValueError, match="refused"):
        trainer.train()
    assert facts_of(tmp_path)["error"] == "ValueError: refused: <secret>"
    assert "my key is <secret>" in (tmp_path / ROWS).read_text()
    assert secret_values.scrubbed(f"{tmp_path}/gone") == f"{tmp_path}/gone", "a folder is no secret"
    assert not [path for path in tmp_path.glob("dataflex_*") if path.is_file() and b"hf_0123" in path.read_bytes()]


def test_all_rows_of_a_small_dataset_have_their_text_once_and_in_their_order(tmp_path):
    rows = two_sources()
    trainer = build(tmp_path, "dynamic_mix", rows)
    trainer.train()
    header, *lines = lines_of(tmp_path, ROWS)
    assert header == {"version": 1, "run": trainer.run_id, "rows": 50, "characters": 2000}
    assert [line["row"] for line in lines] == list(range(50))
    tokenizer, expected = tiny_tokenizer(), [*rows["a"], *rows["b"]]
    for line, row in zip(lines, expected, strict=True):
        assert line["text"] == tokenizer.decode(row["input_ids"], skip_special_tokens=True)
        assert (line["tokens"], line["cut"]) == (len(row["input_ids"]), False)
        assert line["source"] == ("a" if line["row"] < 20 else "b")


def test_of_a_large_dataset_the_notable_rows_have_their_text(tmp_path, monkeypatch):
    monkeypatch.setattr(row_recording, "ALL", 100)
    build(tmp_path, rows=stored(300)).train()
    written = {line["row"] for line in lines_of(tmp_path, ROWS)[1:]}
    assert 50 < len(written) < 200
    chosen = {int(row) for file in (tmp_path / "dataflex_selections").iterdir() for row in np.load(file)["indices"]}
    assert len(chosen & written) >= 16
    assert written - chosen, "rows that were never chosen among them"
    scores = np.load(tmp_path / LAST_SCORES)["scores"]
    assert {int(np.argmax(scores)), int(np.argmin(scores))} <= written


def test_a_run_that_only_weighs_has_the_texts_of_the_rows_of_its_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(row_recording, "ALL", 10)
    build(tmp_path, "dynamic_weight").train()
    written = {line["row"] for line in lines_of(tmp_path, ROWS)[1:]}
    ends = [pair for line in read_trace(tmp_path) for pair in (*line.get("most", []), *line.get("least", []))]
    assert ends
    assert {row for row, _ in ends} <= written


def test_a_long_text_is_cut_and_says_so(tmp_path):
    rows = datasets.Dataset.from_list([dict(TokenRows(1, lengths=n)[0]) for n in (*[8] * 29, 3000)])
    build(tmp_path, {"order": "shuffle"}, rows, max_steps=1, per_device_train_batch_size=1).train()
    last = lines_of(tmp_path, ROWS)[-1]
    assert (last["row"], last["tokens"], last["cut"]) == (29, 3000, True)
    assert len(last["text"]) == 2000


def test_without_a_tokenizer_there_are_no_texts(tmp_path):
    build(tmp_path, tokenizer=False).train()
    assert not (tmp_path / ROWS).exists()
    assert facts_of(tmp_path)["status"] == "finished"


class AtRandom(TokenRows):
    """Draws from the global generators whenever a row is read, as augmentation does."""

    def __getitem__(self, row):
        torch.rand(3)
        np.random.rand()
        return super().__getitem__(row)


def test_rows_of_a_dataset_in_python_have_texts_and_reading_them_draws_nothing(tmp_path, monkeypatch):
    def losses(folder, **given):
        set_seed(0)
        return [line["loss"] for line in trained(folder, **given).state.log_history if "loss" in line]

    def trained(folder, **given):
        trainer = build(folder, "dynamic_select", AtRandom(30), logging_steps=1, **given)
        trainer.model.config.attention_dropout = 0.5  # the loss follows torch's generator
        trainer.train()
        return trainer

    with_texts, without = losses(tmp_path / "with"), losses(tmp_path / "without", tokenizer=False)
    assert with_texts == without
    assert len(lines_of(tmp_path / "with", ROWS)) == 31
    facts = facts_of(tmp_path / "with")
    assert (facts["tokens"], facts["sources"][0]["tokens"], facts["rows"]) == (None, None, 30)


def test_streams_have_no_sizes_and_no_texts(tmp_path):
    streams = {name: rows.to_iterable_dataset() for name, rows in two_sources().items()}
    build(
        tmp_path, {"static_mix": True, "train_step": 6, "init_mixture_proportions": [0.5, 0.5]}, streams, max_steps=-1
    ).train()
    facts = facts_of(tmp_path)
    assert (facts["rows"], facts["tokens"], facts["status"]) == (None, None, "finished")
    assert [(source["name"], source["rows"], source["tokens"]) for source in facts["sources"]] == [
        ("a", None, None),
        ("b", None, None),
    ]
    assert lines_of(tmp_path, SEGMENTS)[0]["sources"]["a"]["rows"] > 0
    assert len(lines_of(tmp_path, ROWS)) == 1


class SomeScored(Selector):
    """Scores every other row; the others have none, and one is never to be taken."""

    given = "all"

    def select(self, model, step_id, num_samples, **kwargs):
        scores = np.arange(len(self.dataset), dtype=np.float64)
        scores[::2] = np.nan
        scores[1] = -np.inf
        rows = np.flatnonzero(np.isfinite(scores))[:num_samples]
        scored = np.flatnonzero(~np.isnan(scores))
        candidates = {
            "all": scores,
            "pairs": (scored, scores[scored]),
            "few": scores[:-1],
            "above": np.where(np.isneginf(scores), np.inf, scores),
            "unequal": (scored, scores),
            "outside": (scored + len(scores), scores[scored]),
        }
        return Selection(rows, scores[rows], candidates=candidates[self.given])


@pytest.mark.parametrize("given", ["all", "pairs"])
def test_the_scores_of_all_candidates_are_summarised_and_the_last_ones_saved(tmp_path, monkeypatch, given):
    monkeypatch.setattr(SomeScored, "given", given)
    build(tmp_path, {"selector": SomeScored, **UPDATES}).train()
    line = read_trace(tmp_path)[-1]
    assert (line["candidates"]["min"], line["candidates"]["max"]) == (3.0, 29.0)
    assert sum(line["candidates"]["histogram"]["counts"]) == 14
    assert line["scores"]["max"] == 17.0
    found = np.load(tmp_path / LAST_SCORES)
    assert (found["scores"].dtype, int(found["step"]), str(found["component"])) == (np.float32, 4, "SomeScored")
    assert np.isnan(found["scores"][:3]).all()
    assert found["scores"][3::2].tolist() == list(range(3, 30, 2))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("few", r"returned scores of shape \(29,\); expected one for each of the 30 rows of its dataset"),
        ("above", "returned infinite scores at 1 of 30 places"),
        ("unequal", r"returned scores of shape \(30,\); expected one for each of its 15 rows"),
        ("outside", "returned 15 row numbers outside of the dataset"),
    ],
)
def test_candidates_that_are_none_are_refused_in_words(tmp_path, monkeypatch, given, said):
    monkeypatch.setattr(SomeScored, "given", given)
    with pytest.raises(ComponentError, match=f"of its candidates, {said}"):
        build(tmp_path, {"selector": SomeScored, **UPDATES}).train()


def test_candidates_of_a_selector_in_each_source_stand_where_their_rows_do(tmp_path):
    keys = {"selector": SomeScored, "mixer": "static", "init_mixture_proportions": [0.5, 0.5, 0.0], **UPDATES}
    three = {"a": stored(20), "b": stored(30), "c": stored(10)}
    build(tmp_path, keys, three).train()
    scores = np.load(tmp_path / LAST_SCORES)["scores"]
    assert scores[3:20:2].tolist() == list(range(3, 20, 2))
    assert scores[23:50:2].tolist() == list(range(3, 30, 2))
    assert np.isnan(scores[50:]).all(), "of a source that was not asked"


class ByRow(Weighter):
    """Weighs a row by its number."""

    def get_weighted_loss(self, losses, *, ctx, model, inputs):
        return (losses * ctx.batch_rows / 10).mean()


def test_a_line_of_weights_has_their_histogram_and_the_rows_that_weigh_most_and_least(tmp_path):
    build(tmp_path, {"weighter": ByRow}, logging_steps=6).train()
    (line,) = [line for line in read_trace(tmp_path) if line["kind"] == "weight"]
    rows = np.load(next((tmp_path / "dataflex_selections").iterdir()))["indices"]
    ordered = sorted(set(rows.tolist()))
    assert line["most"] == [[row, pytest.approx(row / 10)] for row in ordered[::-1][:5]]
    assert line["least"] == [[row, pytest.approx(row / 10)] for row in ordered[:5]]
    edges, counts = line["histogram"]["edges"], line["histogram"]["counts"]
    assert (len(edges), len(counts), sum(counts)) == (21, 20, len(rows))
    assert counts[10] == np.sum((rows / 10 >= edges[10]) & (rows / 10 < edges[11]))


@pytest.mark.parametrize("run", ["dynamic_mix", "dynamic_weight"])
def test_losses_by_source_are_the_losses_of_the_log_where_they_are_measured(tmp_path, run):
    trainer = build(tmp_path, run, gradient_accumulation_steps=1)
    trainer.train()
    lines = [line for line in read_trace(tmp_path) if line["kind"] == "loss"]
    assert [(line["step"], line["steps"]) for line in lines] == [(1, 2), (3, 2), (5, 2)]
    segments = lines_of(tmp_path, SEGMENTS)
    tokens = sum(of["tokens"] for line in lines for of in line["sources"].values())
    assert tokens == sum(line["tokens"] for line in segments) - 2 * 24, "the first label and two of the prompt"
    for line, logged in zip(lines, [line for line in trainer.state.log_history if "loss" in line], strict=False):
        together = list(line["sources"].values())
        mean = sum(of["loss"] * of["tokens"] for of in together) / sum(of["tokens"] for of in together)
        assert mean == pytest.approx(logged["loss"], rel=0.05)


@pytest.mark.parametrize("over", ["stretch", "run"])
def test_an_order_says_how_the_scores_run_along_it(tmp_path, over):
    order = {"component": "sorting", "by": "loss", "over": over}
    build(tmp_path, {"order": order, **UPDATES}, stored(60)).train()
    line = next(line for line in read_trace(tmp_path) if line["kind"] == "order")
    scores = [score for score in line["along"]["scores"] if score is not None]
    assert line["along"]["places"] == pytest.approx(np.arange(20) / 20)
    assert scores == sorted(scores)
    assert len(scores) == (8 if over == "stretch" else 20)


def of_rank(accelerator, folder):
    set_seed(0)
    build(folder / "two", "dynamic", per_device_train_batch_size=2, eval_strategy="steps", eval_steps=3).train()
    accelerator.wait_for_everyone()
    return {"facts": np.array(json.dumps(facts_of(folder / "two")))}


def test_two_ranks_write_each_file_once_and_what_one_writes(tmp_path):
    build(tmp_path / "one", "dynamic", eval_strategy="steps", eval_steps=3).train()
    on_ranks(of_rank, 2, tmp_path)
    one, two = record_of(tmp_path / "one"), record_of(tmp_path / "two")
    assert (one["facts"].pop("world_size"), two["facts"].pop("world_size")) == (1, 2)
    one["facts"].pop("warnings"), two["facts"].pop("warnings")  # of DDP
    assert one["facts"] == two["facts"]
    assert one[SEGMENTS] == two[SEGMENTS]
    assert one[ROWS] == two[ROWS]
    assert len(one[METRICS]) == len(two[METRICS])
    assert len(one[TRACE]) == len(two[TRACE])
