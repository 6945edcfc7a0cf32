"""A configuration whose own keys have been parsed, as the checks see it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import Part, decides
from dataflex.core.kinds import Kind
from dataflex.core.schedule import Steps
from dataflex.discovery.catalog import ComponentInfo


@dataclass(frozen=True)
class KnownPart:
    """A component of a run, and what is known of it before it is imported.

    Attributes:
        where: Its place in the file: ``component_name``, or ``selector[0]``.
        part: The component in its place.
        info: What its text tells; None where nothing is known.
    """

    where: str
    part: Part
    info: ComponentInfo | None

    @property
    def kind(self) -> Kind:
        """Its kind."""
        return self.part.component.kind

    @property
    def named(self) -> str:
        """It, in words."""
        return f"the {self.kind.name} '{self.part.component.preset}'"

    @property
    def params(self) -> dict[str, Any]:
        """Its parameters, defaults included; none where its text is not known."""
        return {} if self.info is None else {**self.info.parameters, **self.part.component.params}

    def declares(self, name: str, default: Any = None) -> Any:
        """Returns what its class says in a constant of that name; the default where it is not known to say it."""
        return default if self.info is None else self.info.constants.get(name, default)


@dataclass(frozen=True)
class Draft:
    """What is checked.

    Attributes:
        arguments: dataflex's keys; a key with a problem has its default.
        theirs: LLaMA-Factory's keys as the user wrote them.
        written: The keys of dataflex that the user gave a value.
        wrong: The keys of dataflex that have a problem already.
        known: The components, as far as they could be found.
        complete: Whether all were found.
    """

    arguments: DataflexArguments
    theirs: Mapping[str, Any]
    written: frozenset[str] = frozenset()
    wrong: frozenset[str] = frozenset()
    known: tuple[KnownPart, ...] = ()
    complete: bool = False

    @property
    def dynamic(self) -> bool:
        """Whether dataflex has a hand in the run."""
        return self.arguments.dynamic

    @property
    def by_dataset(self) -> bool:
        """Whether the sources of a mixture are its datasets; not where a wrong ``mixture_by`` asks for others."""
        return self.arguments.by_dataset and "mixture_by" not in self.wrong

    @property
    def axes(self) -> tuple[Part, ...]:
        """The components in their places."""
        return tuple(known.part for known in self.known)

    @property
    def infos(self) -> tuple[ComponentInfo, ...]:
        """What is known of the components."""
        return tuple(known.info for known in self.known if known.info is not None)

    @property
    def static_mix(self) -> bool:
        """Whether the proportions never change."""
        return self.arguments.static_mix and self.arguments.train_type == "dynamic_mix"

    @property
    def epochs(self) -> float | None:
        """``num_train_epochs`` where the user wrote it, else None."""
        return self.number("num_train_epochs", 0.0) if self.theirs.get("num_train_epochs") is not None else None

    @property
    def steps(self) -> Steps:
        """What the keys say about the number of steps and updates."""
        known = self.complete and bool(self.known)
        return self.arguments.steps(
            self.epochs, decides=decides(self.axes, self.arguments.update_step) if known else None
        )

    @property
    def global_batch_size(self) -> int:
        """Rows of an optimizer step of one process."""
        return self.count("per_device_train_batch_size", 8) * self.count("gradient_accumulation_steps", 1)

    @property
    def stage(self) -> str:
        """LLaMA-Factory's ``stage``."""
        return str(self.theirs.get("stage") or "sft")

    @property
    def dataset_names(self) -> list[str]:
        """The train datasets, split as LLaMA-Factory splits them."""
        return names_in(self.theirs.get("dataset"))

    def number(self, key: str, default: float) -> float:
        """Returns a number of LLaMA-Factory's, or the default where something else stands there (it will say so)."""
        value = self.theirs.get(key)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else default

    def count(self, key: str, default: int) -> int:
        """Returns :meth:`number` as a whole number."""
        return int(self.number(key, default))

    def on(self, key: str) -> bool:
        """Returns whether a switch of LLaMA-Factory's is on."""
        return self.theirs.get(key) is True


def names_in(value: object) -> list[str]:
    """Returns the names in ``"a, b"`` or ``[a, b]``."""
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    return [name for name in (str(item).strip() for item in items) if name]


def expanded(value: str) -> Path:
    """Returns the path with ``~`` replaced; the home of a user who is not there stays as it is written."""
    return Path(os.path.expanduser(value))


def find_path(value: str, folder: Path) -> Path:
    """Returns the absolute path that ``value`` means: from the working directory, else from the YAML's folder.

    Where neither exists, the one from the YAML's folder is returned.
    """
    path = expanded(value)
    return (path if path.exists() else folder / path).absolute()


def named_checkpoint(given: Any) -> str | bool | None:
    """Returns what ``resume_from_checkpoint`` asks for: a folder, True for the newest one, False for none, or None.

    The command line gives texts for the last three.
    """
    word = str(given).strip().lower()
    if word in ("true", "false"):
        return word == "true"
    return None if given is None or word in ("none", "") else str(given)
