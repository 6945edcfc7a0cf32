"""A training script as a user writes it, over TRL: started by torchrun on two ranks, or called on one.

python -m torch.distributed.run --nproc_per_node 2 dynamic_script.py FOLDER 2
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
import trl
from dataflex import dynamic
from dataflex.launch.torchrun import settle
from sft_rows import made, rows


def run(folder: Path, ranks: int) -> None:
    """Mixes in one run and weighs in another."""
    changes = {
        "max_steps": -1,
        "per_device_train_batch_size": 4 // ranks,
        "gradient_accumulation_steps": 1,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    cls = dynamic(trl.SFTTrainer, mixer="odm", warmup_step=1, update_step=1, update_times=2)
    done = made(cls, folder / "mix", {"a": rows("text"), "b": rows("text", 15, "owl")}, None, changes)
    done.train()
    cls = dynamic(trl.SFTTrainer, weighter="loss")
    weighted = made(cls, folder / "weigh", rows("text"), None, changes | {"max_steps": 3})
    weighted.train()


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    run(Path(sys.argv[1]), int(sys.argv[2]))
    torch.distributed.barrier()  # a rank that ends while another is at work takes its connections away
    torch.distributed.destroy_process_group()
    settle()
