"""``dataflex-cli score``: before training, of a checkpoint, and its file in a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataflex.cli.main import run
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError
from dataflex.run.record import read_trace
from dataflex.run.row_file import read_row_file
from dataflex.run.scoring_weights import scoring_weights
from quick_keys import QUICK

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
    # Of the last checkpoint, also where the file is one that begins anew when it trains.
    assert score("overwrite_output_dir=true") == 0
    file = tmp_path / "run" / "dataflex_scores.parquet"
    first, *_, written = capsys.readouterr().out.strip().splitlines()
    checkpoint = str(tmp_path / "run" / "checkpoint-6")
    assert first.startswith(f"scoring with the checkpoint {checkpoint} of the model ")
    assert written == str(file)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted([*before, file.name])
    last, about = scored(file)
    assert (about["component"], about["step"], last.shape) == ("less", 6, (60,))
    assert about["weights"] == {"model": about["weights"]["model"], "adapter": None, "checkpoint": checkpoint}
    assert np.isfinite(last).all()
    assert score() == 2  # nothing is overwritten unasked
    assert "exists -> move it, or replace it with --overwrite" in capsys.readouterr().err
    assert score("overwrite_output_dir=true") == 2  # which is about training

    assert score(f"resume_from_checkpoint={tmp_path / 'run' / 'checkpoint-3'}", "--overwrite") == 0
    assert "scoring with the checkpoint" in capsys.readouterr().out.splitlines()[0]
    middle, about = scored(file)
    assert about["step"] == 3
    assert not np.array_equal(middle, last)

    components = tmp_path / "c.yaml"
    components.write_text(f"selectors: {{taken: {{name: scores, params: {{file: '{file}', mode: topk}}}}}}")
    chosen = [f"components_cfg_file={components}", "component_name=taken"]
    assert train("select_less", *SHORT, *chosen, out="taken") == 0
    rows = np.load(tmp_path / "taken" / "dataflex_selections" / "step_00000002.npz")["indices"]
    assert set(rows) == set(np.argsort(-middle, kind="stable")[: len(rows)])


def test_scores_before_training_are_those_of_the_model_as_it_is_of_fewer_rows_than_an_update_asks_for_too(
    score, train, tmp_path, capsys
):
    assert train("select_less", *SHORT, "max_samples=5", out="no") == 2  # an update asks for 8 rows
    assert "the dataset has 5" in capsys.readouterr().err
    assert score("max_samples=5", out="fresh") == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(f" as it is: {tmp_path / 'fresh'} holds no checkpoint")
    scores, about = scored(tmp_path / "fresh" / "dataflex_scores.parquet")
    assert about["step"] == 0
    assert np.isfinite(scores).all()
    assert sorted(path.name for path in (tmp_path / "fresh").iterdir()) == ["dataflex_scores.parquet"]


@pytest.mark.llamafactory
def test_a_trained_model_without_a_checkpoint_is_not_taken_for_the_untrained_one(score, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "adapter_model.safetensors").touch()
    assert score("overwrite_output_dir=true") == 2
    said = capsys.readouterr().err
    assert "holds a trained model (adapter_model.safetensors) and no checkpoint" in said
    assert f"adapter_name_or_path={tmp_path / 'run'}" in said
    assert not (tmp_path / "run" / "dataflex_scores.parquet").exists()


def spec_of(folder: Path, **keys) -> RunSpec:
    return RunSpec(DataflexArguments(), None, {"model_name_or_path": "base", "output_dir": str(folder), **keys})


def test_the_weights_that_score_are_said_in_words_for_every_way_to_choose_them(tmp_path):
    """``overwrite_output_dir`` is about training, and changes none of it."""
    none = f"the model base as it is: {tmp_path} holds no checkpoint"
    for keys, words in (
        ({}, none),
        ({"overwrite_output_dir": True}, none),
        ({"resume_from_checkpoint": False}, "the model base as it is"),
        ({"resume_from_checkpoint": "some/checkpoint-7"}, "the checkpoint some/checkpoint-7 of the model base"),
        ({"adapter_name_or_path": ["a", "b"]}, none.replace("base", "base and the adapter a, b")),
    ):
        assert str(scoring_weights(spec_of(tmp_path, **keys))) == words
    with pytest.raises(ConfigError, match="holds no complete checkpoint of its run"):
        scoring_weights(spec_of(tmp_path, resume_from_checkpoint=True, overwrite_output_dir=True))


def test_what_cannot_score_says_so(score, train, tmp_path, capsys):
    assert score("component_name=random", out="a") == 1
    assert "chooses rows without giving each a score" in capsys.readouterr().err
    assert score("train_type=dynamic_weight", "component_name=loss", out="b") == 2
    assert "score takes the selector of train_type: dynamic_select alone" in capsys.readouterr().err
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
