"""What a run writes of why rows were chosen: which rows are asked about, the lines, and that the run is the same."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dataflex import dynamic
from dataflex.config.checks.keys import parse_arguments
from dataflex.core.errors import ComponentError
from dataflex.core.explain import Explanation, Pull
from dataflex.core.files import ROWS, WHY
from dataflex.planning.answers import checked_explanation, checked_sets
from dataflex.planning.selecting import Chosen
from dataflex.run.json_lines import read_lines
from dataflex.run.record import RunRecord, read_trace
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_tokenizer, tiny_training_args
from dataflex.train.selector.base_selector import Selection, Selector
from dataflex.train.weighter.base_weighter import Weighter
from dataflex.trainer import explanations
from dataflex.trainer.explanations import extremes
from dataflex_selectors.near import NearSelector
from rank_group import on_ranks, one_thread
from transformers import Trainer

ROWS_40 = TokenRows(40, lengths=range(6, 20))
TARGET = TokenRows(9, lengths=range(6, 20), seed=3)
STEPS = {"warmup_step": 1, "update_step": 2, "update_times": 2}


def run(folder, rows=ROWS_40, target=TARGET, resume=None, args=None, **keywords):
    """Returns a trainer that has trained."""
    steps = {} if "weighter" in keywords and "selector" not in keywords else STEPS
    made = dynamic(Trainer, **(steps | keywords))(
        model=tiny_model(),
        args=tiny_training_args(folder, max_steps=-1 if steps else 3, **(args or {})),
        train_dataset=rows,
        eval_dataset=target,
        data_collator=pad_collate,
        processing_class=tiny_tokenizer(),
    )
    made.train(resume_from_checkpoint=resume)
    return made


def why(folder):
    lines, unreadable = read_lines(Path(folder) / WHY)
    assert not unreadable
    return lines


def texts(folder):
    """The header of the texts, and those of target rows."""
    header, *rows = [json.loads(line) for line in (Path(folder) / ROWS).read_text().splitlines()]
    return [header, *(row for row in rows if "set" in row)]


def chosen_at(folder, step):
    return np.load(Path(folder) / "dataflex_selections" / f"step_{step:08d}.npz")


# --- the lines of a run


@pytest.mark.parametrize("name", ["less", "cluster_less", "near", "tsds"])
def test_a_run_leaves_who_pulled_the_rows_with_the_highest_and_the_lowest_scores(tmp_path, name):
    run(tmp_path, selector=name, explain_rows=4)
    lines = why(tmp_path)
    assert {(line["step"], line["update"]) for line in lines} == {(1, 0), (3, 1)}
    for step in (1, 3):
        saved = chosen_at(tmp_path, step)
        order = saved["indices"][np.argsort(-saved["scores"], kind="stable")].tolist()
        here = [line for line in lines if line["step"] == step]
        assert len({line["row"] for line in here}) == 4
        scores = dict(zip(saved["indices"].tolist(), saved["scores"].tolist(), strict=True))
        assert {line["row"] for line in here} <= set(order)
        assert sorted(scores[line["row"]] for line in here) == pytest.approx(
            sorted([scores[row] for row in [*order[:2], *order[-2:]]])
        )
        for line in here:
            assert set(line) == {"step", "update", "kind", "component", "row", "score", "seconds", "targets"}
            assert (line["kind"], line["component"]) == ("select", name)
            assert 1 <= len(line["targets"]) <= 3
            assert all(set(target) == {"set", "target", "share"} for target in line["targets"])
            shares = [target["share"] for target in line["targets"]]
            assert name == "near" or shares == sorted(shares, reverse=True)
    seconds = {line["update"]: line["seconds"] for line in lines}
    assert {line["update"]: line["explain_seconds"] for line in read_trace(tmp_path)} == seconds


def test_the_texts_of_named_target_rows_are_written_once_each(tmp_path):
    run(tmp_path, selector="near", explain_rows=8, target={"a": TARGET, "b": TokenRows(4, seed=8)})
    header, *rows = texts(tmp_path)
    assert (header["version"], header["rows"], header["characters"]) == (1, 40, 2000)
    named = {(target["set"], target["target"]) for line in why(tmp_path) for target in line["targets"]}
    assert {name for name, _ in named} == {"a", "b"}
    assert sorted((row["set"], row["target"]) for row in rows) == sorted(named)
    row = next(row for row in rows if row["set"] == "a")
    ids = TARGET[row["target"]]["input_ids"]
    assert row == {
        "set": "a", "target": row["target"], "tokens": len(ids), "cut": False,
        "text": tiny_tokenizer().decode(list(ids), skip_special_tokens=True),
    }  # fmt: skip


def test_nobody_is_asked_where_no_rows_are_to_be_explained(tmp_path):
    run(tmp_path, selector="less", explain_rows=0)
    assert not (tmp_path / WHY).exists()
    assert len(texts(tmp_path)) == 1  # the header
    assert "explain_seconds" not in read_trace(tmp_path)[0]


def test_a_selector_that_does_not_explain_itself_leaves_nothing(tmp_path):
    run(tmp_path, selector="loss")
    assert not (tmp_path / WHY).exists()
    assert "explain_seconds" not in read_trace(tmp_path)[0]


@pytest.mark.parametrize("name", ["less", "cluster_less", "near", "tsds", "loss", "nice"])
def test_the_run_is_the_same_with_and_without_explanations(tmp_path, name):
    params = {}
    if name == "nice":
        params = {"params": {"samples": 2, "max_new_tokens": 3, "fallback": "reference", "reward": "contains"}}
    found = {}
    for rows in (0, 16):
        made = run(tmp_path / str(rows), selector=name, explain_rows=rows, **params)
        trace = read_trace(tmp_path / str(rows))
        losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
        weights = {key: value.clone() for key, value in made.model.state_dict().items()}
        found[rows] = ([line["decision_hash"] for line in trace], losses, weights, torch.get_rng_state())
    assert found[0][:2] == found[16][:2]
    assert all(torch.equal(found[0][2][key], value) for key, value in found[16][2].items())
    assert torch.equal(found[0][3], found[16][3])
    assert (tmp_path / "16" / WHY).exists() == (name != "loss")


def test_filters_explain_what_they_keep_by_rows_of_the_whole_dataset(tmp_path):
    selectors = [{"name": "near", "keep": 0.5, "params": {"exclude_seen": False}}, {"name": "less"}]
    run(tmp_path, selector=selectors, explain_rows=6)
    kept = None
    for line in why(tmp_path):
        saved = chosen_at(tmp_path, line["step"])["indices"]
        if line["kind"] == "select":
            assert line["component"] == "less"
            assert line["row"] in saved
        else:
            assert (line["kind"], line["component"]) == ("filter", "near")
            kept = (kept or set()) | {line["row"]}
    assert kept
    near = NearSelector(dataset=ROWS_40, eval_dataset=TARGET, accelerator=None, data_collator=None, cache_dir="")
    vectors = near.embedder.embed(None, ROWS_40, np.arange(40), "")
    cosines = vectors @ near.embedder.embed(None, TARGET, np.arange(9), "").T
    for line in why(tmp_path):
        if line["kind"] == "filter":  # the score is that of the row of this number
            assert line["score"] == pytest.approx(cosines[line["row"], line["targets"][0]["target"]], abs=1e-6)


def test_each_source_of_a_mixture_gets_its_part_by_rows_of_the_whole_dataset(tmp_path):
    sources = {name: TokenRows(30, lengths=range(6, 20), seed=seed) for seed, name in enumerate("abc")}
    run(
        tmp_path,
        rows=sources,
        selector="near",
        mixer="temperature",
        explain_rows=4,
        args={"per_device_train_batch_size": 8},
    )
    lines = why(tmp_path)
    for step in (1, 3):
        saved = set(chosen_at(tmp_path, step)["indices"].tolist())
        rows = [line["row"] for line in lines if line["step"] == step]
        assert set(rows) <= saved
        counts = np.bincount(np.array(rows) // 30, minlength=3)
        assert counts.min() >= 1
        assert len(rows) == 4
    for line in lines:
        own = sources["abc"[line["row"] // 30]][line["row"] % 30]
        near = NearSelector(dataset=[own], eval_dataset=TARGET, accelerator=None, data_collator=None, cache_dir="")
        (vector,) = near.embedder.embed(None, [own], np.arange(1), "")
        (query,) = near.embedder.embed(None, TARGET, np.array([line["targets"][0]["target"]]), "")
        assert line["score"] == pytest.approx(float(vector @ query), abs=1e-6)


def test_adapt_explains_the_weights_of_the_last_step_at_the_end(tmp_path):
    run(tmp_path, weighter="adapt", explain_rows=3)
    lines = why(tmp_path)
    assert [(line["step"], line["update"], line["kind"], line["component"]) for line in lines] == [
        (2, None, "weight", "adapt")
    ] * 3
    assert all(0 < line["weight"] < 1 and "score" not in line for line in lines)
    assert len({line["row"] for line in lines}) == 3


def test_a_weighter_is_asked_about_the_rows_that_the_line_says_weigh_most_and_least(tmp_path):
    made = run(tmp_path, weighter="adapt", explain_rows=16)
    line = {"step": 2, "steps": 3, "component": "adapt", "most": [[31, 0.9], [7, 0.8]], "least": [[12, 0.1], [7, 0.8]]}
    (tmp_path / WHY).unlink()
    made.explanations.of_weights(line)
    assert [found["row"] for found in why(tmp_path)] == [31, 7, 12]


@pytest.mark.parametrize(
    ("done", "steps", "asked"), [(99, 9, False), (100, 10, True), (140, 30, False), (205, 10, True)]
)
def test_a_weighter_is_asked_once_in_a_hundred_steps(tmp_path, done, steps, asked):
    made = run(tmp_path, weighter="adapt", explain_rows=16)
    (tmp_path / WHY).unlink()
    made.state.global_step, made.state.max_steps = done, 1000
    made.explanations.of_weights({"step": done - 1, "steps": steps, "component": "adapt"})
    assert (tmp_path / WHY).exists() == asked


# --- which rows


def test_half_of_the_rows_have_the_highest_scores_and_half_the_lowest():
    scores = np.array([0.5, np.nan, 0.1, 0.9, 0.7, 0.3])
    chosen = Chosen(np.array([10, 11, 12, 13, 14, 15]), scores)
    assert extremes(chosen, 3).tolist() == [13, 14, 12]
    assert extremes(chosen, 4).tolist() == [13, 14, 15, 12]
    assert extremes(chosen, 1).tolist() == [13]
    assert extremes(chosen, 99).tolist() == [13, 14, 10, 15, 12]


def test_a_row_that_was_chosen_twice_is_asked_about_once_and_equal_scores_go_by_row():
    chosen = Chosen(np.array([5, 3, 5, 4]), np.ones(4))
    assert extremes(chosen, 2).tolist() == [3, 5]


def test_rows_without_scores_are_the_first_and_the_last_chosen():
    assert extremes(Chosen(np.array([8, 2, 9, 1])), 2).tolist() == [8, 1]


def test_the_caller_may_say_which_rows(tmp_path, monkeypatch):
    asked = np.array([1, 2, 39], dtype=np.int64)
    plain = explanations.Explanations.of_plan
    monkeypatch.setattr(
        explanations.Explanations, "of_plan", lambda self, plan, segment: plain(self, plan, segment, asked)
    )
    run(tmp_path, selector="less")
    assert [line["row"] for line in why(tmp_path)] == [1, 2, 39] * 2


# --- resume


def left(folder):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in why(folder)]


@pytest.mark.parametrize(
    "axes", [{"selector": "less"}, {"selector": "tsds"}, {"selector": "near", "weighter": "adapt"}]
)
def test_a_resumed_run_leaves_the_lines_of_the_run_never_stopped(tmp_path, axes):
    saves = {"save_strategy": "steps", "save_steps": 2}
    run(tmp_path / "whole", explain_rows=4, args=saves, **axes)
    run(tmp_path / "resumed", explain_rows=4, args=saves, **axes)
    assert {line["step"] for line in why(tmp_path / "resumed")} >= {1, 3}
    run(tmp_path / "resumed", explain_rows=4, args=saves, resume=str(tmp_path / "resumed" / "checkpoint-2"), **axes)
    if "weighter" not in axes:
        assert left(tmp_path / "resumed") == left(tmp_path / "whole")
    else:  # the target of the last refresh is no part of a checkpoint, and embedded anew
        keys = ("step", "kind", "row")
        mine, theirs = (
            [[line[key] for key in keys] for line in left(tmp_path / name)] for name in ("resumed", "whole")
        )
        assert mine == theirs
    (_, *rows), (_, *expected) = texts(tmp_path / "resumed"), texts(tmp_path / "whole")
    assert sorted(map(str, rows)) == sorted(map(str, expected))


def test_another_run_in_the_folder_begins_the_files_anew(tmp_path):
    run(tmp_path, selector="near", explain_rows=4)
    first = texts(tmp_path)[0]["run"]
    made = dynamic(Trainer, selector="less", explain_rows=2, **STEPS)(
        model=tiny_model(), args=tiny_training_args(tmp_path, max_steps=-1), train_dataset=ROWS_40,
        eval_dataset=TARGET, data_collator=pad_collate, processing_class=tiny_tokenizer(), overwrite_output_dir=True,
    )  # fmt: skip
    made.train()
    assert {line["component"] for line in why(tmp_path)} == {"less"}
    assert len(why(tmp_path)) == 4
    assert texts(tmp_path)[0]["run"] == made.run_id != first


def test_lines_after_the_checkpoint_are_taken_back(tmp_path):
    record = RunRecord(str(tmp_path), writes=True)
    weight = {"kind": "weight", "weight": 0.5}
    record.why([{"step": 1, "score": 1.0}, {"step": 4, "score": None}, {"step": 4, **weight}, {"step": 9, "score": 2}])
    record.begin(5)
    assert [line["step"] for line in why(tmp_path)] == [1, 4, 4]
    record.take_back("weight", 3)  # their line was not written yet when the checkpoint was
    assert [line.get("score") for line in why(tmp_path)] == [1.0, None]
    assert [line["step"] for line in why(tmp_path)] == [1, 4]
    RunRecord(str(tmp_path / "b"), writes=False).why([{"step": 1}])
    assert not (tmp_path / "b").exists()


# --- components that answer badly


class Explains(Selector):
    """Takes the first rows, and explains them by what it is told."""

    draws = False
    answer = staticmethod(lambda rows: None)

    def __init__(self, eval_dataset=None, **kwargs):
        super().__init__(**kwargs)

    def select(self, model, step_id, num_samples, **kwargs):
        return Selection(np.arange(num_samples), np.arange(float(num_samples)))

    def explain(self, model, rows_S, step_id, **kwargs):
        return self.answer(rows_S)


def named(share=1.0, name="eval", target=2, tokens=True, scores=None, pulls=None):
    def answer(rows):
        own = [[Pull(name, target, share)]] * len(rows) if pulls is None else pulls
        given = {(name, target): [5, 6]} if tokens else {}
        return Explanation(own, np.ones(len(rows)) if scores is None else scores, given)

    return answer


WRONG = {
    "another thing": (lambda rows: [1], "explained itself by list; expected an Explanation"),
    "too few rows": (named(pulls=[[]]), "explained 1 rows, with scores of shape (4,); expected 4 of each"),
    "too few scores": (named(scores=np.ones(3)), "explained 4 rows, with scores of shape (3,); expected 4 of each"),
    "an infinite score": (named(scores=np.array([1, np.inf, 1, 1])), "explained an infinite score"),
    "an infinite share": (named(share=np.inf), "gave row 2 of the set 'eval' a share of inf; expected a finite number"),
    "no number": (named(share=float("nan")), "a share of nan"),
    "no tokens": (named(tokens=False), "named row 2 of the set 'eval', which is not among its targets"),
    "an unknown set": (named(name="test"), "named target rows of the set 'test'; the evaluation sets are: eval"),
    "too many": (named(pulls=[[Pull("eval", 2, 1.0)] * 4] * 4), "named 4 target rows for row 0; expected at most 3"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_bad_explanation_is_refused_with_the_component_and_the_update(tmp_path, case):
    answer, message = WRONG[case]
    selector = type("Explains", (Explains,), {"answer": staticmethod(answer)})
    with pytest.raises(ComponentError) as refused:
        run(tmp_path, selector=selector, explain_rows=4)
    assert message in str(refused.value)
    assert str(refused.value).startswith("selector 'Explains', explaining its choice at update 0 (step 1)")
    assert str(refused.value).count("explaining its choice") == 1


def test_what_explaining_raises_is_a_fault_that_names_the_component(tmp_path):
    def answer(rows):
        raise KeyError("x")

    selector = type("Explains", (Explains,), {"answer": staticmethod(answer)})
    with pytest.raises(ComponentError, match=r"selector 'Explains', explaining .* raised KeyError: 'x'"):
        run(tmp_path, selector=selector)


@pytest.mark.parametrize("wrapped", [False, True])
def test_for_want_of_memory_an_explanation_is_left_out_and_the_run_goes_on(tmp_path, caplog, wrapped):
    def answer(rows):
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError as error:
            if not wrapped:
                raise
            raise ComponentError("out of memory while scoring 1 rows") from error  # as a pass over rows says it

    selector = type("Explains", (Explains,), {"answer": staticmethod(answer)})
    with caplog.at_level(logging.WARNING):
        made = run(tmp_path, selector=selector)
    assert made.state.global_step == 5
    assert not (tmp_path / WHY).exists()
    said = [record.message for record in caplog.records if "the memory does not suffice" in record.message]
    assert len(said) == 2
    assert said[0].endswith("so nothing is written -> explain_rows: 0")


def test_gradients_that_explaining_leaves_behind_are_refused(tmp_path):
    class Leaves(Explains):
        def explain(self, model, rows_S, step_id, **kwargs):
            model(**pad_collate([dict(self.dataset[0])])).loss.backward()

    with pytest.raises(ComponentError, match=r"gradients were left in \.grad"):
        run(tmp_path, selector=Leaves)


class WeighsAlike(Weighter):
    draws = False
    answer = staticmethod(lambda rows: None)

    def get_weighted_loss(self, losses, *, ctx, model, inputs):
        return losses.mean()

    def explain(self, model, rows_S, step_id, **kwargs):
        assert not model.training
        assert len(kwargs["dataset"]) == 40
        assert kwargs["context"].state.global_step == step_id == 3
        return self.answer(rows_S)


def test_a_weighter_of_ones_own_explains_itself_and_a_bad_answer_names_it(tmp_path):
    fine = type("WeighsAlike", (WeighsAlike,), {"answer": staticmethod(named())})
    run(tmp_path / "fine", weighter=fine, explain_rows=2)
    assert [line["weight"] for line in why(tmp_path / "fine")] == [1.0, 1.0]
    bad = type("WeighsAlike", (WeighsAlike,), {"answer": staticmethod(named(share=np.nan))})
    with pytest.raises(ComponentError, match=r"^weighter 'WeighsAlike', explaining weights at step 3 gave row 2"):
        run(tmp_path / "bad", weighter=bad)


def test_an_explanation_comes_back_with_numbers_of_its_own_kind():
    answer = Explanation([[]], np.array([1], dtype=np.float32))
    found = checked_explanation(answer, count=1, who="it")
    assert found.scores.dtype == np.float64
    assert checked_explanation(None, count=1, who="it") is None
    with pytest.raises(ComponentError, match="none, as the run has no evaluation set"):
        checked_sets(Explanation([[]], np.ones(1), {("a", 1): [2]}), known=(), who="it")


def test_the_selector_of_the_docs_explains_itself(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
    block = page.split("## Why a row was chosen\n")[1].split("```python\n")[1].split("```")[0]
    (tmp_path / "shared_tokens.py").write_text(block)
    run(tmp_path / "out", selector=str(tmp_path / "shared_tokens.py"), explain_rows=4)
    lines = why(tmp_path / "out")
    assert len(lines) == 8
    for line in lines:
        shared = [len(set(t["input_ids"]) & set(ROWS_40[line["row"]]["input_ids"])) for t in TARGET]
        assert line["score"] == pytest.approx(sum(shared) / 9)
        order = np.argsort([-count for count in shared], kind="stable")[:3].tolist()
        assert [target["target"] for target in line["targets"]] == order
        assert line["targets"][0]["share"] == pytest.approx(shared[order[0]] / sum(shared))


# --- the key


@pytest.mark.parametrize("value", [-1, 1025, 1.5, True, "16"])
def test_a_number_of_rows_that_is_none_is_refused(value):
    (problem,) = parse_arguments({"explain_rows": value}, Path())[1]
    assert str(problem).startswith(f"explain_rows: found {value!r}, allowed: a whole number from 0 to 1024 -> ")


@pytest.mark.parametrize("value", [0, 1, 1024])
def test_a_number_of_rows_is_taken(value):
    assert parse_arguments({"explain_rows": value}, Path())[0].explain_rows == value


@pytest.mark.parametrize(
    ("keywords", "idle"), [({"mixer": "random"}, True), ({"selector": "loss"}, False), ({"weighter": "loss"}, False)]
)
def test_the_key_has_no_effect_without_a_selector_or_a_weighter_and_a_warning_says_so(caplog, keywords, idle):
    with caplog.at_level(logging.WARNING):
        dynamic(Trainer, explain_rows=4, **({} if "weighter" in keywords else STEPS), **keywords)
    assert ("explain_rows: no effect with" in caplog.text) == idle


# --- ranks


def answers(accelerator, folder):
    """Returns what each component says of some rows, on this rank."""
    from test_explained_rows import on_this_rank

    return on_this_rank(accelerator, folder)


def test_two_ranks_explain_as_one_process_does(tmp_path):
    found = on_ranks(answers, 2, tmp_path)
    with one_thread():
        alone = answers(None, tmp_path)
    assert len(alone) == 9
    for rank, own in enumerate(found):
        for name, expected in alone.items():
            np.testing.assert_allclose(own[name], expected, rtol=2e-4, atol=1e-6, err_msg=f"{name} on rank {rank}")


def test_packed_rows_whose_weights_are_of_documents_are_not_explained(tmp_path):
    made = run(tmp_path, weighter="adapt", explain_rows=16)
    (tmp_path / WHY).unlink()
    made.batch_rows.flattened = [True]
    made.explanations.of_weights({"step": 2, "steps": 3, "component": "adapt"})
    assert not (tmp_path / WHY).exists()


def test_with_several_ranks_want_of_memory_is_not_passed_over():
    """The other ranks wait in a pass for the one that gave up."""
    made = explanations.Explanations.__new__(explanations.Explanations)
    made._trainer = SimpleNamespace(accelerator=SimpleNamespace(num_processes=2))

    def ask():
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(ComponentError, match="it raised OutOfMemoryError"):
        made._asked(ask, "it")
