"""Mixers through LLaMA-Factory's own entry: they see the losses of pre-training and held-out rows of each source."""

from __future__ import annotations

import json

import pytest
from dataflex.config import known_keys
from dataflex.run.record import read_updates

NAMES = ("code", "docstrings", "prose")
LOOKING = '''
from dataflex.core.registry import register_mixer
from dataflex.train.mixer.base_mixer import Mixer


@register_mixer("looking")
class Looking(Mixer):
    """Keeps its proportions and notes what it is given."""

    def __init__(self, mixture_manager, mixer_eval_dataset):
        super().__init__(mixture_manager)
        self.held_out = {name: len(rows) for name, rows in mixer_eval_dataset.items()}
        self.rows = {name: sorted(rows[0]) for name, rows in mixer_eval_dataset.items()}
        self.told = []

    def observe(self, step, losses_K, tokens_K):
        self.told.append([losses_K.tolist(), tokens_K.tolist()])

    def mix(self, model, step_id, **kwargs):
        return self.mixture_manager.proportions

    def details(self):
        return {"held_out": self.held_out, "columns": self.rows, "told": self.told}
'''


@pytest.fixture(scope="module")
def looking(tmp_path_factory):
    path = tmp_path_factory.mktemp("plugin") / "looking.py"  # one file for all: a name is registered once
    path.write_text(LOOKING)
    return [f"plugins=['{path}']", "component_name=looking", "warmup_step=2", "update_step=2", "update_times=2"]


def test_losses_are_those_that_the_trainer_logs_and_held_out_rows_are_tokenised(train, tmp_path, looking):
    held_out = "mixer_eval_dataset=[docstrings,code,prose]"
    assert train("mix_random", *looking, held_out, "mixture_unit=tokens", "gradient_accumulation_steps=2") == 0
    lines = read_updates(tmp_path / "run")
    told = lines[-1]["told"]
    assert len(told) == 4
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    logged = [entry["loss"] for entry in history if "loss" in entry]
    for (losses, tokens), loss in zip(told, logged, strict=False):
        mean = sum(c * n for c, n in zip(losses, tokens, strict=True) if n) / sum(tokens)
        assert mean == pytest.approx(loss, rel=0.02)  # the logged one also counts the first token of a row
    assert set(lines[0]["held_out"]) == set(NAMES)
    assert all(count > 0 for count in lines[0]["held_out"].values())
    assert all("input_ids" in columns for columns in lines[0]["columns"].values())


def test_what_val_size_holds_out_serves_as_well(train, tmp_path, looking):
    assert train("mix_random", *looking, "val_size=6", out="held") == 0
    held_out = read_updates(tmp_path / "held")[0]["held_out"]
    assert set(held_out) == set(NAMES)
    assert all(0 < count < 20 for count in held_out.values())  # two texts of each source, packed into rows


@pytest.mark.skipif("use_asft_loss" not in (known_keys.llamafactory_keys() or ()), reason="needs llamafactory 0.9.5")
def test_a_loss_without_logits_is_refused_before_the_model_is_loaded(train, tmp_path, looking, capsys):
    assert train("mix_random", *looking, "val_size=6", "use_asft_loss=true", out="asft") == 2
    assert "use_asft_loss: the mixer 'looking' follows the loss of each source" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["odm", "temperature"])
def test_shipped_mixers_run(train, tmp_path, name):
    keys = ["warmup_step=2", "update_step=1", "update_times=-1", "train_step=5"]
    assert train("mix_random", f"component_name={name}", *keys, out=name) == 0
    assert [line["step"] for line in read_updates(tmp_path / name)] == [2, 3, 4]
