"""A training script as a user of ``accelerate launch`` writes it: dynamic() over Trainer and over TRL's SFTTrainer.

    accelerate launch --multi_gpu --num_processes 2 accelerate_script.py FOLDER [RESUME]

With RESUME each run goes on from its checkpoint after the second step. Each rank leaves ``weights-R.json`` in the
folder of a run: a digest of the weights that it ended with.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
import trl
from dataflex import dynamic
from dataflex.launch.torchrun import settle
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dynamic_script import digest
from sft_rows import made, rows
from transformers import Trainer

STEPS = {"warmup_step": 1, "update_step": 1, "update_times": 2}
SAVING = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2}


def plain(folder):
    """Returns a transformers.Trainer that selects by loss and takes the easy rows first."""
    cls = dynamic(Trainer, selector="loss", order="length", **STEPS)
    arguments = tiny_training_args(folder, max_steps=-1, **SAVING)
    return cls(model=tiny_model(), args=arguments, train_dataset=TokenRows(24), data_collator=pad_collate)


def sft(folder):
    """Returns a trl.SFTTrainer that mixes two sources and weighs samples by their losses."""
    cls = dynamic(trl.SFTTrainer, mixer="odm", weighter="loss", **STEPS)
    sources = {"a": rows("text"), "b": rows("text", 15, "owl")}
    return made(cls, folder, sources, None, SAVING | {"max_steps": -1, "gradient_accumulation_steps": 1})


RUNS = {"plain": plain, "sft": sft}


def main(folder: Path, resumed: Path | None) -> None:
    """Trains each run, from the start or from the checkpoint of another one."""
    for name, make in RUNS.items():
        trainer = make(folder / name)
        trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed / name / "checkpoint-2"))
        file = folder / name / f"weights-{trainer.args.process_index}.json"
        file.write_text(json.dumps([trainer.args.world_size, digest(trainer.model)]))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
    torch.distributed.barrier()  # a rank that ends while another is at work takes its connections away
    torch.distributed.destroy_process_group()
    settle()
