"""What a constructor refuses is known from its text, before the component or torch is imported."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from dataflex.config.component_parameters import name_problems, range_problems
from dataflex.core import registry
from dataflex.core.errors import BrokenPluginError, ConfigError
from dataflex.core.kinds import KINDS, SELECTOR
from dataflex.discovery import component_classes
from dataflex.discovery.catalog import ComponentInfo, components, lookup
from dataflex.discovery.construct import construct
from dataflex.discovery.describe import describe_node
from dataflex.discovery.source_files import find_class, parse
from dataflex.discovery.stated_checks import stated_problems
from dataflex.discovery.text_values import is_light
from dataflex.planning.mixture import MixtureManager
from dataflex.rows.views import MixedSources
from dataflex.testing import TokenRows, pad_collate, tiny_tokenizer
from every_component import QUICK, installed

ROWS, NAMES = 12, ("a", "b")
INSTALLED = [(kind, name) for kind in KINDS for name in installed(kind)]
OWN = {"weight": 1.0, "token_weights": [1.0] * 6}
BAD = [
    None, "", " ", "abc", -1, 0, 1.5, 1e308, float("inf"), float("nan"), True, [], [1], {}, {"a": -1}, {"nope": 1},
    "0x10", 2**70, 10**400, "a\0b", "./nowhere",
]  # fmt: skip

BY_ROWS = {("icons", "task_boundaries"): [[1]], ("token_column", "column"): ["abc", "0x10", "a\0b", "./nowhere"]}
"""Values that are wrong for the given rows alone: for the number of them, or for the columns that they have."""


@pytest.fixture
def valid(tmp_path):
    """Returns kind name, component -> parameters without which it cannot be made."""
    reference = tmp_path / "reference"
    reference.mkdir()
    (reference / "config.json").write_text("{}")
    np.save(tmp_path / "values.npy", np.ones(ROWS))
    file = {"file": str(tmp_path / "values.npy")}
    needed = {
        ("selector", "scores"): file,
        ("selector", "rho_loss"): file,
        ("weighter", "column"): file,
        ("weighter", "rho_tokens"): {"reference_model": str(reference)},
        ("weighter", "spans"): {"between": [{"start": "a", "end": "b", "weight": 0.5}]},
        ("mixer", "doremi"): {"reference_model": str(reference)},
        ("mixer", "schedule"): {"points": [{"at": 0, "proportions": [1, 1]}]},
    }
    return lambda kind, name: (QUICK.get(name, {}) if kind is SELECTOR else {}) | needed.get((kind.name, name), {})


def objects(kind):
    """Returns the run's objects for a component of that kind."""
    rows = TokenRows(ROWS, lengths=6)
    sources = {name: [{**row, **OWN} for row in TokenRows(ROWS // 2, lengths=6)] for name in NAMES}
    accelerator = SimpleNamespace(
        num_processes=1, process_index=0, is_main_process=True, device="cpu", distributed_type="NO"
    )
    given = {"eval_dataset": rows, "data_collator": pad_collate, "cache_dir": "unused", "output_dir": "unused"}
    given |= {"tokenizer": tiny_tokenizer(), "accelerator": accelerator}
    if kind is SELECTOR:
        return given | {"dataset": rows}
    manager = MixtureManager(NAMES, [ROWS // 2] * 2, [0.5, 0.5], seed=0)
    return given | {"dataset": MixedSources(sources), "mixture_manager": manager, "mixer_eval_dataset": sources}


def said_before(info: ComponentInfo, params) -> list[str]:
    given = {name: (name, value) for name, value in params.items()}
    return [str(problem) for problem in [*name_problems(info, given), *range_problems(info, given, NAMES)]]


@pytest.mark.parametrize(("kind", "name"), INSTALLED, ids=lambda value: getattr(value, "name", value))
def test_validate_refuses_exactly_the_values_that_the_constructor_refuses(kind, name, valid):
    info, cls, given = lookup(kind, name), component_classes.find(kind, name), objects(kind)
    wrong = []
    for parameter in sorted(info.accepts):
        for value in [value for value in BAD if value not in BY_ROWS.get((name, parameter), [])]:
            params = valid(kind, name) | {parameter: value}
            try:
                construct(cls, params, given)
                refused = ""
            except BrokenPluginError as error:
                wrong.append(f"{parameter}={value!r} is no ConfigError: {error}")
                continue
            except ConfigError as error:
                refused = str(error)
            said = said_before(info, params)
            if bool(said) != bool(refused) or not all(parameter in problem.partition(": ")[0] for problem in said):
                wrong.append(f"{parameter}={value!r}: validate says {said}, the constructor {refused!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("kind", "name"), INSTALLED, ids=lambda value: getattr(value, "name", value))
def test_the_values_of_a_component_that_can_be_made_are_not_refused(kind, name, valid):
    params = valid(kind, name)
    construct(component_classes.find(kind, name), params, objects(kind))
    assert said_before(lookup(kind, name), params) == []


def test_reading_what_constructors_say_imports_no_torch():
    code = (
        "import sys\nfrom dataflex.discovery.catalog import components\n"
        "from dataflex.discovery.stated_checks import stated_problems\n"
        "found = [stated_problems(i.constructors, dict.fromkeys(i.accepts, [1]), ['a']) for i in components()]\n"
        "assert any(found)\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'datasets'} & sys.modules.keys()\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


PLUGIN = """
import heavy_thing
from dataclasses import dataclass
from dataflex.core.errors import ConfigError
from dataflex.core.parameter_checks import between, count, one_of, require, stated
from far_away import unknown

MOST = 7
MODES = tuple(name for name in ("slow", "fast"))

def twice(value):
    return heavy_thing.double(value)

def even(key, found):
    from dataflex.core.errors import Problem
    return Problem(key, "is odd") if found % 2 else None

@dataclass(frozen=True)
class Settings:
    width: int
    def problems(self):
        return [count("width", self.width), even("width", self.width)]

class Base:
    def __init__(self, gain=0.5, bias=0, rate=-1, level=-1, share=0, **kwargs):
        require("base", between("gain", gain, 0, 1))
        self.problems = stated(count("bias", bias, least=0), unknown("bias", bias))
        if rate != -1:
            both = count("rate", rate), between("share", share, 0, 1)
            require("base", *both, count("level", level))

class Same(Base):
    def __init__(self, rate=1, level=1, share=1, **kwargs):
        super().__init__(rate=rate, share=share, **kwargs)
        level = 2 * level

class Mine(Base):
    def __init__(self, dataset, mode="fast", width=2, most=MOST, loose=None, **kwargs):
        super().__init__(**kwargs)
        require("mine selector", *self.problems)
        settings = Settings(width)
        low, high = 1, MOST
        require(
            "mine selector", one_of("mode", mode, MODES), *settings.problems(), between("most", most, low, high),
            unknown("mode", mode), count("loose", twice(loose)), between("most", most, 0, len(dataset)),
        )
        if loose is not None:
            require("mine selector", count("loose", loose))
        width = dataset.width(width)
        require("mine selector", between("width", width, 50, 60))
        start_a_server().require(1)
        server = start_a_server()
"""


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, []),
        ({"mode": "fats"}, ["mode: found 'fats', allowed: slow, fast -> did you mean 'fast'?"]),
        ({"width": 3}, ["width: is odd"]),
        ({"width": 0}, ["width: found 0, allowed: a whole number of at least 1"]),
        ({"most": 9}, ["most: found 9, allowed: a number from 1 to 7"]),
        ({"loose": 0}, ["loose: found 0, allowed: a whole number of at least 1"]),
        ({"gain": 2}, ["gain: found 2, allowed: a number from 0 to 1"]),
        ({"bias": -1}, ["bias: found -1, allowed: a whole number of at least 0"]),
    ],
)
def test_constants_functions_classes_and_bases_are_evaluated_and_the_rest_is_left_to_the_constructor(
    tmp_path, params, said
):
    (tmp_path / "mine.py").write_text(PLUGIN)
    description = describe_node(*find_class(parse(tmp_path / "mine.py"), "Mine"))
    assert [str(problem) for problem in stated_problems(description.constructors, params)] == said


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, []),
        ({"rate": 0}, ["rate: found 0, allowed: a whole number of at least 1"]),
        ({"rate": 2}, []),
        ({"level": -3}, []),
        ({"share": 2}, ["share: found 2, allowed: a number from 0 to 1"]),
    ],
)
def test_a_parameter_that_is_handed_on_as_it_is_is_checked_by_the_base_class_and_another_is_not(tmp_path, params, said):
    (tmp_path / "mine.py").write_text(PLUGIN)
    description = describe_node(*find_class(parse(tmp_path / "mine.py"), "Same"))
    assert [str(problem) for problem in stated_problems(description.constructors, params)] == said


def test_a_module_is_light_only_if_all_that_it_imports_is():
    assert is_light("dataflex.core.parameter_checks")
    assert is_light("dataflex.run.row_file")
    assert not is_light("dataflex.rows.views")
    assert not is_light("dataflex_selectors.loss")
    assert not is_light("not_there_at_all")


def test_every_component_says_what_it_allows_of_each_parameter_by_require(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})  # what other tests of this process registered
    silent = [
        f"{info.kind.name} {info.name}: {name}"
        for info in components()
        for name in (*info.parameters, *info.required)
        if not any(
            problem.where.startswith((name, f"{name}.")) or name in problem.where
            for value in BAD
            for problem in stated_problems(info.constructors, {name: value}, NAMES)
        )
    ]
    assert not silent
    assert {info.kind for info in components()} == set(KINDS)
