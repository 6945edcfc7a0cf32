"""Rows of the kinds that trl.SFTTrainer takes, a tokenizer that can chat, and a tiny model: for tests over TRL."""

from __future__ import annotations

import datasets
import trl
from dataflex.testing import device, tiny_model, tiny_tokenizer

WORDS = ["red", "green", "blue", "seven", "eight", "nine"]
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' }}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '<|endoftext|>' }}{% endgeneration %}{% else %}{{ message['content'] + '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def asked(i, word="fox"):
    return f"{word} {WORDS[i % 6]} {'very ' * (i % 4)}{i}?"


def answered(i, word="fox"):
    return f" {WORDS[(i + 2) % 6]} {word} {'so ' * (i % 5)}{i}"


def said(role, content):
    return {"role": role, "content": content}


ROWS = {
    "text": lambda i, word: {"text": asked(i, word) + answered(i, word)},
    "prompt_completion": lambda i, word: {"prompt": asked(i, word), "completion": answered(i, word)},
    "messages": lambda i, word: {"messages": [said("user", asked(i, word)), said("assistant", answered(i, word))]},
    "chat_prompt_completion": lambda i, word: {
        "prompt": [said("user", asked(i, word))],
        "completion": [said("assistant", answered(i, word))],
    },
}


def rows(kind, count=12, word="fox"):
    return datasets.Dataset.from_list([ROWS[kind](i, word) for i in range(count)])


def chat_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def config(folder, **changes):
    keys = {"max_length": 64, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 3}
    keys |= {"report_to": "none", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "bf16": False}
    keys |= {"use_cpu": device().type == "cpu", "learning_rate": 1e-2, "gradient_checkpointing": False}
    return trl.SFTConfig(output_dir=str(folder), **(keys | changes))


def made(cls, folder, train, evaluated=None, changes=None, **given):
    tokenizer = chat_tokenizer()
    given = {"model": tiny_model(len(tokenizer)), "processing_class": tokenizer, "train_dataset": train} | given
    return cls(args=config(folder, **(changes or {})), eval_dataset=evaluated, **given)
