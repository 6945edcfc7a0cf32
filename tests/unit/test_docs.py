"""The documentation names what the code has, its YAML parses, and its links lead somewhere."""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from dataflex.cli.commands import BUILT_IN
from dataflex.config.arguments import DataflexArguments
from dataflex.config.load import split
from dataflex.config.presets import packaged_components
from dataflex.core import files as run_files
from dataflex.core import hookspecs, registry
from dataflex.core.component import Component
from dataflex.core.kinds import BY_SECTION, KINDS
from dataflex.discovery.catalog import ComponentInfo, components
from dataflex.discovery.component_classes import interface
from dataflex.discovery.injected import INJECTED
from dataflex.launch.packages import BROKEN, TESTED
from dataflex.workspace.configs import RUNS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PROSE = [*PAGES, *sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("packages/*/README.md"))]
PYPROJECTS = sorted(ROOT.glob("packages/*/pyproject.toml"))
OFFICIAL = json.loads(files("dataflex.core").joinpath("official.json").read_text(encoding="utf-8"))
CORE = ROOT / "packages" / "dataflex-core" / "src" / "dataflex"
WORDS = {"column", "custom", "dataset", "less", "loss", "near", "nice", "random", "schedule", "scores", "static"}
WORDS |= {"adapt", "balancer", "focal", "perplexity", "spans", "temperature", "trim"}  # words of the language too
WORDS |= {"folding", "length", "pacing", "saw", "segment", "shuffle", "sorting", "stair"}
NAMES = {name for table in OFFICIAL.values() for names in table.values() for name in names}
UNMISTAKABLE = re.compile(
    rf"\b({'|'.join(sorted(NAMES - WORDS))})\b|such as (?:loss|random|less|near)\b", re.IGNORECASE
)
COMPONENTS = [info for info in components() if info.name in registry.official(info.kind)]


def text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def fenced(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def section(page: str, title: str) -> str:
    """Returns the part of a page under a heading that begins with `title`, up to the next heading of that level."""
    found = re.search(rf"^## `{title}`.*?(?=^## |\Z)", text(page), flags=re.MULTILINE | re.DOTALL)
    assert found, f"docs/{page} has no section for {title}"
    return found[0]


def test_there_is_documentation_to_test():
    assert len(PAGES) >= 12
    assert len(PYPROJECTS) == 4
    assert len(COMPONENTS) >= 7


@pytest.mark.parametrize("key", DataflexArguments.names())
def test_each_config_key_has_a_row_in_configuration_with_its_default(key):
    row = re.search(rf"^\| `{key}` \| (.*?) \|", text("configuration.md"), flags=re.MULTILINE)
    assert row, f"docs/configuration.md has no row for {key}"
    default = DataflexArguments.__dataclass_fields__[key].default
    assert row[1] == ("none" if default in (None, ()) else f"`{str(default).lower()}`")


@pytest.mark.parametrize("command", [*BUILT_IN, "help"])
def test_each_command_is_in_cli(command):
    assert re.search(rf"^\| `{command}\b", text("cli.md"), flags=re.MULTILINE)


@pytest.mark.parametrize("hook", [name for name in vars(hookspecs) if name.startswith("dataflex_")])
def test_each_hook_is_in_plugins_with_its_arguments(hook):
    arguments = ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)
    assert f"| `{hook}({arguments})` |" in text("plugins.md")


@pytest.mark.parametrize("kind", [None, *KINDS], ids=lambda kind: "component" if kind is None else kind.name)
def test_each_field_and_method_of_the_interfaces_is_in_plugins(kind):
    cls = Component if kind is None else interface(kind)
    table = text("plugins.md").partition("\n## Fields and methods\n")[2].partition("\n## ")[0]
    part = (
        table
        if kind is None
        else table.partition(f"\nOf a {kind.name}:\n")[2] or table.partition("\nOf an order:\n")[2]
    )
    own = {name for name in {**vars(cls), **inspect.get_annotations(cls)} if not name.startswith("_")}
    inherited = set() if kind is None else {"accepts", "contract", "cost"}
    missing = sorted(name for name in own - inherited if not re.search(rf"`{name}[`(]", part))
    assert not missing
    assert len(own) >= 5


def test_each_fixture_of_pytest_is_in_publishing():
    plugin = (CORE / "testing" / "pytest_fixtures.py").read_text(encoding="utf-8")
    fixtures = re.findall(r"^@pytest.fixture.*\ndef (\w+)", plugin, flags=re.MULTILINE)
    assert len(fixtures) >= 6
    assert [name for name in fixtures if f"| `{name}` |" not in text("publishing.md")] == []


@pytest.mark.parametrize("parameter", sorted(INJECTED))
def test_each_object_of_the_run_is_in_plugins(parameter):
    assert f"| `{parameter}` |" in text("plugins.md")


@pytest.mark.parametrize(
    "name", [value for name, value in vars(run_files).items() if name.isupper() and name[0] != "_"]
)
def test_each_file_of_a_run_is_in_outputs(name):
    assert re.search(rf"^\| `(checkpoint-N/)?{re.escape(name)}\b", text("outputs.md"), flags=re.MULTILINE)


@pytest.mark.parametrize("info", COMPONENTS, ids=lambda info: f"{info.kind.name}-{info.name}")
def test_each_component_has_a_section_with_every_parameter_and_default(info: ComponentInfo):
    assert not info.summary.startswith("(cannot be read")
    here = section(f"{info.kind.section}.md", info.name)
    for name in info.required:
        assert f"`{name}`" in here
    for name, default in info.parameters.items():
        assert f"`{name}`" in here
        if isinstance(default, int | float | str):
            shown = f"`{str(default).lower() if isinstance(default, bool) else default}`"
            assert shown in here, f"the default {shown} of {name}"


@pytest.mark.parametrize("info", COMPONENTS, ids=lambda info: f"{info.kind.name}-{info.name}")
def test_each_component_is_in_the_readmes_table_and_in_its_packages_readme(info: ComponentInfo):
    assert f"| {info.kind.name} | `{info.name}` | {info.package} |" in readme()
    assert f"`{info.name}`" in (ROOT / "packages" / info.package / "README.md").read_text(encoding="utf-8")


def test_the_readmes_table_promises_nothing_that_is_not_there():
    rows = re.findall(r"^\| (\w+) \| `(\w+)` \| \S+ \|", readme(), flags=re.MULTILINE)
    assert set(rows) == {(info.kind.name, info.name) for info in COMPONENTS}


@pytest.mark.parametrize("info", COMPONENTS, ids=lambda info: f"{info.kind.name}-{info.name}")
def test_each_component_has_an_entry_in_papers_unless_it_is_a_starting_point(info: ComponentInfo):
    assert info.name == "custom" or f"### `{info.name}`" in text("papers.md")


@pytest.mark.parametrize("info", COMPONENTS, ids=lambda info: f"{info.kind.name}-{info.name}")
def test_each_component_ships_a_preset_of_its_name_with_the_constructors_defaults(info: ComponentInfo):
    (entry,) = packaged_components(info.kind)[info.name]
    assert entry.name == info.name
    defaults = {key: list(value) if isinstance(value, tuple) else value for key, value in info.parameters.items()}
    assert entry.params == defaults


def test_official_json_equals_the_entry_points_of_the_packages():
    declared: dict[str, dict[str, list[str]]] = {kind.section: {} for kind in KINDS}
    for path in PYPROJECTS:
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        for group, points in project.get("entry-points", {}).items():
            if group.startswith("dataflex."):
                declared[group.removeprefix("dataflex.")][project["name"]] = sorted(points)
    assert {s: {p: sorted(names) for p, names in table.items()} for s, table in OFFICIAL.items()} == declared


def test_core_names_no_strategy_outside_of_its_templates():
    sources = [path for path in CORE.rglob("*.py") if "workspace" not in path.parts]
    named = {relative(path): UNMISTAKABLE.findall(path.read_text(encoding="utf-8")) for path in sources}
    assert len(named) > 100
    assert {path: found for path, found in named.items() if found} == {}


def test_every_package_of_the_repository_has_the_version_of_core():
    sources = [path.read_text(encoding="utf-8") for path in ROOT.glob("packages/*/src/*/__init__.py")]
    versions = {found[1] for found in (re.search(r'__version__ = "(.*?)"', source) for source in sources) if found}
    assert len(sources) == 4
    assert len(versions) == 1
    assert versions.pop() in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[object]:
    """Returns the fenced blocks of a language as test parameters, named after their page."""
    found = [(page, block) for page in PROSE for block in fenced(page, language)]
    return [pytest.param(*pair, id=f"{relative(pair[0])}-{number}") for number, pair in enumerate(found)]


@pytest.mark.parametrize(("page", "block"), blocks("yaml"))
def test_each_yaml_block_parses_and_its_keys_are_known(page: Path, block: str):
    content = yaml.safe_load(block)
    assert isinstance(content, dict)
    if set(content) <= set(BY_SECTION):
        for name, entries in content.items():
            known = {info.name: info for info in components([BY_SECTION[name]])}
            for key, entry in entries.items():
                info = known[entry.get("name", key)]
                assert set(entry["params"]) <= {*info.parameters, *info.required}
        return
    ours, theirs = split(content)
    assert "train_type" in ours
    assert set(theirs) <= {"dataset"}


def test_there_are_yaml_blocks():
    assert len(blocks("yaml")) >= 10


@pytest.mark.parametrize(("page", "block"), blocks("python"))
def test_each_python_block_compiles(page: Path, block: str):
    compile(block, str(page), "exec")


def links() -> list[tuple[str, str]]:
    found = []
    for page in PROSE:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                found.append((relative(page), target))
    return found


@pytest.mark.parametrize(("page", "target"), links())
def test_each_relative_link_resolves(page: str, target: str):
    path, _, anchor = target.partition("#")
    destination = (ROOT / page).parent / path if path else ROOT / page
    assert destination.exists()
    if anchor:
        headings = re.findall(r"^#+ (.*)$", destination.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [p.name for p in DOCS.glob("*.md") if p.name != "index.md"])
def test_the_index_and_the_readme_lead_to_each_page(page):
    assert f"({page})" in text("index.md")
    assert f"(docs/{page})" in readme()


def commands() -> list[str]:
    return [line for block in fenced(ROOT / "README.md", "bash") for line in block.splitlines()]


def test_the_readme_has_two_set_up_commands_of_one_line_each():
    assert len(commands()) == 2
    train, test = commands()
    assert all(f"./{relative(path.parent)}" in train for path in PYPROJECTS)
    assert "nox -s tests" in test


PACKAGE = re.compile(r"(?:dataflex-(?:core|selectors|mixers|weighters|tutorial)|tutorial-plugin)(?:\[([\w, -]+)\])?")
TEMPLATES = sorted(CORE.rglob("*.md"))
OF_THE_PYTHON_API = {
    folder / page for folder in (DOCS, DOCS / "zh") for page in ("plain-transformers.md", "python-examples.md")
}
"""Pages whose readers need no LLaMA-Factory."""


def test_no_install_command_leaves_a_user_of_train_without_llamafactory():
    """A command may add another extra to what is there; any other that names our packages brings LLaMA-Factory."""
    found, wrong = 0, []
    for page in [*PROSE, *TEMPLATES, ROOT / "packages" / "no_distribution.py"]:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines() if page not in OF_THE_PYTHON_API else []:
            extras = [match[1] for match in PACKAGE.finditer(line.partition("pip install")[2])]
            found += bool(extras)
            if extras and "llamafactory" not in extras and None in extras:
                wrong.append(f"{relative(page)}: {line}")
    assert found >= 12
    assert wrong == []


@pytest.mark.parametrize("path", [*PYPROJECTS, DOCS / "tutorial-plugin" / "pyproject.toml"], ids=relative)
def test_every_package_brings_llamafactory_by_its_extra_and_is_for_every_supported_python(path):
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    assert any("llamafactory" in need for need in project["optional-dependencies"]["llamafactory"])
    assert not any("llamafactory" in need for need in project["dependencies"])
    pythons = {name.rpartition(" ")[2] for name in project["classifiers"] if "Python ::" in name}
    assert pythons == {"3.11", "3.12", "3.13"}
    sessions = re.search(r"@nox.session\(python=\[(.*?)\]", (ROOT / "noxfile.py").read_text(encoding="utf-8"))
    assert sessions
    assert set(re.findall(r"[\d.]+", sessions[1])) == pythons - {"3.11"}


def test_compatibility_names_every_broken_release_as_the_code_does():
    rows = re.findall(r"^\| (transformers) \| ([\d.]+) \| (.*?) \| ([\d.]+) \|", text("compatibility.md"), re.MULTILINE)
    assert {(package, release): (reason, instead) for package, release, reason, instead in rows} == BROKEN
    for llamafactory, (lowest, highest) in TESTED.items():
        assert f"| {llamafactory} | {lowest} to {highest} |" in text("compatibility.md")


def test_the_ci_runs_the_readmes_test_command_word_for_word():
    assert commands()[1] in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()


def test_the_readmes_first_command_trains_what_the_workspace_holds_and_compares_it():
    (command,) = [line for line in readme().splitlines() if "dataflex-cli init try" in line]
    trained = re.findall(r"dataflex-cli train try/(\w+)\.yaml", command)
    assert len(trained) == 2
    assert set(trained) <= RUNS.keys()
    assert command.endswith("dataflex-cli compare " + " ".join(f"try/saves/{name}" for name in trained))
