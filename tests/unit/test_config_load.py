"""Reading the user's file: what LLaMA-Factory would read, and errors that name file and line."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from dataflex.config.load import read_config, read_mapping, split
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
        ("a.yaml", "a: 1\na: 2\n", ["a.yaml", "line 2", "duplicate key a -> remove one of the two"]),
        ("a.yaml", "a: 1\n---\nb: 2\n", ["a.yaml", "line 2", "-> write one document"]),
        ("a.yaml", "a: 1\non: 2\n", ["line 2", "found on as a key", "reads as bool", "keys must be texts -> quote it"]),
        ("a.yaml", "a: {null: 2}\n", ["line 1: a: found null as a key", "keys must be texts -> quote it"]),
        ("a.yaml", "? [a]\n: 2\n", ["line 1", "keys must be texts"]),
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


STRICT = [
    # a number that YAML 1.1 reads and others read otherwise, or not
    ("0x10", "found 0x10, allowed: decimal numbers"),
    ("0b11", "found 0b11, allowed: decimal numbers"),
    ("010", "found 010, allowed: decimal numbers"),
    ("1_0", "found 1_0, allowed: decimal numbers"),
    ("1_0.5", "found 1_0.5, allowed: decimal numbers"),
    ("1:30", "found 1:30, allowed: decimal numbers"),
    ("!!int '٣'", "allowed: decimal numbers"),
    # other types than those of JSON
    ("!!timestamp 2024-01-01", "the tag !!timestamp is not known here -> quote the value"),
    ("!!binary aGk=", "the tag !!binary is not known here"),
    ("!!python/name:os.system x", "the tag !!python/name:os.system is not known here"),
    ("!!python/object/apply:os.system [ls]", "the tag !!python/object/apply:os.system is not known here"),
    ("!!set {a}", "the tag !!set is not known here"),
    ("!own x", "the tag !own is not known here"),
    # what nothing can hold
    ('"a\\0b"', "holds a NUL character"),
    ("[" * 2000 + "]" * 2000, "nested too deeply"),
    ("[" * 100 + "]" * 100, "nested too deeply"),
    ("&a [1, *a]", "nested too deeply"),
    ("9" * 5000, "write a smaller number"),
]


@pytest.mark.parametrize(("value", "said"), STRICT, ids=lambda text: text[:30])
@pytest.mark.parametrize("door", ["ours", "override", "components"])
def test_what_nobody_means_is_refused_with_its_line_wherever_it_is_written(tmp_path, door, value, said):
    file = write(tmp_path / "a.yaml", f"a: 1\nupdate_step: {value}\n" if door == "ours" else "a: 1\n")
    parts = write(tmp_path / "c.yaml", f"\nselectors: {{loss: {{params: {{focus: {value}}}}}}}\n")
    with pytest.raises(ConfigError) as caught:
        read_mapping(parts) if door == "components" else read_config(file, [f"b={value}"] * (door == "override"))
    assert said in str(caught.value)
    assert " -> " in str(caught.value)
    assert len(str(caught.value)) < 400
    if "tag" in said or "decimal" in said:
        assert ", line " in str(caught.value)


@pytest.mark.parametrize("value", ["10", "-3", "+5", "0", "0.5", ".5", "5.", "1e-5", "1E5", "-1.5e+3", ".inf", "-.inf"])
def test_a_decimal_number_is_a_number_everywhere(tmp_path, value):
    expected = float(value.replace(".inf", "inf"))
    assert read_config(write(tmp_path / "a.yaml", f"update_step: {value}\n"))["update_step"] == expected
    assert read_config(write(tmp_path / "a.yaml", "a: 1"), [f"b={value}"])["b"] == expected


def test_a_number_of_llamafactorys_keys_in_the_file_is_read_as_llamafactory_reads_it(tmp_path):
    assert read_config(write(tmp_path / "a.yaml", "cutoff_len: 2_048\nseed: 0x10\n")) == {
        "cutoff_len": 2048,
        "seed": 16,
    }


def test_a_date_and_foreign_digits_are_texts(tmp_path):
    config = read_config(write(tmp_path / "a.yaml", "run_name: 2024-01-01\nupdate_step: ٣\n"), ["x=2024-01-01"])
    assert config == {"run_name": "2024-01-01", "update_step": "٣", "x": "2024-01-01"}


JSON = [
    ('{"a": 1, "b": {"c": 1, "c": 2}}', "found duplicate key c"),
    ('{"a": "\\u0000"}', "a: the text '\\x00' holds a NUL character"),
    ('{"a": "\\ud800"}', "holds half of a character"),
    ('{"a": ' + "[" * 2000 + "]" * 2000 + "}", "nested too deeply"),
    ('{"a": ' + "9" * 5000 + "}", "write a smaller number"),
    ('{"a": 0x10}', "line 1: malformed JSON"),
    ('{"a": 010}', "line 1: malformed JSON"),
]


@pytest.mark.parametrize(("text", "said"), JSON, ids=lambda text: text[:30])
def test_json_is_as_strict(tmp_path, text, said):
    with pytest.raises(ConfigError) as caught:
        read_config(write(tmp_path / "a.json", text))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("[update_step]=3", "update_step"),
        (" update_step=3", "update_step"),
        ("update_step =3", "update_step"),
        ("'update_step'=3", "update_step"),
        ("a.[b]=3", "a.b"),
        ("a..b=3", "a.b"),
        ("a. b=3", "a.b"),
    ],
)
def test_blanks_quotes_and_brackets_are_no_part_of_a_key(tmp_path, override, meant):
    with pytest.raises(ConfigError, match=f"is no key: blanks, quotes .* -> write {meant}=\\.\\.\\."):
        read_config(write(tmp_path / "a.yaml", "update_step: 1"), [override])


def test_an_overrides_json_with_a_key_twice_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="found duplicate key a"):
        read_config(write(tmp_path / "a.yaml", "b: 1"), ['accelerator_config={"a": 1, "a": 2}'])


def test_the_value_of_a_secret_is_in_no_message(tmp_path):
    for override in ("hub_token=[abcdef", "hub_token=0xabcdef", "hub_token=!!binary abcdef", "[hub_token]=abcdef"):
        with pytest.raises(ConfigError) as caught:
            read_config(write(tmp_path / "a.yaml", "b: 1"), [override])
        assert "abcdef" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        read_mapping(write(tmp_path / "c.yaml", "api_key: 0xabcdef"))
    assert "abcdef" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ConfigError, match="it is a pipe or a device, not a file"):
        read_config(tmp_path / name)
    (tmp_path / f"link_{name}").symlink_to(tmp_path / name)
    with pytest.raises(ConfigError, match="it is a pipe or a device, not a file"):
        read_config(tmp_path / f"link_{name}")


def test_a_path_with_a_nul_or_an_unknown_home_is_named():
    with pytest.raises(ConfigError, match="holds a NUL character"):
        read_config("a\0b.yaml")
    with pytest.raises(ConfigError, match="there is no such file"):
        read_config("~nouser/x.yaml")


def test_a_text_that_stands_for_more_than_memory_holds_is_refused(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(ConfigError, match="stands for more than 1000000 values"):
        read_config(write(tmp_path / "a.yaml", "\n".join(lines)))


def test_no_package_reads_a_users_file_in_another_way():
    """A user's text is parsed by this reader alone; the others read what dataflex wrote, or rows of data."""
    import dataflex
    import dataflex_mixers
    import dataflex_selectors
    import dataflex_weighters

    own = {
        "config/text.py", "core/registry.py", "utils/secret_values.py", "run/lock.py", "run/state.py",
        "run/row_file.py", "run/outcome.py", "run/completeness.py", "config/resolved.py", "launch/torchrun.py",
        "workspace/example_presets.py", "integrations/llamafactory/patches.py", "upstream/renamed_weights.py",
        "doremi/handover.py", "config/checks/model_folders.py", "doremi/three_runs.py", "nice/chat.py",
        "config/checks/data_files.py", "experiments/planned_runs.py", "forecast/model_size.py",
        "forecast/sampled_rows.py", "report/record_lines.py", "report/run_reader.py", "run/json_lines.py",
        "run/run_facts.py", "run/whereabouts.py", "config/moved/moved_table.py", "core/source_labels.py",
        "integrations/llamafactory/raw_labels.py", "testing/tiny_vision.py", "forecast/image_tokens.py",
    }  # fmt: skip
    found = set()
    for package in (dataflex, dataflex_mixers, dataflex_selectors, dataflex_weighters):
        root = Path(package.__path__[0])
        for file in root.rglob("*.py"):
            if re.search(r"\b(json|yaml)\.(safe_)?loads?\(|OmegaConf\.load\(", file.read_text(encoding="utf-8")):
                found.add(file.relative_to(root).as_posix())
    assert found <= own
