"""The components of a run, as its trainer makes them."""

from __future__ import annotations

from dataflex import dynamic
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from transformers import Trainer

STEPS = {"warmup_step": 1, "update_step": 1, "update_times": 2}


def test_two_selectors_of_one_preset_have_names_folders_and_draws_of_their_own(tmp_path):
    made = dynamic(Trainer, selector=[{"name": "loss", "keep": 0.5}, "loss"], mixer="static", **STEPS)
    args = tiny_training_args(tmp_path, max_steps=-1, per_device_train_batch_size=4)
    sources = {"a": TokenRows(16, lengths=8), "b": TokenRows(16, lengths=8, seed=1)}
    components = [
        each for _, each in made(tiny_model(), args, train_dataset=sources, data_collator=pad_collate).components
    ]
    assert [each.name for each in components] == ["loss", "static", "loss 2 in a", "loss 2 in b"]
    selectors = [each for each in components if each.name != "static"]
    assert len({each.cache_dir for each in selectors}) == 3
    assert len({each.cache_owner for each in selectors}) == 3
    assert len({each.generator(0).integers(2**62) for each in selectors}) == 3


def test_a_selector_alone_has_the_name_of_its_preset(tmp_path):
    made = dynamic(Trainer, selector="loss", **STEPS)
    args = tiny_training_args(tmp_path, max_steps=-1, per_device_train_batch_size=4)
    trainer = made(tiny_model(), args, train_dataset=TokenRows(16, lengths=8), data_collator=pad_collate)
    assert trainer.component.name == "loss"
    assert trainer.component.cache_dir == str(tmp_path / "dataflex_cache" / "loss")
