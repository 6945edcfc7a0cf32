"""Which rows a batch holds: their numbers and weights travel in it, and nothing else in the run notices."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from combined_step import ROW_WEIGHTS, Combined, combined
from dataflex.core.errors import ComponentError
from dataflex.objective.measured import row_means
from dataflex.objective.parts import Parts
from dataflex.objective.present_step import PresentStep
from dataflex.objective.samples import samples_of
from dataflex.objective.step_context import TrainerStep
from dataflex.rows.batch_rows import BatchRows
from dataflex.rows.row_numbers import ROW_NUMBERS, NumberedRows, NumberingCollator
from dataflex.rows.row_numbers import ROW_WEIGHTS as WEIGHTS_KEY
from dataflex.rows.views import MixedSources, PlannedRows
from dataflex.testing import TokenRows, pad_collate
from dataflex.trainer.trained_rows import TrainedRows


def test_a_row_that_comes_twice_has_the_weight_of_each_of_its_places():
    rows, weights = np.array([5, 2, 5]), np.array([0.5, 1.0, 3.0], dtype=np.float32)
    numbered = NumberedRows(PlannedRows(TokenRows(8), rows), rows, weights)
    for given in (numbered.__getitems__([0, 1, 2]), [numbered[place] for place in range(3)]):
        batch = NumberingCollator(pad_collate)(given)
        assert batch[ROW_NUMBERS].tolist() == [5, 2, 5]
        assert batch[WEIGHTS_KEY].tolist() == [0.5, 1.0, 3.0]
    plain = NumberingCollator(pad_collate)(NumberedRows(TokenRows(8)).__getitems__([3, 1]))
    assert plain[ROW_NUMBERS].tolist() == [3, 1]
    assert WEIGHTS_KEY not in plain


def flattened(rows):
    """Collates the rows into one."""
    ids = [token for row in rows for token in row["input_ids"]]
    positions = [place for row in rows for place in range(len(row["input_ids"]))]
    labels = [label for row in rows for label in [-100, *row["labels"][1:]]]
    parts = {"input_ids": ids, "labels": labels, "position_ids": positions}
    return {key: torch.tensor([value]) for key, value in parts.items()}


def test_rows_that_are_flattened_into_one_keep_their_numbers_weights_and_losses():
    packed = {"input_ids": [1, 2, 3, 4], "labels": [-100, 2, -100, 4], "seq_lengths": [2, 2]}
    alone = {"input_ids": [5, 6, 7], "labels": [-100, -100, -100]}
    numbered = NumberedRows([packed, alone], np.array([7, 4]), np.array([2.0, 0.5], dtype=np.float32))

    def documents(rows):
        batch = flattened(rows)
        batch["position_ids"] = torch.tensor([[0, 1, 0, 1, 0, 1, 2]])
        return batch

    batch, known = NumberingCollator(documents)([numbered[0], numbered[1]]), BatchRows(lambda: None)
    known.take([batch])
    known.next()
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    assert known.flattened == [True]
    assert known.rows.tolist() == [7, 7, 4]
    assert known.weights.tolist() == [2.0, 2.0, 0.5]
    targets_BT = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    losses_BT = torch.where(targets_BT != -100, torch.tensor([[1.0, 9.0, 3.0, 9.0, 9.0, 9.0, 9.0]]), 0.0)
    found = row_means(losses_BT, targets_BT, known.rows, samples_of(batch))
    np.testing.assert_array_equal(found.numpy(), [2.0, 2.0, np.nan])
    written = []
    trained = TrainedRows(lambda *given: written.append(given), SimpleNamespace(num_processes=1), 2)
    trained.add(known.of_step, 0, known.flattened)
    trained.add([torch.tensor([3, 3])], 1)  # a row that was drawn twice
    trained.finish()
    ((step, rows, _),) = written
    assert (step, rows.tolist()) == (0, [7, 4, 3, 3])


@pytest.mark.parametrize("micro", [1, 3])
def test_weights_of_rows_that_are_flattened_into_one_are_those_of_their_tokens(tmp_path, micro):
    trainer = combined(tmp_path, micro, rows=True)
    trainer.data_collator = flattened
    collated, gradients = [], []
    own = trainer.get_batch_samples
    trainer.get_batch_samples = lambda *args: (found := own(*args), collated.extend(found[0]))[0]
    step = trainer.training_step

    def training_step(model, *args, **kwargs):
        loss = step(model, *args, **kwargs)
        gradients.append(torch.cat([p.grad.flatten().clone() for p in model.parameters()]))
        return loss

    trainer.training_step = training_step
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    trainer.model.load_state_dict(before)
    trainer.model.zero_grad()
    numbers = np.load(tmp_path / "dataflex_selections" / "step_00000000.npz")["indices"]
    weights, total, labels = iter(ROW_WEIGHTS), torch.zeros(()), 0
    sizes = iter([len(trainer.train_dataset[int(n)]["input_ids"]) for n in numbers])
    for batch in collated:
        logp = trainer.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits[0].log_softmax(-1)
        start, end = 0, batch["input_ids"].shape[1]
        while start < end:
            u, stop = float(next(weights)), start + next(sizes)
            for t in range(start, stop):
                if batch["labels"][0, t] != -100:
                    total, labels = total - u * logp[t - 1, batch["labels"][0, t]], labels + 1
            start = stop
    (total / labels).backward()
    expected = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    torch.testing.assert_close(gradients[-1], expected, rtol=1e-3, atol=1e-6)


def test_weights_that_nobody_was_to_give_stop_the_run(tmp_path):
    trainer = combined(tmp_path, 1, mixer="observes")
    trainer.row_weights = ROW_WEIGHTS
    with pytest.raises(ComponentError, match=r"rows came with weights.* -> set weighs = True"):
        trainer.train()


def test_a_run_that_neither_weighs_nor_looks_has_no_numbers_in_its_batches(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(BatchRows, "take", lambda self, batches: taken.append(batches))
    trainer = combined(tmp_path, 1)
    seen, own = [], trainer.training_step
    trainer.training_step = lambda model, inputs, *args, **kwargs: seen.append(set(inputs)) or own(model, inputs, *args)
    trainer.train()
    assert seen == [{"input_ids", "attention_mask", "labels"}]
    assert taken == []
    assert trainer.training_objective is None
    assert isinstance(trainer, Combined)
    assert not Parts().there


def test_a_name_that_a_step_does_not_have_is_looked_up_on_the_trainer():
    trainer = SimpleNamespace(accelerator="a", train_dataset="rows", processing_class="tokenizer")
    context = TrainerStep(trainer, PresentStep(), BatchRows(lambda: None), plain=None, weighed_by=None)
    assert (context.accelerator, context.train_dataset, context.processing_class) == ("a", "rows", "tokenizer")
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = context.no_such_name
    with pytest.raises(ComponentError, match="holds no row numbers"):
        _ = context.batch_rows


def test_sources_of_rows_are_found_on_their_device_by_one_table():
    known = BatchRows(lambda: MixedSources({"a": range(3), "b": range(2), "c": range(4)}))
    rows = torch.tensor([0, 2, 3, 4, 5, 8])
    assert known.sources_of(rows).tolist() == [0, 0, 1, 1, 2, 2]
    assert known.source_entries(np.array([1.0, 2.0, 3.0]), rows).tolist() == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    assert known.entries(np.arange(9) * 10, rows).tolist() == [0, 20, 30, 40, 50, 80]
    assert len(known._tables) == 3
