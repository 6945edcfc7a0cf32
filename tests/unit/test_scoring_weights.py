"""Which weights score is known from the names of files alone: before anything is imported or loaded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from dataflex.config.arguments import DataflexArguments
from dataflex.config.checks.late import late_problems
from dataflex.config.checks.parsed_config import Draft
from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError
from dataflex.run import output_dir
from dataflex.run import scoring_weights as scoring
from dataflex.run.scoring_weights import scoring_weights


def weights(folder, **keys):
    arguments = DataflexArguments(train_type="dynamic_select", component_name="random")
    return scoring_weights(RunSpec(arguments, None, {"model_name_or_path": "m", "output_dir": str(folder)} | keys))


def test_a_trained_model_without_a_checkpoint_is_refused_until_one_of_the_two_is_named(tmp_path):
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(ConfigError, match=r"holds a trained model \(adapter_model.safetensors\) and no checkpoint"):
        weights(tmp_path)
    assert weights(tmp_path, adapter_name_or_path=str(tmp_path)).adapter == str(tmp_path)
    assert weights(tmp_path, resume_from_checkpoint=False).adapter is None


WORDS = {"true": True, " True": True, "false": False, "none": None, "None": None, "": None, "a/step": "a/step"}


@pytest.mark.parametrize(("given", "meant"), [*WORDS.items(), (True, True), (False, False), (None, None)], ids=repr)
def test_what_a_run_goes_on_from_is_the_same_to_all_who_ask(given, meant, tmp_path, monkeypatch):
    monkeypatch.setattr(output_dir, "newest_to_resume", lambda folder, recorded: "the newest")
    arguments = SimpleNamespace(resume_from_checkpoint=given, output_dir=str(tmp_path))
    output_dir.resolve_resume(arguments)
    assert arguments.resume_from_checkpoint == ("the newest" if meant is True else meant)
    monkeypatch.setattr(scoring, "newest_to_resume", lambda folder, recorded: "the newest")
    keys = {"output_dir": str(tmp_path), "resume_from_checkpoint": given, "model_name_or_path": "m"}
    found = scoring.scoring_weights(RunSpec(DataflexArguments(), llamafactory=keys)).checkpoint
    assert found == {True: "the newest", False: None}.get(meant, meant)
    draft = Draft(DataflexArguments(), {**keys, "do_train": True})
    assert [problem.where for problem in late_problems(draft) if problem.where == "resume_from_checkpoint"] == (
        ["resume_from_checkpoint"] if isinstance(meant, str) else []
    )
