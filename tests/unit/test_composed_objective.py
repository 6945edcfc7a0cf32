"""The objective of a run whose selector gives weights, whose mixer weighs sources, with an order and a weighter."""

from __future__ import annotations

import numpy as np
import pytest
from combined_step import ROWS, SOURCE_WEIGHTS, combined, expected
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, Part, RunSpec
from dataflex.core.kinds import MIXER, ORDER, SELECTOR, WEIGHTER
from dataflex.core.registry import register_selector
from dataflex.rows.views import MixedSources
from dataflex.testing import tiny_model, tiny_training_args
from dataflex.train.selector.base_selector import Selection, Selector
from dataflex.trainer import DynamicTrainer, trainer_class
from split_step import Noting, Uneven, collate, trained


@register_selector("rescales")
class Rescales(Selector):
    """The first rows, each counted otherwise: as methods do that prune and rescale. Knows nothing of other axes."""

    weighs = True

    def select(self, model, step_id, num_samples, **kwargs):
        return Selection(np.arange(num_samples)[::-1], weights=np.linspace(0.25, 2.5, num_samples))


def part(kind, name, params=None, **more):
    return Part(ComponentSpec(kind, name, name, params or {}), **more)


def composed(folder, micro, objective):
    """Returns the trainer of one step with every axis, as a YAML would have it."""
    parts = (
        part(SELECTOR, "loss", keep=0.9),
        part(SELECTOR, "rescales"),
        part(MIXER, "weighing_shares", {"weights": list(SOURCE_WEIGHTS)}),
        part(ORDER, "saw", by="length", over="stretch"),
        part(WEIGHTER, "by_own_loss"),
    )
    axes = {
        "selector": ({"component": "loss", "keep": 0.9}, {"component": "rescales"}),
        "mixer": {"component": "weighing_shares"},
        "order": {"component": "saw", "by": "length", "over": "stretch"},
        "weighter": {"component": "by_own_loss"},
    }
    steps = {"warmup_step": 0, "update_step": 1, "update_times": 1, "mixture_sample_rule": "uniform"}
    sizes = {"per_device_train_batch_size": ROWS // micro, "gradient_accumulation_steps": micro, "max_steps": -1}
    fixed = {"optim": "sgd", "max_grad_norm": 0.0, "remove_unused_columns": False}
    return trainer_class(DynamicTrainer, Noting)(
        model=tiny_model(layers=1),
        args=tiny_training_args(folder, **sizes, **fixed),
        train_dataset=MixedSources({"a": Uneven(10), "b": Uneven(30, seed=1)}),
        data_collator=collate,
        dataflex=RunSpec(DataflexArguments("dynamic", weight_objective=objective, **axes, **steps), parts=parts),
    )


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "not counted"])
@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("objective", ["sample", "token"])
def test_the_step_of_a_run_of_every_axis_is_the_formula(tmp_path, objective, micro, counted):
    found = trained(composed(tmp_path, micro, objective), counted, None)
    recorded = np.load(tmp_path / "dataflex_selections" / "step_00000000.npz")
    assert sorted(recorded["weights"]) == sorted([*np.linspace(0.25, 2.5, 6)] * 2)  # of six rows in each source
    given = {"weighter": objective, "mixer": "weighs", "rows": True}
    want = expected(tmp_path, combined(tmp_path / "alike", micro, **given), counted=counted, **given)
    assert np.linalg.norm(want["gradient"]) > 1e-3
    for key in ("loss", "gradient"):
        np.testing.assert_allclose(found[key], want[key], rtol=5e-4, atol=2e-6, err_msg=key)
