"""The checks of this repository. `nox` runs the tests; `nox -l` lists the rest, `nox -s NAME` runs one.

Every session makes an environment of its own. With uv installed that takes seconds once the packages are cached.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.3.2"
nox.options.sessions = ["tests"]  # the others build more environments, or train for minutes
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_external_run = True

PACKAGES = [f"packages/dataflex-{name}" for name in ("core", "selectors", "mixers", "weighters")]
TUTORIAL = "docs/tutorial-plugin"
CODE = ["packages", "tests", "docs", "noxfile.py"]
OPTIMIZERS = ["badam", "galore-torch", "apollo-torch", "adam-mini", "liger-kernel"]
# The tests need neither an accelerator nor a network, and two threads of a tiny model only wait for each other.
CLEAN = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
SIDE_BY_SIDE = ["-n", "logical", "--maxprocesses", "4", "--dist", "loadfile"]  # a process of tests takes 1.5 GB


def install(session: nox.Session, *others: str, constraints: str = "constraints.txt") -> None:
    """Installs the four packages from the working tree, and what else is asked for.

    Editable, because a copy of an unversioned change could come from the installer's cache instead of the tree.
    """
    editable = [part for package in PACKAGES for part in ("-e", f"./{package}")]
    session.install("-c", constraints, *editable, *others)


@nox.session
def tests(session: nox.Session) -> None:
    """The tests that need no accelerator, on the pinned versions."""
    install(session, "-r", "tests/requirements.txt")
    session.run("pytest", *SIDE_BY_SIDE, *session.posargs, env=CLEAN)


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
    files = sorted(map(str, folder.glob("*.json")))
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
    built = sorted(map(str, folder.glob("*.whl")))
    session.install("-c", "constraints.txt", "-r", "tests/requirements.txt", *built)
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
    """That the documentation names every key, command, hook and component."""
    install(session, "-r", "tests/requirements.txt")
    session.run("pytest", "tests/unit/test_docs.py", *session.posargs, env=CLEAN)


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
