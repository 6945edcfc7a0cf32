"""The pages of the Python API: which names are public, in which order. mkdocstrings writes what they say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from generated.sources import exported, functions

_Page = tuple[str, str, Sequence[str]]  # title, introduction, names

_PAGES: Mapping[str, _Page] = {
    "training": (
        "Training from Python",
        "[From Python](../../plain-transformers.md) shows these at work.",
        ("dataflex.api.dynamic_call.dynamic", "dataflex.train.trainer.trainer_class"),
    ),
    "interfaces": (
        "Interfaces",
        "The base class of each kind: what dataflex calls, and what it expects back. The guide is "
        "[plugins](../../plugins.md).",
        (
            "dataflex.core.component.Component",
            "dataflex.interfaces.selector.Selector",
            "dataflex.interfaces.selector.Selection",
            "dataflex.interfaces.mixer.Mixer",
            "dataflex.interfaces.mixer.SourceMixture",
            "dataflex.interfaces.order.Order",
            "dataflex.interfaces.weighter.Weighter",
            "dataflex.interfaces.weighter.WeightsSamples",
        ),
    ),
    "context": (
        "What a component is given",
        "The state of the run: at an update, before the first step, and in a step.",
        (
            "dataflex.core.context.UpdateContext",
            "dataflex.core.context.RowScores",
            "dataflex.core.context.PassOptions",
            "dataflex.core.context.RunAhead",
            "dataflex.interfaces.weighter.StepContext",
            "dataflex.objective.step_losses.StepLosses",
        ),
    ),
    "registry": (
        "Registry",
        "How a class gets the name by which a run finds it.",
        (
            "dataflex.core.registry.register_selector",
            "dataflex.core.registry.register_mixer",
            "dataflex.core.registry.register_order",
            "dataflex.core.registry.register_weighter",
            "dataflex.core.registry.names",
        ),
    ),
    "checks": (
        "Checks of parameters",
        "What a constructor refuses its parameters with: all problems come in one message, and are known before the "
        "component is imported. Each check returns a problem, or None.",
        tuple(f"dataflex.core.parameter_checks.{name}" for name in functions("dataflex.core.parameter_checks")),
    ),
    "cost": (
        "Cost and explanations",
        "What a component answers for [a plan](../../plan.md), and for the record of why a row was chosen.",
        (
            "dataflex.core.cost.Ahead",
            "dataflex.core.cost.Amount",
            "dataflex.core.cost.Work",
            "dataflex.core.cost.Cost",
            "dataflex.core.explain.Explanation",
            "dataflex.core.explain.Pull",
        ),
    ),
    "scoring": (
        "Scoring",
        "What the model says about rows: losses, gradients, embeddings. Each name is imported from `dataflex.scoring`.",
        tuple(exported("dataflex.scoring")),
    ),
    "testing": (
        "Testing",
        "Fixtures for tests of components. Each name is imported from `dataflex.testing`.",
        tuple(exported("dataflex.testing")),
    ),
}


_METHODS_ALONE: Mapping[str, str] = {
    "dataflex.interfaces.weighter.StepContext": "of_batch of_sources sources_of by_sample step_losses "
    "plain_training_step weighted_by",
}
"""Class -> the members that are shown; the others are properties, which stand in the table of its attributes."""


def names() -> list[str]:
    """Returns every name that the pages show."""
    return [path for _, _, paths in _PAGES.values() for path in paths]


def _directive(path: str) -> str:
    members = _METHODS_ALONE.get(path, "").split()
    options = f"    options:\n      members: [{', '.join(members)}]\n" if members else ""
    return f"::: {path}\n{options}"


def _writer(name: str) -> Callable[[], str]:
    title, introduction, paths = _PAGES[name]
    text = f"# {title}\n\n{introduction}\n\n" + "\n".join(map(_directive, paths))
    return lambda: text


PAGES: Mapping[str, Callable[[], str]] = {name: _writer(name) for name in _PAGES}
