"""The page of a run: its numbers are those of the record, whatever kind of run it is, and text in it is data."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from dataflex.cli.main import run as command
from dataflex.core.errors import ConfigError
from dataflex.core.files import REPORT
from dataflex.report.harmless import harmless, in_script
from dataflex.report.report_page import MOST, report_html
from dataflex.report.run_reader import read_run
from dataflex.report.seen_rows import seen_rows
from dataflex.report.shared_beginnings import beginnings
from dataflex.report.thinned import curve, largest_triangles
from dataflex.report.wording import duration, percent
from dataflex.report.write import is_ours, write_report

from tests.report import folders
from tests.report.folders import BATCH, HOSTILE, KINDS


def data_of(text: str) -> dict:
    """Returns the data that a page holds."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    return json.loads(found)


def page(*paths: Path, **more) -> dict:
    return data_of(report_html(paths, **more))


def block(data: dict, section: str, title: str = "", kind: str = "") -> dict:
    """Returns the one block of a section with that title or kind."""
    blocks = [each for found in data["sections"] if found["id"] == section for each in found["blocks"]]
    (found,) = [each for each in blocks if each.get("title", "") == title or each["kind"] == kind]
    return found


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def planned(path: Path) -> list[np.ndarray]:
    """Returns the rows of each file, counted without the report."""
    return [np.load(file)["indices"] for file in sorted((path / "dataflex_selections").glob("*.npz"))]


@pytest.fixture(params=KINDS)
def folder(request, tmp_path):
    return KINDS[request.param](tmp_path / request.param)


def test_every_kind_of_run_has_a_page_that_says_its_state(folder):
    (run,) = page(folder)["runs"]
    states = {"killed": "killed", "failed": "failed"}
    assert run["state"] == states.get(folder.name, "finished")
    assert run["says"]
    assert run["facts"][0]["name"] == "Steps"
    assert "None" not in json.dumps([run["says"], run["facts"], run["notes"]])


def test_what_is_missing_is_said_in_words(tmp_path):
    (old,) = page(KINDS["old"](tmp_path / "old"))["runs"]
    (static,) = page(KINDS["static"](tmp_path / "static"))["runs"]
    (streams,) = page(KINDS["streams"](tmp_path / "streams"))["runs"]
    assert "an older version of dataflex recorded this run" in old["notes"][0]
    assert "a static run" in static["notes"][0]
    assert "no text of rows" in streams["notes"][0]


def test_a_run_says_that_it_failed_was_killed_or_resumed(tmp_path):
    says = {
        name: page(KINDS[name](tmp_path / name))["runs"][0]["state_says"] for name in ("failed", "killed", "resumed")
    }
    assert says["failed"].endswith("OutOfMemoryError: CUDA out of memory.")
    assert "Killed at step 65 of 100" in says["killed"]
    assert says["resumed"].endswith("It was resumed at step 40.")


def test_a_run_whose_lock_is_held_is_under_way(tmp_path):
    from dataflex.run.lock import locked

    path = KINDS["killed"](tmp_path / "run")
    with locked(path):
        assert read_run(path).state == "running"
    assert read_run(path).state == "killed"


def test_the_lock_of_another_machine_is_not_taken_for_a_dead_process(tmp_path):
    path = KINDS["killed"](tmp_path / "run")
    holder = {"host": "elsewhere", "process": 1, "began": "1", "since": "now", "namespace": "x"}
    (path / "dataflex_lock.json").write_text(json.dumps(holder))
    assert read_run(path).state == "unknown"


def test_counts_of_rows_are_those_of_the_files(folder):
    files = planned(folder) if (folder / "dataflex_selections").is_dir() else []
    if not files:
        return
    run = read_run(folder)
    if run.state not in ("finished",):
        last = sorted((folder / "dataflex_selections").glob("*.npz"))[-1]
        files[-1] = files[-1][: (run.step - int(last.stem[5:])) * BATCH]
    counts = Counter(np.concatenate(files).tolist())
    seen = seen_rows(run, pytest.fail)
    places = {row: seen.places.place(row) for row in counts}
    assert {row: int(seen.times[place]) for row, place in places.items()} == counts
    assert int((seen.times > 0).sum()) == len(counts)
    (shown,) = page(folder)["runs"]
    assert shown["line"]["seen"] == len(counts)
    if run.rows is not None:
        never, once = run.rows - len(counts), sum(n == 1 for n in counts.values())
        (said,) = [sentence for sentence in shown["says"] if "never seen" in sentence]
        assert said.startswith(f"Of the rows, {never:,} w")
        assert f"never seen, {once:,} once and {len(counts) - once:,} more often" in said


def test_the_first_screen_says_what_the_selector_found(tmp_path):
    path = KINDS["select"](tmp_path / "run")
    chosen = np.unique(np.concatenate(planned(path)[1:]))
    (run,) = page(path)["runs"]
    assert run["says"][0] == f"less chose {len(chosen)} of 300 rows over 4 updates."
    last = np.unique(planned(path)[-1])
    assert f"60 of the 300 rows are of gsm8k; {(last % 5 == 0).sum()} of them were chosen at the last" in run["says"][1]
    assert "13 % of the time went into deciding (3.4 s of 26 s)." in run["says"]
    assert run["says"][-1].startswith("Eval loss: 2.310 → 2.0")


def test_rows_of_a_choice_count_whole_where_the_run_was_killed_in_it(tmp_path):
    path = KINDS["killed"](tmp_path / "run")
    last = np.unique(planned(path)[-1])
    (run,) = page(path)["runs"]
    assert f"{(last % 5 == 0).sum()} of them were chosen at the last update" in run["says"][1]
    seen = seen_rows(read_run(path), pytest.fail)
    assert seen.times.sum() == 65 * BATCH
    assert seen.chosen.sum() == 3 * 20 * BATCH


def test_overlap_is_that_of_the_files_and_of_chance(tmp_path):
    path = KINDS["select"](tmp_path / "run")
    choices = [set(rows.tolist()) for rows in planned(path)[1:]]
    shared = [len(a & b) / len(b) for a, b in itertools.pairwise(choices)]
    plot = block(page(path), "seen", "Rows shared with the update before")
    assert plot["series"][0]["y"] == pytest.approx(shared, rel=1e-5)
    assert plot["series"][1]["y"] == pytest.approx([60 / 300] * 3)


def test_chance_keeps_to_the_shares_of_a_mixer(tmp_path):
    path = KINDS["mix"](tmp_path / "run")
    sizes, firsts = [400, 437, 474], [0, 400, 837, 1311]
    choices = [np.unique(rows) for rows in planned(path)[1:]]
    expected = []
    for a, b in itertools.pairwise(choices):
        parts = [[((each >= low) & (each < high)).sum() for each in (a, b)] for low, high in itertools.pairwise(firsts)]
        expected.append(sum(x * y / size for (x, y), size in zip(parts, sizes, strict=True)) / len(b))
    plot = block(page(path), "seen", "Rows shared with the update before")
    assert plot["series"][1]["y"] == pytest.approx(expected, rel=1e-5)


def test_shares_are_those_of_the_files_and_of_the_trace(tmp_path):
    path = KINDS["mix"](tmp_path / "run")
    stack = block(page(path), "shares", kind="stack")
    lines = [json.loads(line) for line in (path / "dataflex_trace.jsonl").read_text().splitlines()]
    asked = [line["proportions"] for line in lines if line["kind"] == "mix"]
    firsts = {"code": (0, 400), "docstrings": (400, 837), "prose": (837, 1311)}
    for place, name in enumerate(stack["names"]):
        low, high = firsts[name]
        realised = [((rows >= low) & (rows < high)).mean() for rows in planned(path)]
        assert stack["units"]["rows"][place] == pytest.approx(realised, abs=1e-4)
        assert stack["planned"]["rows"][place][1:] == pytest.approx([shares[name] for shares in asked], rel=1e-3)


@pytest.mark.parametrize("given", [[8, 1, 1], {"docstrings": 1, "code": 8, "prose": 1}])
def test_the_header_says_the_shares_in_the_loss_where_they_are_others_than_in_the_rows(tmp_path, given):
    path = KINDS["mix"](tmp_path / "run")
    config = yaml.safe_load((path / "dataflex_config.yaml").read_text())
    assert not any("In the loss" in said for said in page(path)["runs"][0]["says"])
    (path / "dataflex_config.yaml").write_text(yaml.safe_dump(config | {"objective_proportions": given}))
    words = "In the loss the sources count by objective_proportions: code 80 %, "
    assert any(said.startswith(words) for said in page(path)["runs"][0]["says"])


def test_the_header_says_what_a_mixer_came_to_that_weighs_losses_and_leaves_the_shares(tmp_path):
    path = KINDS["mix"](tmp_path / "run")
    lines = [json.loads(line) for line in (path / "dataflex_trace.jsonl").read_text().splitlines()]
    weights = {"code": 0.25, "docstrings": 0.25, "prose": 0.5}
    same = {"proportions": dict.fromkeys(weights, 1 / 3), "weights": weights, "average_weights": weights}
    lines = [line | same if line["kind"] == "mix" else line for line in lines]
    (path / "dataflex_trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = page(path)["runs"][0]["says"]
    assert "odm weighed the losses of the sources at 12 updates." in said
    words = "Their weights in the loss, on average over the steps: prose 50 %, code 25 % and docstrings 25 %;"
    assert any(sentence.startswith(words) for sentence in said)


def changed_trace(path: Path, kind: str, **keys) -> None:
    """Gives the trace's lines of a kind more keys."""
    lines = [line | keys if line["kind"] == kind else line for line in lines_of(path / "dataflex_trace.jsonl")]
    (path / "dataflex_trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_proxy_that_saw_no_later_update_weighed_losses_and_the_round_and_final_weights_are_said(tmp_path):
    path = KINDS["mix"](tmp_path / "round-2" / "proxy")
    equal = dict.fromkeys(("code", "docstrings", "prose"), 1 / 3)
    changed_trace(path, "mix", proportions=equal, weights=equal, average_weights=equal, weighs_losses=True)
    final = {"proportions": {"code": 0.25, "docstrings": 0.25, "prose": 0.5}, "steps": 40, "last": equal}
    (path / "doremi_weights.json").write_text(json.dumps(final))
    said = page(path)["runs"][0]["says"]
    assert said[:2] == ["This is the proxy of round 2.", "odm weighed the losses of the sources at 12 updates."]
    words = "Their weights in the loss, on average over the steps: prose 50 %, code 25 % and docstrings 25 %;"
    assert any(sentence.startswith(words) for sentence in said)
    (path / "doremi_weights.json").write_text(json.dumps({"proportions": equal, "steps": 0, "last": equal}))
    assert "No step has moved the weights of the sources." in page(path)["runs"][0]["says"]
    assert "set the shares" not in json.dumps(page(path))


def test_final_weights_are_said_of_a_run_that_ended_before_its_first_update(tmp_path):
    path = KINDS["mix"](tmp_path / "proxy")
    (path / "dataflex_trace.jsonl").write_text("")
    final = {"proportions": {"code": 0.25, "docstrings": 0.25, "prose": 0.5}, "steps": 40}
    (path / "doremi_weights.json").write_text(json.dumps(final))
    said = page(path)["runs"][0]["says"]
    assert "Its final weights, the mean over 40 steps: prose 50 %, code 25 % and docstrings 25 %." in said
    assert not any("round" in sentence or "set the shares" in sentence for sentence in said)


def test_the_header_says_how_many_rows_a_pass_left_out(tmp_path):
    path = KINDS["select"](tmp_path / "run")
    begun = [{"pass": 1, "of": 300, "left_out": 0}, {"pass": 2, "of": 300, "left_out": 90}]
    changed_trace(path, "select", passes_begun=begun)
    sentence = "less left out of the last pass that it began 90 of 300 rows (pass 2)."
    assert sentence in page(path)["runs"][0]["says"]
    changed_trace(path, "select", passes_begun={"gsm8k": begun, "code": begun[:1]})
    said = page(path)["runs"][0]["says"]
    assert any("90 of 300 rows (pass 2) of gsm8k and 0 of 300 rows (pass 1) of code" in each for each in said)


def test_groups_of_rows_are_named_with_their_words_and_first_shares_may_be_given_by_name(tmp_path):
    path = KINDS["mix"](tmp_path / "run")
    about = json.loads((path / "dataflex_run.json").read_text())
    about["sources"][0]["words"] = ["def", "return"]
    (path / "dataflex_run.json").write_text(json.dumps(about))
    config = yaml.safe_load((path / "dataflex_config.yaml").read_text())
    config["init_mixture_proportions"] = {"prose": 2, "code": 1, "docstrings": 1}
    (path / "dataflex_config.yaml").write_text(yaml.safe_dump(config))
    stack = block(page(path), "shares", kind="stack")
    assert sorted(stack["names"]) == ["code (def, return)", "docstrings", "prose"]
    first = {name: stack["planned"]["rows"][place][0] for place, name in enumerate(stack["names"])}
    assert first == {"code (def, return)": 0.25, "docstrings": 0.25, "prose": 0.5}


def test_quartiles_that_an_older_trace_lacks_come_from_the_files(tmp_path):
    spread = block(page(KINDS["old"](tmp_path / "run")), "scores", "Scores by the selector less")
    files = sorted((tmp_path / "run" / "dataflex_selections").glob("*.npz"))[1:]
    assert spread["chosen"]["q1"] == pytest.approx(
        [np.percentile(np.load(file)["scores"], 25) for file in files], rel=1e-5
    )


def test_sizes_of_sources_that_an_older_trace_leaves_open_are_not_guessed(tmp_path):
    path = KINDS["mix"](tmp_path / "run")
    (path / "dataflex_run.json").unlink()
    assert [source.rows for source in read_run(path).sources] == [400, 437, 474]
    trace = (path / "dataflex_trace.jsonl").read_text()
    (path / "dataflex_trace.jsonl").write_text(re.sub(r'"passes": {[^}]*}', '"passes": {"code": 0.000001}', trace))
    assert read_run(path).sources == ()


def test_the_scores_along_an_order_are_those_of_the_trace(tmp_path):
    path = KINDS["dynamic"](tmp_path / "run")
    said = [line for line in lines_of(path / "dataflex_trace.jsonl") if line["kind"] == "order"]
    plot = block(page(path), "order", "Scores along the rows that saw arranged")
    assert [each["name"] for each in plot["series"]] == [f"step {line['step']}" for line in said]
    assert plot["series"][0]["x"] == [5 * place for place in range(20)]
    assert plot["series"][0]["y"] == pytest.approx(said[0]["along"]["scores"], rel=1e-5)


def test_rows_have_their_text_source_score_and_counts(tmp_path):
    path = KINDS["select"](tmp_path / "run")
    rows = block(page(path), "rows", kind="rows")
    counts = Counter(np.concatenate(planned(path)).tolist())
    chosen = Counter(np.concatenate(planned(path)[1:]).tolist())
    scores = np.load(path / "dataflex_last_scores.npz")["scores"]
    texts = {line["row"]: line["text"] for line in lines_of(path / "dataflex_rows.jsonl") if "row" in line}
    assert sorted(rows["row"]) == list(range(300))
    for place, row in enumerate(rows["row"]):
        assert rows["text"][place] == texts[row]
        assert rows["sources"][rows["source"][place]] == ("gsm8k" if row % 5 == 0 else "alpaca")
        assert (rows["times"][place], rows["chosen"][place]) == (counts[row], chosen[row])
        assert rows["score"][place] == pytest.approx(scores[row], rel=1e-4)
    most = [rows["row"][place] for place in rows["lists"]["most"]]
    assert [chosen[row] for row in most] == sorted(chosen.values(), reverse=True)[:25]
    never = [rows["row"][place] for place in rows["lists"]["never"]]
    assert not set(never) & chosen.keys()
    high = [rows["row"][place] for place in rows["lists"]["high"]]
    assert high == np.argsort(-scores, kind="stable")[:25].tolist()


def test_a_row_is_explained_by_its_last_line_with_the_texts_of_its_targets(tmp_path):
    path = KINDS["select"](tmp_path / "run")
    rows = block(page(path), "rows", kind="rows")
    lines = {line["row"]: line for line in lines_of(path / "dataflex_why.jsonl")}
    assert {rows["row"][int(place)] for place in rows["why"]} == lines.keys()
    for place, why in rows["why"].items():
        line = lines[rows["row"][int(place)]]
        assert (why["step"], why["update"], why["value"]) == (
            line["step"],
            line["update"],
            pytest.approx(line["score"]),
        )
        assert [[name, row, share] for _, name, row, share in why["targets"]] == [
            [target["set"], target["target"], target["share"]] for target in line["targets"]
        ]
        for key, _, row, _ in why["targets"]:
            assert rows["targets"][key]["text"] == folders.Folder.target(row)


def test_weights_of_rows_are_those_of_the_last_line_that_names_them(tmp_path):
    path = KINDS["weight"](tmp_path / "run")
    rows = block(page(path), "rows", kind="rows")
    said: dict[int, float] = {}
    for line in lines_of(path / "dataflex_trace.jsonl"):
        said |= {row: weight for key in ("most", "least") for row, weight in line[key]}
    shown = {row: weight for row, weight in zip(rows["row"], rows["weight"], strict=True) if weight is not None}
    assert shown == pytest.approx(said, rel=1e-4)
    heavy = [rows["row"][place] for place in rows["lists"]["heavy"]]
    assert [said[row] for row in heavy] == sorted(said.values(), reverse=True)[:25]


def test_what_most_texts_of_a_source_begin_with_is_left_out_of_the_list():
    prompt = "system\nYou are kind.\nuser\n"
    texts = [f"{prompt}Question {n}?\nAnswer {n}." for n in range(9)] + ["another\nbeginning", None, prompt]
    skips = beginnings(texts, ["chat"] * len(texts))
    assert skips == [len(prompt)] * 9 + [0, 0, len(prompt)]
    assert beginnings(texts, range(len(texts))) == [0] * len(texts)
    assert beginnings(["one line " * 9] * 9, ["x"] * 9) == [0] * 9
    assert beginnings(["the same\ntext"] * 9, ["x"] * 9) == [len("the same\n")] * 9


def test_rows_that_were_chosen_alike_are_not_called_most_or_least_chosen(tmp_path):
    path = tmp_path / "run"
    folder = folders.Folder(path, 100, [("pool", 100)], 20)
    scores = np.linspace(0, 1, 32)
    folder.segment(0, np.arange(32), 0, scores=scores)
    folder.trace.append({"step": 0, "kind": "select", "component": "less", "update": 0, "num_samples": 32})
    folder.about("rows by less", "dynamic_select", [("select", "less")])
    lists = block(page(path), "rows", kind="rows")["lists"]
    assert not lists.keys() & {"most", "least"}
    rows = block(page(path), "rows", kind="rows")["row"]
    assert [rows[place] for place in lists["last"]] == list(range(31, 6, -1))


def test_hostile_text_is_data(tmp_path):
    path = folders.select_less(tmp_path / "run", texts=HOSTILE)
    text = report_html([path])
    assert text.count("<script") == text.count("</script>") == 7
    assert "<!--" not in text.partition('id="data">')[2]
    rows = block(data_of(text), "rows", kind="rows")
    shown = dict(zip(rows["row"], rows["text"], strict=True))
    assert shown[0] == HOSTILE[0]
    assert shown[1] == HOSTILE[1]
    assert shown[3] == HOSTILE[3]
    assert shown[4].startswith("[U+202E]right to left override[U+202C]")
    assert shown[5] == "a nul ␀, a bell ␇, an escape ␛[31m and a delete ␡"
    assert shown[7] == "x" * 2000
    assert rows["row"].index(7) in rows["cut"]
    assert not re.search("[\x00-\x08\x0b-\x1f\u2028\u2029\u202e]", text)


@pytest.mark.parametrize("text", ["</script>", "<!--", "\u2028", "]]>", "&lt;", "<\ud800>"])
def test_json_in_a_script_cannot_end_it(text):
    shown, _ = harmless(text, 100)
    found = in_script({"text": shown})
    assert not re.search("[<>\u2028\u2029]", found)
    assert json.loads(found.encode("utf-8"))["text"] == shown


def test_no_secret_of_the_environment_or_the_configuration_is_in_a_page(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmn")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:opensesame@proxy:80")
    texts = ["my token is hf_abcdefghijklmn", "see https://a:hunter22@host/x?api_key=verysecret1"]
    path = folders.select_less(
        tmp_path / "run", texts=texts, warnings=[{"text": "401 for hf_abcdefghijklmn", "times": 1}], status="failed",
        error="cannot reach http://user:opensesame@proxy:80",
    )  # fmt: skip
    config = path / "dataflex_config.yaml"
    config.write_text("swanlab_api_key: sk-from-the-yaml\n" + config.read_text())
    text = report_html([path])
    for secret in ("hf_abcdefghijklmn", "opensesame", "hunter22", "verysecret1", "sk-from-the-yaml"):
        assert secret not in text
    assert "<secret" in json.dumps(data_of(text))


def test_the_folder_that_the_shell_stands_in_is_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("PWD", str(tmp_path))
    assert page(KINDS["static"](tmp_path / "run"))["runs"][0]["folder"] == str(tmp_path / "run")


def test_a_page_keeps_to_its_size_and_says_what_it_left_out(tmp_path):
    path = tmp_path / "run"
    folder = folders.Folder(path, 6000, [("pool", 6000)], 100)
    folder.segment(0, np.arange(6000).repeat(2), None)
    folder.texts(lambda row: f"{row} " + "\u4e2d<\U0001f600" * 660)
    folder.metrics(100)
    folder.about("rows in order", "dynamic_select", [("select", "less")])
    text = report_html([path])
    assert len(text.encode()) <= MOST
    rows = block(data_of(text), "rows", kind="rows")
    assert rows["with_text"] == 6000
    assert rows["cut_at"] < 2000
    assert rows["shown_with_text"] == sum(each is not None for each in rows["text"]) > 1000


def test_a_page_asks_nobody_for_anything(folder):
    text = report_html([folder])
    assert "default-src 'none'" in text
    markup = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
    assert not re.search(r"""(src|href)=["'](?!#|data:)|@import|url\(|fetch\(|XMLHttpRequest|import\(""", markup)


def test_runs_are_told_apart_and_keep_their_colours(tmp_path):
    first, second = KINDS["select"](tmp_path / "a" / "run"), KINDS["random"](tmp_path / "b" / "run")
    data = page(first, second)
    assert [(run["name"], run["tone"]) for run in data["runs"]] == [("a/run", 0), ("b/run", 1)]
    curves = block(data, "losses", "Evaluation")["series"]
    assert [(each["name"], each["tone"]) for each in curves] == [("a/run", 0), ("b/run", 1)]
    config = block(data, "config", kind="config")
    differs = {row[0]: row[-1] for row in config["rows"]}
    assert differs["component_name"]
    assert not differs["learning_rate"]


def test_a_comparison_shows_verdicts_and_one_colour_per_arm(tmp_path):
    arms = {
        "less": [KINDS["select"](tmp_path / "less1"), KINDS["resumed"](tmp_path / "less2")],
        "random": [KINDS["random"](tmp_path / "random1")],
        "static": [KINDS["static"](tmp_path / "static1")],
    }
    said = folders.comparison(arms)
    data = page(*(path for paths in arms.values() for path in paths), comparison=said)
    assert [(run["tone"], run["dash"], run["panel"]) for run in data["runs"]] == [
        (0, 0, True), (0, 1, False), (1, 0, True), (2, 0, True),
    ]  # fmt: skip
    assert data["verdict"] == said["says"]
    table = block(data, "comparison", "eval_loss")
    assert [row[8] for row in table["rows"]] == ["better", "", "undecided"]
    assert table["rows"][0][11:] == [-0.1, -0.08, 0.975]
    (less, _) = block(data, "comparison", kind="intervals")["rows"]
    assert (less["difference"], less["low"], less["high"], less["tone"]) == (-0.09, -0.12, -0.06, 0)


def test_damaged_files_are_passed_over_and_named(tmp_path):
    path = KINDS["select"](tmp_path / "run")
    for name in ("dataflex_metrics.jsonl", "dataflex_rows.jsonl", "dataflex_why.jsonl"):
        with open(path / name, "ab") as file:
            file.write(b'\xff\xfe not json\n["a list"]\n{"row": "no number", "step": -1}\n{"cut of')
    (path / "dataflex_selections" / "step_00000040.npz").write_bytes(b"PK not an archive")
    (path / "dataflex_last_scores.npz").write_bytes(b"")
    (path / "dataflex_components.yaml").write_text("a: [")
    (run,) = page(path)["runs"]
    said = " ".join(run["notes"])
    for name in ("metrics.jsonl has 2 lines", "rows.jsonl has 2 lines", "why.jsonl has 2 lines", "step_00000040.npz",
                 "last_scores.npz", "components.yaml"):  # fmt: skip
        assert name in said


def test_numbers_of_the_wrong_type_end_no_report(tmp_path):
    path = KINDS["dynamic"](tmp_path / "run")
    for name in ("dataflex_run.json", "dataflex_trace.jsonl", "dataflex_segments.jsonl", "dataflex_why.jsonl"):
        text = (path / name).read_text()
        for wrong in ("null", '"text"', "[]", "-1.5", "true"):
            broken = re.sub(
                r'("(?:sources|scores|parts|seconds|update|rows|targets|along)": )[^,{\[]+', rf"\g<1>{wrong}", text
            )
            (path / name).write_text(broken)
            report_html([path])
        (path / name).write_text(text)


def test_an_older_page_is_replaced_and_a_file_of_somebody_else_is_kept(tmp_path):
    path = KINDS["static"](tmp_path / "run")
    (path / REPORT).write_text("<html>mine</html>")
    assert write_report([path]) == path / REPORT
    assert (path / f"aside_{REPORT}").read_text() == "<html>mine</html>"
    assert is_ours(path / REPORT)
    write_report([path])
    assert len(list(path.glob("*report*"))) == 2


def test_the_command_prints_the_path_and_refuses_in_words(tmp_path, capsys):
    path = KINDS["static"](tmp_path / "run")
    assert command(["report", str(path)]) == 0
    assert capsys.readouterr().out == f"{path / REPORT}\n"
    assert command(["report", str(path), "--out", str(tmp_path / "page.html")]) == 0
    assert is_ours(tmp_path / "page.html")
    (tmp_path / "empty").mkdir()
    for argv, said in (
        ([], "found no folder"),
        (["--outt", "x"], "found --outt"),
        ([str(path), "--out"], "--out: found nothing"),
        ([str(tmp_path / "gone")], "no such folder -> name the output_dir of a run"),
        ([str(tmp_path / "empty")], "holds no run"),
        ([str(path), "--out", str(path / "all_results.json" / "x.html")], "cannot be written"),
    ):
        assert command(["report", *argv]) == 2
        assert said in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_names_the_way_out(tmp_path, monkeypatch):
    path = KINDS["static"](tmp_path / "run")

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dataflex.core.files.os.replace", refused)
    with pytest.raises(ConfigError, match="Permission denied -> name another place with --out FILE"):
        write_report([path])


def test_the_command_imports_neither_torch_nor_transformers(tmp_path):
    path = KINDS["select"](tmp_path / "run")
    code = (
        "import sys; from dataflex.cli.main import run; run(['report', sys.argv[1]]); "
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow'} & sys.modules.keys()))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True, env=os.environ
    )
    assert said.stdout.splitlines()[-1] == "[]"


def test_a_thinned_curve_keeps_its_ends_and_its_peak():
    x = np.arange(10_000.0)
    y = np.zeros(10_000)
    y[4321] = 5
    places = largest_triangles(x, y, 100)
    assert len(places) == 100
    assert {0, 4321, 9999} <= set(places.tolist())
    assert (np.diff(places) > 0).all()
    assert curve([(1, None), (2, float("nan")), (3, 4.5)]) == ([3], [4.5])


def test_shares_and_times_never_round_something_to_nothing_or_all():
    shares = (0, 0.0001, 0.004, 0.14, 0.996, 0.9999, 1)
    assert [percent(share) for share in shares] == [
        "0 %",
        "under 0.1 %",
        "0.4 %",
        "14 %",
        "99.6 %",
        "over 99.9 %",
        "100 %",
    ]
    assert [duration(s) for s in (0.01, 3.44, 63, 723, 18120)] == [
        "under 0.1 s",
        "3.4 s",
        "63 s",
        "12 min 3 s",
        "5 h 2 min",
    ]


def test_rows_that_are_shuffled_over_their_sources_are_told_apart_by_the_file_that_says_so(tmp_path):
    path = folders.select_less(tmp_path / "run")
    about = json.loads((path / "dataflex_run.json").read_text())
    rows = about["rows"]
    codes = np.arange(rows) % 2
    about["sources"] = [
        {"name": name, "first": None, "rows": int((codes == n).sum()), "tokens": None} for n, name in enumerate("ab")
    ]
    (path / "dataflex_run.json").write_text(json.dumps(about))
    (path / "dataflex_rows.jsonl").unlink()  # texts name the source, too
    np.savez(path / "dataflex_row_sources.npz", sources=codes.astype(np.int16), names=["a", "b"], run=about["run"])
    seen = seen_rows(read_run(path), str)
    assert [source.name for source in seen.sources] == ["a", "b"]
    assert seen.source_of.tolist() == codes.tolist()
    (path / "dataflex_row_sources.npz").unlink()
    assert seen_rows(read_run(path), str).source_of is None


def test_arrays_of_another_run_are_left_out_and_that_is_said(tmp_path):
    path = folders.select_less(tmp_path / "run")
    assert read_run(path).last_scores is not None
    about = json.loads((path / "dataflex_run.json").read_text())
    (path / "dataflex_run.json").write_text(json.dumps(about | {"run": "f" * 16}))
    found = read_run(path)
    assert found.last_scores is None
    assert "dataflex_last_scores.npz is not of this run: left out" in found.notes


def test_of_rows_that_were_never_chosen_those_that_came_nearest_to_it_come_first(tmp_path):
    path = folders.select_less(tmp_path / "run")
    found = block(page(path), "rows", kind="rows")
    never = found["lists"]["never"]
    scores = [found["score"][line] for line in never]
    assert len(never) > 3
    assert scores == sorted(scores, reverse=True)


def test_of_rows_that_were_chosen_as_often_those_that_are_explained_come_first(tmp_path):
    found = block(page(folders.select_less(tmp_path / "run")), "rows", kind="rows")
    most = found["lists"]["most"]
    times = [found["chosen"][line] for line in most]
    explained = [str(line) in found["why"] for line in most if found["chosen"][line] == times[-1]]
    assert True in explained
    assert explained == sorted(explained, reverse=True)
