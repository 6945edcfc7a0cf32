"""Which component a run gets: plugins that fail or clash, ``package:name``, and ``component.focus=low``."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from dataflex.cli.main import run
from dataflex.config.check import check
from dataflex.config.component_choice import resolve
from dataflex.config.presets import packaged_components
from dataflex.config.resolved import recorded_run, write_config
from dataflex.core import registry
from dataflex.core.errors import (
    CheckpointError,
    ComponentConflictError,
    ComponentError,
    InvalidConfigError,
    UnknownComponentError,
)
from dataflex.core.kinds import MIXER, SELECTOR
from dataflex.discovery import component_classes
from dataflex.run.identity import identity_of_run, require_same
from dataflex.run.output_dir import require_unused

PLUGIN = """
from dataflex.core.parameter_checks import count, require
from dataflex.core.registry import register_selector
from dataflex.train.selector.base_selector import Selector

@register_selector("{name}")
class {cls}(Selector):
    def __init__(self, width=3, **kwargs):
        super().__init__(**kwargs)
        require("{name} selector", count("width", width))
    def select(self, model, step_id, num_samples, **kwargs):
        return list(range(num_samples))
"""
KEYS = {
    "train_type": "dynamic_select", "component_name": "random", "update_step": 1, "update_times": 1, "stage": "sft",
    "do_train": True, "model_name_or_path": "./model", "dataset": "a", "dataset_dir": "data", "output_dir": "out",
    "per_device_train_batch_size": 1, "template": "default",
}  # fmt: skip


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    """A working directory with a dataset, and caches of this test alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text('{"a": {"file_name": "a.json"}, "b": {"file_name": "a.json"}}')
    (tmp_path / "data" / "a.json").write_text(json.dumps([{"instruction": "x", "input": "", "output": "y"}] * 8))
    packaged_components.cache_clear()
    yield
    packaged_components.cache_clear()
    for name in [name for name in sys.modules if name.startswith(("dataflex_plugin_", "pack_"))]:
        del sys.modules[name]


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Returns a function that installs packages beside the real ones: module -> (component, source text)."""
    monkeypatch.syspath_prepend(tmp_path)
    real = registry.entry_points

    def install(**modules):
        points = []
        for module, (name, text) in modules.items():
            (tmp_path / module).mkdir(exist_ok=True)
            (tmp_path / module / "__init__.py").write_text(text)
            point = EntryPoint(name, f"{module}:Mine", SELECTOR.group)
            points.append(point._for(SimpleNamespace(name=module.replace("_", "-"), version="1.0")))
        mine = lambda group: [point for point in points if point.group == group]  # noqa: E731
        monkeypatch.setattr(registry, "entry_points", lambda group: [*real(group=group), *mine(group)])
        packaged_components.cache_clear()

    return install


def problems(tmp_path, **keys):
    try:
        check(KEYS | keys, tmp_path)
    except InvalidConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


# --- plugin files and packages


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\nraise ValueError('bad luck')\n", ["line 2", "ValueError: bad luck"]),
        ("import not_there_at_all\n", ["line 1", "not_there_at_all"]),
        ("def f(:\n", ["line 1", "SyntaxError", "-> repair the file"]),
        (PLUGIN.format(name="less", cls="Less"), ["Less in ", "the name of a component of dataflex-selectors"]),
        ("from dataflex.core.registry import register_mixer as r\nfor n in ['odm']:\n    r(n)(type('M', (), {}))\n",
         ["mixer 'odm'", "M in ", "rename it"]),
    ],
    ids=["raises", "imports nothing", "no Python", "official name", "official name of another kind"],
)  # fmt: skip
@pytest.mark.parametrize("train_type", ["dynamic_select", "static"])
def test_a_plugin_file_that_train_would_fail_on_is_a_problem_for_validate(tmp_path, train_type, text, said):
    (tmp_path / "bad.py").write_text(text)
    keys = {"plugins": ["bad.py"], "train_type": train_type}
    for _ in range(2):  # the second time too
        found = problems(tmp_path, **keys)
        assert len(found) == 1
        assert found[0].startswith("plugins: ")
        assert all(part in found[0] for part in said), found


def test_what_a_plugin_file_prints_does_not_stand_in_the_output_of_validate(tmp_path, capsys):
    (tmp_path / "loud.py").write_text(PLUGIN.format(name="loud", cls="Loud") + "print('hello from the file')\n")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(KEYS | {"plugins": ["loud.py"], "component_name": "loud"}))
    assert run(["validate", "run.yaml"]) == 0
    shown = capsys.readouterr()
    assert "hello" not in shown.out
    assert "hello" in shown.err


def test_the_ranges_of_a_plugin_files_component_are_checked(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN.format(name="mine", cls="Mine"))
    keys = {"plugins": ["mine.py"], "component_name": "mine"}
    assert problems(tmp_path, **keys, component={"width": 4}) == []
    assert problems(tmp_path, **keys, component={"width": 0}) == [
        "component.width: found 0, allowed: a whole number of at least 1"
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise ValueError('bad luck')", "cannot be loaded from pack_bad:Mine: ValueError: bad luck"),
        ("class Mine: pass", "is not a Selector"),
    ],
)
def test_a_package_that_train_would_fail_on_is_a_problem_only_for_who_names_it(tmp_path, installed, text, said):
    installed(pack_bad=("mine", text))
    assert problems(tmp_path) == []
    (found,) = problems(tmp_path, component_name="mine")
    assert found.startswith("component_name: ")
    assert said in found


def test_a_plugin_that_ends_the_process_ends_validate_with_its_name_and_not_as_a_success(tmp_path, installed):
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    for _ in range(2):  # the second time too
        with pytest.raises(ComponentError, match=r"plugin file .*leaves\.py, line 2 raised SystemExit: 0 -> raise an"):
            problems(tmp_path, plugins=["leaves.py"])
    installed(pack_bad=("mine", "raise SystemExit(0)"))
    with pytest.raises(ComponentError, match="selector 'mine' of the package pack-bad, imported from pack_bad:Mine"):
        problems(tmp_path, component_name="mine")


def test_a_package_that_has_taken_an_official_name_is_named_even_where_the_official_one_is_not_there(
    tmp_path, installed, monkeypatch
):
    monkeypatch.setattr(registry, "_registered", {})  # what other tests of this process imported
    installed(pack_one=("random", PLUGIN.format(name="other", cls="Mine")))
    (found,) = problems(tmp_path)
    assert "'random' is provided by the package dataflex-selectors and by the package pack-one" in found
    alone = [point for point in registry.entry_points(group=SELECTOR.group) if point.value == "pack_one:Mine"]
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in alone if p.group == group])
    packaged_components.cache_clear()
    (found,) = problems(tmp_path)
    assert "by the package pack-one, and it is the name of a component of dataflex-selectors" in found
    assert "write component_name: pack-one:random, or pip install dataflex-selectors" in found
    assert problems(tmp_path, component_name="pack-one:random") == []


# --- package:name


@pytest.fixture
def two(installed):
    installed(
        pack_one=("mine", PLUGIN.format(name="mine", cls="Mine")),
        pack_two=("mine", PLUGIN.format(name="mine", cls="Mine").replace("width=3", "depth=5, width=3")),
    )


def test_the_conflict_says_what_to_write_and_what_it_says_works(tmp_path, two):
    (found,) = problems(tmp_path, component_name="mine")
    assert "'mine' is provided by the package pack-one and by the package pack-two" in found
    for package in ("pack-one", "pack-two"):
        assert f"component_name: {package}:mine" in found
        assert problems(tmp_path, component_name=f"{package}:mine") == []
    with pytest.raises(ComponentConflictError, match="component_name: pack-one:mine"):
        component_classes.find(SELECTOR, "mine")


def test_each_package_s_class_is_found_though_both_register_the_name(two):
    assert component_classes.find(SELECTOR, "pack-one:mine").__module__ == "pack_one"
    assert component_classes.find(SELECTOR, "Pack_Two:mine").__module__ == "pack_two"  # as pip compares names
    with pytest.raises(UnknownComponentError, match="'mine' is provided by pack-one, pack-two: write pack-one:mine"):
        component_classes.find(SELECTOR, "pack-three:mine")


def test_the_chosen_package_s_parameters_count_in_the_run_s_yaml_and_in_a_components_file(tmp_path, two):
    assert problems(tmp_path, component_name="pack-two:mine", component={"depth": 2}) == []
    (found,) = problems(tmp_path, component_name="pack-one:mine", component={"depth": 2})
    assert "component.depth: the selector 'mine' has no parameter 'depth'" in found
    (tmp_path / "c.yaml").write_text("selectors: {deep: {name: 'pack-two:mine', params: {depth: 2, width: 0}}}")
    (found,) = problems(tmp_path, component_name="deep", components_cfg_file="c.yaml")
    assert "selectors.deep.params.width: found 0" in found


def test_an_official_component_can_be_named_with_its_package_and_keeps_its_preset():
    assert resolve(MIXER, "dataflex-mixers:odm").params == resolve(MIXER, "odm").params
    assert resolve(MIXER, "dataflex_mixers:odm").name == "dataflex-mixers:odm"
    with pytest.raises(UnknownComponentError, match="write dataflex-mixers:odm"):
        resolve(MIXER, "dataflex-selectors:odm")


def test_what_was_chosen_is_recorded_and_trains_again(tmp_path, two):
    spec = check(KEYS | {"component_name": "pack-two:mine", "component": {"depth": 2}}, tmp_path)
    assert identity_of_run(spec, 0)["component"] == "pack-two:mine"
    write_config(spec, str(tmp_path), "0" * 16)
    again = yaml.safe_load((tmp_path / "dataflex_config.yaml").read_text())
    assert (again["component_name"], "component" in again) == ("pack-two:mine", False)
    replayed = check({key: value for key, value in again.items() if not key.startswith("dataflex_")}, tmp_path)
    assert replayed.component == spec.component


def test_list_says_how_to_choose(two, capsys):
    assert run(["list", "--kind", "selector"]) == 0
    shown = capsys.readouterr()
    assert "selector 'mine' is provided by pack-one, pack-two: write component_name: pack-one:mine or" in shown.err


# --- component.focus=low


def test_parameters_on_the_command_line_win_over_the_preset_and_are_shown_and_recorded(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("selectors: {mine: {name: loss, params: {focus: high, temperature: 2.0}}}")
    keys = KEYS | {"component_name": "mine", "components_cfg_file": "c.yaml"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(keys))
    assert run(["validate", "run.yaml", "component.focus=low", "component.focus_weight=3"]) == 0
    shown = capsys.readouterr().out
    assert "focus='low'" in shown
    assert "temperature=2.0" in shown
    assert "focus_weight=3" in shown
    in_file = check(keys | {"component": {"focus": "low"}}, tmp_path)
    assert in_file.component.params["focus"] == "low"
    (tmp_path / "c.yaml").write_text("selectors: {mine: {name: loss, params: {focus: low, temperature: 2.0}}}")
    assert identity_of_run(check(keys, tmp_path), 0) == identity_of_run(in_file, 0)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("component.focus=lo", "component.focus: found 'lo', allowed: "),
        ("component.temperature=0", "component.temperature: found 0, allowed: a number above 0"),
        ("component.fokus=low", "component.fokus: the selector 'loss' has no parameter 'fokus'"),
        ("component=low", "component: found 'low', allowed: a mapping from parameters to values"),
        ("component.dataset=a", "component.dataset: 'dataset' is given to the selector 'loss' by dataflex"),
        ("component.seed=1.5", "component.seed: found 1.5, allowed: a whole number"),
        (
            "selector.temperature=1",
            "selector: is a key of train_type: dynamic, and train_type is dynamic_select -> write component.temp",
        ),
        (
            "weighters.x.y=1",
            "weighters: there is no such key; presets of weighters stand in a components_cfg_file -> ",
        ),
        *(
            pytest.param(*case, marks=pytest.mark.llamafactory)  # else they could be keys of its own
            for case in (
                ("focus=low", "focus: is no key of a run; it is a parameter of the selector 'loss' -> write component"),
                ("freeze_gate=true", "it is a parameter of the mixer 'dynamic_moe'"),
            )
        ),
    ],
)
def test_a_parameter_on_the_command_line_is_checked_as_in_the_file(tmp_path, capsys, override, said):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(KEYS | {"component_name": "loss"}))
    assert run(["validate", "run.yaml", override]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("keys", [{"train_type": "static"}, {"train_type": "dynamic_mix", "static_mix": True}])
def test_parameters_without_a_component_have_no_effect_and_a_warning_says_so(tmp_path, keys, caplog):
    sources = {"dataset": "a,b", "warmup_step": 1, "component": {"focus": "low"}, "component_name": ...}
    check({key: value for key, value in (KEYS | sources | keys).items() if value is not ...}, tmp_path)
    assert any("component" in text and "no effect with" in text for text in caplog.messages)


# --- files with a number for each row

READERS = [("dynamic_select", "scores"), ("dynamic_select", "rho_loss"), ("dynamic_weight", "column")]


@pytest.mark.parametrize(("train_type", "component"), READERS)
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gone.parquet", None, "there is no such file"),
        ("s.csv", b"1", "ends in '.csv'; allowed: .npy, .npz, .parquet"),
        ("s.parquet", b"garbage", "cannot be read: "),
        ("s.npy", b"\x93NUMPY garbage", "cannot be read: "),
        ("s.npz", b"PK garbage", "cannot be read: "),
        ("s.npy", [[1.0], [2.0]], "needed: a number for each row"),
        ("s.npy", ["a", "b"], "needed: a number for each row"),
        ("s.npy", [1.0, float("inf")], "1 row (1)"),
    ],
)
def test_a_file_of_numbers_is_read_before_a_model_is_loaded(tmp_path, train_type, component, name, content, said):
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, np.array(content))
    keys = {"train_type": train_type, "component_name": component}
    (found,) = problems(tmp_path, **keys, component={"file": str(file)})
    assert found.startswith("component.file: ")
    assert said in found


# --- advice


def test_a_preset_of_the_users_whose_component_is_not_there_does_not_list_itself(tmp_path):
    (tmp_path / "c.yaml").write_text("selectors: {my_custom: {params: {a: 1}}}")
    (found,) = problems(tmp_path, component_name="my_custom", components_cfg_file="c.yaml")
    assert "selectors.my_custom.name: no selector named 'my_custom'; known: " in found
    assert "my_custom" not in found.partition("known: ")[2].partition(" -> ")[0]
    assert "give the entry the name: of one of them, or the file that registers 'my_custom' under plugins:" in found


def test_a_missing_components_file_says_that_presets_come_with_the_packages(tmp_path):
    (found,) = problems(tmp_path, components_cfg_file="src/dataflex/configs/components.yaml")
    assert found.startswith("components_cfg_file: ")
    assert "-> remove the key unless you have presets of your own: those of the packages come with them" in found


def test_names_of_sources_are_checked_where_a_component_is_given_them(tmp_path):
    keys = {"train_type": "dynamic_mix", "component_name": "static", "dataset": "a,b"}
    (found,) = problems(tmp_path, **keys, component={"proportions": [1]})
    assert "component.proportions: found 1 numbers, allowed: 2, one per source (a, b)" in found
    keys |= {"train_type": "dynamic_weight", "component_name": "dataset"}
    (found,) = problems(tmp_path, **keys, component={"weights": {"c": 1.0}})
    assert "component.weights.c: no such source; there are a, b" in found


def test_a_component_with_its_package_is_the_same_run_as_without_it(tmp_path):
    names = ["random", "dataflex-selectors:random", "DataFlex_Selectors:random"]
    made = [check(KEYS | {"component_name": name}, tmp_path) for name in names]
    write_config(made[0], str(tmp_path / "out"), "0" * 16)
    (saved, *others) = [identity_of_run(spec, 0) | {"data": []} for spec in made]
    for spec, other in zip(made[1:], others, strict=True):
        require_same(saved, other, "checkpoint-1")
        require_same(saved | {"component": "random"}, other, "checkpoint-1")  # as earlier versions wrote it
        require_same(saved | {"component": spec.component.name, "component_name": spec.component.name}, saved, "x")
        require_unused(spec, tmp_path / "out", recorded_run(tmp_path / "out"))


def test_two_packages_components_are_two_runs(tmp_path, two):
    one, other = (check(KEYS | {"component_name": f"pack-{n}:mine"}, tmp_path) for n in ("one", "two"))
    with pytest.raises(CheckpointError, match="component: pack-one:mine in the checkpoint, pack-two:mine now"):
        require_same(identity_of_run(one, 0) | {"data": []}, identity_of_run(other, 0) | {"data": []}, "checkpoint-1")


def test_a_package_without_a_name_is_refused_in_both_files(tmp_path):
    (found,) = problems(tmp_path, component_name=":random")
    assert "names no package before the colon -> write random" in found
    (tmp_path / "c.yaml").write_text("selectors: {mine: {name: ':random'}}")
    (found,) = problems(tmp_path, component_name="mine", components_cfg_file="c.yaml")
    assert "selectors.mine.name: found ':random'" in found


@pytest.mark.parametrize("name", ["loss", "twice"])
def test_a_file_that_registers_a_name_twice_is_named_each_time(tmp_path, name):
    (tmp_path / "twice.py").write_text(PLUGIN.format(name="twice", cls="One") + PLUGIN.format(name="twice", cls="Two"))
    for _ in range(2):
        found = problems(tmp_path, plugins=["twice.py"], component_name=name)
        assert len(found) == 1, found
        assert "'twice' is registered twice" in found[0]
        assert found[0].count("twice.py") == 2


def test_a_pipe_or_a_folder_as_a_plugin_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "folder.py").mkdir()
    for name in ("pipe.py", "folder.py"):
        (found,) = problems(tmp_path, plugins=[name])
        assert f"{name} is no file: a folder, a pipe or a device" in found


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True])
def test_the_seed_of_a_component_is_one_that_numpy_takes(tmp_path, seed):
    (found,) = problems(tmp_path, component={"seed": seed})
    assert "allowed: a whole number from 0 to 4294967295" in found
    assert problems(tmp_path, component={"seed": 2**32 - 1}) == []


def test_variables_mean_the_same_in_a_run_as_in_a_components_file(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN.format(name="mine", cls="Mine").replace(', count("width", width)', ""))
    keys = KEYS | {"plugins": ["mine.py"], "component_name": "mine"}
    (found,) = problems(tmp_path, **keys, component={"width": ["${oc.env:HOME}"]})
    assert found.startswith("component.width.0: found '${oc.env:HOME}', and variables are not replaced here")
    spec = check(keys | {"component": {"width": r"a \${b}"}}, tmp_path)
    assert spec.component.params == {"width": "a ${b}"}


def test_a_plugin_file_whose_fault_has_no_line_names_none(tmp_path):
    (tmp_path / "bad.py").write_bytes(b"x = '\0'\n")
    (found,) = problems(tmp_path, plugins=["bad.py"])
    assert "SyntaxError" in found
    assert "line None" not in found
