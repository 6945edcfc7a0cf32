"""Every axis in one run: a filter, shares of sources, a selector, an order and a weighter."""

import os

import torch
from dataflex import dynamic
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

MODEL = os.environ.get("MODEL", "Qwen/Qwen2.5-0.5B")

sources = {
    "sums": Dataset.from_list([{"text": f"{n} plus {n} is {2 * n}."} for n in range(40)]),
    "squares": Dataset.from_list([{"text": f"{n} times {n} is {n * n}."} for n in range(40)]),
}

Trainer = dynamic(
    SFTTrainer,
    selector=[{"name": "random", "keep": 0.8}, "loss"],  # four fifths of the rows are drawn, then those chosen by loss
    mixer={"name": "temperature", "params": {"temperature": 2}},
    order="length",
    weighter={"name": "loss", "from": 4},  # from step 4 on
    warmup_step=2,
    update_step=3,
    update_times=2,
)
trainer = Trainer(
    model=MODEL,
    args=SFTConfig(
        output_dir="runs/every_axis",
        per_device_train_batch_size=2,
        max_length=128,
        bf16=torch.cuda.is_available(),
        report_to="none",
    ),
    train_dataset=sources,
)
trainer.train()
