"""TRL's SFTTrainer over two sources, whose shares follow their losses (ODM): a share is set anew every 2 steps."""

import os

import torch
from dataflex import dynamic
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

MODEL = os.environ.get("MODEL", "Qwen/Qwen2.5-0.5B")

sources = {  # each is tokenised, cut and packed by itself; they may be streams
    "sums": Dataset.from_list([{"text": f"{n} plus {n} is {2 * n}."} for n in range(40)]),
    "squares": Dataset.from_list([{"text": f"{n} times {n} is {n * n}."} for n in range(20)]),
}

trainer = dynamic(SFTTrainer, mixer="odm", warmup_step=2, update_step=2, update_times=3)(
    model=MODEL,
    args=SFTConfig(
        output_dir="runs/mixture",
        per_device_train_batch_size=2,
        max_length=128,
        bf16=torch.cuda.is_available(),
        report_to="none",
    ),
    train_dataset=sources,
)
trainer.train()
