"""``dynamic`` over TRL's DPOTrainer, RewardTrainer and KTOTrainer: their rows, and what TRL made of them."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest
import torch
import trl
from dataflex import dynamic
from dataflex.core.errors import ConfigError
from dataflex.rows.views import MixedSources
from dataflex.testing import tiny_model
from dataflex.train.selector.base_selector import Selector
from dataflex.upstream import relied_on
from dataflex.upstream.trl_datasets import (
    PairsOfBatch,
    require_separate_sources,
    with_pairs_of_batch,
    without_reference_columns,
)
from packaging.version import Version

from tests.unit.stage_trainers import texts_of_pairs, texts_with_tags, trl_trainer

RELEASE = Version(trl.__version__)
OLD = Version("1") > RELEASE
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This trainer will soon be moved"),
    pytest.mark.filterwarnings("ignore:.*padding_value"),
]
STEPS = {"warmup_step": 1, "update_step": 1, "update_times": 2}
QUIET = {"max_length": 64, "logging_steps": 1, "save_strategy": "no", "learning_rate": 1e-2}
STAGES = ["dpo", "rm", "kto"]
ROWS = {"dpo": texts_of_pairs, "rm": texts_of_pairs, "kto": texts_with_tags}


class InOrder(Selector):
    """The rows as they stand."""

    draws = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.taken = 0

    def warmup(self, num_samples: int, replacement: bool = False) -> list[int]:
        return self.select(None, 0, num_samples)

    def select(self, model: Any, step_id: int, num_samples: int, **kwargs: Any) -> list[int]:
        self.taken += num_samples
        return list(range(self.taken - num_samples, self.taken))


def trainer_class(stage: str) -> Any:
    return {"dpo": "DPOTrainer", "rm": "RewardTrainer", "kto": "KTOTrainer"}[stage]


def made(stage, folder, axes, rows=None, **settings):
    """A dynamic trainer of a stage over a tiny model; `rows` in place of the kit's own."""
    name = trainer_class(stage)
    base = getattr(trl, name)

    def build(*, train_dataset, **given):
        return dynamic(base, **axes)(train_dataset=ROWS[stage](24) if rows is None else rows, **given)

    return trl_trainer(stage, folder, build, **QUIET | settings)


def watched(trainer):
    """The rows of each batch that the collator was given in training, filled while it trains."""
    seen, collate = [], trainer.data_collator

    def collated(rows):
        seen.append([dict(row) for row in rows])
        return collate(rows)

    trainer.data_collator = collated
    return seen


def losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def chosen_rows(folder):
    files = sorted((folder / "dataflex_selections").glob("*.npz"))
    return np.concatenate([np.load(file)["indices"] for file in files]).tolist()


def key_of(stage):
    name = "completion" if stage == "kto" else "chosen"
    return f"{name}_input_ids" if OLD else f"{name}_ids"


@pytest.mark.parametrize("stage", STAGES)
def test_the_rows_that_are_planned_are_those_that_reach_the_collator_in_their_order(stage, tmp_path):
    trainer = made(stage, tmp_path, {"selector": "random"} | STEPS)
    seen = watched(trainer)
    trainer.train()
    assert trainer.state.global_step == 3
    key = key_of(stage)
    trained = [row[key] for batch in seen for row in batch]
    assert trained == [trainer.train_dataset[row][key] for row in chosen_rows(tmp_path)]
    assert len(set(losses(trainer))) == 3


@pytest.mark.parametrize("stage", STAGES)
def test_sources_are_prepared_one_by_one_and_mixed(stage, tmp_path):
    if OLD and stage == "kto":
        pytest.skip(f"KTOTrainer of TRL {RELEASE} prepares one dataset in its constructor: its refusal has a test")
    sources = {"a": ROWS[stage](8), "b": ROWS[stage](12, seed=5)}
    trainer = made(stage, tmp_path, {"mixer": "temperature"} | STEPS, sources)
    seen = watched(trainer)
    trainer.train()
    assert [len(source) for source in trainer.train_dataset.sources] == [8, 12]
    key = key_of(stage)
    trained = [row[key] for batch in seen for row in batch]
    assert trained == [trainer.train_dataset[row][key] for row in chosen_rows(tmp_path)]
    assert any(row >= 8 for row in chosen_rows(tmp_path)), "rows of the second source are trained on"


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_a_reference_that_is_computed_beforehand_gives_the_losses_of_one_that_is_asked_each_step(stage, tmp_path):
    """The reference of TRL 0.24 was the policy itself here: every loss was ln 2, or 0.5."""
    settings = {} if stage == "dpo" else {"loss_type": "apo_zero_unpaired"}  # pairs of a batch change the KL term
    asked = made(stage, tmp_path / "asked", {"selector": "random"} | STEPS, **settings)
    asked.train()
    before = made(stage, tmp_path / "before", {"selector": "random"} | STEPS, precompute_ref_log_probs=True, **settings)
    before.train()
    assert losses(before) == pytest.approx(losses(asked), abs=2e-4)
    assert len({round(loss, 3) for loss in losses(before)}) > 1
    added = set(before.train_dataset.column_names) - set(asked.train_dataset.column_names)
    assert len(added) == (2 if stage == "dpo" else 1)
    assert not added & set(without_reference_columns(before.train_dataset).column_names), "a run is not known by these"


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_a_reference_for_every_source_of_a_mixture_or_a_refusal_by_name(stage, tmp_path):
    sources = {"a": ROWS[stage](8), "b": ROWS[stage](12, seed=5)}
    if OLD:
        named = "precompute_ref_log_probs: is true" if stage == "dpo" else "train_dataset: is a mapping of sources"
        with pytest.raises(ConfigError, match=rf"{named}.* of trl {RELEASE}"):
            made(stage, tmp_path, {"mixer": "temperature"} | STEPS, sources, precompute_ref_log_probs=True)
        return
    trainer = made(stage, tmp_path, {"mixer": "temperature"} | STEPS, sources, precompute_ref_log_probs=True)
    trainer.train()
    columns = {"dpo": "ref_chosen_logps", "kto": "ref_logps"}[stage]
    assert all(columns in source.column_names for source in trainer.train_dataset.sources)
    assert all(np.isfinite(losses(trainer)))


@pytest.mark.parametrize("streams", [False, True], ids=["rows", "streams"])
def test_kto_pairs_the_rows_of_each_planned_batch_anew(streams, tmp_path):
    if OLD:
        pytest.skip(f"KTOTrainer of TRL {RELEASE} holds whole mismatched answers: a log line says what that means")
    rows = {"a": texts_with_tags(12).to_iterable_dataset(), "b": texts_with_tags(12, seed=5).to_iterable_dataset()}
    mixed = {"mixer": "static", "mixture_sample_rule": "uniform"}
    axes, rows = (mixed, rows) if streams else ({"selector": "random"}, None)
    trainer = made("kto", tmp_path, axes | STEPS, rows, max_steps=3)
    seen = watched(trainer)
    trainer.train()
    assert seen
    for batch in seen:
        given = [row["KL_completion_ids"] for row in batch]
        assert given == [batch[place - 1]["completion_ids"] for place in range(len(batch))]


def test_kto_in_the_datasets_own_order_is_trls_run_bit_for_bit(tmp_path):
    if OLD:
        pytest.skip("the pairs of a batch are made anew from TRL 1 on")
    steps = {"warmup_step": 1, "update_step": 1, "update_times": 1}
    ours = made("kto", tmp_path / "ours", {"selector": InOrder, **steps}, texts_with_tags(8))
    ours.train()
    plain = trl_trainer("kto", tmp_path / "plain", None, max_steps=2, **QUIET)
    plain.train()
    expected = plain.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in ours.model.state_dict().items())


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_was_stopped_ends_as_the_one_that_was_not(stage, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole = made(stage, tmp_path / "whole", {"selector": "random"} | STEPS, **saving)
    whole.train()
    later = made(stage, tmp_path / "later", {"selector": "random"} | STEPS, **saving)
    later.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in later.model.state_dict().items())


@pytest.mark.parametrize(
    ("stage", "settings"),
    [("dpo", {"padding_free": True}), ("dpo", {"sync_ref_model": True, "ref_model_sync_steps": 1})],
    ids=str,
)
def test_options_of_trl_that_change_no_row_work_as_they_do_there(stage, settings, tmp_path):
    if "padding_free" in settings and not OLD:
        settings = {}  # TRL 1 takes it with a warning and does nothing
    trainer = made(stage, tmp_path, {"selector": "random"} | STEPS, **settings)
    trainer.train()
    assert trainer.state.global_step == 3
    if settings.get("sync_ref_model"):
        first = dict(tiny_model(vocab_size=512, seed=2).named_parameters())
        now = trainer.accelerator.unwrap_model(trainer.ref_model).named_parameters()
        assert any(not torch.equal(value, first[name]) for name, value in now), "the reference follows the policy"


# Without TRL's own trainers: what is known of them by their names.


def of_trl(name, **methods):
    return type(name, (), {"__module__": f"trl.trainer.{name.lower()}"} | methods)


def test_a_trainer_that_prepares_one_dataset_in_its_constructor_refuses_a_mapping_and_takes_one_dataset():
    rows = datasets.Dataset.from_dict({"input_ids": [[1], [2]]})
    old, new = of_trl("KTOTrainer"), of_trl("KTOTrainer", _prepare_dataset=lambda self: None)
    mixed = MixedSources({"a": rows, "b": rows})
    with pytest.raises(ConfigError, match=r"is a mapping of sources, which KTOTrainer of trl .* -> give one"):
        require_separate_sources([old], mixed, None)
    require_separate_sources([old], rows, None)
    require_separate_sources([new], mixed, None)
    require_separate_sources([type("KTOTrainer", (), {"__module__": "my.trainers"})], mixed, None)
    past_it = type("CustomKTOTrainer", (old,), {"__module__": "llamafactory.train.kto.trainer"})
    require_separate_sources([past_it, old], mixed, None)


def test_pairs_are_made_of_the_batch_with_the_last_row_before_the_first():
    rows = [{"completion_ids": [number], "KL_completion_ids": [9], "label": True} for number in range(3)]
    made_of = PairsOfBatch(lambda batch: batch)(rows)
    assert [row["KL_completion_ids"] for row in made_of] == [[2], [0], [1]]
    assert [row["KL_completion_ids"] for row in rows] == [[9]] * 3, "the rows that were given stay as they are"
    seen = [row | {"ref_logps": 0.5} for row in rows]
    assert PairsOfBatch(lambda batch: batch)(seen) is seen, "a reference has seen these pairs"
    texts = [{"input_ids": [1]}]
    assert PairsOfBatch(lambda batch: batch)(texts) is texts


def test_pairs_stay_where_the_reference_has_seen_them():
    columns = {"completion_ids": [[1]], "KL_completion_ids": [[2]], "ref_logps": [0.5], "ref_KL_logps": [0.5]}
    base, collate = [of_trl("KTOTrainer")], list
    assert with_pairs_of_batch(base, datasets.Dataset.from_dict(columns), collate) is collate
    without = datasets.Dataset.from_dict({key: value for key, value in columns.items() if "ref" not in key})
    assert isinstance(with_pairs_of_batch(base, without, collate), PairsOfBatch)
    assert isinstance(with_pairs_of_batch(base, MixedSources({"a": without}), collate), PairsOfBatch)
    assert with_pairs_of_batch([of_trl("DPOTrainer")], without, collate) is collate


def test_a_mixture_is_known_without_what_the_reference_gave_to_its_rows():
    plain = datasets.Dataset.from_dict({"chosen_ids": [[1]]})
    mixed = MixedSources({"a": plain.add_column("ref_chosen_logps", [0.5]), "b": plain})
    assert [source.column_names for source in without_reference_columns(mixed).sources] == [["chosen_ids"]] * 2
    same = MixedSources({"a": plain})
    assert without_reference_columns(same) is same


def test_what_is_relied_on_of_the_newest_trl_is_there():
    if OLD:
        pytest.skip(f"TRL {RELEASE} does these things elsewhere")
    assert relied_on.missing(relied_on.OPTIONAL) == []
