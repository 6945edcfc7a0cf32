"""The checks of this repository. `nox` runs the tests; `nox -l` lists the rest, `nox -s NAME` runs one.

Every session makes an environment of its own. With uv installed that takes seconds once the packages are cached.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.10.14"  # download_python
nox.options.sessions = ["tests"]  # the others build more environments, or train for minutes
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_external_run = True

PACKAGES = [f"packages/dataflex-{name}" for name in ("core", "selectors", "mixers", "weighters")]
TUTORIAL = "docs/tutorial-plugin"
CODE = ["packages", "tests", "docs", "noxfile.py"]
OPTIMIZERS = ["badam", "galore-torch", "apollo-torch", "adam-mini", "liger-kernel"]
STACK = ["torch", "transformers", "accelerate", "peft", "datasets", "trl"]
API = ["tests/integration", "tests/unit"]  # what is left out looks at wheels and kills runs by the dozen
# The tests need neither an accelerator nor a network, and two threads of a tiny model only wait for each other.
CLEAN = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
SIDE_BY_SIDE = ["-n", "logical", "--maxprocesses", "4", "--dist", "loadfile"]  # a process of tests takes 1.5 GB


def editable(extra: str = "") -> list[str]:
    """Returns what installs the four packages from the working tree, core with an extra where one is named.

    Editable, because a copy of an unversioned change could come from the installer's cache instead of the tree.
    """
    core, *strategies = PACKAGES
    return [part for package in [f"{core}[{extra}]" if extra else core, *strategies] for part in ("-e", f"./{package}")]


def install(session: nox.Session, *others: str, constraints: str = "constraints.txt") -> None:
    """Installs the four packages with LLaMA-Factory, and what else is asked for."""
    session.install("-c", constraints, *editable("llamafactory"), *others)


@nox.session
def tests(session: nox.Session) -> None:
    """The tests that need no accelerator, on the pinned versions; the documentation site too, without a browser."""
    install(session, "-r", "tests/requirements.txt", "-r", "docs/requirements.txt")
    session.run("pytest", *SIDE_BY_SIDE, *session.posargs, env=CLEAN)


@nox.session
def latest(session: nox.Session) -> None:
    """The newest transformers, TRL and torch that the index has, without LLaMA-Factory: all that needs none of it."""
    session.install("--upgrade", *STACK, *editable(), "-r", "tests/requirements.txt")
    versions = f"from importlib.metadata import version; print(*((name, version(name)) for name in {STACK}))"
    session.run("python", "-c", versions)
    session.run("pytest", *SIDE_BY_SIDE, *(session.posargs or API), env=CLEAN)


@nox.session(name="latest-llamafactory")
def latest_llamafactory(session: nox.Session) -> None:
    """LLaMA-Factory with the highest transformers that its head admits and its release does not, its check off."""
    install(session, "-r", "tests/requirements.txt")
    session.install("--no-deps", "transformers==5.8.0")  # its head: >=4.55,<=5.8,!=4.57.0,!=5.6.0
    environ = CLEAN | {"DISABLE_VERSION_CHECK": "1"}
    session.run("pytest", *SIDE_BY_SIDE, *(session.posargs or API), env=environ)


@nox.session
def fast(session: nox.Session) -> None:
    """The tests that import neither torch nor LLaMA-Factory: under a minute, while writing."""
    install(session, "-r", "tests/requirements.txt")
    session.run("pytest", "tests/unit", "-m", "fast", *SIDE_BY_SIDE, *session.posargs, env=CLEAN)


@nox.session
def minimums(session: nox.Session) -> None:
    """The same tests on the lowest versions that are supported."""
    install(session, "-r", "tests/requirements.txt", constraints="constraints-minimums.txt")
    session.run("pytest", *SIDE_BY_SIDE, *session.posargs, env=CLEAN)


@nox.session(python=["3.12", "3.13"], download_python="never")
def pythons(session: nox.Session) -> None:
    """The unit tests on the other Pythons that are supported; one that this machine does not have is skipped."""
    install(session, "-r", "tests/requirements.txt")
    session.run("pytest", "tests/unit", *SIDE_BY_SIDE, *session.posargs, env=CLEAN)


@nox.session
def declared(session: nox.Session) -> None:
    """Imports and commands in an environment of what the packages declare and nothing else, at the newest releases."""
    session.install(*editable())
    session.run("python", "tests/declared.py", "modules")
    session.run("dataflex-cli", "version")
    session.install("-r", "tests/requirements.txt")
    selected = ["tests/unit/test_without_llamafactory.py", "-k", "command or validate"]
    session.run("pytest", *(session.posargs or selected), env=CLEAN)


@nox.session
def engines(session: nox.Session) -> None:
    """The tests of engines, optimizers and kernels that come in packages of their own.

    DeepSpeed is built against the torch that is there, and compiles its CPU communication at its first start.
    """
    install(session, "-r", "tests/requirements.txt", "setuptools", "wheel", "ninja")
    session.install("-c", "constraints.txt", "ray[default]", "py-cpuinfo", *OPTIMIZERS)
    built = {"DS_BUILD_OPS": "0"}
    session.install("-c", "constraints.txt", "--no-build-isolation", "deepspeed", env=built)
    files = ("test_engines.py", "test_engine_strategies.py", "test_features.py", "test_liger.py")
    selected = session.posargs or [f"tests/integration/{file}" for file in files]
    session.run("pytest", *selected, env=CLEAN)


@nox.session
def faults(session: nox.Session) -> None:
    """Kills runs at random moments, many of them while a checkpoint is written, and compares how they end."""
    install(session, "-r", "tests/requirements.txt")
    session.run("python", "tests/faults/kill.py", *session.posargs, env=CLEAN)


@nox.session
def models(session: nox.Session) -> None:
    """Tries every causal model class of transformers and writes docs/models.md; half an hour."""
    install(session, "-r", "tests/requirements.txt", "timm")
    _sweep(session)


@nox.session(name="models-latest")
def models_latest(session: nox.Session) -> None:
    """The same on the newest transformers, torch and peft, without LLaMA-Factory."""
    session.install(
        "--upgrade", "torch", "transformers", "accelerate", "peft", "datasets", "omegaconf", "timm", "pillow"
    )
    editable = [part for package in PACKAGES for part in ("-e", f"./{package}")]
    session.install("--no-deps", *editable)
    session.install("pluggy", "importlib-metadata", "pyyaml", "packaging")
    _sweep(session)


def _sweep(session: nox.Session) -> None:
    """Tries the classes, keeps the outcomes of other versions of transformers, and writes the page from all of them."""
    folder = Path("tests/models/outcomes")
    folder.mkdir(exist_ok=True)
    file = folder / f"{session.name}.json"
    part = ["--keep", *session.posargs] if session.posargs else []  # of the classes: the others stay as they were
    session.run("python", "-m", "tests.models.sweep", "--json", str(file), *part, env=CLEAN)
    files = sorted(map(str, folder.glob("*.json")), key=lambda name: "latest" in name)  # the pinned versions first
    session.run("python", "-m", "tests.models.table", "--out", "docs/models.md", *files)


@nox.session
def wheels(session: nox.Session) -> None:
    """Builds the wheels and the tutorial plugin, installs them into an empty environment and tests them there."""
    session.install("-c", "constraints.txt", "hatchling")
    folder = Path(session.create_tmp()).absolute() / "wheels"
    shutil.rmtree(folder, ignore_errors=True)
    for package in [*PACKAGES, TUTORIAL]:
        with session.chdir(package):
            session.run("hatchling", "build", "-t", "wheel", "-d", str(folder))
    built = sorted(folder.glob("*.whl"))
    core = next(wheel for wheel in built if wheel.name.startswith("dataflex_core-"))
    what = [f"dataflex-core[llamafactory] @ {core.as_uri()}", *(str(wheel) for wheel in built if wheel != core)]
    session.install("-c", "constraints.txt", "-r", "tests/requirements.txt", *what)
    session.run("dataflex-cli", "version")
    session.run("dataflex-cli", "list")
    session.run("pytest", "tests/wheels", *session.posargs, env=CLEAN)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting."""
    session.install("-c", "constraints.txt", "ruff")
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)


@nox.session
def types(session: nox.Session) -> None:
    """Types of the four packages."""
    install(session, "mypy", "types-psutil", "types-pyyaml")
    session.run("mypy", *(f"{package}/src" for package in PACKAGES))


@nox.session
def docs(session: nox.Session) -> None:
    """Builds the documentation site in site/ and checks it: strictly, and in the system's Chromium if there is one."""
    install(session, "-r", "tests/requirements.txt", "-r", "docs/requirements.txt", "jieba==0.42.1", "playwright")
    pages = ["tests/unit/test_docs.py", "tests/unit/test_site_nav.py", "tests/docs_site"]
    session.run("pytest", "-n0", *(session.posargs or pages), env=CLEAN)


@nox.session
def report(session: nox.Session) -> None:
    """The page of a run in a real browser: needs the system's Chromium, and is skipped where there is none."""
    install(session, "-r", "tests/requirements.txt", "playwright", "nbclient", "nbconvert", "ipykernel")
    session.run("pytest", "tests/report", "tests/unit/test_report.py", "-n0", *session.posargs, env=CLEAN)


@nox.session
def demo(session: nox.Session) -> None:
    """Makes a workspace, trains with a selector and with rows at random, and compares the two."""
    install(session)
    folder = Path(session.create_tmp()) / "try"
    shutil.rmtree(folder, ignore_errors=True)
    session.run("dataflex-cli", "init", str(folder))
    for run in ("select_random", "select_less"):
        session.run("dataflex-cli", "train", str(folder / f"{run}.yaml"), *session.posargs)
    session.run("dataflex-cli", "compare", *(str(folder / "saves" / run) for run in ("select_random", "select_less")))
