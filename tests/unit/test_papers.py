"""What docs/papers.md says of defaults is what constructors have, and where they are not the authors' it says so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from dataflex.core import registry
from dataflex.discovery.catalog import ComponentInfo, components

PAPERS = (Path(__file__).parents[2] / "docs" / "papers.md").read_text(encoding="utf-8")
COMPONENTS = [info for info in components() if info.name in registry.official(info.kind) and info.name != "custom"]

PUBLISHED: dict[str, dict[str, Any]] = {
    "selector-less": {"gradient_type": "adam", "proj_dim": 8192, "decay": 1.0, "mode": "topk"},
    "selector-cluster_less": {"representatives": 3, "resample": True, "embedding": "model", "gradient_type": "adam"},
    "selector-rho_loss": {"pool_factor": 10.0},
    "selector-delta_loss": {"window": 0.2, "outside_weight": 0.025},
    "selector-near": {"exclude_seen": False},
    "selector-loss": {"focus": "high", "focus_weight": 5.0},
    "selector-zeroth": {"directions": 1},
    "selector-tsds": {"neighbours": 5000, "kde_neighbours": 1000, "sigma": 0.75, "alpha": 0.5, "scale": 5.0},
    "selector-nice": {
        "samples": 20,
        "temperature": 1.2,
        "top_k": 50,
        "top_p": 0.95,
        "max_new_tokens": 300,
        "reject": False,
        "keep": None,
        "baseline": False,
        "fallback": "none",
        "proj_dim": 8192,
        "decay": 1.0,
        "gradient_type": "adam",
        "mode": "topk",
    },
    "mixer-temperature": {"temperature": 5.0},
    "mixer-odm": {"variant": "code", "smoothing": 0.9, "reward": "loss", "min_share": 0.0},
    "mixer-ado": {
        "fit_every": 1000,
        "start_step": 1000,
        "skip_steps": 1000,
        "subsample": 10,
        "smoothing_window": 101,
        "credit": 0.5,
        "history_rate": 0.1,
        "policy_rate": 0.1,
        "min_share": 0.01,
    },
    "mixer-dynamic_moe": {"eta": 10.0, "smoothing": 0.05, "distance": "l2", "layers": "last", "freeze_gate": True},
    "mixer-doremi": {"eta": 1.0, "smoothing": 0.0001, "excess_smoothing": 0.0},
    "order-sorting": {"window": 0, "ascending": True},
    "order-folding": {"layers": 5, "window": 0, "ascending": True},
    "order-zigzag": {"layers": 5, "window": 0, "ascending": True},
    "order-segment": {"front": 0.1, "back": 0.1, "ends": "opposite", "ascending": True},
    "order-stair": {"sections": 2, "ratio": 0.225, "layers": 3, "window": 0, "ascending": True},
    "order-saw": {"sections": 3, "ratio": 0.075, "layers": 2, "window": 0, "ascending": True},
    "order-pacing": {"competence": "sqrt", "start": 0.01},
    "weighter-loss": {"strategy": "linupper", "delta": 1.0, "temperature": 1.0},
    "weighter-focal": {"gamma": 2.0},
    "weighter-adapt": {"temperature": 1.0},
    "weighter-balancer": {"ema_decay": 0.999, "epsilon": 1e-12},
}
"""What the authors' program, or the strategy that ours is named after, has."""

WITHOUT = {
    "selector-random",
    "selector-reward_spread",
    "selector-scores",
    "mixer-random",
    "mixer-static",
    "mixer-schedule",
}
WITHOUT |= {"weighter-column", "weighter-dataset", "weighter-trim", "order-shuffle", "order-length"}
"""Those without a program that has such parameters."""


def key(info: ComponentInfo) -> str:
    return f"{info.kind.name}-{info.name}"


def entry(info: ComponentInfo) -> str:
    part = re.search(rf"^## {info.kind.section.capitalize()}$.*?(?=^## |\Z)", PAPERS, flags=re.MULTILINE | re.DOTALL)
    assert part
    found = re.search(rf"^### `{info.name}`.*?(?=^### |\Z)", part[0], flags=re.MULTILINE | re.DOTALL)
    assert found
    return re.sub(r"\s+", " ", found[0])


def test_every_component_says_what_its_authors_have_or_that_nobody_has_it():
    assert {key(info) for info in COMPONENTS} == {*PUBLISHED, *WITHOUT}


@pytest.mark.parametrize("info", COMPONENTS, ids=key)
def test_a_default_that_is_not_the_authors_is_named_in_papers(info):
    for name, published in PUBLISHED.get(key(info), {}).items():
        ours = {**info.parameters}[name]
        if ours != published:
            assert re.search(rf"`{name}(: [^`]+)?`", entry(info)), f"{name} is {ours!r}, the authors' {published!r}"


@pytest.mark.parametrize("info", COMPONENTS, ids=key)
def test_what_papers_calls_the_default_is_the_constructors(info):
    said = re.findall(r"`(\w+): ([^`{}]+)`(?:,| is) the default(?! of)", entry(info))
    for name, value in said:
        assert yaml.safe_load(value) == info.parameters[name], f"{name}: {value}"


def test_defaults_are_found_in_the_text_at_all():
    said = re.findall(r"`(\w+): ([^`{}]+)`(?:,| is) the default(?! of)", re.sub(r"\s+", " ", PAPERS))
    assert len(said) >= 5
