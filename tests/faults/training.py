"""The run that is killed: a tiny model with dropout, a checkpoint after every step, and a digest of how it ended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.kinds import MIXER, SELECTOR, WEIGHTER
from dataflex.run.checkpoints import newest_complete
from dataflex.run.record import read_trace
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.trainer import MixTrainer, SelectTrainer, WeightTrainer, trainer_class
from transformers import Trainer

STEPS = 10
KINDS = {
    "dynamic_select": (SelectTrainer, SELECTOR, "loss"),
    "dynamic_mix": (MixTrainer, MIXER, "random"),
    "dynamic_weight": (WeightTrainer, WEIGHTER, "loss"),
}


def train(train_type: str, accumulation: int, folder: Path) -> dict[str, str]:
    """Trains from the newest complete checkpoint in ``folder``, or from the beginning; returns the digest."""
    torch.set_num_threads(1)
    mixin, kind, name = KINDS[train_type]
    keys = DataflexArguments(
        train_type=train_type, component_name=name, warmup_step=2, update_step=4, update_times=2, train_step=STEPS
    )
    rows: Any = TokenRows(64, lengths=range(8, 17))
    if train_type == "dynamic_mix":
        rows = {"a": TokenRows(11, lengths=16), "b": TokenRows(90, lengths=range(8, 17), seed=2)}
    model = tiny_model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1  # so that every step depends on the random state
    args = tiny_training_args(
        folder,
        max_steps=-1,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
    )
    trainer = trainer_class(mixin, Trainer)(
        model=model,
        args=args,
        train_dataset=rows,
        data_collator=pad_collate,
        dataflex=RunSpec(keys, ComponentSpec(kind, name, name)),
    )
    trainer.train(resume_from_checkpoint=newest_complete(folder))
    return digest(trainer, folder)


def digest(trainer: Any, folder: Path) -> dict[str, str]:
    """Returns a hash of each thing that a killed and resumed run must end with."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trace = [{key: value for key, value in line.items() if "seconds" not in key} for line in read_trace(folder)]
    selections = sorted((folder / "dataflex_selections").glob("step_*.npz"))
    return {
        "weights": _hash(trainer.model.state_dict()),
        "optimizer": _hash(trainer.optimizer.state_dict()),
        "scheduler": _hash(trainer.lr_scheduler.state_dict()),
        "losses": _hash([losses, trainer.state.global_step, trainer.state.epoch]),
        "trace": _hash(trace),
        "selections": _hash([[path.name, dict(np.load(path))] for path in selections]),
    }


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(_plain(value)).encode(), digest_size=8).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return hashlib.blake2b(value.detach().contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, np.ndarray):
        return [str(value.dtype), hashlib.blake2b(value.tobytes()).hexdigest()]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
