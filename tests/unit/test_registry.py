"""Finding components: each way it can go wrong has an error of its own, and nobody's fault hits anybody else."""

from __future__ import annotations

import pickle
import shutil
import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
from dataflex.core import registry
from dataflex.core.errors import (
    BrokenPluginError,
    ComponentConflictError,
    ConfigError,
    UnknownComponentError,
    WrongBaseClassError,
)
from dataflex.core.kinds import KINDS, SELECTOR, WEIGHTER
from dataflex.discovery import component_classes
from dataflex.train.selector.base_selector import Selector

GOOD = """
from dataflex.train.selector.base_selector import Selector
class Good(Selector):
    def select(self, model, step_id, num_samples, **kwargs):
        return list(range(num_samples))
class Other(Good):
    pass
class Stranger:
    pass
number = 3
"""


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Returns a function that pretends that packages provide ``name -> module:Class`` as selectors."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_registered", {})
    (tmp_path / "fake_good.py").write_text(GOOD)
    (tmp_path / "fake_broken.py").write_text("import a_module_that_is_not_there\n")

    def install(*entries):
        points = []
        for package, name, value in entries:
            point = EntryPoint(name, value, SELECTOR.group)
            points.append(point._for(SimpleNamespace(name=package, version="1.0")))
        monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])

    yield install
    for name in ("fake_good", "fake_broken"):
        sys.modules.pop(name, None)


def test_only_the_named_class_is_imported(installed):
    installed(("p1", "good", "fake_good:Good"), ("p2", "bad", "fake_broken:Bad"))
    assert registry.names(SELECTOR) == ["bad", "good"]
    assert "fake_good" not in sys.modules
    assert component_classes.find(SELECTOR, "good").__name__ == "Good"
    assert "fake_broken" not in sys.modules


def test_a_broken_plugin_is_named_with_its_package_and_cause(installed):
    installed(("sad-package", "bad", "fake_broken:Bad"))
    with pytest.raises(BrokenPluginError) as caught:
        component_classes.find(SELECTOR, "bad")
    assert "selector 'bad' of the package sad-package" in str(caught.value)
    assert "a_module_that_is_not_there" in str(caught.value)
    assert "pip install" in str(caught.value)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_an_unknown_name_gets_the_nearest_one(installed):
    installed(("p", "nearest_rows", "fake_good:Good"))
    with pytest.raises(UnknownComponentError, match=r"no selector named 'nearest_row'.*did you mean 'nearest_rows'"):
        component_classes.find(SELECTOR, "nearest_row")


def test_a_name_of_a_package_that_is_not_installed_gets_the_pip_line(installed):
    installed()
    for kind in KINDS:
        for name, package in registry.official(kind).items():
            with pytest.raises(UnknownComponentError, match=f"pip install {package}$"):
                component_classes.find(kind, name)


def test_two_packages_with_one_name_are_a_conflict_only_for_that_name(installed):
    installed(("p1", "twice", "fake_good:Good"), ("p2", "twice", "fake_good:Other"), ("p3", "once", "fake_good:Good"))
    with pytest.raises(
        ComponentConflictError,
        match="'twice' is provided by the package p1 and by the package p2 -> write component_name: p1:twice or",
    ):
        component_classes.find(SELECTOR, "twice")
    assert component_classes.find(SELECTOR, "once")


def test_a_file_and_a_package_with_one_name_are_a_conflict(installed):
    installed(("p1", "mine", "fake_good:Good"))

    @registry.register_selector("mine")
    class Mine(Selector):
        def select(self, model, step_id, num_samples, **kwargs):
            return []

    with pytest.raises(ComponentConflictError, match=r"package p1 and by .*Mine in .*test_registry\.py -> rename"):
        component_classes.find(SELECTOR, "mine")


def test_registering_a_name_twice_is_a_conflict_but_the_same_class_is_not(installed):
    installed()
    first = registry.register_mixer("m")(type("A", (), {}))
    registry.register_mixer("m")(first)
    with pytest.raises(ComponentConflictError, match=r"mixer 'm' is registered twice.*rename"):
        registry.register_mixer("m")(type("B", (), {}))


def test_one_name_may_be_used_by_each_kind(installed):
    installed()
    classes = [
        registry.register_selector("same")(type("S", (), {})),
        registry.register_mixer("same")(type("M", (), {})),
        registry.register_order("same")(type("O", (), {})),
        registry.register_weighter("same")(type("W", (), {})),
    ]
    assert [dict(registry.registered(kind))["same"] for kind in KINDS] == classes


@pytest.mark.parametrize("value", ["fake_good:Stranger", "fake_good:number"])
def test_a_class_without_the_contract_is_refused_with_the_contract(installed, value):
    installed(("p", "odd", value))
    with pytest.raises(WrongBaseClassError, match=r"is not a Selector: it needs select\(.*selector\.Selector"):
        component_classes.find(SELECTOR, "odd")


def test_a_weighter_need_not_inherit_anything(installed):
    installed()

    @registry.register_weighter("duck")
    class Duck:
        def get_weighted_loss(self, losses, *, ctx, model, inputs): ...
        def training_step(self, ctx, model, inputs, num_items_in_batch=None, use_weighter=False): ...

    assert component_classes.find(WEIGHTER, "duck") is Duck


def test_every_error_of_the_registry_ends_the_command_with_2():
    for error in (BrokenPluginError, ComponentConflictError, UnknownComponentError, WrongBaseClassError):
        assert issubclass(error, ConfigError)
        assert error.exit_code == 2


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_that_has_travelled_to_another_process_is_the_same_one(kind):
    assert pickle.loads(pickle.dumps(kind)) is kind


def test_a_package_that_is_installed_while_the_process_lives_is_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    assert "newcomer" not in registry.names(SELECTOR)
    info = tmp_path / "newcomer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: newcomer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{SELECTOR.group}]\nnewcomer = newcomer:Newcomer\n")
    assert "newcomer" in registry.names(SELECTOR)
    shutil.rmtree(info)
    assert "newcomer" not in registry.names(SELECTOR)
