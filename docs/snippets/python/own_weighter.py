"""A weighter of your own: the samples whose losses are near the middle of their batch count most."""

import os

import torch
from dataflex import dynamic
from dataflex.train.weighter.base_weighter import Weighter
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

MODEL = os.environ.get("MODEL", "Qwen/Qwen2.5-0.5B")


class NearMiddle(Weighter):
    """Weighs a sample by how near its loss is to the median of its batch."""

    draws = False

    def __init__(self, width=1.0, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def get_weighted_loss(self, losses, *, ctx, model, inputs):
        away = (losses.detach() - losses.detach().median()) / self.width
        weights = torch.exp(-(away**2))
        return (weights / weights.mean() * losses).mean()


trainer = dynamic(SFTTrainer, weighter=NearMiddle, params={"width": 0.5}, warmup_step=2, train_step=6)(
    model=MODEL,
    args=SFTConfig(
        output_dir="runs/weighter",
        per_device_train_batch_size=4,
        max_length=128,
        bf16=torch.cuda.is_available(),
        report_to="none",
    ),
    train_dataset=Dataset.from_list([{"text": f"{n} plus {n} is {2 * n}."} for n in range(40)]),
)
trainer.train()
