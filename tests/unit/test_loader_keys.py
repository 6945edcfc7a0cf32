"""Each key of the train dataloader is honoured, refused or said to have no effect, and both doors say the same."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from dataflex.config.arguments import DataflexArguments
from dataflex.config.checks.draft import Draft
from dataflex.config.checks.engine import engine_problems
from dataflex.config.checks.loader import CONFIG, DYNAMIC, KEYS, PLANNED, idle_keys, keys_of, loader_problems
from dataflex.config.checks.notes import notes
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import ConfigError
from dataflex.core.kinds import SELECTOR
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.trainer import SelectTrainer, trainer_class
from dataflex.trainer.engine import require_loader, require_one_model
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

OF_THE_LOADER = re.compile(
    r"dataloader|parallelism|train_batch_size|auto_find|sampling|group_by|data_seed|data_skip|column|tokens|"
    r"accumulation_steps"
)
NOT_OF_TRAINING = {"eval_accumulation_steps"}
REFUSED = {
    "per_gpu_train_batch_size": 4,
    "auto_find_batch_size": True,
    "dataloader_in_order": False,
    "include_tokens_per_second": True,
    "parallelism_config": {"tp_size": 2},
    f"{CONFIG}.split_batches": True,
    f"{CONFIG}.dispatch_batches": True,
    f"{CONFIG}.gradient_accumulation_kwargs.num_steps": 2,
}
IDLE = {
    "dataloader_drop_last": True,
    "dataloader_persistent_workers": True,
    "length_column_name": "tokens",
    "group_by_length": True,
    "train_sampling_strategy": "group_by_length",
    f"{CONFIG}.even_batches": False,
    f"{CONFIG}.use_seedable_sampler": False,
}


def test_every_field_of_the_installed_arguments_has_a_place_in_the_table():
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    of_the_loader = {name for name in fields if OF_THE_LOADER.search(name)} - NOT_OF_TRAINING
    assert len(of_the_loader) >= 10
    assert of_the_loader <= set(KEYS)
    inside = {f"{CONFIG}.{field.name}" for field in dataclasses.fields(AcceleratorConfig)}
    assert len(inside) == 7
    assert inside <= set(KEYS)


def test_workers_are_started_as_the_arguments_say(tmp_path, monkeypatch):
    made = []

    def loader(*args, **kwargs):
        made.append(kwargs["multiprocessing_context"])
        return DataLoader(
            *args, **kwargs | {"num_workers": 0, "prefetch_factor": None, "multiprocessing_context": None}
        )

    monkeypatch.setattr("dataflex.trainer.planned_batches.DataLoader", loader)
    for workers, expected in ((0, None), (2, "spawn")):
        args = tiny_training_args(tmp_path / str(workers), max_steps=-1, dataloader_num_workers=workers)
        args.dataloader_multiprocessing_context = "spawn"  # a field since transformers 5.24 at the latest
        keys = DataflexArguments(train_type="dynamic_select", component_name="random", update_times=0, train_step=1)
        rows = {"train_dataset": TokenRows(8), "data_collator": pad_collate}
        spec = RunSpec(keys, ComponentSpec(SELECTOR, "random", "random"))
        trainer_class(SelectTrainer, Trainer)(model=tiny_model(), args=args, dataflex=spec, **rows).train()
        assert made.pop() == expected
    assert made == []


def test_every_key_that_is_not_honoured_is_tried_below():
    assert {name for name, key in KEYS.items() if key.refused} == set(REFUSED)
    assert {name for name, key in KEYS.items() if key.idle} == set(IDLE)
    for name, key in KEYS.items():
        assert bool(key.refused) == bool(key.why), name


def nested(name, value):
    """The key as it stands in a file."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def draft(train_type, theirs):
    keys = {"stage": "sft", "do_train": True, "model_name_or_path": "a/b", "output_dir": "out", "dataset": "a,b"}
    return Draft(DataflexArguments(train_type=train_type), keys | theirs)


@pytest.mark.parametrize("train_type", sorted(DYNAMIC))
@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_key_is_one_problem_and_its_default_is_none(tmp_path, name, train_type):
    key = KEYS[name]
    wanted = [name] if train_type in key.refused else []
    written = nested(name, REFUSED[name])
    assert [p.where for p in engine_problems(draft(train_type, written))] == wanted
    if CONFIG in written:
        path = tmp_path / "accelerator.json"
        path.write_text(json.dumps(written[CONFIG]))
        for text in (str(path), json.dumps(written[CONFIG])):
            assert [p.where for p in engine_problems(draft(train_type, {CONFIG: text}))] == wanted
    for off in (key.default, None):
        assert engine_problems(draft(train_type, nested(name, off))) == []


@pytest.mark.parametrize("name", [name for name in REFUSED if name.startswith(CONFIG)])
def test_the_trainers_refuse_it_in_the_words_of_validate(tmp_path, name):
    args = tiny_training_args(tmp_path, accelerator_config=nested(name, REFUSED[name])[CONFIG])
    (problem,) = engine_problems(draft("dynamic_mix", nested(name, REFUSED[name])))
    with pytest.raises(ConfigError) as refused:
        require_loader(args, "dynamic_mix")
    assert str(refused.value) == str(problem)
    require_loader(tiny_training_args(tmp_path), "dynamic_mix")


@pytest.mark.parametrize("train_type", sorted(DYNAMIC))
@pytest.mark.parametrize("name", IDLE)
def test_a_key_without_effect_is_said_once(name, train_type):
    said = [note for note in notes(draft(train_type, nested(name, IDLE[name])), {}) if name in note]
    assert len(said) == (train_type in PLANNED)
    assert list(idle_keys(train_type, keys_of(draft(train_type, nested(name, KEYS[name].default))))) == []


def test_a_model_of_one_rank_only_is_no_parallelism():
    class Sizes:
        tp_size, cp_size = 1, 1

        def __init__(self):
            self.tp_size, self.dp_shard_size = 1, 4

    assert loader_problems("dynamic_mix", {"parallelism_config": Sizes()}) == []


def test_several_gpus_in_one_process_are_refused_where_losses_of_rows_are_needed(tmp_path):
    args = tiny_training_args(tmp_path)
    require_one_model(args, "a weighter")
    args._n_gpu = 2
    with pytest.raises(ConfigError, match=r"2 GPUs \(nn.DataParallel\), where a weighter does not .* -> .*torchrun"):
        require_one_model(args, "a weighter")
