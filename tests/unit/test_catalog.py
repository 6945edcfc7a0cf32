"""Descriptions from text: nothing is imported, and where the text does not tell, nothing is claimed."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
from dataflex.core import catalog, registry
from dataflex.core.describe import Expression, describe
from dataflex.core.kinds import MIXER, SELECTOR
from dataflex.core.source import SourceNotFoundError

PACKAGE = {
    "__init__.py": "raise RuntimeError('importing this package is a failure of the test')\n",
    "base.py": '''
from dataflex.train.selector.base_selector import Selector
class Scored(Selector):
    """Rows by score."""
    def __init__(self, threshold=0.5, **kwargs):
        super().__init__(**kwargs)
class Local(Scored):
    pass
''',
    "deep/__init__.py": "",
    "deep/main.py": '''
import os
from dataclasses import dataclass
from ..base import Scored as Renamed
from somewhere_else import Unknown
LIMIT = 12
class Main(Renamed):
    """Picks the best.

    And more.
    """
    replacement = True
    def __init__(self, dataset, width, *args, mode="fast", limit=LIMIT, cpus=os.cpu_count(), seed=1, **kwargs):
        super().__init__(**kwargs)
class Closed(Renamed):
    def __init__(self, dataset, width=3):
        pass
class Inherits(Renamed):
    """Nothing new."""
class Far(Unknown):
    def __init__(self, a=1, **kwargs):
        pass
class FarClosed(Unknown):
    def __init__(self, a=1):
        pass
class Alone:
    def __init__(self, a=1, **kwargs):
        pass
@dataclass
class Data(Renamed):
    a: int = 1
if os.name:
    class Conditional:
        def __init__(self, b=2):
            pass
class Circle(Round): ...
class Round(Circle): ...
class Common:
    chosen = 1
    def __init__(self, a=1): ...
class Left(Common): ...
class Right(Common):
    chosen = 2
    def __init__(self, b=2, **kwargs):
        super().__init__(**kwargs)
class Diamond(Left, Right): ...
''',
    "again.py": "from catalog_fake.deep.main import Main as Again\n",
}


@pytest.fixture
def fake(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in PACKAGE.items():
        path = tmp_path / "catalog_fake" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    yield
    assert not any(name.startswith("catalog_fake") for name in sys.modules)


def test_parameters_come_from_the_class_and_through_kwargs_from_its_bases_in_other_files(fake):
    found = describe("catalog_fake.deep.main:Main")
    assert found.summary == "Picks the best."
    assert found.defaults == {"mode": "fast", "limit": 12, "cpus": Expression("os.cpu_count()"), "threshold": 0.5}
    assert found.required == ("width",)
    assert found.accepts == {"mode", "limit", "cpus", "threshold", "width", "seed", "cache_dir"}
    assert found.constants["replacement"] is True


def test_a_constructor_without_kwargs_ends_the_search(fake):
    found = describe("catalog_fake.deep.main:Closed")
    assert (found.defaults, found.accepts) == ({"width": 3}, {"width", "seed"})
    assert found.constants["replacement"] is False


def test_a_class_without_a_constructor_has_its_bases(fake):
    assert describe("catalog_fake.deep.main:Inherits").defaults == {"threshold": 0.5}
    assert describe("catalog_fake.base:Local").defaults == {"threshold": 0.5}


def test_a_base_that_two_bases_have_stands_behind_both(fake):
    found = describe("catalog_fake.deep.main:Diamond")
    assert (found.defaults, found.constants["chosen"]) == ({"b": 2, "a": 1}, 2)


def test_a_reexport_is_followed(fake):
    assert describe("catalog_fake.again:Again").summary == "Picks the best."


@pytest.mark.parametrize("name", ["Far", "Alone", "Data", "Circle"])
def test_where_the_text_does_not_tell_nothing_is_claimed(fake, name):
    assert describe(f"catalog_fake.deep.main:{name}").accepts is None


def test_a_closed_constructor_of_a_class_with_an_unknown_base_is_still_certain(fake):
    assert describe("catalog_fake.deep.main:FarClosed").accepts == {"a", "seed"}  # it may be a component that draws


def test_a_class_under_an_if_is_found(fake):
    assert describe("catalog_fake.deep.main:Conditional").defaults == {"b": 2}


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_package_at_all.x:Y", "package no_such_package_at_all is not installed"),
        ("catalog_fake.nothing:Y", "no source file of module catalog_fake.nothing"),
        ("catalog_fake.base:Y", "module catalog_fake.base defines no class Y"),
    ],
)
def test_what_cannot_be_found_says_why(fake, target, reason):
    with pytest.raises(SourceNotFoundError, match=reason):
        describe(target)


def test_a_component_that_cannot_be_read_is_listed_all_the_same(fake, monkeypatch):
    dist = SimpleNamespace(name="fake-package", version="3.1")
    points = [
        EntryPoint(n, v, SELECTOR.group)._for(dist)
        for n, v in (("a", "catalog_fake.no:A"), ("b", "catalog_fake.base:Local"))
    ]
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])
    a, b = catalog.components([SELECTOR])
    assert (a.name, a.package, a.version, a.accepts) == ("a", "fake-package", "3.1", None)
    assert a.summary == "(cannot be read: no source file of module catalog_fake.no)"
    assert (b.name, b.parameters) == ("b", {"threshold": 0.5})


def test_a_class_that_a_file_registered_is_described_by_its_signature(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})

    @registry.register_mixer("local_one")
    class Local:
        """Does little."""

        def __init__(self, mixture_manager, seed, power, slope=2.0):
            pass

    found = catalog.lookup(MIXER, "local_one")
    assert found in catalog.components([MIXER])
    assert (found.summary, found.parameters, found.required) == ("Does little.", {"slope": 2.0}, ("power",))
    assert found.accepts == {"power", "slope", "seed"}
    assert found.package == __file__


def test_listing_describes_every_installed_component_in_one_line(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})  # other tests' own components need no docstring
    for info in catalog.components():
        assert info.summary, info
        assert not info.summary.startswith("(cannot be read"), info
        assert "\n" not in info.summary
