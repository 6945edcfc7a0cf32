"""transformers.Trainer that trains on the rows it finds hardest: they are chosen anew every 4 steps."""

import os

from dataflex import dynamic
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

MODEL = os.environ.get("MODEL", "Qwen/Qwen2.5-0.5B")

tokenizer = AutoTokenizer.from_pretrained(MODEL)
texts = [f"{number} times {number} is {number * number}." for number in range(40)]  # your texts
rows = [tokenizer(text, truncation=True, max_length=64) for text in texts]

trainer = dynamic(Trainer, selector="loss", params={"focus": "high"}, warmup_step=2, update_step=4, update_times=2)(
    model=AutoModelForCausalLM.from_pretrained(MODEL),
    args=TrainingArguments(output_dir="runs/plain", per_device_train_batch_size=2, report_to="none"),
    train_dataset=rows,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    processing_class=tokenizer,  # by it the record and the report show rows as text
)
trainer.train()
