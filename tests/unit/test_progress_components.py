"""Every component that goes through rows with a model has signs of life where there is no terminal."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.context import UpdateContext
from dataflex.core.kinds import MIXER, SELECTOR, WEIGHTER
from dataflex.core.registry import register_selector
from dataflex.discovery.component_classes import find
from dataflex.discovery.construct import construct
from dataflex.planning.mixture import MixtureManager
from dataflex.scoring import per_sample_losses
from dataflex.scoring.passes.score_store import ScoreStore
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.selector.base_selector import Selector
from dataflex.train.trainer import SelectTrainer, trainer_class
from dataflex.utils import progress
from every_component import installed, made
from test_progress import Clock
from transformers import Trainer
from weighted_run import weighted

SELECTS_AT_ONCE = {"random", "custom", "scores"}
"""Selectors that go through no rows; the others must be heard."""
LOOKS_AT_ROWS = {MIXER: {"dynamic_moe"}, WEIGHTER: {"adapt", "joint_update_aware"}}
"""Mixers and weighters that do; the others compute from what training gives them."""
NEEDS = {"rho_loss": {"column": "number"}, "less": {"gradient_type": "sgd"}, "cluster_less": {"gradient_type": "sgd"}}
NEEDS["nice"] = {"gradient_type": "sgd"}
AT_ONCE = {
    "infobatch": "takes the losses of training",
    "reward_spread": "takes the rewards of training",
    "doge": "looks at the gradients of training; a target is tried in its own tests",
    "rho_tokens": "needs a reference model, whose pass says how far it is as every pass does",
    "spans": "reads a micro-batch at a time",
    "token_column": "needs rows with weights of tokens",
}
"""Those that cannot be driven here, or go through no rows of their own, with why."""
OF_RUN = {"doremi": "a run of its own makes its reference model", "custom": "the user's own"}


class Numbered(TokenRows):
    """Rows with a number each."""

    def __getitem__(self, row):
        return {**super().__getitem__(row), "number": 0.5}


@pytest.fixture
def heard(monkeypatch, caplog):
    """Returns what was written so far, by a clock by which everything takes long."""
    monkeypatch.setattr(progress, "clock", Clock(each=11.0))
    monkeypatch.setattr(progress, "LOOK", 3600.0)
    monkeypatch.setattr(progress, "_mine", progress._Mine())
    caplog.set_level("INFO", "dataflex")
    return lambda: [r.getMessage() for r in caplog.records if r.funcName == "_say"]


@pytest.mark.parametrize("name", installed(SELECTOR))
def test_a_selector_that_goes_through_rows_is_heard(name, heard, tmp_path):
    if name in AT_ONCE:
        pytest.skip(AT_ONCE[name])
    np.save(tmp_path / "scores.npy", np.arange(12.0))
    params = NEEDS.get(name, {"file": str(tmp_path / "scores.npy")} if name == "scores" else {})
    rows, target = Numbered(12, lengths=range(6, 12)), TokenRows(4, lengths=6, seed=1)
    selector = made(SELECTOR, name, params, dataset=rows, eval_dataset=target, cache_dir=str(tmp_path))
    context = UpdateContext(0, 1, 3, 9, 1e-3, torch.optim.SGD(tiny_model().parameters(), 1e-3))
    before = len(heard())
    selector.select(tiny_model(), 3, 4, context=context)
    found = heard()[before:]
    assert bool(found) == (name not in SELECTS_AT_ONCE), found
    if found:
        assert any(line.startswith((f"{name}: ", f"{name}, ")) for line in found), found
        assert found[-1].partition(" in ")[2], f"the end is told, and what it took: {found[-1]}"


@pytest.mark.parametrize("name", installed(MIXER))
def test_a_mixer_that_goes_through_rows_is_heard(name, heard, tmp_path):
    if name in OF_RUN | AT_ONCE:
        pytest.skip((OF_RUN | AT_ONCE)[name])
    rows = TokenRows(8, lengths=6)
    params = {"points": [{"at": 0, "proportions": {"a": 0.5, "b": 0.5}}]} if name == "schedule" else {}
    given = {"mixture_manager": MixtureManager(["a", "b"], [8, 8], [0.5, 0.5], seed=1), "output_dir": str(tmp_path)}
    given |= {"accelerator": None, "data_collator": pad_collate, "mixer_eval_dataset": {"a": rows, "b": rows}}
    mixer = construct(find(MIXER, name), params, given | {"dataset": rows, "eval_dataset": rows, "seed": 1})
    mixer.bind(name, 7)
    before = len(heard())
    mixer.mix(tiny_model(kind="mixtral"), 3, context=UpdateContext(0, 1, 3, 9, 1e-3, None))
    assert bool(heard()[before:]) == (name in LOOKS_AT_ROWS[MIXER]), heard()[before:]


@pytest.mark.parametrize("name", installed(WEIGHTER))
def test_a_weighter_that_goes_through_rows_is_heard(name, heard, tmp_path):
    if name in AT_ONCE:
        pytest.skip(AT_ONCE[name])
    np.save(tmp_path / "weights.npy", np.ones(16))
    params = {"file": str(tmp_path / "weights.npy")} if name == "column" else {}
    data = {"a": TokenRows(8, lengths=6), "b": TokenRows(8, lengths=6, seed=1)}
    trainer = weighted(tmp_path / "out", name, params, data, target=TokenRows(4, lengths=6, seed=2), max_steps=1)
    before = len(heard())
    trainer.train()
    found = [line for line in heard()[before:] if line.startswith(f"{name}: ") and "target" in line]
    assert bool(found) == (name in LOOKS_AT_ROWS[WEIGHTER]), found


def test_a_pass_that_is_taken_up_says_from_where(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(progress, "clock", Clock(each=11.0))
    monkeypatch.setattr(progress, "_mine", progress._Mine())
    caplog.set_level("INFO", "dataflex")
    rows, model = TokenRows(12, lengths=6), tiny_model()
    given = {"collator": pad_collate, "token_budget": 12, "desc": "loss: losses at step 3"}
    store = ScoreStore(tmp_path, lambda: "key", seconds=0)
    whole = per_sample_losses(model, rows, store=store, **given)
    parts = sorted(tmp_path.rglob("part-*.bin"))
    for part in parts[4:]:
        part.unlink()
    caplog.clear()
    again = per_sample_losses(model, rows, store=ScoreStore(tmp_path, lambda: "key", seconds=1e9), **given)
    np.testing.assert_array_equal(again, whole)
    first, second, *_, last = [text for text in caplog.messages if text.startswith("loss: ")]
    assert first == f"loss: losses at step 3: goes on at row 8 of 12, kept in {parts[0].parent}"
    assert second == "loss: losses at step 3: 4 rows, 24 tokens in 2 batches"
    assert last.startswith("loss: losses at step 3: 4 rows in ")


class Waiting(Selector):
    """Somebody's selector that takes its time and says nothing itself."""

    written = threading.Semaphore(0)

    def select(self, model, step_id, num_samples, **kwargs):
        while self.written.acquire(blocking=False):  # lines of what was before
            pass
        assert self.written.acquire(timeout=60), "a line was written while it worked"
        return np.arange(num_samples)


def test_a_component_that_says_nothing_itself_has_a_voice_all_the_same(tmp_path, heard, monkeypatch):
    monkeypatch.setattr(progress, "LOOK", 0.001)
    say = progress._Voice._say
    monkeypatch.setattr(progress._Voice, "_say", lambda *args: (say(*args), Waiting.written.release()))
    register_selector("mine")(Waiting)
    arguments = DataflexArguments(
        train_type="dynamic_select", component_name="mine", warmup_step=1, update_step=1, update_times=1
    )
    trainer_class(SelectTrainer, Trainer)(
        model=tiny_model(),
        args=tiny_training_args(tmp_path, max_steps=-1),
        train_dataset=TokenRows(32, lengths=6),
        data_collator=pad_collate,
        dataflex=RunSpec(arguments, ComponentSpec(SELECTOR, "mine", "mine", {})),
    ).train()
    assert any(line.startswith("mine: update 0 at step 1: running for ") for line in heard()), heard()
