"""The keys dataflex adds to a LLaMA-Factory YAML, with their defaults. Every other key is LLaMA-Factory's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from dataflex.core.kinds import BY_TRAIN_TYPE, KINDS, MIXER, ORDER, SELECTOR, WEIGHTER, Kind
from dataflex.core.schedule import Steps

COMPOSED = "dynamic"
"""The ``train_type`` of a run of several axes, each under a key of its own."""
TRAIN_TYPES = ("static", *(kind.train_type for kind in KINDS), COMPOSED)
SAMPLE_RULES = ("mixture", "stratified", "uniform")
MIXTURE_UNITS = ("rows", "tokens")
WEIGHT_OBJECTIVES = ("sample", "token")
WEIGHT_LOGITS = ("auto", "full", "chunked")
EPOCHS = 3.0
"""``num_train_epochs`` of transformers where nobody gives it."""


Shares = tuple[float, ...] | Mapping[str, float]
"""A number for each source, in their order, or by name."""


def _key(default: Any, doc: str) -> Any:
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class DataflexArguments:
    """dataflex's own keys. Steps are global optimizer steps."""

    train_type: str = _key("static", " | ".join(TRAIN_TYPES))
    component_name: str | None = _key(None, "the preset of components.yaml, or the component, to use")
    component: Mapping[str, Any] | None = _key(
        None, "parameters of the component, over those of its preset; component.NAME=VALUE on the command line"
    )
    selector: Mapping[str, Any] | tuple[Mapping[str, Any], ...] | None = _key(
        None, "dynamic only: which rows; a preset or component name, a mapping, or a list of these, filters first"
    )
    mixer: Mapping[str, Any] | None = _key(None, "dynamic only: shares of the sources; a name or a mapping")
    order: Mapping[str, Any] | None = _key(
        None, "dynamic only: in which order; a name or a mapping. With dynamic_reorder its by and over alone"
    )
    weighter: Mapping[str, Any] | None = _key(None, "dynamic only: weights of samples; a name or a mapping")
    components_cfg_file: str | None = _key(None, "a YAML whose entries override the packages' defaults")
    warmup_step: int = _key(0, "steps before the first update")
    update_step: int = _key(0, "steps between two updates")
    update_times: int = _key(-1, "number of updates; -1 means until train_step or the epochs are done")
    train_step: int = _key(0, "total number of steps; 0 means what the schedule or the epochs give")
    static_mix: bool = _key(False, "dynamic_mix only: keep the initial proportions and make no update")
    mixture_sample_rule: str = _key(
        "mixture",
        "where the initial proportions come from: mixture (init_mixture_proportions, or the sources' sizes "
        "when that is absent) | stratified (the sources' sizes) | uniform (equal shares)",
    )
    mixture_unit: str = _key("rows", "what proportions are shares of: rows | tokens, by each source's mean row length")
    init_mixture_proportions: tuple[float, ...] | Mapping[str, float] | None = _key(
        None, "one non-negative number per source, in order, or a mapping from source to number"
    )
    objective_proportions: tuple[float, ...] | Mapping[str, float] | None = _key(
        None, "with a mixture: the shares of the sources in the loss, where they are others than those in the rows"
    )
    mixture_by: str | None = _key(
        None,
        "what makes the sources where they are not the datasets: column:NAME | file:PATH (a label for each row) | "
        "cluster:K (groups of rows that are alike)",
    )
    mixture_embedding: str = _key(
        "ngrams", "mixture_by: cluster:K only: what rows are alike by: ngrams | model | a sentence-transformers model"
    )
    mixer_eval_dataset: tuple[str, ...] | None = _key(
        None, "dynamic_mix only: one held-out dataset per dataset, in order"
    )
    weight_objective: str = _key("sample", "dynamic_weight only: what a step's loss is a mean over: sample | token")
    weight_logits: str = _key(
        "auto",
        "dynamic_weight only: how token losses are made: full (from the logits) | chunked (without holding them) | "
        "auto (chunked from a vocabulary of 65,536 on, and with enable_liger_kernel)",
    )
    explain_rows: int = _key(
        16, "rows of an update whose scores are explained by target rows, in dataflex_why.jsonl; 0 for none"
    )
    plugins: tuple[str, ...] = _key((), "Python files with @register_* classes, relative to the YAML's folder")

    @property
    def starts_from_sizes(self) -> bool:
        """Whether the initial proportions of a mixture come from the sizes of its sources."""
        rule = self.mixture_sample_rule
        return rule == "stratified" or (rule == "mixture" and self.init_mixture_proportions is None)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The axes that the run has, as its keys say; that of a short form, though ``static_mix`` leaves it empty."""
        if self.train_type != COMPOSED:
            kind = BY_TRAIN_TYPE.get(self.train_type)
            return () if kind is None else (kind,)
        return tuple(kind for kind in KINDS if getattr(self, kind.name))

    @property
    def dynamic(self) -> bool:
        """Whether dataflex has a hand in the run."""
        return self.train_type != "static"

    @property
    def mixes(self) -> bool:
        """Whether the train dataset is several sources in shares."""
        return MIXER in self.kinds

    @property
    def by_dataset(self) -> bool:
        """Whether the sources of a mixture are its datasets."""
        return self.mixes and self.mixture_by is None

    @property
    def weighs(self) -> bool:
        """Whether a weighter is asked for."""
        return WEIGHTER in self.kinds

    @property
    def plans(self) -> bool:
        """Whether rows are planned: with a selector, a mixture or an order. Else the loader is that of a static run."""
        return not {SELECTOR, MIXER, ORDER}.isdisjoint(self.kinds)

    @property
    def selectors(self) -> tuple[tuple[str, Mapping[str, Any]], ...]:
        """The mappings under ``selector``, each with its place: ``selector``, or ``selector[0]`` of a list."""
        if isinstance(self.selector, Mapping):
            return (("selector", self.selector),)
        return tuple((f"selector[{number}]", given) for number, given in enumerate(self.selector or ()))

    def steps(self, epochs: float | None, otherwise: float = EPOCHS, decides: bool | None = None) -> Steps:
        """Returns what these keys say about the number of steps and updates.

        Args:
            epochs: ``num_train_epochs`` where the user wrote it, else None.
            otherwise: The epochs in force where the user wrote none.
            decides: Whether an update changes anything, where that is known; else every selector, mixer and order is
                taken to decide.
        """
        planned = self.plans and not (self.static_mix and self.kinds == (MIXER,))
        return Steps(
            warmup_step=self.warmup_step,
            update_step=self.update_step,
            update_times=self.update_times,
            train_step=self.train_step,
            epochs=otherwise if epochs is None else epochs,
            repeat=self.train_type == "dynamic_select" and epochs is not None,
            decides=planned if decides is None else decides,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the keys that differ from their defaults, as YAML-ready values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {key: _plain(value) for key, value in values.items()}

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Returns every key, in the order of the documentation."""
        return tuple(f.name for f in fields(cls))

    @classmethod
    def docs(cls) -> Mapping[str, str]:
        """Returns key -> one-line description."""
        return {f.name: f.metadata["doc"] for f in fields(cls)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
