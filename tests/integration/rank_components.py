"""Components for the tests of ranks: one that weighs rows, and those whose fault is on one rank."""

from __future__ import annotations

import os
import signal

import numpy as np
from accelerate import PartialState
from dataflex.core.registry import register_mixer, register_order, register_selector, register_weighter
from dataflex.interfaces.order import Order
from dataflex.train.mixer.base_mixer import Mixer
from dataflex.train.selector.base_selector import Selection, Selector
from dataflex.train.weighter.base_weighter import Weighter


@register_selector("own_opinion")
class OwnOpinion(Selector):
    """The fault that a rank check is there for: a decision that depends on the rank."""

    def select(self, model, step_id, num_samples, **kwargs):
        first = self.accelerator.process_index if step_id == 4 else 0
        return range(first, first + num_samples)


@register_mixer("own_opinion")
class OwnShares(Mixer):
    def mix(self, model, step_id, **kwargs):
        return [0.25, 0.75] if PartialState().process_index == 1 and step_id == 4 else [0.75, 0.25]


@register_order("own_opinion")
class OwnOrder(Order):
    def arrange(self, scores, *, context):
        order = np.argsort(scores, kind="stable")
        return order[::-1] if PartialState().process_index == 1 and context.step == 4 else order


@register_selector("own_weights")
class OwnWeights(Selector):
    """The same rows on every rank, and other weights."""

    weighs = True

    def select(self, model, step_id, num_samples, **kwargs):
        weight = 1.0 + self.accelerator.process_index * (step_id == 4)
        return Selection(np.arange(num_samples), weights=np.full(num_samples, weight))


@register_selector("rescaled")
class Rescaled(Selector):
    """Keeps rows of a high loss, and some of the others with a larger weight, as methods that prune do."""

    weighs = True

    def select(self, model, step_id, num_samples, *, context, **kwargs):
        losses = context.scores.of("loss")
        high = losses >= np.median(losses)
        chance = np.where(high, 1.0, 0.25)
        rng = self.generator(context.update)
        chosen = rng.choice(len(losses), size=num_samples, replace=False, p=chance / chance.sum())
        return Selection(chosen, losses[chosen], 1 / chance[chosen])


@register_selector("one_rank_raises")
class OneRankRaises(Selector):
    def select(self, model, step_id, num_samples, **kwargs):
        if self.accelerator.process_index == 1:
            raise RuntimeError("only here")
        return range(num_samples)


@register_order("one_rank_raises")
class OneRankRaisesArranging(Order):
    def arrange(self, scores, *, context):
        if PartialState().process_index == 1:
            raise RuntimeError("only here")
        return np.arange(len(scores))


@register_selector("one_rank_dies")
class OneRankDies(Selector):
    def select(self, model, step_id, num_samples, **kwargs):
        if self.accelerator.process_index == 1 and step_id == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return range(num_samples)


@register_weighter("one_rank_dies")
class OneRankDiesWeighing(Weighter):
    def get_weighted_loss(self, losses, *, ctx, model=None, inputs=None):
        if ctx.accelerator.process_index == 1 and ctx.state.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return losses.mean()


@register_weighter("square")
class Square(Weighter):
    """Weighs a sample by its own loss alone, so that it does not matter with whom it shares a micro-batch."""

    def get_weighted_loss(self, losses, *, ctx=None, model=None, inputs=None):
        return losses.square().mean()
