"""TRL's SFTTrainer with LESS: it trains on the chats whose gradients point where those of the target chats do."""

import os

import torch
from dataflex import dynamic
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

MODEL = os.environ.get("MODEL", "Qwen/Qwen2.5-0.5B-Instruct")


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


pool = Dataset.from_list([chat(f"What is {n} plus {n}?", f"It is {2 * n}.") for n in range(32)])  # your data
target = Dataset.from_list([chat(f"What is {n} plus 1?", f"It is {n + 1}.") for n in range(4)])  # the task

trainer = dynamic(SFTTrainer, selector="less", params={"proj_dim": 512}, warmup_step=2, update_step=3, update_times=2)(
    model=MODEL,
    args=SFTConfig(
        output_dir="runs/less",
        per_device_train_batch_size=2,
        max_length=256,
        bf16=torch.cuda.is_available(),
        report_to="none",
    ),
    train_dataset=pool,
    eval_dataset=target,
)
trainer.train()
