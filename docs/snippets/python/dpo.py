"""TRL's DPOTrainer over pairs from two sources: their shares are set by temperature, short pairs come first."""

import os

import torch
from dataflex import dynamic
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

MODEL = os.environ.get("MODEL", "Qwen/Qwen2.5-0.5B-Instruct")


def pair(question, right, wrong):
    return {"prompt": question, "chosen": f" It is {right}.", "rejected": f" It is {wrong}."}


sources = {
    "sums": Dataset.from_list([pair(f"What is {n} plus {n}?", 2 * n, n) for n in range(24)]),
    "squares": Dataset.from_list([pair(f"What is {n} times {n}?", n * n, 2 * n) for n in range(12)]),
}

trainer = dynamic(DPOTrainer, mixer="temperature", order="length", warmup_step=2, update_step=2, update_times=2)(
    model=MODEL,
    args=DPOConfig(
        output_dir="runs/dpo",
        per_device_train_batch_size=2,
        max_length=128,
        bf16=torch.cuda.is_available(),
        report_to="none",
    ),
    train_dataset=sources,
)
trainer.train()
