"""The cells of a notebook: train, look at the report below the cell, and compare with rows at random."""

# %% The data and the model
import os

import torch
from dataflex import dynamic, run_report
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

MODEL = os.environ.get("MODEL", "Qwen/Qwen2.5-0.5B")
rows = Dataset.from_list([{"text": f"{n} plus {n} is {2 * n}."} for n in range(40)])


def trained(selector):
    args = SFTConfig(
        output_dir=f"runs/{selector}",
        per_device_train_batch_size=2,
        max_length=128,
        bf16=torch.cuda.is_available(),
        report_to="none",
    )
    steps = {"warmup_step": 2, "update_step": 2, "update_times": 2}
    # A cell that is run again begins anew: what was in the folder is moved to dataflex_replaced.
    trainer = dynamic(SFTTrainer, selector=selector, **steps)(
        model=MODEL, args=args, train_dataset=rows, overwrite_output_dir=True
    )
    trainer.train()
    return trainer


# %% Train
trainer = trained("loss")

# %% Look
trainer.report()

# %% Compare with rows at random, and keep the page
trained("random")
report = run_report("runs/loss", "runs/random")
report.save("loss_or_random.html")
report
