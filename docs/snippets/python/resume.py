"""A run that goes on where it was stopped: start the script again after an interruption, and it ends the same."""

import os
from pathlib import Path

import torch
from dataflex import dynamic
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

MODEL = os.environ.get("MODEL", "Qwen/Qwen2.5-0.5B")
FOLDER = "runs/resumed"

trainer = dynamic(SFTTrainer, selector="loss", warmup_step=2, update_step=2, update_times=3)(
    model=MODEL,
    args=SFTConfig(
        output_dir=FOLDER,
        save_strategy="steps",
        save_steps=2,
        per_device_train_batch_size=2,
        max_length=128,
        bf16=torch.cuda.is_available(),
        report_to="none",
    ),
    train_dataset=Dataset.from_list([{"text": f"{n} plus {n} is {2 * n}."} for n in range(40)]),
)
stopped_before = any(Path(FOLDER).glob("checkpoint-*"))
trainer.train(resume_from_checkpoint=stopped_before)  # True: the newest complete checkpoint of this run
