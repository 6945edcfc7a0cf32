"""On an accelerator: nothing waits for it in the middle of a step, and nothing asks it for what it does not have.

There is none here: reads are counted in runs on the CPU, and tensors pretend to be elsewhere.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dataflex.core.errors import ComponentError
from dataflex.core.kinds import WEIGHTER
from dataflex.core.registry import register_weighter
from dataflex.objective.objective import Objective
from dataflex.objective.parts import Keys, MixerPart, Parts
from dataflex.objective.present_step import PresentStep
from dataflex.objective.step_context import TrainerStep
from dataflex.objective.token_losses import CROSS_ENTROPY
from dataflex.rows.batch_rows import BatchRows
from dataflex.rows.row_numbers import ROW_NUMBERS
from dataflex.rows.views import MixedSources
from dataflex.scoring import hidden_state_embeddings, label_positions, per_sample_losses
from dataflex.scoring.passes.score_store import ScoreStore
from dataflex.testing import TokenRows, device, pad_collate, tiny_model
from dataflex.train.weighter.base_weighter import Weighter
from every_component import installed
from pretend_device import DEVICE, OnDevice, host_reads, on_device, pretended
from weighted_run import weighted

pretends = pytest.mark.skipif(
    "_ensureCUDADeviceGuardSet" not in dir(torch._C), reason="torch 2.6 cannot be told to do without a device"
)
pytestmark = pytest.mark.skipif(device().type != "cpu", reason="pretends to have a device")

PARAMS = {  # the ways of a weighter that compute something else
    "loss": [{}, {"level": "source"}, {"scope": "step"}],
    "focal": [{"normalise": True}],
    "trim": [{"share": 0.5}],
    "adapt": [{"normalise": True}],
    "dataset": [{"weights": {"a": 2.0}}],
    "rho_tokens": [],  # below, as it needs a reference
    "spans": [],  # its weights go the way of those of token_column
}
HIDDEN = ("adapt", "balancer", "joint_update_aware")
CASES = [(name, params) for name in installed(WEIGHTER) for params in PARAMS.get(name, [{}])]
ONCE_A_STEP = {
    "dataflex/objective/step_checks.py": 1,  # before the optimizer steps
    "dataflex_weighters/balancer.py": 1,  # the norms of the step
    "dataflex/objective/step_losses.py": 1,  # scope: step, for a forward pass of its own
    "dataflex/objective/present_step.py": 1,  # chunked: how many labels each micro-batch has
    "dataflex_weighters/parts/token_places.py": 1,  # the tokens of the step and which rows they are of
    "dataflex/objective/samples.py": 1,  # packed rows: how many documents
}


def sources():
    rows = {name: TokenRows(16, seed=i, lengths=range(6, 12)) for i, name in enumerate("ab")}
    return {name: [row | _weights(row) for row in own] for name, own in rows.items()}


def _weights(row):
    return {"weight": 1.5, "token_weights": [0.5] * len(row["labels"])}


def in_file(reads, file):
    return [line for line in reads if file in line]


def watched(trainer):
    """Trains, and returns the reads of each micro-batch and those of the beginning of each step."""
    own, batches, per_micro_batch, per_step = trainer.training_step, trainer.get_batch_samples, [], []

    def training_step(*args, **kwargs):
        with host_reads() as reads:
            loss = own(*args, **kwargs)
        per_micro_batch.append(reads)
        return loss

    def get_batch_samples(*args, **kwargs):
        with host_reads() as reads:
            found = batches(*args, **kwargs)
        per_step.append(reads)
        return found

    trainer.training_step, trainer.get_batch_samples = training_step, get_batch_samples
    trainer.train()
    return per_micro_batch, per_step


@pytest.mark.parametrize(("name", "params"), CASES)
def test_no_micro_batch_of_a_weighted_run_waits_for_the_device(tmp_path, name, params):
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "max_steps": 2}
    trainer = weighted(tmp_path, name, params, sources(), target=TokenRows(3), **sizes)
    per_micro_batch, per_step = watched(trainer)
    assert len(per_micro_batch) == 6
    first, second, last = per_micro_batch[3:]  # of the second step: in the first, adapt embeds its target
    assert first == (in_file(first, "step_losses.py") if params.get("scope") == "step" else [])
    assert second == []
    for file, most in ONCE_A_STEP.items():
        assert len(in_file([*per_step[1], *first, *last], file)) <= most, (file, last)
    assert all(any(file in line for file in ONCE_A_STEP) for line in last), last
    assert per_step[1] == (in_file(per_step[1], "token_places.py") if name == "token_column" else [])


def test_the_logits_left_out_cost_one_read_a_step(tmp_path):
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 1}
    trainer = weighted(tmp_path, "focal", {}, TokenRows(16), keys={"weight_logits": "chunked"}, **sizes)
    per_micro_batch, per_step = watched(trainer)
    assert [len(reads) for reads in per_micro_batch] == [0, 1]
    assert len(per_step[0]) == len(in_file(per_step[0], "present_step.py")) == 1


def test_documents_of_packed_rows_cost_one_read_a_step(tmp_path):
    def packed(rows):
        batch = pad_collate(rows)
        batch["position_ids"] = torch.arange(8).repeat(len(rows), 2)[:, :16]
        return batch

    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 1}
    trainer = weighted(tmp_path, "focal", {}, TokenRows(16, lengths=16), **sizes)
    trainer.data_collator = packed
    per_micro_batch, per_step = watched(trainer)
    assert len(trainer.training_objective.context.samples._rows_S) == 8
    assert [len(reads) for reads in per_micro_batch] == [0, 1]
    assert len([line for line in per_step[0] if ".cpu()" in line]) == 1  # what follows it is on the CPU


@register_weighter("bad_at_one")
class BadAtOne(Weighter):
    """Returns what is not finite in one micro-batch."""

    def __init__(self, at):
        super().__init__()
        self.at, self.seen = at, 0

    def get_weighted_loss(self, losses, *, ctx, model, inputs):
        self.seen += 1
        return losses.mean() * (torch.inf if self.seen == self.at else 1.0)


@pytest.mark.parametrize("at", [4, 6])
def test_a_weight_that_is_not_finite_stops_the_run_before_the_step_wherever_in_it_it_is(tmp_path, at):
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    trainer = weighted(tmp_path, "bad_at_one", {"at": at}, TokenRows(36), **sizes)
    with pytest.raises(ComponentError, match=r"'bad_at_one' at step 1 returned inf; the losses it was given: \[\d"):
        trainer.train()
    assert trainer.component.seen == 6
    assert trainer.state.global_step == 1
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_a_step_of_a_weighing_mixer_reads_once_at_its_beginning_and_once_at_its_end(monkeypatch):
    monkeypatch.setattr("dataflex.objective.objective.ReplacedLoss", lambda *args: SimpleNamespace(takes_count=True))
    observed = []
    mixer = SimpleNamespace(
        loss_weights=lambda: np.array([1.0, 2.0, 4.0]),
        token_values=lambda inputs, losses_BT: losses_BT,
        observe=lambda *given: observed.append(given),
    )
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(num_processes=1, device=torch.device("cpu"), distributed_type=None),
        args=SimpleNamespace(average_tokens_across_devices=True, gradient_accumulation_steps=3),
        compute_loss_func=None,
        model_accepts_loss_kwargs=True,
        model=torch.nn.Linear(1, 1),
        state=SimpleNamespace(global_step=0),
    )
    rows = BatchRows(lambda: MixedSources({name: range(2) for name in "abc"}))
    objective = Objective(trainer, Parts(mixer=MixerPart(mixer, "m", "m", 3, weighs=True)), Keys(), rows)
    batches = [pad_collate([TokenRows(2, seed=seed)[i] for i in range(2)]) for seed in range(3)]
    for batch, numbers in zip(batches, ([0, 2], [5, 1], [3, 3]), strict=True):
        batch[ROW_NUMBERS] = torch.tensor(numbers)
    rows.take(batches)
    with host_reads() as begun:
        objective.begin_step(batches)
    assert len([line for line in begun if ".cpu()" in line]) == 1

    def train(model, inputs):
        logits = torch.randn(*inputs["labels"].shape, 128, requires_grad=True)

        def compute(model, inputs, return_outputs, num_items_in_batch):
            return objective._loss.of_logits(logits, inputs["labels"], CROSS_ENTROPY), {"logits": logits}

        loss = objective.compute_loss(compute, model, inputs, num_items_in_batch=1)
        loss.backward()
        return loss

    for batch in batches:
        with host_reads() as reads:
            objective.training_step(train, trainer.model, batch)
        assert reads == []
    with host_reads() as ended:
        objective.step_done()
    assert len([line for line in ended if ".cpu()" in line]) == 1
    ((_, means_K, tokens_K),) = observed
    assert tokens_K.sum() == sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    assert np.isfinite(means_K).all()


def test_positions_are_the_same_whether_or_not_their_number_is_known():
    labels = pad_collate([TokenRows(5, lengths=range(4, 16))[i] for i in range(5)])["labels"]
    expected = label_positions(labels)
    found = label_positions(labels, len(expected[0]))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pretends
def test_the_pretended_device_is_as_strict_as_one():
    """So the tests below can fail."""
    with pretended() as reads:
        there = torch.arange(4).to(DEVICE)
        assert isinstance(there, OnDevice)
        assert there.device == DEVICE
        with pytest.raises(TypeError, match="float64"):
            there.double()
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.arange(4)
        with pytest.raises((TypeError, RuntimeError)):
            there.numpy()
        assert reads == []
        assert there.tolist() == [0, 1, 2, 3]
        assert there[there > 1].cpu().tolist() == [2, 3]
        assert int(there.sum()) == 6
    assert len(reads) == 4


@pretends
def test_rows_are_scored_and_embedded_on_a_device_without_float64():
    rows = TokenRows(9, lengths=range(5, 17))
    here = tiny_model()
    options = {"collator": pad_collate, "progress": False}
    expected = per_sample_losses(here, rows, **options), hidden_state_embeddings(here, rows, **options)
    with pretended():
        there = tiny_model()
        there.config._attn_implementation = "eager"
        on_device(there)
        found = per_sample_losses(there, rows, **options), hidden_state_embeddings(there, rows, **options)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pretends
@pytest.mark.parametrize("score", [per_sample_losses, hidden_state_embeddings])
def test_a_pass_of_scoring_waits_for_the_device_once_and_not_once_a_batch(tmp_path, score):
    rows = TokenRows(24, lengths=range(5, 17))

    def reads_of(token_budget):
        store = ScoreStore(tmp_path / str(token_budget), lambda: "one", seconds=1e9)
        with pretended() as reads:
            model = tiny_model()
            model.config._attn_implementation = "eager"
            on_device(model)
            before = len(reads)
            score(model, rows, collator=pad_collate, token_budget=token_budget, progress=False, store=store)
            return [read for read in reads[before:] if "dataflex" in read]

    one, many = reads_of(2**12), reads_of(32)
    assert len(many) == len(one) <= 2


@pretends
@pytest.mark.parametrize(("name", "params"), [case for case in CASES if case[0] not in HIDDEN])
def test_weights_are_computed_where_the_losses_are(tmp_path, name, params):
    """Weighters of hidden states look into a forward and a backward pass, which only a real device can make."""
    rows = sources()
    weighter = weighted(tmp_path, name, params, rows).component
    batch = pad_collate([rows["a"][0], rows["b"][0], rows["b"][1] | {"labels": [-100] * len(rows["b"][1]["labels"])}])
    numbers, losses = torch.tensor([0, 16, 17]), torch.tensor([1.0, 3.0, 0.0])

    def weighed(where):
        trainer = SimpleNamespace(
            accelerator=SimpleNamespace(num_processes=1),
            arguments=SimpleNamespace(warmup_step=0),
            state=SimpleNamespace(global_step=0, max_steps=2),
        )
        known = BatchRows(lambda: MixedSources(rows))
        known.take([{ROW_NUMBERS: numbers.to(where)}])
        known.next()
        step = PresentStep()
        step.begin([batch], documents=False)
        context = TrainerStep(trainer, step, known, plain=None, weighed_by=None)
        inputs = {key: value.to(where) for key, value in batch.items()}
        return weighter.get_weighted_loss(losses.to(where), ctx=context, model=None, inputs=inputs)

    expected = float(weighed("cpu"))
    with pretended() as reads:
        found = weighed(DEVICE)
        assert found.device == DEVICE
        assert reads == []
        assert float(found) == pytest.approx(expected)
