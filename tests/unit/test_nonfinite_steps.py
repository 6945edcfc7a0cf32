"""One step that is not finite changes nothing that is learnt from the others, in any component that remembers.

Every installed component with a state has a driver here, which feeds it a NaN and an infinite step among clean ones; a
new one without a driver fails.
"""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from dataflex.core.component import Component
from dataflex.core.context import UpdateContext
from dataflex.core.errors import ComponentError
from dataflex.core.kinds import MIXER, SELECTOR, WEIGHTER
from dataflex.core.registry import register_weighter
from dataflex.discovery.component_classes import find
from dataflex.planning.mixture import MixtureManager
from dataflex.rows.views import MixedSources
from dataflex.testing import TokenRows, pad_collate, tiny_model
from dataflex.train.weighter.base_weighter import Weighter
from dataflex_mixers.ado import AdoMixer
from dataflex_mixers.doremi.doremi_mixer import DoremiMixer
from dataflex_mixers.dynamic_moe import DynamicMoeMixer
from dataflex_mixers.loss import LossMixer
from dataflex_mixers.odm import OdmMixer
from dataflex_mixers.schedule import ScheduleMixer
from dataflex_selectors.delta_loss import DeltaLossSelector
from dataflex_selectors.parts.running_scores import RunningScores
from dataflex_weighters.adapt import AdaptWeighter
from dataflex_weighters.balancer import BalancerWeighter
from dataflex_weighters.parts.loss_balancer import Balancer, RunningMeans
from every_component import installed, run_objects
from weighted_run import weighted

BEFORE, AFTER = 20, 20  # clean steps
BAD = (math.nan, math.inf, -math.inf)
NAMES = ("a", "b", "c")
KINDS = (SELECTOR, MIXER, WEIGHTER)


def losses(step):
    """The clean losses of a step, one per source."""
    return 2 + np.exp(-step / 15) * np.array([1.0, 0.5, 2.0]) + 0.1 * np.sin(step * np.array([1.0, 2.0, 3.0]))


def steps(bad):
    """The losses of all steps; with ``bad``, steps of other numbers among them, of all sources or of one."""
    found = [losses(step) for step in range(BEFORE + AFTER)]
    if bad == "all sources":
        return found[:BEFORE] + [np.full(3, value) for value in BAD] + found[BEFORE:]
    if bad == "one source":
        return found[:BEFORE] + [np.array([value, 2.5, 2.6]) for value in BAD] + found[BEFORE:]
    if bad == "one source away":  # what "one source" must be like
        return found[:BEFORE] + [np.array([None, 2.5, 2.6], dtype=float) for _ in BAD] + found[BEFORE:]
    return found


def manager():
    return MixtureManager(NAMES, (50, 50, 50), (0.5, 0.3, 0.2), seed=1)


def mixed(mixer, bad):
    """Observes all steps, with a decision after every fourth that is there."""
    mixer.bind("a mixer", 1)
    clean = 0
    for losses_K in steps(bad):
        away_K = np.isnan(losses_K) if bad == "one source away" else np.zeros(3, dtype=bool)
        mixer.observe(clean + 1, losses_K, np.where(away_K, 0, 1024))
        clean += int(np.isfinite(losses_K).all())
        if clean % 4 == 0 and np.isfinite(losses_K).all():
            context = UpdateContext(clean // 4, 99, clean, 99, 1e-3, None)
            mixer.mixture_manager.set_proportions(mixer.mix(None, clean, context=context))
    return mixer


@pytest.fixture
def reference(tmp_path):
    tiny_model().save_pretrained(tmp_path / "reference")
    return str(tmp_path / "reference")


def odm(request, bad, **params):
    return mixed(OdmMixer(manager(), **params), bad)


def ado(request, bad):
    quick = {"start_step": 12, "fit_every": 8, "skip_steps": 0, "subsample": 1, "smoothing_window": 5}
    return mixed(AdoMixer(manager(), Accelerator(cpu=True), **quick), bad)


def doremi(request, bad):
    folder = request.getfixturevalue("tmp_path")
    given = {"reference_model": request.getfixturevalue("reference"), "excess_smoothing": 0.5}
    return mixed(DoremiMixer(manager(), Accelerator(cpu=True), str(folder), **given), bad)


def loss(request, bad):
    return mixed(LossMixer(manager()), bad)


def schedule(request, bad):
    points = [{"at": 0, "proportions": [1, 1, 1]}]
    return mixed(ScheduleMixer(manager(), Accelerator(cpu=True), points, by="tokens"), bad)


def dynamic_moe(request, bad):
    made = DynamicMoeMixer(manager(), pad_collate, Accelerator(cpu=True), dict.fromkeys(NAMES, TokenRows(3)))
    made.bind("dynamic_moe", 1)
    for update, losses_K in enumerate(steps(bad)):
        loads_KLE = np.stack([losses_K, np.ones(3)], axis=1)[:, None]
        made.loads = lambda model, update, found=loads_KLE: found
        with np.errstate(invalid="ignore"):
            made.mix(None, update, context=UpdateContext(update, 99, update, 99, 1e-3, None))
    return made


def balancer(request, bad):
    rows = MixedSources({name: TokenRows(1) for name in NAMES})
    made = BalancerWeighter(rows, ema_decay=0.9)
    made.bind("balancer", 1)
    context = SimpleNamespace(
        loss_scale=2.0,
        sample_factors=torch.full((3,), 0.25),
        by_sample=lambda gradient: gradient,
        accelerator=SimpleNamespace(num_processes=1),
    )
    for norms_K in steps(bad):
        if bad == "one source away" and np.isnan(norms_K).any():  # its norm is away, but its rows were in the step
            made._norms.update({"b": 2.5, "c": float(np.float32(2.6))})
            made._rows.update(dict.fromkeys(NAMES, 0.25))
            continue
        gradient = torch.tensor(norms_K, dtype=torch.float32)[:, None, None] / 2
        made._look(gradient, torch.arange(3), torch.ones(3), context)
        made._average(context)
    return made


def adapt(request, bad):
    """Embeddings that are not finite stop the run with the reason; what was known of the target stays."""
    patch = request.getfixturevalue("monkeypatch")
    made = AdaptWeighter(TokenRows(4), pad_collate, refresh=1)
    made.bind("adapt", 1)
    model = tiny_model()
    context = SimpleNamespace(model=model, accelerator=None, state=SimpleNamespace(global_step=0))
    made._target_H, made._refreshed = torch.from_numpy(made._embedded(context, 0)), 0
    if bad:
        with torch.no_grad():
            model.model.norm.weight[:] = BAD[0]
        context.state.global_step = 1
        patch.setattr(AdaptWeighter, "get_weighted_loss", lambda *args, **kwargs: None)
        with pytest.raises(ComponentError, match="NaN or infinite"):
            made.training_step(context, model, {}, use_weighter=True)
        made.left_out = 1
    return made


class Scores(Component):
    """The scores that less, nice and cluster_less remember."""

    def __init__(self):
        self.running = RunningScores(1, 0.5)

    def state_dict(self):
        return self.running.state_dict()


def running(request, bad):
    made = Scores()
    for losses_K in steps(bad):
        if np.isfinite(losses_K).any() or bad == "one source":
            made.running.add(np.arange(3), [0], losses_K[:, None], 1e-3)
    return made


def delta_loss(request, bad):
    made = DeltaLossSelector(**run_objects(TokenRows(3)), reference="previous", outside_weight=1.0)
    made.bind("delta_loss", 1)
    for update, losses_K in enumerate(steps(bad)):
        losses_K = np.maximum(losses_K, 0.0)  # a loss is never below
        made._losses.now = lambda model, step, shared, found=losses_K: found.astype(np.float32)
        count = int(np.isfinite(losses_K).sum()) if update else 3
        if count:
            made.select(None, update, 1, context=UpdateContext(update, 99, update, 99, 1e-3, None))
        else:
            made._reference(losses_K.astype(np.float32))
    return made


LEARNING = {
    "odm": odm,
    "loss": loss,
    "ado": ado,
    "doremi": doremi,
    "schedule": schedule,
    "dynamic_moe": dynamic_moe,
    "balancer": balancer,
    "adapt": adapt,
    "less": running,
    "nice": running,
    "cluster_less": running,
    "delta_loss": delta_loss,
}
"""Name -> what feeds it. Of less, nice and cluster_less the part that remembers scores is fed."""

OTHERS = {
    "icons": "sums of votes' scores over updates, of finite scores alone, as those of less",
    "greats": "a position",
    "coincide": "the order of rows inside of clusters; hidden states that are not finite are refused before",
    "deita": "rows in order; embeddings that are not finite are refused before",
    "semdedup": "which rows are copies; embeddings that are not finite are refused before",
    "dsir": "rows in order, by counts of n-grams",
    "doge": "a window of gradients; rows whose gradient is not finite are left out where these are summed",
    "pike": "as doge; losses that are not finite are left out and counted",
    "reward_spread": "rewards of prompts; an answer without a finite one is left out where they are kept",
    "custom": "a position",
    "random": "positions",
    "near": "rows in order; embeddings that are not finite are refused before",
    "tsds": "a distribution of one update; embeddings that are not finite are refused before",
    "scores": "a digest of the file, whose numbers are checked when it is read",
    "column": "a digest of the weights, which are checked when they are read",
    "joint_update_aware": "the embedded target of one step; hidden states that are not finite are refused",
    "infobatch": "which rows a pass keeps; the losses are those that training keeps, without those that are not finite",
    "ifd": "scores under another model, computed once; a loss that is not finite stops the run",
    "perplexity": "losses under another model, computed once; one that is not finite stops the run",
    "rho_tokens": "a digest of the reference model",
    "token_column": "a digest of the weights, which are checked when they are read",
    "spans": "the markers and their weights",
    "rho_loss": "losses of a reference model, computed once; rows without a finite one are never taken",
}
"""Name -> what its state is, where it estimates nothing from step to step."""


def keeping():
    """Returns the installed components of this project that have a state."""
    found = [(name, find(kind, name)) for kind in KINDS for name in installed(kind)]
    return {
        name
        for name, component in found
        if component.__module__.startswith("dataflex_") and component.state_dict is not Component.state_dict
    }


def test_every_component_with_a_state_is_driven_or_estimates_nothing():
    assert keeping() == {*LEARNING, *OTHERS}


def flat(state, path=""):
    """Returns path -> numbers of a nested state."""
    if isinstance(state, dict):
        return {key: value for name in state for key, value in flat(state[name], f"{path}/{name}").items()}
    if state is None or isinstance(state, str):
        return {}
    return {path: np.asarray(state, dtype=np.float64)}


def learnt(component):
    """Returns what a component has learnt, without the count of steps that were not clean."""
    return {path: value for path, value in flat(component.state_dict()).items() if not path.endswith("left_out")}


def require_same(found, expected):
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-9, err_msg=path)


@pytest.mark.parametrize("name", LEARNING)
def test_steps_that_are_not_finite_leave_the_state_as_if_they_had_not_been(request, name, caplog):
    with caplog.at_level(logging.WARNING, logger="dataflex"):
        made = LEARNING[name](request, "all sources")
    clean = learnt(LEARNING[name](request, ""))
    assert clean
    if name == "schedule":  # counts the tokens of these steps as well
        clean["/tokens"] += len(BAD) * 3 * 1024
    require_same(learnt(made), clean)
    assert made.left_out > 0 or name in ("schedule", "less", "nice", "cluster_less")
    assert sum("is left out" in record.message for record in caplog.records) <= 1


@pytest.mark.parametrize("name", ["odm", "loss", "ado", "doremi", "balancer"])
def test_a_source_whose_loss_is_not_finite_is_a_source_that_the_step_did_not_have(request, name):
    made = LEARNING[name](request, "one source")
    require_same(learnt(made), learnt(LEARNING[name](request, "one source away")))
    assert made.left_out == len(BAD)


@pytest.mark.parametrize("reward", ["loss", "loss_drop", "excess_over_ema"])
@pytest.mark.parametrize("variant", ["paper", "code"])
def test_every_reward_of_odm_survives(request, reward, variant):
    params = {"reward": reward, "variant": variant}
    require_same(learnt(odm(request, "all sources", **params)), learnt(odm(request, "", **params)))


@pytest.mark.parametrize("name", ["less", "delta_loss"])
def test_a_row_whose_score_is_not_finite_once_has_one_again(request, name):
    for values in flat(LEARNING[name](request, "one source").state_dict()).values():
        assert np.isfinite(values).all()


def balanced(values, balancer):
    """Balances two losses whose gradients have these factors, and returns the norms of the whole gradients."""
    norms = []
    for value in values:
        x = torch.ones(2, 3, requires_grad=True)
        balancer.backward({"a": (value * x).sum(), "b": (x**2).sum()}, x)
        norms.append(x.grad.norm().item())
    return norms


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("first", [True, False], ids=["at the first step", "later"])
def test_the_public_balancer_forgets_an_overflow(bad, first, caplog):
    values = [1.0, 1.5, 0.5]
    clean, other = (Balancer({"a": 1, "b": 1}, ema_decay=0.9) for _ in range(2))
    balanced(values[: 0 if first else 2], clean)
    with caplog.at_level(logging.WARNING, logger="dataflex"):
        balanced([*values[: 0 if first else 2], bad, bad], other)
    assert other.left_out == 2
    assert [record.message for record in caplog.records] == [
        "balancer: the gradient of a is not finite and is left out; later ones are counted"
    ]
    expected, found = (balanced([1.0, 2.0, 0.5] * 10, made) for made in (clean, other))
    assert all(math.isfinite(norm) for norm in found)
    assert found[-1] == pytest.approx(expected[-1], rel=0.15)  # "b" had two values more
    again = Balancer({"a": 1, "b": 1})
    again.load_state_dict(other.state_dict())
    assert again.left_out == 2
    again.load_state_dict({"total": {"a": 1.0}, "fix": {"a": 1.0}})  # of an older checkpoint


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.9])
def test_an_average_of_what_has_long_been_away_is_kept(decay):
    means = RunningMeans(decay)
    means.update({"a": 3.0, "b": 1.0})
    for _ in range(20_000):
        found = means.update({"b": 2.0})
    assert found["a"] == pytest.approx(3.0)
    assert means.update({"a": 5.0, "b": 2.0})["a"] == pytest.approx(5.0)  # and nothing is left of its weight


@register_weighter("overflowing")
class Overflowing(Weighter):
    def get_weighted_loss(self, losses, *, ctx=None, model=None, inputs=None):
        self.leave_out(ctx.state.global_step, "a gradient")
        return losses.mean()


def test_the_log_of_a_weighted_run_says_how_much_was_left_out(tmp_path):
    done = weighted(tmp_path, "overflowing", None, TokenRows(16), max_steps=3)
    done.train()
    lines = [line for line in done.state.log_history if "loss" in line]
    assert [line.get("dataflex/left_out") for line in lines] == [None, 1, 3]
