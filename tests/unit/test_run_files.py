import json

import numpy as np
import pytest
import torch
import yaml
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import CheckpointError, ConfigError
from dataflex.core.kinds import SELECTOR
from dataflex.run.config_file import RUN, VERSIONS, RecordedRun, mark_finished, recorded_run, write_config
from dataflex.run.files import COMPONENTS, CONFIG, SELECTIONS, STATE, TRACE, replacing
from dataflex.run.record import RunRecord, read_trace, summary
from dataflex.run.state import load_state, save_state

ID = "0123456789abcdef"


def test_state_of_any_shape_survives(tmp_path):
    state = {
        "array": np.arange(3),
        "tensor": torch.tensor([1.5]),
        "nested": {"list": [1, "two", None, np.float64(2.5)], "tuple": (np.zeros(2), True)},
    }
    save_state(tmp_path, state)
    loaded = load_state(tmp_path)
    assert loaded["array"].tolist() == [0, 1, 2]
    assert loaded["array"].dtype == np.int64
    assert torch.equal(loaded["tensor"], state["tensor"])
    assert loaded["nested"]["list"] == [1, "two", None, 2.5]
    assert loaded["nested"]["tuple"][0].tolist() == [0, 0]


def test_loading_a_state_runs_no_code(tmp_path):
    torch.save({"evil": RunRecord}, tmp_path / STATE)
    with pytest.raises(CheckpointError, match="Unsupported global"):
        load_state(tmp_path)


def test_a_checkpoint_without_our_state_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no dataflex_state\.pt.*train_type: static"):
        load_state(tmp_path)


def test_a_torn_state_is_refused(tmp_path):
    save_state(tmp_path, {"x": np.arange(1000)})
    whole = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"cannot be read.*earlier checkpoint"):
        load_state(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")

    def write():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_record_takes_back_what_came_after_the_checkpoint(tmp_path):
    record = RunRecord(str(tmp_path), writes=True)
    record.begin(0)
    for step in (2, 5, 8):
        record.update({"step": step})
        record.segment(step, np.arange(3), np.array([0.5, 0.25, 1.0]))
    with open(tmp_path / TRACE, "a") as file:
        file.write('{"step": 11, "torn')
    record.begin(5)
    assert read_trace(tmp_path) == [{"step": 2}]
    assert [p.name for p in (tmp_path / SELECTIONS).iterdir()] == ["step_00000002.npz"]
    saved = np.load(tmp_path / SELECTIONS / "step_00000002.npz")
    assert saved["indices"].tolist() == [0, 1, 2]
    assert saved["scores"].tolist() == [0.5, 0.25, 1.0]


def test_only_the_writing_rank_writes(tmp_path):
    record = RunRecord(str(tmp_path), writes=False)
    record.begin(0)
    record.update({"step": 1})
    record.segment(1, np.arange(3), None)
    assert list(tmp_path.iterdir()) == []


def test_scores_are_summarised_without_the_rows_that_have_none():
    assert summary(np.array([1.0, 3.0, np.nan])) == {"mean": 2.0, "std": 1.0, "min": 1.0, "median": 2.0, "max": 3.0}
    assert summary(None) == {}
    assert json.dumps(summary(np.array([1.0])))


def test_the_written_config_can_be_read_back(tmp_path):
    spec = RunSpec(
        DataflexArguments(train_type="dynamic_select", component_name="hard", warmup_step=4, update_step=2),
        ComponentSpec(SELECTOR, "hard", "loss", {"focus": "high"}),
        {"learning_rate": 1e-4, "dataset": "a"},
    )
    write_config(spec, str(tmp_path), ID)
    config = yaml.safe_load((tmp_path / CONFIG).read_text())
    versions = config.pop(VERSIONS)
    assert config.pop(RUN) == {"id": ID}
    assert {"dataflex-core", "torch", "transformers"} <= versions.keys()
    assert config == {
        "train_type": "dynamic_select",
        "component_name": "hard",
        "components_cfg_file": str(tmp_path / COMPONENTS),
        "warmup_step": 4,
        "update_step": 2,
        "learning_rate": 1e-4,
        "dataset": "a",
    }
    assert yaml.safe_load((tmp_path / COMPONENTS).read_text()) == {
        "selectors": {"hard": {"name": "loss", "params": {"focus": "high"}}}
    }


def test_the_config_says_which_run_wrote_it_and_whether_it_is_finished(tmp_path):
    assert recorded_run(tmp_path) is None
    write_config(RunSpec(DataflexArguments(train_type="dynamic_select")), str(tmp_path), ID)
    assert recorded_run(tmp_path) == RecordedRun(ID)
    mark_finished(tmp_path, 8, {"model.safetensors": (10, 11)})
    assert recorded_run(tmp_path) == RecordedRun(ID, 8, {"model.safetensors": (10, 11)})
    assert yaml.safe_load((tmp_path / CONFIG).read_text())["train_type"] == "dynamic_select"


def test_a_config_of_an_earlier_version_says_nothing_of_its_run(tmp_path):
    (tmp_path / CONFIG).write_text("train_type: dynamic_select\n")
    assert recorded_run(tmp_path) == RecordedRun(None)


@pytest.mark.parametrize(
    "content", [b"", b"- a", b"\xff\xfe", b"a: [", b"dataflex_run: {id: [1]}", b"dataflex_run: {id: ../x}", b"\x00"]
)
def test_a_damaged_config_is_named_in_one_sentence(tmp_path, content):
    (tmp_path / CONFIG).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/{CONFIG} cannot be read: .* -> choose another output_dir"):
        recorded_run(tmp_path)
