"""A package with one component, from the files in ``templates/package``: it installs, passes its tests, trains."""

from __future__ import annotations

import keyword
import os
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template

from dataflex.core import registry
from dataflex.core.errors import ConfigError, nearest
from dataflex.core.kinds import KINDS, MIXER, ORDER, SELECTOR, WEIGHTER, Kind
from dataflex.workspace.tiny_run import write_tiny_run

PREFIX = "dataflex-"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*([-_.][A-Za-z0-9]+)*")
_LONGEST = 40
_SUMMARIES = {
    SELECTOR: "Takes the rows whose loss is nearest to the middle of all losses.",
    MIXER: "More of the sources with a high loss.",
    ORDER: "The lowest and the highest scores in turn, those in the middle last.",
    WEIGHTER: "More of the samples with a high loss, by a power of it.",
}
_PARAMETERS = {
    SELECTOR: "| `quantile` | `0.5` | which loss is best: 0.5 the median, 0 the lowest, 1 the highest |",
    MIXER: "| `temperature` | `1.0` | above 0; large values come close to equal shares |",
    ORDER: "| `ascending` | `true` | whether it begins with the lowest score |",
    WEIGHTER: "| `power` | `0.5` | from 0 to 4; 0 weighs all alike |",
}


@dataclass(frozen=True)
class NewPackage:
    """What was written.

    Attributes:
        folder: The package's folder, absolute.
        name: The component, as ``component_name`` finds it.
        distribution: What pip installs.
        package: What Python imports.
        cls: The class.
    """

    folder: Path
    name: str
    distribution: str
    package: str
    cls: str


def write_package(kind: Kind, name: str, into: str | Path = ".") -> NewPackage:
    """Writes a package with a component of a kind into a new folder. Imports no torch.

    Args:
        kind: The kind.
        name: The component: letters and digits, with ``_`` between them; ``-`` and ``.`` are read as that.
        into: The folder that the package's folder is made in.

    Raises:
        ConfigError: The name cannot be one or is taken, or the folder is there already or cannot be made.
    """
    made = _named(kind, name, into)
    values = {
        "NAME": made.name,
        "CLASS": made.cls,
        "DISTRIBUTION": made.distribution,
        "PACKAGE": made.package,
        "KIND": kind.name,
        "SECTION": kind.section,
        "TRAIN_TYPE": kind.train_type,
        "SUMMARY_LOWER": _SUMMARIES[kind][0].lower() + _SUMMARIES[kind][1:],
        "PARAMETERS": _PARAMETERS[kind],
        "CORE_VERSION": ".".join(version("dataflex-core").split(".")[:2]),
    }
    source = Path("src", made.package)
    texts = {
        Path("pyproject.toml"): _filled("pyproject.toml.txt", values),
        Path("README.md"): _filled("README.md.txt", values),
        Path("LICENSE"): _text("LICENSE"),
        Path(".gitignore"): "__pycache__/\n/dist/\n/try/saves/\n",
        source / "__init__.py": f'"""A {kind.name} for dataflex: {values["SUMMARY_LOWER"]}"""\n',
        source / "py.typed": "",
        source / f"{made.name}.py": _filled(f"{kind.name}.py.txt", values),
        Path("tests", f"test_{made.name}.py"): _filled(f"test_{kind.name}.py.txt", values),
        Path("try", "run.yaml"): _filled(f"run_{kind.name}.yaml", values) + _filled("run_common.yaml", values),
    }
    try:
        made.folder.mkdir(parents=True)
        write_tiny_run(made.folder / "try")
        for file, text in texts.items():
            (made.folder / file).parent.mkdir(parents=True, exist_ok=True)
            (made.folder / file).write_text(text, encoding="utf-8")
    except FileExistsError as error:
        raise ConfigError(
            f"{made.folder}: it is there already, and nothing is written over -> choose another name, or another "
            "folder with --into DIR"
        ) from error
    except OSError as error:
        raise ConfigError(f"{made.folder}: the folder cannot be made: {error.strerror}") from error
    return made


def _named(kind: Kind, name: str, into: str | Path) -> NewPackage:
    """Returns where the package goes and what things are called, or says why that cannot be."""
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise ConfigError(
            f"NAME: found '{name}', allowed: letters and digits with '_' or '-' between them, a letter first, at most "
            f"{_LONGEST} -> a name such as my_{kind.name}"
        )
    bare = re.sub(r"[-_.]+", "_", name.lower()).removeprefix("dataflex_")
    if not bare[0].isalpha():  # nor can the name of a module or a class
        raise ConfigError(f"NAME: '{bare}' does not begin with a letter -> a name such as {kind.name}_{bare}")
    distribution, package = PREFIX + bare.replace("_", "-"), f"dataflex_{bare}"
    words = [word for word in bare.split("_") if word]
    says_kind = len(words) > 1 and words[-1] == kind.name  # one word alone would be the name of the base class
    cls = "".join(word.capitalize() for word in words) + ("" if says_kind else kind.name.capitalize())
    if keyword.iskeyword(bare) or keyword.issoftkeyword(bare):
        raise ConfigError(f"NAME: '{bare}' is a word of Python -> a name such as {bare}_{kind.name}")
    owner = registry.official(kind).get(bare) or next(
        (registry.package_of(point) for point in registry.provided(kind) if point.name == bare), None
    )
    if owner is not None:
        raise ConfigError(f"NAME: '{bare}' is a {kind.name} of {owner} -> a name such as my_{bare}")
    if distribution in {dist for each in KINDS for dist in registry.official(each).values()} | {"dataflex-core"}:
        raise ConfigError(f"NAME: {distribution} is a package of dataflex -> a name such as my_{bare}")
    if _is_installed(distribution) or find_spec(package) is not None:
        raise ConfigError(
            f"NAME: a package {distribution} is installed already -> choose another name, or pip uninstall "
            f"{distribution}"
        )
    folder = Path(os.path.expanduser(into)).absolute() / distribution
    return NewPackage(folder, bare, distribution, package, cls)


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def kind_named(text: str) -> Kind:
    """Returns the kind that a user named.

    Raises:
        ConfigError: There is none of that name.
    """
    for kind in KINDS:
        if text in (kind.name, kind.section):
            return kind
    names = [kind.name for kind in KINDS]
    way_out = nearest(text, names) or f"dataflex-cli new {names[0]} NAME"
    raise ConfigError(f"found the kind '{text}', allowed: {', '.join(names)} -> {way_out}")


def _text(name: str) -> str:
    return (files("dataflex.workspace") / "templates" / "package" / name).read_text(encoding="utf-8")


def _filled(name: str, values: dict[str, str]) -> str:
    return Template(_text(name)).substitute(values)
