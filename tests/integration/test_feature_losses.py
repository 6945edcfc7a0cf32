"""Features that reach into the loss or into the checkpoint, looked at more closely than a cell of the table does."""

from __future__ import annotations

import inspect
import shutil

import numpy as np
import pytest
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import CheckpointError
from dataflex.core.kinds import SELECTOR, WEIGHTER
from dataflex.scoring import per_sample_losses
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.trainer import SelectTrainer, WeightTrainer, trainer_class
from feature_cells import command
from feature_run import watch
from safetensors.torch import load_file
from stopped import as_if_stopped
from transformers import Trainer
from transformers.trainer_pt_utils import LabelSmoother

FLAT = ComponentSpec(WEIGHTER, "flat", "loss", {"strategy": "uniform"})
LOWER = ComponentSpec(WEIGHTER, "loss", "loss", {})


def trained(folder, accumulation=1, component=None, dft=False, lengths=16, **more):
    """Trains 4 steps of 8 rows, plainly or weighted from the first step on; returns losses and weights."""
    sizes = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    given = {
        "model": tiny_model(),
        "args": tiny_training_args(folder, max_steps=4, learning_rate=1e-2, **sizes, **more),
        "train_dataset": TokenRows(64, lengths=lengths),
        "data_collator": pad_collate,
    }
    if dft:
        from llamafactory.train.trainer_utils import dft_loss_func

        given["compute_loss_func"] = dft_loss_func
    if component is None:
        trainer = Trainer(**given)
    else:
        arguments = DataflexArguments(train_type="dynamic_weight", component_name="loss", train_step=4)
        spec = RunSpec(arguments, component, {"use_dft_loss": dft})
        trainer = trainer_class(WeightTrainer, Trainer)(**given, dataflex=spec)
    trainer.train()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return history, torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.llamafactory
@pytest.mark.parametrize("accumulation", [1, 4])
def test_uniform_weights_under_the_dft_loss_are_the_plain_run_bit_for_bit(tmp_path, accumulation):
    plain, weights = trained(tmp_path / "plain", accumulation, dft=True)
    flat, same = trained(tmp_path / "flat", accumulation, FLAT, dft=True)
    assert flat == plain
    assert torch.equal(same, weights)
    assert plain != trained(tmp_path / "other")[0]


def test_uniform_weights_under_label_smoothing_are_the_plain_run_up_to_rounding(tmp_path):
    plain, _ = trained(tmp_path / "plain", label_smoothing_factor=0.3)
    flat, _ = trained(tmp_path / "flat", 1, FLAT, label_smoothing_factor=0.3)
    assert flat == pytest.approx(plain, rel=1e-4)
    assert plain != pytest.approx(trained(tmp_path / "other")[0], rel=1e-4)


def test_accumulation_does_not_change_the_smoothed_objective_as_it_does_in_plain_runs_of_old_releases(tmp_path):
    """transformers 47261 has mended the plain run; docs/compatibility.md says so."""
    flat = [trained(tmp_path / f"f{n}", n, FLAT, label_smoothing_factor=0.3)[0][0] for n in (1, 4)]
    assert flat[1] == pytest.approx(flat[0], rel=1e-5)
    plain = [trained(tmp_path / f"p{n}", n, label_smoothing_factor=0.3)[0][0] for n in (1, 4)]
    times = 1 if "num_items_in_batch" in inspect.signature(LabelSmoother.__call__).parameters else 4
    assert plain[1] == pytest.approx(times * plain[0], abs=2.5e-4)  # four digits are logged, the rounding is multiplied


@pytest.mark.parametrize(
    "changes", [pytest.param({"dft": True}, marks=pytest.mark.llamafactory), {"label_smoothing_factor": 0.3}]
)
def test_weights_reach_the_loss_that_takes_the_place_of_cross_entropy(tmp_path, changes):
    flat, _ = trained(tmp_path / "flat", 1, FLAT, lengths=range(6, 20), **changes)
    lower, _ = trained(tmp_path / "lower", 1, LOWER, lengths=range(6, 20), **changes)
    assert all(a != b for a, b in zip(flat, lower, strict=True))


class Processor:
    def __init__(self):
        self.folders = []

    def save_pretrained(self, folder):
        self.folders.append(str(folder))


def with_processor(folder, mixin, component, train_type, **changes):
    from llamafactory.hparams import FinetuningArguments, TrainingArguments
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

    arguments = DataflexArguments(train_type=train_type, component_name=component.name, **changes)
    defaults = tiny_training_args(folder, max_steps=4, save_strategy="steps", save_steps=2)
    keys = ("max_steps", "save_strategy", "save_steps", "per_device_train_batch_size", "learning_rate", "seed")
    args = TrainingArguments(
        output_dir=str(folder),
        **{key: getattr(defaults, key) for key in keys},
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        gradient_accumulation_steps=2,
    )
    base = CustomSeq2SeqTrainer if mixin is None else trainer_class(mixin, CustomSeq2SeqTrainer)
    processor = Processor()
    trainer = base(
        finetuning_args=FinetuningArguments(),
        processor=processor,
        tokenizer=None,
        model=tiny_model(),
        args=args,
        train_dataset=TokenRows(64, lengths=16),
        data_collator=pad_collate,
        **({} if mixin is None else {"dataflex": RunSpec(arguments, component)}),
    )
    trainer.train()
    return processor, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.llamafactory
def test_a_processor_is_saved_into_each_checkpoint_and_at_the_end(tmp_path):
    component = ComponentSpec(SELECTOR, "loss", "loss", {})
    steps = {"warmup_step": 2, "update_step": 2, "update_times": 1}
    processor, losses = with_processor(tmp_path, SelectTrainer, component, "dynamic_select", **steps)
    assert processor.folders == [str(tmp_path / "checkpoint-2"), str(tmp_path / "checkpoint-4"), str(tmp_path)]
    assert len(losses) == 4


@pytest.mark.llamafactory
def test_uniform_weights_with_a_processor_are_the_plain_run(tmp_path):
    """With a processor LLaMA-Factory has the loop average over micro-batches instead of counting the step's labels."""
    _, plain = with_processor(tmp_path / "plain", None, FLAT, "dynamic_weight")
    processor, flat = with_processor(tmp_path / "flat", WeightTrainer, FLAT, "dynamic_weight", train_step=4)
    assert flat == plain
    assert len(processor.folders) == 3


def test_neat_packing_scores_each_packed_row_as_its_documents_alone(train, tmp_path, monkeypatch):
    seen = watch(monkeypatch, tmp_path / "run")
    assert train(*command("neat_packing", "dynamic_select")) == 0
    trainer = seen.trainer
    rows = [dict(trainer.train_dataset[i]) for i in range(4)]
    packed = per_sample_losses(trainer.model, rows, collator=trainer.data_collator, progress=False)
    for row, loss in zip(rows, packed, strict=True):
        sums, labels = 0.0, 0
        for number in sorted(set(row["attention_mask"]) - {0}):
            part = [i for i, n in enumerate(row["attention_mask"]) if n == number]
            count = sum(row["labels"][i] != -100 for i in part)  # a document begins with its prompt, without a label
            document = {key: [row[key][i] for i in part] for key in ("input_ids", "labels")}
            document["attention_mask"] = [1] * len(part)
            alone = per_sample_losses(trainer.model, [document], collator=pad_collate, progress=False)[0]
            sums, labels = sums + (0.0 if np.isnan(alone) else alone * count), labels + count
        assert loss == pytest.approx(sums / labels, rel=1e-4)


def test_a_resumed_pissa_run_ends_with_and_converts_to_what_the_whole_run_does(train, tmp_path):
    cell = [*command("pissa", "dynamic_select"), "save_steps=3", "learning_rate=1.0e-2"]
    assert train(*cell) == 0
    out = tmp_path / "run"
    files = ("adapter_model.safetensors", "pissa_converted/adapter_model.safetensors")
    whole = [load_file(out / name) for name in files]
    initial = load_file(out / "pissa_init" / "adapter_model.safetensors")
    shutil.rmtree(out / "checkpoint-6")
    shutil.rmtree(out / "pissa_converted")
    as_if_stopped(out)
    assert train(*cell) == 0
    for name, before in zip(files, whole, strict=True):
        after = load_file(out / name)
        assert all(torch.equal(before[key], after[key]) for key in before), name
    again = load_file(out / "pissa_init" / "adapter_model.safetensors")
    assert all(torch.equal(initial[key], again[key]) for key in initial)

    shutil.rmtree(out / "checkpoint-6")
    shutil.rmtree(out / "pissa_init")
    as_if_stopped(out)
    assert train(*cell) == CheckpointError.exit_code
