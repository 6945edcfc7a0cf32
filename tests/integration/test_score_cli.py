"""``dataflex-cli score``: before training, of a checkpoint, and its file in a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK
from dataflex.cli.main import run
from dataflex.run.record import read_trace
from dataflex.run.row_file import read_row_file

SHORT = ["warmup_step=2", "update_step=2", "update_times=2", "eval_dataset=instructions_eval", "save_steps=3"]


def scored(file: Path) -> tuple[np.ndarray, dict]:
    found = read_row_file(file, "score")
    assert found.rows.tolist() == list(range(len(found.values)))
    return found.values, dict(found.about)


@pytest.fixture
def score(workspace: Path, tmp_path: Path):
    def score_(*overrides: str, out: str = "run") -> int:
        file = str(workspace / "select_less.yaml")
        return run(["score", file, *QUICK, *SHORT, f"output_dir={tmp_path / out}", *overrides])

    return score_


def test_training_with_less_scoring_its_checkpoints_and_training_on_the_scores(train, score, tmp_path, capsys):
    assert train("select_less", *SHORT) == 0
    trace = read_trace(tmp_path / "run")
    assert [line["step"] for line in trace] == [2, 4]
    assert all(line["component"] == "less" and line["scores"]["std"] > 0 for line in trace)

    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    capsys.readouterr()
    assert score() == 0  # of the last checkpoint
    file = tmp_path / "run" / "dataflex_scores.parquet"
    assert capsys.readouterr().out.strip().splitlines()[-1] == str(file)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted([*before, file.name])
    last, about = scored(file)
    assert (about["component"], about["step"], last.shape) == ("less", 6, (60,))
    assert np.isfinite(last).all()
    assert score() == 2  # nothing is overwritten unasked
    assert "exists -> move it" in capsys.readouterr().err

    assert score(f"resume_from_checkpoint={tmp_path / 'run' / 'checkpoint-3'}", "overwrite_output_dir=true") == 0
    middle, about = scored(file)
    assert about["step"] == 3
    assert not np.array_equal(middle, last)

    components = tmp_path / "c.yaml"
    components.write_text(f"selectors: {{taken: {{name: scores, params: {{file: '{file}', mode: topk}}}}}}")
    chosen = [f"components_cfg_file={components}", "component_name=taken"]
    assert train("select_less", *SHORT, *chosen, out="taken") == 0
    rows = np.load(tmp_path / "taken" / "dataflex_selections" / "step_00000002.npz")["indices"]
    assert set(rows) == set(np.argsort(-middle, kind="stable")[: len(rows)])


def test_scores_before_training_are_those_of_the_model_as_it_is(score, tmp_path):
    assert score(out="fresh") == 0
    scores, about = scored(tmp_path / "fresh" / "dataflex_scores.parquet")
    assert about["step"] == 0
    assert np.isfinite(scores).all()
    assert sorted(path.name for path in (tmp_path / "fresh").iterdir()) == ["dataflex_scores.parquet"]


def test_what_cannot_score_says_so(score, train, tmp_path, capsys):
    assert score("component_name=random", out="a") == 1
    assert "chooses rows without giving each a score" in capsys.readouterr().err
    assert score("train_type=dynamic_weight", "component_name=loss", out="b") == 2
    assert "has no selector to score with" in capsys.readouterr().err
    assert train("select_less", *SHORT, "eval_dataset=null", out="c") == 2
    assert "the selector 'less' aims at one" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_scores_of_another_split_are_refused_before_training_and_those_of_this_one_taken(
    score, train, tmp_path, capsys
):
    """Another seed moves other rows into the evaluation set: as many rows are left, and none is in its place."""
    split = ["eval_dataset=null", "val_size=0.1"]
    assert score(*split, "seed=1", out="scored") == 0
    file = tmp_path / "scored" / "dataflex_scores.parquet"
    scores, about = scored(file)
    assert len(scores) == about["rows"] == 54
    components = tmp_path / "c.yaml"
    components.write_text(f"selectors: {{taken: {{name: scores, params: {{file: '{file}', mode: topk}}}}}}")
    chosen = [f"components_cfg_file={components}", "component_name=taken", *split]
    capsys.readouterr()
    assert train("select_less", *SHORT, *chosen, "seed=2", out="other") == 2
    said = capsys.readouterr().err
    assert "file of the scores selector" in said
    assert f"has 54 rows with the digest {about['rows_digest']} (component less, step 0, seed 1)" in said
    assert "the train dataset 54 with the digest " in said
    assert not (tmp_path / "other" / "dataflex_trace.jsonl").exists()

    weights = tmp_path / "w.yaml"
    weights.write_text(f"weighters: {{column: {{params: {{file: '{file}', column: score, allow_negative: true}}}}}}")
    weighed = ["train_type=dynamic_weight", "component_name=column", f"components_cfg_file={weights}", *split]
    assert train("select_less", *weighed, "train_step=2", "warmup_step=0", "seed=2", out="weighed") == 2
    assert f"54 rows with the digest {about['rows_digest']}" in capsys.readouterr().err
    assert train("select_less", *weighed, "train_step=2", "warmup_step=0", "seed=1", out="weighed") == 0

    assert train("select_less", *SHORT, *chosen, "seed=1", "save_steps=100", out="same") == 0
    rows = np.load(tmp_path / "same" / "dataflex_selections" / "step_00000002.npz")["indices"]
    assert set(rows) == set(np.argsort(-scores, kind="stable")[: len(rows)])
