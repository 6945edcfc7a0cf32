"""A component with a fault fails the point that the fault is about, and what cannot be run is refused, in words."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from dataflex.core.cost import Amount, Cost, Work
from dataflex.core.errors import ConfigError
from dataflex.core.parameter_checks import count, require
from dataflex.interfaces.mixer import Mixer
from dataflex.interfaces.order import Order
from dataflex.interfaces.selector import Selector
from dataflex.interfaces.weighter import Weighter
from dataflex.testing import Conformance, NotConforming, conformance, conformance_cases
from dataflex.testing.call_watch import same
from dataflex.testing.conformance_call import Given
from dataflex.testing.conformance_points import POINTS


class InOrder(Selector):
    """The first rows."""

    draws = False

    def select(self, model, step_id, num_samples, **kwargs):
        return np.arange(num_samples)


class TakesAnything(InOrder):
    """A parameter without a check."""

    def __init__(self, *, first: int = 0, **run):
        super().__init__(**run)
        self.first = first


class AsksForNothingKnown(InOrder):
    """A word that no stage knows, so that none would refuse it."""

    asks = "gradient"


class AsksByNoParameter(InOrder):
    """A condition that never holds."""

    asks = "gradients if embeding=model"


class SaysItDrawsNothing(InOrder):
    """It draws."""

    def select(self, model, step_id, num_samples, *, context, **kwargs):
        return self.generator(context.update).permutation(len(self.dataset))[:num_samples]


class Raises(InOrder):
    """Ends the run."""

    def select(self, model, step_id, num_samples, **kwargs):
        raise RuntimeError("no rows today")


class ChangesWeights(InOrder):
    """Trains a little on its own."""

    def select(self, model, step_id, num_samples, **kwargs):
        with torch.no_grad():
            next(model.parameters()).mul_(1.001)
        return super().select(model, step_id, num_samples)


class LeavesGradients(InOrder):
    """Runs a backward pass and leaves what it made."""

    def select(self, model, step_id, num_samples, **kwargs):
        batch = self.data_collator([self.dataset[0]])
        model(**batch).loss.backward()
        return super().select(model, step_id, num_samples)


class TrainsTheModel(InOrder):
    """Leaves the model in train mode."""

    def select(self, model, step_id, num_samples, **kwargs):
        model.train()
        return super().select(model, step_id, num_samples)


class DrawsGlobally(InOrder):
    """Random numbers of everybody."""

    def select(self, model, step_id, num_samples, **kwargs):
        return np.array(random.sample(range(len(self.dataset)), num_samples))


class Forgets(InOrder):
    """What it remembers is in no checkpoint."""

    def __init__(self, **run):
        super().__init__(**run)
        self.asked = 0

    def select(self, model, step_id, num_samples, **kwargs):
        self.asked += 1
        return (np.arange(num_samples) + 7 * self.asked) % len(self.dataset)


class Restores(Forgets):
    """Reads half of its state back."""

    def state_dict(self):
        return {"asked": self.asked, "more": 3 * self.asked}

    def load_state_dict(self, state):
        self.asked = state["more"]


class KeepsAnObject(InOrder):
    """A state that no file gives back without running code."""

    def state_dict(self):
        return {"when": [np.random.default_rng(1)]}


class GoesByRank(InOrder):
    """Rows that depend on how many ranks there are."""

    def select(self, model, step_id, num_samples, **kwargs):
        return np.arange(num_samples) + self.accelerator.num_processes


class OnItsOwn(InOrder):
    """Another decision on each rank."""

    def select(self, model, step_id, num_samples, **kwargs):
        return np.arange(num_samples) + self.accelerator.process_index


class CostsLess(InOrder):
    """Gives back what others have spent."""

    @classmethod
    def cost(cls, params, ahead):
        return Cost(Work(forward=Amount(-1, 0, 0)), notes=("cheap",))


class Eager(Weighter):
    """Draws from the global generator while training does."""

    def get_weighted_loss(self, losses, *, ctx, model, inputs):
        return (losses * torch.rand(len(losses))).mean()


class Bypasses:
    """A weighter that never asks itself."""

    def get_weighted_loss(self, losses, *, ctx=None, model=None, inputs=None):
        return losses.mean()

    def training_step(self, ctx, model, inputs, num_items_in_batch=None, use_weighter=False):
        if use_weighter:
            self.get_weighted_loss(torch.ones(2))
        return ctx.plain_training_step(model, inputs, num_items_in_batch)


class TwoOnly(Mixer):
    """Knows nothing of a third source."""

    draws = False

    def mix(self, model, step_id, **kwargs):
        return np.array([0.25, 0.75])


class Backwards(Order):
    """The last first."""

    draws = False

    def arrange(self, scores, *, context):
        return np.arange(len(scores))[::-1].copy()


FAULTS = {
    TakesAnything: ("parameters", "first takes anything -> state what is allowed: require("),
    AsksForNothingKnown: (
        "parameters",
        "asks: found 'gradient', allowed: answers behind prompts, counts of tokens, gates, generated answers, ",
    ),
    AsksByNoParameter: ("parameters", "asks: found 'gradients if embeding=model', allowed behind 'if':"),
    SaysItDrawsNothing: ("parameters", "its class says draws = False, and it draws from self.generator"),
    Raises: ("trains", "no rows today"),
    ChangesWeights: ("disturbs nothing", "select changed the weight model.embed_tokens.weight -> put it back"),
    LeavesGradients: ("disturbs nothing", "left a gradient in .grad of"),
    TrainsTheModel: ("disturbs nothing", "select left the training mode of the module"),
    Eager: ("disturbs nothing", "drew from the global generator of torch -> draw from self.generator"),
    KeepsAnObject: ("state", "state_dict()['when'][0] is of type numpy.random.Generator"),
    Restores: ("state", "state_dict after load_state_dict differs at 'asked'"),
    Forgets: ("resume is exact", "resumed at step 3, the run has another choice of rows in"),
    DrawsGlobally: ("resume is exact", "its decisions depend on the global random generators"),
    Bypasses: ("wrong answers are caught", "a loss of NaN was trained on"),
    CostsLess: ("cost", "cost.update.forward.rows is -1"),
}


@pytest.mark.parametrize(
    ("component", "said"), FAULTS.items(), ids=lambda value: value.__name__ if isinstance(value, type) else value[0]
)
def test_a_fault_fails_its_point_in_words(component, said):
    point, words = said
    with pytest.raises(NotConforming) as caught:
        conformance(component, points=[point])
    assert words in str(caught.value)
    assert f"x {point}: " in str(caught.value)


class OneSource(InOrder):
    """Cannot choose among the rows of a source."""

    def select(self, model, step_id, num_samples, **kwargs):
        if len(self.dataset) < 48:
            raise RuntimeError("too few rows for me")
        return super().select(model, step_id, num_samples)


def test_a_component_that_ends_the_run_in_a_combination_fails_that_point():
    with pytest.raises(NotConforming, match=r"works in a combination: the run ended: .*too few rows for me"):
        conformance(OneSource, points=["trains", "works in a combination"])


def test_decisions_that_depend_on_the_ranks_fail_the_point_of_ranks():
    with pytest.raises(NotConforming, match=r"on two ranks it chose other rows than on one, step_00000002"):
        conformance(GoesByRank, points=["ranks agree"])
    with pytest.raises(NotConforming, match=r"the run on two ranks ended: selector 'OnItsOwn' .* decided differently"):
        conformance(OnItsOwn, points=["ranks agree"])


@pytest.mark.parametrize("component", [InOrder, TwoOnly, Backwards], ids=lambda cls: cls.__name__)
def test_a_component_without_a_fault_conforms_and_the_report_names_each_point(component):
    found = conformance(component, points=[point for point in POINTS if point != "ranks agree"])
    assert isinstance(found, Conformance)
    assert str(found).startswith(f"{found.who} conforms\n")
    for point in POINTS:
        assert (f"- {point}: " in str(found)) == (point != "ranks agree")


def test_each_point_and_each_thing_that_can_be_given_is_in_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "publishing.md").read_text(encoding="utf-8")
    table = page.partition("\n## Conformance\n")[2].partition("\n## ")[0]
    for name in (*POINTS, *Given.__annotations__, "points"):
        assert re.search(rf"^\| .*`{name}`", table, flags=re.MULTILINE), name


def test_cases_are_named_by_their_points_and_share_their_runs():
    cases = conformance_cases(Backwards, points=["trains", "disturbs nothing"])
    assert [str(case) for case in cases] == ["Backwards-trains", "Backwards-disturbs-nothing"]
    assert cases[0].trials is cases[1].trials
    for case in cases:
        case.check()


class Needs(InOrder):
    """A parameter without a default."""

    def __init__(self, *, most: int, **run):
        super().__init__(**run)
        require("Needs selector", count("most", most))


@pytest.mark.parametrize(
    ("component", "given", "said"),
    [
        (Needs, {}, r"selector Needs: the parameter 'most' has no default -> give it in params=\{'most': ...\}"),
        ("random", {}, r"'random' is the name of a selector and of a mixer -> give kind='selector', say"),
        ("nowhere", {}, r"no component named 'nowhere'; known: .* -> install it, or give the class"),
        (int, {}, r"<class 'int'> is no component -> derive it from Selector, Mixer, Order or Weighter"),
        (InOrder, {"kind": "picker"}, r"kind: found 'picker', allowed: mixer, order, selector, weighter"),
        (InOrder, {"points": ["speed"]}, r"points: found 'speed', allowed: cost, disturbs nothing, parameters"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_way_out(component, given, said):
    with pytest.raises(ConfigError, match=said):
        conformance(component, **given)


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ({"a": [1, np.float64("nan")]}, {"a": [1, float("nan")]}, True),
        ({"a": np.array([1.0, np.nan])}, {"a": np.array([1.0, np.nan])}, True),
        (torch.tensor([1.0]), torch.tensor([1.0]), True),
        (torch.tensor([1.0]), torch.tensor([1.0 + 2**-20]), False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ([1, 2], [1], False),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64), False),
        (torch.tensor([1.0]).double(), torch.tensor([1.0]).double() + 2**-50, False),
        (torch.tensor([2**24]), torch.tensor([2**24 + 1]), False),
        (torch.tensor([1.0, torch.nan]).bfloat16(), torch.tensor([1.0, torch.nan]).bfloat16(), True),
        (torch.tensor([1.0]), torch.tensor([1.0, 1.0]), False),
    ],
)
def test_states_are_compared_to_the_last_bit(a, b, equal):
    assert same(a, b) is equal
