"""A training script as a user writes it, over TRL: started by torchrun on two ranks, or called on one.

    python -m torch.distributed.run --nproc_per_node 2 dynamic_script.py FOLDER RANKS

A run with each kind of component, and the same run again from a checkpoint in its middle. Each rank leaves
``weights-R.json`` in the folder of a run: a digest of the weights that it ended with.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
import warnings
from pathlib import Path

import torch
import trl
from dataflex import dynamic
from dataflex.launch.torchrun import settle
from sft_rows import made, rows

STEPS = {"warmup_step": 1, "update_step": 1, "update_times": 2}
KINDS = {
    "select": ({"selector": "loss"} | STEPS, rows("text", 24), {"max_steps": -1}),
    "mix": ({"mixer": "odm"} | STEPS, {"a": rows("text"), "b": rows("text", 15, "owl")}, {"max_steps": -1}),
    "weigh": ({"weighter": "loss"}, rows("text"), {"max_steps": 3}),
}


def digest(model):
    """Returns a digest of every weight."""
    found = hashlib.blake2b(digest_size=8)
    for _, value in sorted(model.state_dict().items()):
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def train(folder, kind, ranks, resume=None):
    """Trains with a kind of component and leaves the digest."""
    keys, train_rows, steps = KINDS[kind]
    sizes = {"per_device_train_batch_size": 4 // ranks, "gradient_accumulation_steps": 1}
    changes = steps | sizes | {"save_strategy": "steps", "save_steps": 1}
    trainer = made(dynamic(trl.SFTTrainer, **keys), folder, train_rows, None, changes)
    trainer.train(resume_from_checkpoint=resume)
    file = Path(folder) / f"weights-{trainer.args.process_index}.json"
    file.write_text(json.dumps(digest(trainer.model)))


def run(folder: Path, ranks: int) -> None:
    """Trains with each kind of component, and again from the middle of each run."""
    gc.freeze()  # as in rank_run
    for kind in KINDS:
        train(f"{folder}/{kind}", kind, ranks)
        train(f"{folder}/{kind} resumed", kind, ranks, f"{folder}/{kind}/checkpoint-2")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    run(Path(sys.argv[1]), int(sys.argv[2]))
    torch.distributed.barrier()  # a rank that ends while another is at work takes its connections away
    torch.distributed.destroy_process_group()
    settle()
