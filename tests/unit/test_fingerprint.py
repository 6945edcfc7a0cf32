"""A fingerprint changes with anything that scores depend on, and with nothing else."""

from __future__ import annotations

import copy

import datasets
import numpy as np
import torch
from dataflex.rows.views import MixedSources, PlannedRows
from dataflex.scoring.passes.fingerprint import dataset_digest, digest, model_digest, optimizer_digest
from dataflex.testing import TokenRows, tiny_model
from torch.utils.data import ConcatDataset, Subset


def test_any_weight_counts_and_a_copy_has_the_same():
    model = tiny_model()
    twin = copy.deepcopy(model)
    assert model_digest(model) == model_digest(twin)
    with torch.no_grad():
        next(iter(twin.parameters())).view(-1)[3] += 1e-6
    assert model_digest(model) != model_digest(twin)


def test_weights_that_are_trained_are_read_each_time_also_while_they_are_frozen():
    model = tiny_model()
    trained = list(model.parameters())
    for parameter in trained:
        parameter.requires_grad_(False)
    first = model_digest(model, trained)
    assert model_digest(model, trained) == first
    with torch.no_grad():
        trained[0].mul_(2)
    assert model_digest(model, trained) != first


def test_frozen_weights_belong_to_it():
    models = [tiny_model(seed=seed).requires_grad_(False) for seed in (0, 1)]
    for model in models:
        model.lm_head.weight.requires_grad_(True)
        torch.nn.init.ones_(model.lm_head.weight)
    assert model_digest(models[0]) != model_digest(models[1])


def test_moments_count():
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = optimizer_digest(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    after = optimizer_digest(optimizer)
    assert len({before, after, optimizer_digest(None)}) == 3
    assert optimizer_digest(optimizer) == after


def test_rows_count_however_they_are_put_together():
    rows = [TokenRows(6, seed=1)[i] for i in range(6)]
    plain = datasets.Dataset.from_list(rows)
    parts = datasets.concatenate_datasets([datasets.Dataset.from_list(rows[:2]), datasets.Dataset.from_list(rows[2:])])
    assert dataset_digest(plain) == dataset_digest(parts)
    changed = copy.deepcopy(rows)
    changed[4]["labels"][5] += 1
    others = [
        datasets.Dataset.from_list(changed),
        plain.select([1, 0, 2, 3, 4, 5]),
        Subset(rows, [0, 1]),
        Subset(rows, [1, 0]),
        PlannedRows(rows, np.array([0, 2])),
        ConcatDataset([plain, plain]),
        MixedSources({"a": plain, "b": parts.select([0])}),
        rows,
        changed,
    ]
    found = [dataset_digest(dataset) for dataset in (plain, *others)]
    assert len(set(found)) == len(found)


def test_texts_do_not_run_together():
    assert digest("ab", "c") != digest("a", "bc")
