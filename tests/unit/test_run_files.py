import enum
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from dataflex.config.arguments import DataflexArguments
from dataflex.config.load import read_config
from dataflex.config.resolved import (
    RUN,
    VERSIONS,
    RecordedRun,
    note_results,
    recorded_run,
    write_config,
    written_config,
)
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import CheckpointError, ComponentError, ConfigError
from dataflex.core.files import COMPONENTS, CONFIG, SELECTIONS, STATE, TRACE, replacing
from dataflex.core.kinds import SELECTOR
from dataflex.run.record import RunRecord, read_trace
from dataflex.run.score_summary import summary
from dataflex.run.state import load_state, require_savable, save_state
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays, scalar_dtypes

ID = "0123456789abcdef"


def test_state_of_any_shape_survives(tmp_path):
    state = {
        "array": np.arange(3),
        "tensor": torch.tensor([1.5]),
        "nested": {"list": [1, "two", None, np.float64(2.5)], "tuple": (np.zeros(2), True)},
    }
    save_state(tmp_path, state | {"identity": {}})
    loaded = load_state(tmp_path)
    assert loaded["array"].tolist() == [0, 1, 2]
    assert loaded["array"].dtype == np.int64
    assert torch.equal(loaded["tensor"], state["tensor"])
    assert loaded["nested"]["list"] == [1, "two", None, 2.5]
    assert loaded["nested"]["tuple"][0].tolist() == [0, 0]


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text()
            | arrays(scalar_dtypes(), st.integers(0, 3).map(lambda n: (2,) * n)),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers() | st.text(), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=3,
    )
)
@settings(max_examples=50)
def test_what_is_saved_comes_back_or_is_refused_by_the_key(tmp_path_factory, state):
    folder = tmp_path_factory.getbasetemp() / "any state"
    refused = None
    try:
        require_savable(state, "selector 'x'")
    except ComponentError as error:
        refused = str(error)
    if refused is None:
        save_state(folder, {"identity": {}, "component": state})
        assert repr(load_state(folder)["component"]) == repr(state)
    else:
        assert re.match(r"selector 'x': its state_dict\(\)\[.* is an array of dtype ", refused, re.DOTALL)


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"where": Path("a")}, "['where'] is of type pathlib.PosixPath"),
        ({"a": b"x"}, "['a'] is of type bytes"),
        ({"seen": {1, 2}}, "['seen'] is of type set"),
        ({"a": [0, {"b": (1, object())}]}, "['a'][1]['b'][1] is of type object"),
        ({"a": Colour.RED}, "['a'] is of type test_run_files.Colour"),
        ({"a": np.array([None])}, "['a'] is an array of dtype object"),
        ({"a": np.array(["x"])}, "['a'] is an array of dtype <U1"),
        ({"a": np.ma.array([1, 2], mask=[0, 1])}, "['a'] is of type numpy.ma.MaskedArray, whose mask would be lost"),
        ({"a": np.datetime64("2020-01-01")}, "['a'] is of type datetime.date"),
        ({"a": lambda: 1}, "['a'] is of type function"),
        ({"a": torch.float32}, "['a'] is of type torch.dtype"),
        ({("a", 1): 1}, " has the key ('a', 1) of type tuple"),
        ({"b": {Path("a"): 1}}, "['b'] has the key PosixPath('a') of type pathlib.PosixPath"),
        ({"__numpy__": 3}, " has the key '__numpy__' of type str"),
        (None, " is of type NoneType, not dict"),
        ([1], " is of type list, not dict"),
    ],
)
def test_a_state_that_could_not_be_read_back_is_refused_with_component_and_key(state, said):
    with pytest.raises(ComponentError) as refused:
        require_savable(state, "weighter 'mine'")
    message = str(refused.value).replace("tests.unit.", "").replace("numpy.ma.core", "numpy.ma")
    assert message.startswith(f"weighter 'mine': its state_dict(){said}, and could not be resumed from; allowed: None")


def test_a_state_that_holds_itself_is_refused():
    state = {"a": []}
    state["a"].append(state["a"])
    with pytest.raises(ComponentError, match="nested more than 64 deep"):
        require_savable(state, "mixer 'x'")


def test_arrays_of_every_shape_and_order_come_back_as_they_were(tmp_path):
    frozen = np.arange(3)
    frozen.flags.writeable = False
    arrays = [np.array(5.0), np.zeros((0, 3)), frozen, np.arange(6).reshape(2, 3).T, np.arange(6)[::-2]]
    save_state(tmp_path, {"identity": {}, "arrays": arrays})
    for loaded, array in zip(load_state(tmp_path)["arrays"], arrays, strict=True):
        assert loaded.shape == array.shape
        assert np.array_equal(loaded, array)


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


@pytest.mark.parametrize("damage", ["flipped", "latin-1", "utf-16", "empty line", "no step", "a number", "deep"])
def test_a_trace_with_lines_that_are_none_is_kept_aside_and_begun_again_with_the_others(tmp_path, damage, caplog):
    path = tmp_path / TRACE
    good = ['{"step": 2, "news": "a"}', '{"step": 5}', '{"step": 8}']
    damaged = {
        "flipped": '{"ste`": 3',
        "empty line": "",
        "no step": '{"stop": 3}',
        "a number": "3",
        "deep": "[" * 100_000,
        "latin-1": '{"step": 3, "n": "\xe9"}',
    }
    lines = "\n".join([good[0], damaged.get(damage, good[1]), *good[1:]]) + "\n"
    content = lines.encode({"latin-1": "latin-1", "utf-16": "utf-16"}.get(damage, "utf-8"))
    path.write_bytes(content)
    RunRecord(str(tmp_path), writes=True).begin(6)
    assert [line["step"] for line in read_trace(tmp_path)] == ([] if damage == "utf-16" else [2, 5])
    assert (tmp_path / f"aside_{TRACE}").read_bytes() == content
    assert f"{path} has lines that are not ours, or damaged" in caplog.text


def test_files_of_strangers_beside_the_record_stay(tmp_path):
    folder = tmp_path / SELECTIONS
    folder.mkdir()
    names = ("step_x.npz", "step_3.npz", "step_.npz", "step_00000009.npz.bak", f"step_{8 * chr(0x663)}.npz",
             ".step_00000004.npz.12.tmp", ".a.tmp", "notes.txt")  # fmt: skip
    for place in (tmp_path, folder):
        for name in names:
            (place / name).write_text("mine")
    (folder / "step_00000008.npz").mkdir()
    (folder / "step_00000007.npz").write_text("ours")
    (folder / ".step_00000004.npz.12.dataflex-tmp").write_text("ours")
    RunRecord(str(tmp_path), writes=True).begin(4)
    left = {path.name for path in folder.iterdir()}
    assert left == {*names, "aside_step_00000008.npz"}
    assert {path.name for path in tmp_path.iterdir()} == {*names, SELECTIONS, TRACE}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"a: [1", b"\xff\xfea\x00", b"a: \xe9", b"- 1\n", b"3", b"1: 2\n",
        b"[" * 10_000, b"a: &x [*x]", b"a: 2020-99-99\n", b"a: !!python/object:os.system {}\n",
    ],
    ids=lambda content: content[:30].decode("latin-1"),
)  # fmt: skip
def test_a_damaged_configuration_of_a_run_is_one_sentence(tmp_path, content):
    path = tmp_path / CONFIG
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(f"output_dir: {path} ")):
        written_config(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        read_config(path)


def test_a_configuration_that_was_cut_off_between_two_keys_is_not_trained_from(tmp_path):
    (tmp_path / CONFIG).write_text("stage: sft\ntrain_type: static\n")
    with pytest.raises(ConfigError, match="does not end with dataflex_versions, as a run writes it: it was cut off"):
        read_config(tmp_path / CONFIG)


def test_a_folder_in_the_place_of_a_configuration_is_one_sentence(tmp_path):
    (tmp_path / CONFIG).mkdir()
    with pytest.raises(ConfigError, match=r"cannot be read: .*Is a directory"):
        written_config(tmp_path)


def test_only_the_writing_rank_writes(tmp_path):
    record = RunRecord(str(tmp_path), writes=False)
    record.begin(0)
    record.update({"step": 1})
    record.segment(1, np.arange(3), None)
    assert list(tmp_path.iterdir()) == []


def test_scores_are_summarised_without_the_rows_that_have_none():
    found = summary(np.array([1.0, 3.0, np.nan]))
    histogram = found.pop("histogram")
    assert found == {"mean": 2.0, "std": 1.0, "min": 1.0, "q1": 1.5, "median": 2.0, "q3": 2.5, "max": 3.0}
    assert histogram["edges"] == pytest.approx(np.linspace(1, 3, 21).tolist())
    assert histogram["counts"] == [1, *[0] * 18, 1]
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
    assert config.pop(RUN) == {"id": ID, "does": "rows by hard"}
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
    note_results(tmp_path, "f" * 16, 8, {"model.safetensors": (1, 2)})  # of a run whose place this one has taken
    assert recorded_run(tmp_path) == RecordedRun(ID)
    note_results(tmp_path, ID, None, {"model.safetensors": (3, 4)})
    assert recorded_run(tmp_path) == RecordedRun(ID, None, {"model.safetensors": (3, 4)})
    note_results(tmp_path, ID, 8, {"model.safetensors": (10, 11)})
    assert recorded_run(tmp_path) == RecordedRun(ID, 8, {"model.safetensors": (10, 11)})
    assert yaml.safe_load((tmp_path / CONFIG).read_text())["train_type"] == "dynamic_select"


def test_a_config_that_was_cut_off_behind_its_run_is_damaged(tmp_path):
    write_config(RunSpec(DataflexArguments(train_type="dynamic_select")), str(tmp_path), ID)
    note_results(tmp_path, ID, 8, {})
    text = (tmp_path / CONFIG).read_text()
    (tmp_path / CONFIG).write_text(text[: text.index("  finished")])
    with pytest.raises(ConfigError, match="was cut off before dataflex_versions"):
        recorded_run(tmp_path)


def test_parameters_from_python_are_written_whatever_their_type(tmp_path):
    params = {"file": Path("x/y.npy"), "n": np.int64(3), "p": np.float32(0.5), "names": ("a", "b")}
    spec = RunSpec(DataflexArguments(train_type="dynamic_select"), ComponentSpec(SELECTOR, "some", "some", params))
    write_config(spec, str(tmp_path), ID)
    written = yaml.safe_load((tmp_path / COMPONENTS).read_text())["selectors"]["some"]["params"]
    assert written == {"file": "x/y.npy", "n": 3, "p": 0.5, "names": ["a", "b"]}


def test_a_config_of_an_earlier_version_says_nothing_of_its_run(tmp_path):
    (tmp_path / CONFIG).write_text("train_type: dynamic_select\n")
    assert recorded_run(tmp_path) == RecordedRun(None)


@pytest.mark.parametrize(
    "content", [b"", b"- a", b"\xff\xfe", b"a: [", b"dataflex_run: {id: [1]}", b"dataflex_run: {id: ../x}", b"\x00"]
)
def test_a_damaged_config_is_named_in_one_sentence(tmp_path, content):
    (tmp_path / CONFIG).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^output_dir: {tmp_path}/{CONFIG} .* -> restore it, choose another"):
        recorded_run(tmp_path)
