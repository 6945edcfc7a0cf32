"""Life-cycle hooks and plugin files."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
from dataflex import hookimpl
from dataflex.core import registry
from dataflex.core.errors import BrokenPluginError, ComponentConflictError, ConfigError
from dataflex.core.kinds import SELECTOR, WEIGHTER
from dataflex.discovery import component_classes, plugins
from dataflex.discovery.plugin_files import scan_plugin_file
from dataflex.discovery.plugins import load_plugin_files, plugin_manager

SELECTOR_FILE = """
from dataflex import hookimpl
from dataflex.core.registry import register_selector
from dataflex.train.selector.base_selector import Selector

@register_selector("from_file")
class FromFile(Selector):
    '''Rows from a file.'''
    def __init__(self, width=3, **kwargs):
        super().__init__(**kwargs)
    def select(self, model, step_id, num_samples, **kwargs):
        return list(range(num_samples))

calls = []

@hookimpl
def dataflex_after_checkpoint(step):
    calls.append(step)
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """A plugin manager and a registry of this test alone."""
    before = set(sys.modules)
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    plugin_manager.cache_clear()
    yield
    plugin_manager.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith(("dataflex_plugin_", "hooks_")):
            del sys.modules[name]


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Returns a function that installs hook packages: module name -> source text."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(**modules):
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
        points = [
            EntryPoint(name, name, "dataflex")._for(SimpleNamespace(name=f"package-of-{name}", version="1"))
            for name in modules
        ]
        monkeypatch.setattr(plugins, "entry_points", lambda group: points)

    return install


HOOK = "from dataflex import hookimpl\n@hookimpl\ndef dataflex_cli_commands():\n    return {{'{0}': '{0}'}}\n"


def test_hooks_are_called_last_registered_first_and_files_after_packages_are_registered(installed, tmp_path):
    installed(hooks_b=HOOK.format("b"), hooks_a=HOOK.format("a"))
    (tmp_path / "mine.py").write_text(HOOK.format("file"))
    load_plugin_files([str(tmp_path / "mine.py")])
    assert plugin_manager().hook.dataflex_cli_commands() == [{"file": "file"}, {"b": "b"}, {"a": "a"}]


def test_a_hook_may_take_fewer_arguments_and_gets_what_it_names():
    seen = []

    class Plugin:
        @hookimpl
        def dataflex_before_update(self, context, component):
            seen.append((component, context))

    plugin_manager().register(Plugin())
    plugin_manager().hook.dataflex_before_update(kind="select", component="loss", context="c")
    assert seen == [("loss", "c")]


def test_a_disabled_plugin_is_not_even_imported(installed, monkeypatch):
    installed(hooks_good=HOOK.format("good"), hooks_bad="raise RuntimeError('no')")
    monkeypatch.setenv("DATAFLEX_DISABLE_PLUGINS", " hooks_bad , other")
    assert plugin_manager().hook.dataflex_cli_commands() == [{"good": "good"}]


def test_a_broken_hook_package_is_named_with_the_way_to_leave_it_out(installed):
    installed(hooks_bad="raise RuntimeError('no luck')")
    with pytest.raises(BrokenPluginError) as caught:
        plugin_manager()
    for part in ("'hooks_bad'", "package-of-hooks_bad", "RuntimeError: no luck", "DATAFLEX_DISABLE_PLUGINS=hooks_bad"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "from dataflex import hookimpl\n@hookimpl\ndef dataflex_after_chekpoint(step): ...\n",
        "from dataflex import hookimpl\n@hookimpl\ndef dataflex_after_checkpoint(stepp): ...\n",
    ],
    ids=["no such hook", "no such argument"],
)
def test_a_hook_that_nobody_would_call_is_refused(installed, text):
    installed(hooks_typo=text)
    with pytest.raises(
        BrokenPluginError, match=r"(?s)'hooks_typo' of the package package-of-hooks_typo.*(chekpoint|stepp)"
    ):
        plugin_manager()


def test_a_file_registers_its_components_and_hooks_once_however_often_it_is_loaded(tmp_path):
    file = tmp_path / "my selector.py"
    file.write_text(SELECTOR_FILE)
    load_plugin_files([str(file)])
    load_plugin_files([str(file), str(tmp_path / "." / "my selector.py")])
    cls = component_classes.find(SELECTOR, "from_file")
    assert cls.__name__ == "FromFile"
    plugin_manager().hook.dataflex_after_checkpoint(step=3, folder="x")
    assert sys.modules[cls.__module__].calls == [3]


def test_two_files_of_one_name_do_not_get_in_each_others_way(tmp_path):
    for folder, name in (("a", "first"), ("b", "second")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(SELECTOR_FILE.replace("from_file", name))
    load_plugin_files([str(tmp_path / "a" / "mine.py"), str(tmp_path / "b" / "mine.py")])
    assert component_classes.find(SELECTOR, "first") is not component_classes.find(SELECTOR, "second")


def test_two_files_that_register_one_name_are_a_conflict(tmp_path):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(SELECTOR_FILE)
    with pytest.raises(ComponentConflictError, match=r"'from_file' is registered twice: by FromFile in .*a\.py.*b\.py"):
        load_plugin_files([str(tmp_path / "a.py"), str(tmp_path / "b.py")])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\n\nraise ValueError('bad luck')\n", ["line 3", "ValueError: bad luck"]),
        ("def f():\n    return 1 / 0\n\nf()\n", ["line 2", "ZeroDivisionError"]),
        ("import no_such_module_here\n", ["line 1", "no_such_module_here"]),
        ("def f(:\n", ["line 1", "SyntaxError"]),
    ],
)
def test_a_file_that_raises_is_named_with_its_line_and_leaves_nothing_behind(tmp_path, text, expected):
    file = tmp_path / "bad.py"
    file.write_text(text)
    for _ in range(2):  # the second time too: a half-imported module must not count as loaded
        with pytest.raises(BrokenPluginError) as caught:
            load_plugin_files([str(file)])
        for part in [str(file), *expected]:
            assert part in str(caught.value)


def test_a_file_that_is_missing_or_no_python_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"nope\.py does not exist"):
        load_plugin_files([str(tmp_path / "nope.py")])
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"notes\.txt is not a \.py file"):
        load_plugin_files([str(tmp_path / "notes.txt")])


def test_a_scan_finds_what_the_decorators_say_without_running_the_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(SELECTOR_FILE + "\nraise SystemExit('it was run')\n")
    (info,) = scan_plugin_file(file)
    assert (info.kind, info.name, info.summary, info.package) == (SELECTOR, "from_file", "Rows from a file.", str(file))
    assert info.parameters == {"width": 3}


@pytest.mark.parametrize(
    "text",
    [
        "from helpers import everything\n",
        "from dataflex.core import registry\nfor n in 'ab':\n    registry.register_weighter(n)(object)\n",
        "from dataflex.core.registry import register_weighter\n@register_weighter(NAME)\nclass A: ...\n",
    ],
)
def test_a_scan_finds_nothing_where_the_text_names_nothing(tmp_path, text):
    file = tmp_path / "mine.py"
    file.write_text(text)
    assert scan_plugin_file(file) == []


def test_a_scan_finds_a_decorator_through_the_module_and_several_kinds(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import dataflex.core.registry as r\n"
        "@r.register_weighter('w')\nclass W: ...\n"
        "@r.register_selector('s')\nclass S: ...\n"
    )
    assert [(i.kind, i.name) for i in scan_plugin_file(file)] == [(WEIGHTER, "w"), (SELECTOR, "s")]


def test_a_scan_reports_what_only_the_compiler_finds(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("x = 1\nreturn x\n")
    with pytest.raises(BrokenPluginError, match=r"mine\.py, line 2: SyntaxError: 'return' outside function"):
        scan_plugin_file(file)
