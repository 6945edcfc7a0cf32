"""``dataflex-cli score``: before training, of a checkpoint, and its file in a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK
from dataflex.cli.main import run
from dataflex.run.record import read_trace
from dataflex.run.scores import read_scores

SHORT = ["warmup_step=2", "update_step=2", "update_times=2", "eval_dataset=instructions_eval", "save_steps=3"]


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
    last, about = read_scores(file)
    assert (about["component"], about["step"], last.shape) == ("less", 6, (60,))
    assert np.isfinite(last).all()
    assert score() == 2  # nothing is overwritten unasked
    assert "exists -> move it" in capsys.readouterr().err

    assert score(f"resume_from_checkpoint={tmp_path / 'run' / 'checkpoint-3'}", "overwrite_output_dir=true") == 0
    middle, about = read_scores(file)
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
    scores, about = read_scores(tmp_path / "fresh" / "dataflex_scores.parquet")
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
