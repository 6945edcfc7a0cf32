"""The component that is tested, with what it is run on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from dataflex.core import registry
from dataflex.core.component import Component
from dataflex.core.errors import ConfigError, listed
from dataflex.core.kinds import KINDS, MIXER, ORDER, WEIGHTER, Kind
from dataflex.discovery.catalog import ComponentInfo, lookup
from dataflex.discovery.component_classes import find, is_component
from dataflex.discovery.construct import constructor_parameters
from dataflex.discovery.describe import describe_class
from dataflex.testing.small_online import small_prompts
from dataflex.testing.tiny_models import tiny_model, tiny_tokenizer
from dataflex.testing.token_rows import TokenRows, pad_collate

LENGTHS = range(8, 25)
BATCH = 8
"""Rows of an optimizer step, over all ranks."""
STEPS = {"warmup_step": 2, "update_step": 2, "update_times": 2}
"""An update at step 2 and one at step 4; the run has 6 steps."""


@dataclass(frozen=True)
class Subject:
    """A component under test. Everything in it can be sent to another process.

    Attributes:
        kind: Its kind.
        chosen: Its class or its name.
        params: Constructor parameters.
        rows: The train dataset; None for 48 rows of 8 to 24 tokens.
        sources: Source -> rows, where it mixes or knows its rows by source; None for two.
        target: Evaluation rows; None for six.
        held_out: Source -> held-out rows; None for some of each source.
        model: A model, which is copied for each run, or a function that makes it; None for a tiny Llama.
        tokenizer: The tokenizer; None for a tiny one, where the constructor asks for it.
        collator: Makes batches of rows.
        keys: Keywords of ``dynamic`` in place of those here, such as ``update_step``.
        arguments: Fields of ``TrainingArguments`` in place of those here.
        beside: Kinds of component that stand beside it in the combination; None for every other kind.
    """

    kind: Kind
    chosen: str | type[Any]
    params: Mapping[str, Any] = field(default_factory=dict)
    rows: Any = None
    sources: Mapping[str, Any] | None = None
    target: Any = None
    held_out: Mapping[str, Any] | None = None
    model: Any = None
    tokenizer: Any = None
    collator: Callable[[list[Any]], Any] = pad_collate
    keys: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    beside: Sequence[str] | None = None

    @property
    def name(self) -> str:
        """How messages name it."""
        return self.chosen if isinstance(self.chosen, str) else self.chosen.__name__

    @property
    def who(self) -> str:
        """Kind and name."""
        return f"{self.kind.name} {self.name}"

    @cached_property
    def cls(self) -> type[Any]:
        """The class."""
        return find(self.kind, self.chosen) if isinstance(self.chosen, str) else self.chosen

    @cached_property
    def info(self) -> ComponentInfo:
        """What its text says of it, as the checks of a configuration read it."""
        if isinstance(self.chosen, str):
            found = lookup(self.kind, self.chosen)
            assert found is not None, "its class was found"
            return found
        return ComponentInfo.of(self.kind, self.name, registry.file_of(self.chosen), "", describe_class(self.chosen))

    @property
    def asks_for(self) -> frozenset[str]:
        """Names of its constructor's parameters, those of its base classes among them."""
        return frozenset(constructor_parameters(self.cls)[0])

    @property
    def by_source(self) -> bool:
        """Whether it is run on sources."""
        if self.kind is MIXER:
            return True
        told = issubclass(self.cls, Component) and self.kind is WEIGHTER and self.cls.needs_sources(self.params)  # type: ignore[attr-defined]  # a weighter's
        return bool(told)

    @property
    def takes_rewards(self) -> bool:
        """Whether it is run over a trainer that samples answers, whose rows are prompts."""
        return issubclass(self.cls, Component) and self.cls.takes_rewards

    @property
    def part(self) -> dict[str, Any]:
        """What the keyword of its kind is given."""
        found: dict[str, Any] = {"name": self.chosen, "params": dict(self.params)}
        if self.kind is ORDER and self.cls.needs_scores and self.cls.by is None:
            found["by"] = "loss"  # scores that change, so that each update arranges anew
        return found

    def source_rows(self) -> dict[str, Any]:
        """Returns the sources."""
        if self.sources is not None:
            return dict(self.sources)
        if self.takes_rewards:
            return {"a": small_prompts(20), "b": small_prompts(36, "blue")}
        return {"a": TokenRows(20, lengths=LENGTHS, seed=1), "b": TokenRows(36, lengths=LENGTHS, seed=2)}

    def train_rows(self) -> Any:
        """Returns the train dataset of one source."""
        if self.rows is None:
            return small_prompts(48) if self.takes_rewards else TokenRows(48, lengths=LENGTHS)
        return self.rows

    def target_rows(self) -> Any:
        """Returns the evaluation rows."""
        return TokenRows(6, lengths=LENGTHS, seed=5) if self.target is None else self.target

    def held_out_rows(self) -> Mapping[str, Any]:
        """Returns held-out rows of each source; of the sources here, rows that differ in their words."""
        if self.held_out is not None:
            return self.held_out
        names = self.source_rows()
        words = {name: min(128, 40 + 40 * place) for place, name in enumerate(names)}
        return {name: TokenRows(5, vocab_size=most, lengths=LENGTHS, seed=most) for name, most in words.items()}

    def made_model(self) -> Any:
        """Returns the model, a new one for each run."""
        if self.model is None:
            return tiny_model(layers=1)
        is_class = isinstance(self.model, type)
        return self.model() if is_class or not _is_module(self.model) else copy.deepcopy(self.model)

    def made_tokenizer(self) -> Any:
        """Returns the tokenizer, a new one for each run; None where the component does not ask for one."""
        if self.tokenizer is not None or "tokenizer" not in self.asks_for:
            return self.tokenizer
        return copy.deepcopy(_trained_tokenizer())


@cache
def _trained_tokenizer() -> Any:
    """Returns the tiny tokenizer, trained once in a process; each run has a copy."""
    return tiny_tokenizer()


def _is_module(model: Any) -> bool:
    import torch

    return isinstance(model, torch.nn.Module)


def subject(component: str | type[Any], kind: Kind | str | None, given: Mapping[str, Any]) -> Subject:
    """Returns the component under test.

    Args:
        component: Its class, or the name of one that is installed or registered.
        kind: Its kind, where the name does not tell.
        given: Fields of :class:`Subject`.

    Raises:
        ConfigError: There is none of that name, several kinds have one, or the class is of no kind.
    """
    kinds = {each.name: each for each in KINDS}
    wanted = kinds.get(kind) if isinstance(kind, str) else kind
    if isinstance(kind, str) and wanted is None:
        raise ConfigError(f"kind: found '{kind}', allowed: {listed(kinds)}")
    if wanted is None:
        wanted = _only_kind(component)
    made = Subject(wanted, component, **{key: value for key, value in given.items() if value is not None})
    unknown = [name for name in made.beside or () if name not in kinds]
    if unknown:
        raise ConfigError(f"beside: found '{unknown[0]}', allowed: {listed(kinds)}")
    missing = [name for name in made.info.required if name not in made.params]
    if missing:
        raise ConfigError(
            f"{made.who}: the parameter '{missing[0]}' has no default -> give it in params={{'{missing[0]}': ...}}"
        )
    return made


def _only_kind(component: str | type[Any]) -> Kind:
    if not isinstance(component, str):
        found = [each for each in KINDS if is_component(each, component)]
        if not found:
            raise ConfigError(
                f"{component!r} is no component -> derive it from Selector, Mixer, Order or Weighter of "
                "dataflex.interfaces, or give kind="
            )
        return found[0]
    found = [each for each in KINDS if lookup(each, component) is not None]
    if not found:
        known = [name for each in KINDS for name in registry.names(each)]
        raise ConfigError(f"no component named '{component}'; known: {listed(known)} -> install it, or give the class")
    if len(found) > 1:
        raise ConfigError(
            f"'{component}' is the name of a {' and of a '.join(each.name for each in found)} -> give "
            f"kind='{found[0].name}', say"
        )
    return found[0]
