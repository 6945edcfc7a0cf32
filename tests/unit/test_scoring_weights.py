"""Which weights score is known from the names of files alone: before anything is imported or loaded."""

from __future__ import annotations

import pytest
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError
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
