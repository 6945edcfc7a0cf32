"""Presets: packaged files tell the truth about the constructors, and the user's file overrides them entry by entry."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import pytest
from dataflex.config import component_choice as components
from dataflex.config import presets as components_file
from dataflex.config.component_choice import resolve
from dataflex.config.presets import Entry, packaged_components, read_components
from dataflex.core import registry
from dataflex.core.errors import ComponentConflictError, ConfigError, InvalidConfigError, UnknownComponentError
from dataflex.core.kinds import KINDS, MIXER, ORDER, SELECTOR, WEIGHTER
from dataflex.discovery.catalog import ComponentInfo, lookup
from dataflex.discovery.construct import constructor_parameters
from dataflex.discovery.injected import INJECTED

OURS = {kind: f"dataflex_{kind.section}" for kind in KINDS} | {ORDER: "dataflex_selectors"}


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def real_parameters(point):
    """What the constructor of the imported class really takes."""
    parameters, _ = constructor_parameters(point.load())
    return {name: p.default for name, p in parameters.items() if name not in INJECTED}


@pytest.mark.parametrize("kind", list(filter(registry.provided, KINDS)), ids=lambda kind: kind.section)
def test_the_packaged_file_holds_every_component_with_exactly_its_parameters_and_defaults(kind):
    folder = Path(importlib.util.find_spec(OURS[kind]).submodule_search_locations[0])
    entries = read_components(folder / components_file.FILE_NAME)
    assert set(entries) == {each.section for each in KINDS if OURS[each] == OURS[kind]}
    points = {p.name: p for p in registry.provided(kind) if p.module.startswith(OURS[kind] + ".")}
    assert points
    assert {entry.name for entry in entries[kind.section].values()} == set(points)
    for key, entry in entries[kind.section].items():
        defaults = {n: d for n, d in real_parameters(points[entry.name]).items() if d is not inspect.Parameter.empty}
        if key == entry.name:
            assert entry.params == defaults, key
        else:  # another form of the component says what is different
            assert entry.params.keys() <= defaults.keys(), key
            assert all(value != defaults[name] for name, value in entry.params.items()), key


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.section)
def test_the_text_of_a_class_tells_the_same_as_the_class(kind):
    for point in registry.provided(kind):
        info = lookup(kind, point.name)
        parameters = real_parameters(point)
        assert info.parameters | dict.fromkeys(info.required) == parameters | dict.fromkeys(info.required), point.value
        assert set(info.parameters) | set(info.required) == set(parameters)


def test_a_name_without_a_users_file_is_the_packaged_preset():
    spec = resolve(WEIGHTER, "loss")
    assert (spec.preset, spec.name, spec.params) == (
        "loss",
        "loss",
        dict(packaged_components(WEIGHTER)["loss"][0].params),
    )
    assert spec.params["strategy"] == "linupper"


def test_the_users_entry_overrides_parameter_by_parameter(tmp_path):
    file = write(tmp_path / "c.yaml", "weighters: {loss: {params: {strategy: quadratic}}}")
    rest = {"temperature_start": None, "scope": "batch", "level": "sample"}
    formula = {"strategy": "quadratic", "delta": 1.0, "temperature": 1.0}
    assert resolve(WEIGHTER, "loss", file).params == formula | rest


def test_a_users_entry_of_that_key_for_another_component_inherits_nothing(tmp_path):
    file = write(tmp_path / "c.yaml", "weighters: {loss: {name: custom, params: {strategy: uniform}}}")
    spec = resolve(WEIGHTER, "loss", file)
    assert (spec.preset, spec.name, spec.params) == ("loss", "custom", {"strategy": "uniform"})


def test_two_presets_of_one_component_stand_side_by_side(tmp_path):
    text = "mixers:\n  near: {name: random, params: {concentration: 9}}\n"
    text += "  far: {name: random, params: {concentration: 0.5}}\n"
    file = write(tmp_path / "c.yaml", text)
    specs = [resolve(MIXER, preset, file) for preset in ("near", "far")]
    assert [(s.name, s.params["concentration"]) for s in specs] == [("random", 9), ("random", 0.5)]


def test_a_component_without_a_preset_is_used_at_its_defaults(monkeypatch):
    monkeypatch.setattr(components, "packaged_components", lambda kind: {})
    assert resolve(MIXER, "static").params == {}


def test_a_plain_value_that_dataflex_gives_may_be_overridden(tmp_path):
    info = ComponentInfo(MIXER, "mine", "mine.py", "", "", accepts=frozenset({"seed"}))
    file = write(tmp_path / "c.yaml", "mixers: {mine: {params: {seed: 3}}}")
    assert resolve(MIXER, "mine", file, [info]).params == {"seed": 3}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "selector: {}",
            ["selector: no such section; allowed: mixers, orders, selectors, weighters", "did you mean 'selectors'?"],
        ),
        ("mixers: [random]", ["mixers: found ['random'] where a mapping of entries is expected", "write 'preset:"]),
        ("mixers: {random: 3}", ["mixers.random: found 3 where a mapping is expected", "write name: and params:"]),
        ("mixers: {random: {parms: {}}}", ["mixers.random.parms: no such key", "did you mean 'params'?"]),
        ("mixers: {random: {xyz: 1}}", ["mixers.random.xyz: no such key", "constructor parameters stand below params"]),
        ("mixers: {random: {params: [1]}}", ["mixers.random.params: found [1] where a mapping", "parameter: value"]),
        ("mixers: {random: {name: 3}}", ["mixers.random.name: found 3", "dataflex-cli list"]),
        ("mixers: {random: {params: {concentratoin: 2}}}", ["has no parameter 'concentratoin'", "'concentration'"]),
        ("mixers: {random: {params: {mixture_manager: 2}}}", ["'mixture_manager' is given to", "remove it"]),
        ("mixers: {a: {name: randon}}\n", ["mixers.a.name: no mixer named 'randon'", "did you mean 'random'?"]),
        ("mixers: {random: {name: [}}", ["c.yaml, line 1: malformed YAML"]),
    ],
)
def test_a_wrong_file_is_refused_with_the_place_and_the_way_out(tmp_path, text, expected):
    file = write(tmp_path / "c.yaml", text)
    with pytest.raises(ConfigError) as caught:
        resolve(MIXER, "a" if "randon" in text else "random", file)
    assert str(file) in str(caught.value)
    for part in expected:
        assert part in str(caught.value)


def test_every_problem_of_a_file_is_in_one_message(tmp_path):
    file = write(tmp_path / "c.yaml", "mixer: {}\nselectors: 3\nweighters: {a: {params: 1, foo: 2}}\n")
    with pytest.raises(InvalidConfigError) as caught:
        resolve(MIXER, "random", file)
    assert len(caught.value.problems) == 4


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"components_cfg_file: .*nope\.yaml: there is no such file"):
        resolve(MIXER, "random", tmp_path / "nope.yaml")


def test_an_unknown_component_lists_presets_and_names_the_nearest(tmp_path):
    file = write(tmp_path / "c.yaml", "mixers: {loud: {name: random}}")
    with pytest.raises(UnknownComponentError, match=r"no mixer named 'laud'; known: .*loud.* -> did you mean 'loud'?"):
        resolve(MIXER, "laud", file)


def test_a_required_parameter_without_a_value_is_named(tmp_path):
    info = ComponentInfo(SELECTOR, "mine", "mine.py", "", "", {"b": 1}, ("a",), frozenset({"a", "b"}))
    with pytest.raises(InvalidConfigError, match=r"needs the parameter 'a' -> write component: \{a: \.\.\.\}"):
        resolve(SELECTOR, "mine", None, [info])


def test_a_preset_that_two_packages_ship_needs_the_users_word(monkeypatch, tmp_path):
    shipped = {
        "p": (Entry("random", {}, "one.yaml: mixers.p", "one"), Entry("static", {}, "two.yaml: mixers.p", "two"))
    }
    monkeypatch.setattr(components, "packaged_components", lambda kind: shipped)
    with pytest.raises(
        ComponentConflictError,
        match=r"two\.yaml: mixers\.p -> write component_name: one:p or component_name: two:p, or define 'p'",
    ):
        resolve(MIXER, "p")
    assert resolve(MIXER, "p", write(tmp_path / "c.yaml", "mixers: {p: {name: static}}")).name == "static"


def test_a_component_of_a_file_and_of_a_package_is_a_conflict():
    info = ComponentInfo(MIXER, "random", "/x/mine.py", "", "", accepts=None)
    with pytest.raises(
        ComponentConflictError, match=r"by the package dataflex-mixers and by /x/mine\.py -> rename the one in /x/mine"
    ):
        resolve(MIXER, "random", None, [info])
