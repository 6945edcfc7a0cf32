"""``seed`` of a component: taken by all that draw, refused by the others."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
from dataflex.config.arguments import DataflexArguments
from dataflex.config.component_choice import resolve
from dataflex.config.spec import RunSpec
from dataflex.core.component import Component
from dataflex.core.errors import ConfigError
from dataflex.core.kinds import KINDS, MIXER, SELECTOR
from dataflex.discovery import component_classes
from dataflex.discovery.construct import construct
from dataflex.interfaces.mixer import Mixer
from dataflex.run.identity import identity_of_run
from dataflex.testing import TokenRows, pad_collate
from every_component import installed

INSTALLED = [pytest.param(kind, name, id=f"{kind.name} {name}") for kind in KINDS for name in installed(kind)]


def draws_in_its_text(cls):
    """Whether a class of the strategy packages, a base or a helper that is given it, asks for a seed or a generator.

    Sketches of gradients are drawn by the seed of the mixer that asks for them.
    """
    if any(kind.name == "selector" and issubclass(cls, registry_base(kind)) for kind in KINDS):
        return True  # every selector draws its warm-up
    if issubclass(cls, Mixer) and cls.may_observe_gradients({}):
        return True  # the map that gradients are sketched by
    texts = [inspect.getsource(base) for base in cls.__mro__ if base.__module__.startswith("dataflex_")]
    return any(any(word in text for word in ("self.generator(", "self.seed", "GradientSketch(")) for text in texts)


def registry_base(kind):
    module, _, name = component_classes.INTERFACES[kind].partition(":")
    return getattr(__import__(module, fromlist=[name]), name)


@pytest.mark.parametrize(("kind", "name"), INSTALLED)
def test_a_component_says_that_it_draws_exactly_if_it_does(kind, name):
    cls = component_classes.find(kind, name)
    assert issubclass(cls, Component)
    assert cls.draws == draws_in_its_text(cls)


@pytest.mark.parametrize(("kind", "name"), INSTALLED)
def test_a_seed_is_taken_by_what_draws_and_refused_by_the_rest_from_the_file_and_from_python(kind, name, tmp_path):
    cls, file = component_classes.find(kind, name), tmp_path / "c.yaml"
    file.write_text(json.dumps({kind.section: {"mine": {"name": name, "params": {"seed": 42}}}}).replace('"', ""))
    problems = ""
    try:
        resolve(kind, "mine", file)
    except ConfigError as error:
        problems = str(error)
    try:
        construct(cls, {"seed": 42}, {})
    except ConfigError as error:  # it lacks the objects of a run, and says no more than that
        said = str(error)
    else:
        said = ""
    assert ("params.seed" in problems) == (not cls.draws)
    assert ("draws nothing" in said) == ("draws nothing" in problems) == (not cls.draws)
    assert "no parameter 'seed'" not in said


def drawn(seed, run_seed=7):
    given = {"dataset": TokenRows(64), "accelerator": None, "data_collator": pad_collate, "cache_dir": "unused"}
    params = {} if seed is None else {"seed": seed}
    selector = construct(component_classes.find(SELECTOR, "loss"), params, given)
    selector.bind("loss", params.get("seed", run_seed))
    return selector.generator(0).integers(1000, size=8).tolist(), np.asarray(selector.warmup(8, False)).tolist()


def test_a_seed_repeats_a_draw_whatever_the_run_s_own_and_another_changes_it():
    assert drawn(42) == drawn(42, run_seed=8) != drawn(43)
    assert drawn(None) != drawn(42)


def test_a_run_with_another_seed_of_its_component_is_another_run():
    def identity(**params):
        spec = RunSpec(DataflexArguments(train_type="dynamic_mix"), resolve(MIXER, "random", overrides=params))
        return identity_of_run(spec, seed=1)

    assert identity(seed=42) == identity(seed=42)
    assert identity(seed=42) != identity(seed=43)
    assert identity(seed=42) != identity()
