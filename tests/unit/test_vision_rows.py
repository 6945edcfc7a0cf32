"""Rows with images through every kind of scoring: each row gets what it gets alone, as autograd computes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataflex.core.errors import ComponentError
from dataflex.rows.media import first_with_media, has_media
from dataflex.scoring import hidden_state_embeddings, per_sample_losses
from dataflex.scoring.gradients.per_row import per_sample_gradients
from dataflex.scoring.gradients.plan import Plan
from dataflex.scoring.gradients.routes import gradient_routes
from dataflex.scoring.gradients.sinks import Norms
from dataflex.scoring.layer_embeddings import layer_embeddings
from dataflex.scoring.passes.fingerprint import dataset_digest
from dataflex.scoring.passes.row_pass import RowPass
from dataflex.scoring.trial import try_gradients, try_layers, try_losses
from vision_data import VisionData, vision_data

pytestmark = pytest.mark.llamafactory

TRAINED = {
    "lora": {},
    "lora with vision": {"freeze_vision_tower": False, "freeze_multi_modal_projector": False},
    "full": {"finetuning_type": "full"},
    "full with vision": {
        "finetuning_type": "full", "freeze_vision_tower": False, "freeze_multi_modal_projector": False,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vision")


@pytest.fixture(scope="module")
def data(folder) -> VisionData:
    return vision_data(folder)


def alone(data, row):
    """Returns the batch of one row, as training has it."""
    return dict(data.collator([dict(data.dataset[row])]))


def loss_of(data, row):
    batch = alone(data, row)
    data.model.eval()
    return data.model(**batch).loss


def test_the_rows_have_images_and_some_have_none(data):
    counts = [len(data.dataset[row]["images"] or []) for row in range(len(data.dataset))]
    assert counts == [1, 0, 2, 1, 1, 0, 1, 3]
    assert first_with_media(data.dataset) == 0
    assert not has_media(data.dataset[1])


@pytest.mark.parametrize("budget", [None, 128, 700])
def test_losses_are_those_of_each_row_alone(data, budget):
    with torch.no_grad():
        expected = [float(loss_of(data, row)) for row in range(len(data.dataset))]
    found = per_sample_losses(data.model, data.dataset, collator=data.collator, token_budget=budget, progress=False)
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_trial_of_losses_passes(data):
    try_losses(data.model, data.dataset, data.collator, None)


def test_embeddings_are_those_of_each_row_alone(data):
    found = hidden_state_embeddings(data.model, data.dataset, collator=data.collator, progress=False)
    for row in range(len(data.dataset)):
        batch = alone(data, row)
        with torch.no_grad():
            states = data.model(**batch, output_hidden_states=True).hidden_states[-1]
        mean = states[0][batch["attention_mask"][0].bool()].mean(0)
        assert found[row] == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)


def test_layers_are_pooled_by_modality(data):
    image = data.model.config.image_token_id
    found = layer_embeddings(data.model, data.dataset, [1, 2], collator=data.collator, progress=False)
    assert found.shape == (8, 2 * 2 * 32)
    for row in range(len(data.dataset)):
        batch = alone(data, row)
        with torch.no_grad():
            states = data.model(**batch, output_hidden_states=True).hidden_states
        seen, vision = batch["attention_mask"][0].bool(), batch["input_ids"][0] == image
        blocks = []
        for layer in (1, 2):
            for mask in (seen & vision, seen & ~vision):
                mean = states[layer][0][mask].sum(0) / mask.sum().clamp(min=1)
                blocks.append(torch.nn.functional.normalize(mean.tanh(), dim=0) / 2)
        assert found[row] == pytest.approx(torch.cat(blocks).numpy(), abs=1e-5)
    assert not found[1][:32].any()
    assert found[0][:32].any()
    try_layers(data.model, data.dataset, np.arange(2), [1, 2], data.collator, None)


def test_tokens_of_an_image_that_are_cut_off_are_said(data):
    """As in public reports on truncated prompts: the features of the image are more than its tokens."""
    rows = [dict(data.dataset[row]) for row in range(4)]
    start = rows[2]["input_ids"].index(data.model.config.image_token_id)
    rows[2] = {
        key: value[: start + 1] if isinstance(value[0], int) else value for key, value in rows[2].items() if value
    }
    with pytest.raises(ComponentError, match=r"cannot take the images of rows \[.*cutoff_len"):
        per_sample_losses(data.model, rows, collator=data.collator, progress=False)


def test_a_trained_tower_in_shards_is_refused_by_name(folder):
    model = vision_data(folder, **TRAINED["lora with vision"]).model
    routes = gradient_routes(model)
    plan = Plan(model)
    plan.rules_only = True
    with pytest.raises(ComponentError, match=r"visual.*which sees images, where weights are in shards.*freeze_vision"):
        plan.see_media(model, routes)


@pytest.mark.parametrize("trained", TRAINED)
def test_gradients_are_those_of_each_row_alone(folder, trained):
    data = vision_data(folder, **TRAINED[trained])
    named = {name: p for name, p in data.model.named_parameters() if p.requires_grad}
    assert any("visual" in name for name in named) == ("vision" in trained)
    try_gradients(data.model, data.dataset, data.collator, None)
    for budget in (128, 900):
        found = norms(data, budget)
        for row in range(len(data.dataset)):
            data.model.eval()
            grads = torch.autograd.grad(loss_of(data, row), list(named.values()), allow_unused=True)
            expected = sum(float(g.double().square().sum()) for g in grads if g is not None)
            assert found[row] == pytest.approx(expected, rel=1e-4), f"row {row}, budget {budget}"
            if "vision" in trained and row != 1 and row != 5:
                tower = [g for name, g in zip(named, grads, strict=True) if "visual" in name]
                assert any(g is not None and g.any() for g in tower)


def norms(data, budget):
    """Returns the squared norm of each row's gradient."""
    rows = RowPass(data.dataset, data.collator, token_budget=budget, progress=False, gradients=True)
    with per_sample_gradients(data.model, None, None, 0) as gradients:

        def score(batch):
            sink = Norms(len(batch.labels()), torch.device("cpu"))
            gradients.backward(batch, sink)
            return sink.squares_B

        return rows.values(data.model, score)


def test_a_row_is_another_one_when_its_image_is_painted_over(tmp_path):
    import datasets
    from PIL import Image

    path = tmp_path / "one.png"
    Image.new("RGB", (16, 16), (0, 0, 0)).save(path)

    def digest():
        rows = [{"input_ids": [1, 2], "images": [str(path)]}, {"input_ids": [3], "images": None}]
        return dataset_digest(datasets.Dataset.from_list(rows)), dataset_digest([dict(row) for row in rows])

    before = digest()
    assert digest() == before
    Image.new("RGB", (32, 16), (9, 0, 0)).save(path)
    assert all(now != then for now, then in zip(digest(), before, strict=True))
