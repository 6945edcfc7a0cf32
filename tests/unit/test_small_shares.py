"""A share that has become less than a number can hold comes back when its source is wanted again.

Every installed mixer with a state has a driver here, or says why it needs none; a new one without fails.
"""

from __future__ import annotations

import numpy as np
import pytest
from accelerate import Accelerator
from dataflex.core.component import Component
from dataflex.core.context import UpdateContext
from dataflex.core.kinds import MIXER
from dataflex.discovery.component_classes import find
from dataflex.planning.mixture import MixtureManager
from dataflex.testing import TokenRows, pad_collate, tiny_model
from dataflex_mixers.ado import AdoMixer
from dataflex_mixers.doremi.doremi_mixer import DoremiMixer
from dataflex_mixers.dynamic_moe import DynamicMoeMixer
from dataflex_mixers.loss import LossMixer
from dataflex_mixers.odm import OdmMixer
from dataflex_mixers.parts.simplex import log_mixed_with_uniform, log_softmax, logarithm, softmax
from every_component import installed

DOWN, UP = 1200, 1500
NAMES = ("a", "b")
TOKENS = np.array([1024, 1024])


def manager():
    return MixtureManager(NAMES, (50, 50), (0.5, 0.5), seed=1)


def context(step):
    return UpdateContext(step, 99, step, 99, 1e-3, None)


@pytest.fixture
def doremi(tmp_path):
    tiny_model().save_pretrained(tmp_path / "reference")
    given = {"reference_model": str(tmp_path / "reference"), "smoothing": 0.0}
    made = DoremiMixer(manager(), Accelerator(cpu=True), str(tmp_path), **given)

    def step(wanted):
        made.observe(1, np.where(np.arange(2) == wanted, 0.9, 0.1), TOKENS)
        return made.alpha_K

    return made, step


@pytest.fixture
def dynamic_moe():
    made = DynamicMoeMixer(
        manager(), pad_collate, Accelerator(cpu=True), dict.fromkeys(NAMES, TokenRows(3)), smoothing=0.0
    )
    made.bind("dynamic_moe", 1)
    made.distances = [0.0, 0.0]

    def step(wanted):
        with pytest.MonkeyPatch.context() as patch:
            distances = np.where(np.arange(2) == wanted, 0.09, 0.01)
            patch.setattr("dataflex_mixers.dynamic_moe.distances", lambda *args: distances)
            patch.setattr(made, "loads", lambda *args: None)
            shares = made.mix(None, 1, context=context(1))
        made.mixture_manager.set_proportions(shares)
        return shares

    return made, step


@pytest.fixture
def ado():
    """With the whole of the credit and no least share, h is multiplied by the learning speeds in each step."""
    rates = {"credit": 1.0, "history_rate": 0.9, "policy_rate": 1.0, "min_share": 0.0}
    made = AdoMixer(manager(), Accelerator(cpu=True), start_step=10**9, **rates)

    def step(wanted):
        made.params_K3 = np.array([[3.0 if k == wanted else 1.0, 0.5, 0.3] for k in range(2)])
        made.observe(1, np.array([2.0, 2.0]), TOKENS)
        shares = made.mix(None, 1, context=context(1))
        made.mixture_manager.set_proportions(shares)
        return shares

    return made, step


@pytest.fixture
def odm():
    made = OdmMixer(manager(), variant="code", reward="loss")
    made.mix(None, 0, context=context(0))

    def step(wanted):
        number = made.step + 1
        made.observe(number, np.where(np.arange(2) == wanted, 9.0, 1.0), TOKENS)
        shares = made.mix(None, number, context=context(number))
        made.mixture_manager.set_proportions(shares)
        return shares

    return made, step


@pytest.fixture
def loss():
    made = LossMixer(manager(), temperature=0.005)

    def step(wanted):
        made.observe(1, np.where(np.arange(2) == wanted, 9.0, 1.0), TOKENS)
        return made.mix(None, 1, context=context(1))

    return made, step


DRIVEN = ("doremi", "dynamic_moe", "ado", "loss", "odm")
OTHERS = {
    "schedule": "follows the points that it is given",
    "doge": "follows gradients; test_doge.py holds the least share",
    "pike": "follows gradients; test_pike.py holds the least share",
}


def test_every_mixer_with_a_state_is_driven_or_follows_no_shares_of_its_own():
    found = {name: find(MIXER, name) for name in installed(MIXER)}
    ours = {name for name, mixer in found.items() if mixer.__module__.startswith("dataflex_mixers.")}
    assert {name for name in ours if found[name].state_dict is not Component.state_dict} == {*DRIVEN, *OTHERS}


@pytest.mark.parametrize("name", DRIVEN)
def test_what_was_unwanted_for_long_comes_back_when_it_is_wanted_longer(request, name):
    made, step = request.getfixturevalue(name)
    for _ in range(DOWN):
        shares = step(0)
    assert shares[0] > 0.8
    state = made.state_dict()
    for _ in range(UP):
        shares = step(1)
    assert shares[1] > 0.8
    assert shares.sum() == pytest.approx(1)
    if name in ("doremi", "dynamic_moe"):
        np.testing.assert_allclose(shares, [0, 1], atol=1e-9)
    made.load_state_dict(state)  # resumed where the share was 0
    made.mixture_manager.set_proportions([1.0, 0.0])
    for _ in range(UP):
        shares = step(1)
    assert shares[1] > 0.8


@pytest.mark.parametrize("uniform", [0.0, 0.05, 1.0])
def test_logarithms_of_shares_are_those_of_the_shares(uniform):
    logits = np.array([0.3, -1.0, 2.5])
    np.testing.assert_allclose(np.exp(log_softmax(logits)), softmax(logits), rtol=1e-14)
    mixed = np.exp(log_mixed_with_uniform(log_softmax(logits), uniform))
    np.testing.assert_allclose(mixed, (1 - uniform) * softmax(logits) + uniform / 3, rtol=1e-14)
    np.testing.assert_array_equal(logarithm(np.array([1.0, 0.0])), [0.0, -np.inf])
    np.testing.assert_array_equal(log_softmax(np.array([0.0, -5000.0])), [0.0, -5000.0])
