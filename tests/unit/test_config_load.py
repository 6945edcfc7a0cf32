"""Reading the user's file: what LLaMA-Factory would read, and errors that name file and line."""

from __future__ import annotations

import json

import pytest
from dataflex.config.load import read_config, split
from dataflex.core.errors import ConfigError


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_yaml_yml_and_json_give_the_same_mapping(tmp_path):
    expected = {"train_type": "static", "learning_rate": 1e-5, "dataset": ["a", "b"], "nested": {"x": None}}
    text = "train_type: static\nlearning_rate: 1e-5\ndataset: [a, b]\nnested: {x: null}\n"
    assert read_config(write(tmp_path / "a.yaml", text)) == expected
    assert read_config(write(tmp_path / "a.yml", text)) == expected
    assert read_config(write(tmp_path / "a.json", json.dumps(expected))) == expected


def test_an_exponent_without_a_point_is_a_number_as_in_llamafactory(tmp_path):
    assert read_config(write(tmp_path / "a.yaml", "lr: 1e-5"), ["wd=1e-3"]) == {"lr": 1e-5, "wd": 1e-3}


def test_overrides_win_are_yaml_and_reach_into_mappings(tmp_path):
    file = write(tmp_path / "a.yaml", "a: 1\nb: {c: 2, d: 3}\n")
    config = read_config(file, ["a=[0.5,0.5]", "b.c=x=y", "flag=true", "empty=", "text='1'"])
    assert config == {"a": [0.5, 0.5], "b": {"c": "x=y", "d": 3}, "flag": True, "empty": None, "text": "1"}


def test_the_result_is_what_llamafactory_makes_of_the_same_file(tmp_path):
    from omegaconf import OmegaConf

    file = write(tmp_path / "a.yaml", "a: yes\nb: 010\nc: 1_000\nd: 2024-01-01\ne: ~\nf: '${g}'\ng: 1e3\n")
    overrides = ["h=off", "i=1e-4", "a=no"]
    theirs = OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(file), OmegaConf.from_cli(overrides)))
    assert read_config(file, overrides) == theirs


def test_an_empty_yaml_is_an_empty_configuration(tmp_path):
    assert read_config(write(tmp_path / "a.yaml", "# nothing yet\n")) == {}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.yaml", "a: 1\nb: [1, 2\nc: 3\n", ["a.yaml", "line 3", "malformed YAML"]),
        ("a.yaml", "a: 1\na: 2\n", ["a.yaml", "line 2", "duplicate key a"]),
        ("a.yaml", "a: 1\n\tb: 2\n", ["a.yaml", "line 2", "malformed YAML"]),
        ("a.yaml", "- a\n- b\n", ["a.yaml", "holds a list", "key: value"]),
        ("a.yaml", "just words\n", ["a.yaml", "holds a str", "key: value"]),
        ("a.json", '{"a": 1,\n "b" 2}', ["a.json", "line 2", "malformed JSON"]),
        ("a.json", "[1]", ["a.json", "holds a list"]),
        ("a.txt", "a: 1", ["a.txt", "file type", ".yaml"]),
    ],
)
def test_what_cannot_be_read_is_refused_with_file_and_line(tmp_path, name, text, expected):
    with pytest.raises(ConfigError) as caught:
        read_config(write(tmp_path / name, text))
    for part in expected:
        assert part in str(caught.value)


def test_a_missing_file_and_a_folder_say_so(tmp_path):
    with pytest.raises(ConfigError, match=r"nope\.yaml: there is no such file"):
        read_config(tmp_path / "nope.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.yaml: cannot be read: Is a directory"):
        read_config(tmp_path / "folder.yaml")


def test_a_file_that_is_not_utf8_says_so(tmp_path):
    (tmp_path / "a.yaml").write_bytes("a: ä".encode("latin-1"))
    with pytest.raises(ConfigError, match="byte 3 is not UTF-8"):
        read_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("override", ["learning_rate", "--learning_rate=1", "=1", "a=[1,"])
def test_an_override_that_cannot_be_read_is_named(tmp_path, override):
    with pytest.raises(ConfigError) as caught:
        read_config(write(tmp_path / "a.yaml", "a: 1"), ["b=2", override])
    assert f"override '{override}'" in str(caught.value)


def test_a_path_with_blanks_is_read(tmp_path):
    (tmp_path / "my runs").mkdir()
    assert read_config(write(tmp_path / "my runs" / "a b.yaml", "a: 1")) == {"a": 1}


def test_split_takes_our_keys_off_and_leaves_the_rest_in_order():
    config = {
        "stage": "sft",
        "train_type": "static",
        "lora_rank": 8,
        "plugins": [],
        "dataflex_versions": {"torch": "2"},
    }
    ours, theirs = split(config)
    assert ours == {"train_type": "static", "plugins": []}
    assert list(theirs) == ["stage", "lora_rank"]
