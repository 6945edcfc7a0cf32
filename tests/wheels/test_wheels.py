"""The wheels: what is in them, and that they work from an environment that holds nothing else of this project.

The heavy dependencies are linked from the environment that runs the tests, so that an environment takes seconds and no
network; what it lacks is every distribution of dataflex.
"""

from __future__ import annotations

import email
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial-plugin"
CORE = ROOT / "packages" / "dataflex-core"
STRATEGIES = [ROOT / "packages" / f"dataflex-{kind}" for kind in ("selectors", "mixers", "weighters")]
PACKAGES = [CORE, *STRATEGIES, TUTORIAL]
COMMAND = "from dataflex.cli.main import main; main()"


def project(package: Path) -> dict[str, object]:
    loaded: dict[str, object] = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return loaded


@pytest.fixture(scope="session")
def wheels(tmp_path_factory) -> dict[Path, Path]:
    """Package -> its wheel, built as an index would get it."""
    built = {}
    for package in PACKAGES:
        folder = tmp_path_factory.mktemp(package.name)
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
            cwd=package, check=True, capture_output=True,
        )  # fmt: skip
        (built[package],) = folder.glob("*.whl")
    return built


class Environment:
    """An environment with the given wheels, and everything but dataflex from the environment of the tests."""

    def __init__(self, folder: Path, wheels: list[Path]) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.bin = folder / "bin"
        (site,) = folder.glob("lib/python*/site-packages")
        for item in Path(sysconfig.get_paths()["purelib"]).iterdir():
            if not re.match(r"_?dataflex|__editable__|.*\.pth$|__pycache__", item.name):
                (site / item.name).symlink_to(item)
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)

    def python(self, *arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
        """Runs its Python without anything that the tests' own environment could lend it."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        command = [str(self.bin / "python"), *arguments]
        return subprocess.run(command, cwd=cwd, env=clean | environ, capture_output=True, text=True, check=False)

    def cli(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Runs ``dataflex-cli``."""
        return self.python("-c", COMMAND, *arguments, cwd=cwd)

    def listed(self, cwd: Path) -> dict[tuple[str, str], dict[str, object]]:
        """Returns (kind, name) -> what ``list --json`` says."""
        result = self.cli("list", "--json", cwd=cwd)
        assert result.returncode == 0, result.stderr
        return {(item["kind"], item["name"]): item for item in json.loads(result.stdout)}


@pytest.fixture(scope="session")
def environment(wheels, tmp_path_factory) -> Callable[..., Environment]:
    """Returns a function that makes an environment from packages; the same packages, the same environment."""
    made: dict[tuple[Path, ...], Environment] = {}

    def make(*packages: Path) -> Environment:
        if packages not in made:
            folder = tmp_path_factory.mktemp("environment") / "venv"
            made[packages] = Environment(folder, [wheels[package] for package in packages])
        return made[packages]

    return make


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_wheel_holds_the_package_its_licence_and_its_type_marker_and_nothing_else(wheels, package):
    with zipfile.ZipFile(wheels[package]) as archive:
        names = archive.namelist()
    (source,) = (package / "src").iterdir()
    paths = [file.relative_to(package / "src") for file in source.rglob("*") if file.is_file()]
    files = {str(path) for path in paths if not any(part.startswith((".", "__pycache__")) for part in path.parts)}
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == files
    assert f"{source.name}/py.typed" in files
    (licence,) = (name for name in names if ".dist-info/" in name and name.endswith("LICENSE"))
    with zipfile.ZipFile(wheels[package]) as archive:
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_wheel_declares_the_entry_points_and_dependencies_of_its_pyproject(wheels, package):
    with zipfile.ZipFile(wheels[package]) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        (points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        fields = email.message_from_bytes(archive.read(metadata))
        declared = archive.read(points).decode()
    expected = project(package)
    extras = [(extra, n) for extra, needs in expected.get("optional-dependencies", {}).items() for n in needs]
    name = re.compile(r"[\w.-]+")
    given = fields.get_all("Requires-Dist")
    required = [(name.match(need)[0], re.search(r"extra == '([\w-]+)'", need)) for need in given]
    assert {need for need, extra in required if not extra} == {name.match(n)[0] for n in expected["dependencies"]}
    optional = {(extra[1], need) for need, extra in required if extra}
    assert optional == {(extra, name.match(need)[0]) for extra, need in extras}
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields["Requires-Python"] == ">=3.11"
    for group, table in expected.get("entry-points", {}).items():
        assert f"[{group}]" in declared
        assert all(f"{name} = {value}" in declared for name, value in table.items())


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_llamafactory_and_its_bounds_come_with_an_extra_alone_and_every_package_passes_it_on(wheels, package):
    with zipfile.ZipFile(wheels[package]) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        required = [*map(Requirement, email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist"))]
    always = {need.name: need for need in required if need.marker is None}
    extra = {need.name: need for need in required if need.marker and need.marker.evaluate({"extra": "llamafactory"})}
    assert not {"llamafactory", "torchaudio"} & set(always)
    assert "<" not in "".join(str(need.specifier) for name, need in always.items() if name != "dataflex-core")
    if package == CORE:
        assert "0.9.5" in extra["llamafactory"].specifier
        for name in ("torch", "torchaudio"):  # a torch that has no torchaudio
            assert "2.11.0" in extra[name].specifier
            assert "2.12.0" not in extra[name].specifier
    else:
        assert set(extra) == {"dataflex-core"}
        assert extra["dataflex-core"].extras == {"llamafactory"}


STACK = ("torch", "transformers", "accelerate", "datasets", "peft", "trl")


def uv(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["uv", *arguments], cwd=cwd, capture_output=True, text=True, check=False, input="\n".join(STACK)
    )


@pytest.fixture(scope="session")
def todays_stack(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """An environment of the newest releases that the index has, as an installer sees one: by its metadata alone."""
    if shutil.which("uv") is None:
        pytest.skip("needs uv")
    folder = tmp_path_factory.mktemp("today")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = uv("pip", "compile", "-", "--no-header", "--no-annotate", "--python-version", python, cwd=folder)
    if found.returncode:
        pytest.skip(f"needs a package index: {(found.stderr.strip().splitlines() or ['?'])[-1]}")
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", found.stdout, flags=re.MULTILINE))
    assert set(STACK) <= set(pins)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    (site,) = folder.glob("venv/lib/python*/site-packages")
    for name, version in pins.items():
        metadata = site / f"{name.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (metadata / "RECORD").touch()
    return folder / "venv" / "bin" / "python", pins


def changed(python: Path, *what: str) -> tuple[set[str], set[str]]:
    """Returns what an installation would add and what it would take away, asked of the installer's dry run."""
    done = uv("pip", "install", "--dry-run", "--python", str(python), *what, cwd=python.parent)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^ ([+-]) ([\w.-]+)", done.stderr, flags=re.MULTILINE)
    assert lines, done.stderr
    return {name for sign, name in lines if sign == "+"}, {name for sign, name in lines if sign == "-"}


@pytest.mark.slow
def test_installing_the_four_into_todays_stack_changes_the_version_of_no_package(wheels, todays_stack):
    python, pins = todays_stack
    added, gone = changed(python, *(str(wheels[package]) for package in (CORE, *STRATEGIES)))
    assert gone == set()
    assert {package.name for package in (CORE, *STRATEGIES)} <= added
    assert added.isdisjoint(pins)
    added, gone = changed(python, f"dataflex-core[llamafactory] @ file://{wheels[CORE]}")
    assert "torch" in gone, "what the test would see if the bounds came without the extra"


def test_core_alone_answers_lists_nothing_and_says_what_to_install(environment, tmp_path):
    core = environment(CORE)
    assert core.listed(tmp_path) == {}
    result = core.cli("list", cwd=tmp_path)
    assert result.returncode == 0
    for package in STRATEGIES:
        assert f"pip install {package.name}" in result.stderr
    version = core.cli("version", cwd=tmp_path)
    assert version.returncode == 0
    assert re.search(r"^dataflex-core\s+\d+\.\d+", version.stdout, flags=re.MULTILINE)
    assert "dataflex-selectors" not in version.stdout


def test_core_alone_names_the_package_of_a_component_that_is_not_installed(environment, tmp_path):
    (tmp_path / "run.yaml").write_text("train_type: dynamic_select\ncomponent_name: loss\n", encoding="utf-8")
    result = environment(CORE).cli("validate", "run.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert "pip install dataflex-selectors" in result.stderr


def test_import_dataflex_and_list_load_no_torch_transformers_or_llamafactory(environment, tmp_path):
    code = (
        "import sys, dataflex; from dataflex.cli.main import run; run(['list']); "
        "heavy = {'torch', 'transformers', 'llamafactory'} & set(sys.modules); sys.exit(bool(heavy))"
    )
    result = environment(*PACKAGES).python("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_core_and_one_strategy_package_list_only_the_components_of_that_package(environment, tmp_path):
    selectors = STRATEGIES[0]
    listed = environment(CORE, selectors).listed(tmp_path)
    assert {item["package"] for item in listed.values()} == {selectors.name}
    assert ("selector", "loss") in listed


def test_everything_installed_lists_every_declared_component_of_ours_and_of_the_tutorial(environment, tmp_path):
    listed = environment(*PACKAGES).listed(tmp_path)
    declared = {
        (group.removeprefix("dataflex.").removesuffix("s"), name): project(package)["name"]
        for package in PACKAGES
        for group, table in project(package).get("entry-points", {}).items()
        if group.startswith("dataflex.")
        for name in table
    }
    assert {key: item["package"] for key, item in listed.items()} == declared
    assert {("selector", "custom_first"), ("mixer", "custom_random"), ("weighter", "plain_weighter")} <= set(listed)
    assert not [item for item in listed.values() if item["summary"].startswith("(cannot be read")]


def test_the_types_of_core_reach_a_type_checker(wheels):
    with zipfile.ZipFile(wheels[CORE]) as archive:
        assert archive.read("dataflex/py.typed") == b""


TRAININGS = [
    ("select_loss", "component_name=custom_first"),
    ("mix_random", "component_name=custom_random"),
    ("weight_loss", "component_name=custom_uniform"),
    ("weight_loss", "component_name=plain_weighter"),
]


@pytest.fixture(scope="session")
def workspace(environment, tmp_path_factory) -> Path:
    """The workspace of ``dataflex-cli init``, made by the wheels."""
    folder = tmp_path_factory.mktemp("workspace")
    result = environment(*PACKAGES).cli("init", "try", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "try"


ONE_AFTER_THE_OTHER = """
import json, sys
from dataflex.cli.main import run
codes = []
for arguments in json.loads(sys.argv[1]):
    codes.append(run(arguments))
    print("the end of a run", file=sys.stderr, flush=True)
sys.exit(max(codes))
"""


@pytest.fixture(scope="session")
def trainings(environment, workspace, tmp_path_factory) -> dict[str, tuple[Path, str]]:
    """Component -> the folder of its run, and what the run said. One process: it takes eight seconds to start."""
    folder, commands = tmp_path_factory.mktemp("trainings"), []
    for run, component in TRAININGS:
        schedule = ["train_step=6"] if run.startswith("weight") else ["update_step=2", "update_times=2"]
        commands.append([
            "train", str(workspace / f"{run}.yaml"), component, *schedule, f"output_dir={folder / component}",
            "plot_loss=false", "do_eval=false", "warmup_step=2",
        ])  # fmt: skip
    done = environment(*PACKAGES).python("-c", ONE_AFTER_THE_OTHER, json.dumps(commands), cwd=workspace)
    assert done.returncode == 0, done.stderr
    *said, _ = done.stderr.split("the end of a run\n")
    return {component: (folder / component, text) for (_, component), text in zip(TRAININGS, said, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize(("run", "component"), TRAININGS, ids=lambda value: value.partition("=")[2] or value)
def test_each_component_of_the_tutorial_trains_from_the_wheels(trainings, run, component):
    folder, said = trainings[component]
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    assert history["global_step"] == 6
    if not run.startswith("weight"):
        trace = [json.loads(line) for line in (folder / "dataflex_trace.jsonl").read_text().splitlines()]
        assert [line["step"] for line in trace] == [2, 4]
        assert "tutorial:" in said  # the hook
