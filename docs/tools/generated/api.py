"""The pages of the Python API: which names are public, in which order. mkdocstrings writes what they say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from generated.sources import exported

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


def _writer(name: str) -> Callable[[], str]:
    title, introduction, names = _PAGES[name]
    text = f"# {title}\n\n{introduction}\n\n" + "\n".join(f"::: {path}\n" for path in names)
    return lambda: text


PAGES: Mapping[str, Callable[[], str]] = {name: _writer(name) for name in _PAGES}
