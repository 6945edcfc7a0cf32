"""``key=null`` on the command line: a key of the file is taken out, or given as null where it may be null."""

from __future__ import annotations

import json

import pytest
import yaml
from dataflex.cli.run_file import checked_run
from dataflex.config.checks.values import value_problems
from dataflex.config.known_keys import llamafactory_keys
from dataflex.config.load import read_config
from dataflex.config.null_values import may_be_null, without_unset
from dataflex.core.errors import ConfigError, InvalidConfigError

KEYS = sorted(llamafactory_keys() or ())
RUN = {
    "model_name_or_path": "a/b", "stage": "sft", "do_train": True, "dataset": "a", "dataset_dir": "data",
    "output_dir": "out", "per_device_train_batch_size": 1, "template": "empty", "num_train_epochs": 3.0,
    "train_type": "dynamic_select", "component_name": "random", "warmup_step": 1, "update_step": 2, "update_times": 3,
}  # fmt: skip


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    rows = [{"instruction": "x", "input": "", "output": "y"}] * 20
    (tmp_path / "data" / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "a.json"}}), encoding="utf-8")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN), encoding="utf-8")
    return "run.yaml"


def steps(*argv):
    spec = checked_run(argv, "")
    return spec.steps(-1, float(spec.llamafactory.get("num_train_epochs", 3.0))).total


def test_the_epochs_of_a_file_can_be_unset_for_a_selectors_schedule(file):
    assert steps(file) == 3 * 7
    for null in ("null", "~", "Null", "NULL", " null "):
        assert steps(file, f"num_train_epochs={null}") == 7
        assert "num_train_epochs" not in checked_run([file, f"num_train_epochs={null}"], "").llamafactory


def test_the_last_of_several_overrides_holds(file):
    assert steps(file, "num_train_epochs=null", "num_train_epochs=2") == 2 * 7
    assert steps(file, "num_train_epochs=2", "num_train_epochs=null") == 7


def test_a_key_that_is_not_in_the_file_may_be_unset_as_well(file):
    assert "weight_decay" not in checked_run([file, "weight_decay=null"], "").llamafactory


def test_a_key_that_may_be_null_is_given_as_null(file):
    given = checked_run([file, "max_samples=null", "template=null", "bf16=null"], "").llamafactory
    assert [given[key] for key in ("max_samples", "template", "bf16")] == [None, None, None]


def test_a_key_that_there_is_not_is_still_refused(file):
    with pytest.raises(InvalidConfigError, match="num_train_epoch: "):
        checked_run([file, "num_train_epoch=null"], "")


@pytest.mark.parametrize("value", ["", " "])
def test_nothing_behind_the_sign_unsets_no_key(file, value):
    """It is what a shell makes of ``num_train_epochs=$EPOCHS`` where there is no such variable."""
    with pytest.raises(ConfigError, match="num_train_epochs: found None, allowed: a number of at least 0"):
        checked_run([file, f"num_train_epochs={value}"], "")


def test_a_null_of_the_file_is_still_refused(file, tmp_path):
    (tmp_path / file).write_text(yaml.safe_dump(RUN | {"num_train_epochs": None}), encoding="utf-8")
    with pytest.raises(ConfigError, match="num_train_epochs: found None"):
        checked_run([file, "learning_rate=null"], "")


def test_a_parameter_of_a_component_is_given_as_null(file):
    config = read_config(file, ["component.num_train_epochs=null"])
    unset = without_unset(config, ["component.num_train_epochs=null"])
    assert unset["component"] == {"num_train_epochs": None}
    assert unset["num_train_epochs"] == 3.0


def test_nothing_is_taken_out_of_a_run_of_the_next_trainer(file, monkeypatch):
    monkeypatch.setenv("USE_V1", "1")
    config = {"train_type": "static", "learning_rate": None}
    assert without_unset(config, ["learning_rate=null"]) == config
    assert without_unset({"learning_rate": None}, ["learning_rate=null"]) == {"learning_rate": None}


@pytest.mark.parametrize("key", KEYS)
def test_what_is_refused_as_null_in_a_file_is_what_the_command_line_unsets(key):
    refused = bool(value_problems({key: None}))
    assert refused is not may_be_null(key)
    assert without_unset({key: None}, [f"{key}=null"]) == ({} if refused else {key: None})


def test_the_numbers_that_files_name_most_can_be_unset():
    assert {"num_train_epochs", "learning_rate", "warmup_steps", "weight_decay"} <= {
        k for k in KEYS if not may_be_null(k)
    }
