"""Documents of packed rows are samples: weighed alone, as they would be in rows of their own."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.kinds import WEIGHTER
from dataflex.core.registry import register_weighter
from dataflex.objective.formula import StepPart, weighted_loss
from dataflex.objective.label_counts import StepCounts, counted
from dataflex.objective.samples import ROWS, one_by_one, samples_of
from dataflex.scoring.label_logits import IGNORED
from dataflex.testing import TokenRows, tiny_model, tiny_training_args
from dataflex.train.trainer import WeightTrainer, trainer_class
from dataflex.train.weighter.base_weighter import Weighter
from torch.utils.data import Dataset
from transformers import Trainer

POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5, 6], [0, 1, 0, 1, 2, 3, 4]])
LENGTHS = [3, 2, 2, 7, 2, 5]  # the zeros at the end of the first row are padding


def packed(labels=None):
    torch.manual_seed(3)
    ids = torch.randint(4, 32, (3, 7))
    labels = ids.clone() if labels is None else labels
    labels[0, 5:] = IGNORED
    return {"input_ids": ids, "labels": labels, "position_ids": POSITIONS}


def test_documents_begin_where_positions_begin_anew():
    samples = samples_of(packed())
    assert samples.label_sums(torch.ones(3, 7)).tolist() == LENGTHS
    assert samples.of_rows(torch.tensor([10, 20, 30])).tolist() == [10, 10, 10, 20, 30, 30]


def test_a_loss_belongs_to_the_document_of_the_token_that_it_predicts():
    samples = samples_of(packed())
    losses = torch.arange(21.0).view(3, 7)
    assert samples.loss_sums(losses).tolist() == [0 + 1, 2 + 3, 4 + 5, sum(range(7, 13)), 14, 15 + 16 + 17 + 18 + 19]
    at = samples.at_losses(torch.arange(6))
    assert at.tolist() == [[0, 0, 1, 1, 2, 2, 2], [3] * 7, [4, 5, 5, 5, 5, 5, 5]]


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"position_ids": torch.arange(5).expand(2, 5)},
        {"position_ids": torch.tensor([[0, 1, 2, 0, 0, 0]])[:, :3]},
        {"position_ids": torch.zeros(3, 2, 5)},  # of several axes, as for images
    ],
    ids=["no positions", "one document in each row", "no padding", "axes"],
)
def test_other_batches_have_a_sample_in_each_row(inputs):
    assert samples_of(inputs) is ROWS
    values = torch.randn(2, 5)
    assert ROWS.loss_sums(values).equal(values.sum(dim=1))
    assert ROWS.apart(values) is values


def test_the_weighter_sees_one_document_in_each_row():
    batch = packed() | {"attention_mask": torch.ones(3, 1, 7, 7), "text": ["a"]}
    alone = one_by_one(batch, samples_of(batch))
    assert alone.keys() == {"input_ids", "labels", "position_ids"}
    assert alone["input_ids"].shape == (6, 7)
    assert alone["input_ids"][1].tolist() == [*batch["input_ids"][0, 3:5].tolist(), 0, 0, 0, 0, 0]
    assert alone["labels"][2].tolist() == [IGNORED] * 7
    assert alone["labels"][5].tolist() == [*batch["labels"][2, 2:].tolist(), IGNORED, IGNORED]
    assert one_by_one(batch, ROWS) == batch


def test_values_per_token_are_taken_apart_with_all_that_follows_and_their_gradient():
    samples = samples_of(packed())
    hidden = torch.randn(3, 7, 4, requires_grad=True)
    apart = samples.apart(hidden)
    assert apart.shape == (6, 7, 4)
    assert apart[4, :2].equal(hidden[2, :2])
    assert (apart[4, 2:] == 0).all()
    apart.sum().backward()
    assert (hidden.grad == 1).all()


def test_the_packed_objective_is_that_of_the_documents_in_rows_of_their_own():
    torch.manual_seed(0)
    logits = torch.randn(3, 7, 32, dtype=torch.float64, requires_grad=True)
    labels = packed()["labels"]
    labels[0, 3] = labels[2, 2] = IGNORED  # a document's first token is predicted by no row of its own
    batch = packed(labels)
    samples = samples_of(batch)
    alone = one_by_one(batch, samples)
    weights = torch.tensor([0.5, 2.0, 9.0, 1.0, 0.0, 1.5], dtype=torch.float64)
    assert counted(labels, samples)[0] == counted(alone["labels"])[0] == 5

    def weigh(losses):
        return (weights * losses).mean()

    whole = StepPart(StepCounts(5, 17, 17))
    together = weighted_loss(logits, labels, whole, weigh, samples=samples)
    apart = weighted_loss(samples.apart(logits), alone["labels"], whole, weigh)
    assert torch.isclose(together, apart, rtol=1e-6)
    ours, theirs = (torch.autograd.grad(loss, logits)[0] for loss in (together, apart))
    assert torch.allclose(ours, theirs, atol=1e-7)


class Packed(Dataset):
    """Two documents in each row."""

    def __init__(self):
        self.rows = TokenRows(16, lengths=6)

    def __len__(self):
        return 8

    def __getitem__(self, number):
        parts = [self.rows[2 * number]["input_ids"], self.rows[2 * number + 1]["input_ids"]]
        ids = [*parts[0], *parts[1]]
        labels = [IGNORED, *parts[0][1:], IGNORED, *parts[1][1:]]
        return {"input_ids": ids, "labels": labels, "position_ids": [*range(6), *range(6)]}


def collate(rows):
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


@register_weighter("seeing_documents")
class SeeingDocuments(Weighter):
    """Notes what it is given."""

    seen: ClassVar[list] = []

    def get_weighted_loss(self, losses, *, ctx, model=None, inputs):
        self.seen.append((losses.shape, inputs["input_ids"].shape, ctx.batch_rows.tolist(), ctx.samples))
        return losses.mean()


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("seeing_documents", {}),
        ("loss", {"scope": "step"}),
        ("trim", {"share": 0.5}),
        ("focal", {}),
        ("adapt", {}),
        ("balancer", {}),
        ("dataset", {}),
    ],
)
def test_every_weighter_weighs_documents(tmp_path, name, params):
    component = ComponentSpec(WEIGHTER, name, name, params)
    arguments = DataflexArguments(train_type="dynamic_weight", component_name=name)
    trainer = trainer_class(WeightTrainer, Trainer)(
        model=tiny_model(),
        args=tiny_training_args(
            tmp_path, max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-2
        ),
        train_dataset={"a": Packed(), "b": Packed()},
        eval_dataset=TokenRows(4, lengths=6),
        data_collator=collate,
        dataflex=RunSpec(arguments, component),
    )
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(trainer.model.parameters(), before, strict=True))
    assert trainer.training_objective.context.sample_factors.shape == (4,)
    if name == "seeing_documents":
        losses, ids, rows, samples = SeeingDocuments.seen[0]
        assert (losses, ids) == ((4,), (4, 6))
        assert rows[0] == rows[1] != rows[2] == rows[3]
        assert samples is not ROWS
