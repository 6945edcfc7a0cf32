"""The forward passes of a trainer's loss are kept once each, in whatever an engine has put around the policy."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from dataflex.core.errors import ComponentError
from dataflex.objective.kept_forwards import KeptForwards
from dataflex.upstream.stage_interface import StageLoss


class Inner(torch.nn.Module):
    """A model with one number, added to its inputs."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return input_ids + self.number


class Wrapper(torch.nn.Module):
    """What an engine puts around a model."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.module(**inputs)


class Referring(StageLoss):
    """A loss that compares the policy with a reference."""

    name, stands_on, reference = "dpo", (), "ref_model"


def kept_of(trainer, model):
    """What a trainer ran that asks the policy for two inputs and the reference for the second."""
    first, second = torch.tensor([1]), torch.tensor([2])
    reference = trainer.model if trainer.ref_model is None else trainer.ref_model
    kept = KeptForwards(trainer, Referring(), model)
    with kept.keeping():
        model(input_ids=first)
        model(input_ids=second)
        reference(input_ids=second)
    return kept, first, second


@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize("own_reference", [False, True], ids=["adapters", "a model of its own"])
def test_a_pass_is_kept_once_and_the_policy_comes_before_the_reference(wraps, own_reference):
    inner = Inner(10)
    trainer = SimpleNamespace(model=inner, ref_model=Inner(20) if own_reference else None)
    kept, first, second = kept_of(trainer, Wrapper(inner) if wraps else inner)
    assert kept.model(input_ids=second).item() == 12
    assert kept.model(input_ids=second).item() == (22 if own_reference else 12)
    assert kept.model(input_ids=first).item() == 11
    kept.require_all_taken()
    with pytest.raises(ComponentError, match="did not call a model where its loss does"):
        kept.model(input_ids=first)


def test_nothing_is_kept_or_listened_to_afterwards():
    inner = Inner(10)
    kept, _, second = kept_of(SimpleNamespace(model=inner, ref_model=None), inner)
    inner(input_ids=second)
    assert not inner._forward_hooks
    assert not inner._forward_pre_hooks
    with pytest.raises(ComponentError, match="ran 3 more forward passes than its loss is made of"):
        kept.require_all_taken()


def test_other_inputs_of_the_same_numbers_are_not_taken_for_those_that_were_run():
    inner = Inner(10)
    kept, _, second = kept_of(SimpleNamespace(model=inner, ref_model=None), inner)
    with pytest.raises(ComponentError, match="the loss of a row is not known -> use the trainer of the stage as it is"):
        kept.model(input_ids=second.clone())
