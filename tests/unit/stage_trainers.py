"""Trainers of LLaMA-Factory and TRL over tiny models, and batches for them, for tests of the stages' losses."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import torch
import trl
from dataflex.testing import tiny_model, tiny_tokenizer, tiny_training_args
from dataflex.upstream.stage_loss import Use, stage_loss
from datasets import Dataset

WORDS = "to be or not that is the question whether it nobler in mind suffer slings arrows".split()  # noqa: SIM905


def text(rng: random.Random, least: int = 2, most: int = 9) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, most)))


def pair_rows(count: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Tokenised pairs as LLaMA-Factory's ``stage: rm`` and ``dpo`` have them."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        prompt = [rng.randrange(3, 128) for _ in range(rng.randint(2, 6))]
        row: dict[str, Any] = {"images": None, "videos": None, "audios": None}
        for side in ("chosen", "rejected"):
            answer = [rng.randrange(3, 128) for _ in range(rng.randint(2, 9))]
            row[f"{side}_input_ids"] = prompt + answer
            row[f"{side}_attention_mask"] = [1] * len(prompt + answer)
            row[f"{side}_labels"] = [-100] * len(prompt) + answer
        rows.append(row)
    return rows


def tagged_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Tokenised answers with a tag, as LLaMA-Factory's ``stage: kto`` has them."""
    rows = []
    for number, pair in enumerate(pair_rows(count, seed)):
        row: dict[str, Any] = {"images": None, "videos": None, "audios": None, "kto_tags": number % 3 != 1}
        for key in ("input_ids", "attention_mask", "labels"):
            row[key], row[f"kl_{key}"] = pair[f"chosen_{key}"], pair[f"rejected_{key}"]
        rows.append(row)
    return rows


def collator(stage: str, model: Any) -> Any:
    """LLaMA-Factory's own."""
    from llamafactory.data.collator import KTODataCollatorWithPadding, PairwiseDataCollatorWithPadding
    from llamafactory.data.template import TEMPLATES

    made = KTODataCollatorWithPadding if stage == "kto" else PairwiseDataCollatorWithPadding
    return made(template=TEMPLATES["empty"], model=model, tokenizer=tiny_tokenizer(), pad_to_multiple_of=8)


def llamafactory_trainer(
    stage: str,
    folder: Path,
    base: type | None = None,
    *,
    dataflex: Any = None,
    rows: Any = None,
    args: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A trainer of LLaMA-Factory's for a stage, as its workflow makes it."""
    from llamafactory.hparams import FinetuningArguments
    from llamafactory.model.patcher import patch_valuehead_model
    from llamafactory.train.dpo.trainer import CustomDPOTrainer
    from llamafactory.train.kto.trainer import CustomKTOTrainer
    from llamafactory.train.rm.trainer import PairwiseTrainer

    finetuning = FinetuningArguments(stage=stage, finetuning_type="full", **settings)
    model: Any = tiny_model(seed=1)
    given: dict[str, Any] = {} if dataflex is None else {"dataflex": dataflex}
    if stage == "rm":
        model = trl.AutoModelForCausalLMWithValueHead.from_pretrained(model)
        patch_valuehead_model(model)
        torch.nn.init.normal_(model.v_head.summary.weight, std=0.2, generator=torch.Generator().manual_seed(5))
    elif stage == "kto" or finetuning.use_ref_model:
        given["ref_model"] = tiny_model(seed=2).requires_grad_(False)
    else:
        given["ref_model"] = None
    made = base or {"rm": PairwiseTrainer, "dpo": CustomDPOTrainer, "kto": CustomKTOTrainer}[stage]
    return made(
        model=model,
        args=tiny_training_args(folder, **{"remove_unused_columns": False, "max_steps": -1} | (args or {})),
        finetuning_args=finetuning,
        processor=None,
        tokenizer=tiny_tokenizer(),
        data_collator=collator(stage, model),
        train_dataset=(tagged_rows if stage == "kto" else pair_rows)(16) if rows is None else rows,
        **given,
    )


def texts_of_pairs(count: int, seed: int = 0) -> Dataset:
    rng = random.Random(seed)
    return Dataset.from_list(
        [{"prompt": text(rng), "chosen": " " + text(rng), "rejected": " " + text(rng)} for _ in range(count)]
    )


def texts_with_tags(count: int, seed: int = 0) -> Dataset:
    rng = random.Random(seed)
    return Dataset.from_list(
        [{"prompt": text(rng), "completion": " " + text(rng), "label": n % 3 != 1} for n in range(count)]
    )


def trl_trainer(stage: str, folder: Path, base: type | None = None, **settings: Any) -> Any:
    """A trainer of TRL's for a stage."""
    from transformers import LlamaForSequenceClassification

    quiet: dict[str, Any] = {
        "output_dir": str(folder), "report_to": [], "disable_tqdm": True, "use_cpu": True, "bf16": False,
        "per_device_train_batch_size": 4, "gradient_checkpointing": False,
    }  # fmt: skip
    model: Any = tiny_model(vocab_size=512, seed=1)
    given: dict[str, Any] = {}
    if stage == "rm":
        config = model.config
        config.num_labels = 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model = LlamaForSequenceClassification(config)
        made, arguments = trl.RewardTrainer, trl.RewardConfig(**quiet, **settings)
    elif stage == "dpo":
        given["ref_model"] = tiny_model(vocab_size=512, seed=2)
        made, arguments = trl.DPOTrainer, trl.DPOConfig(**quiet, **settings)
    else:
        given["ref_model"] = tiny_model(vocab_size=512, seed=2)
        made, arguments = trl.KTOTrainer, trl.KTOConfig(**quiet, **settings)
    rows = texts_with_tags(8) if stage == "kto" else texts_of_pairs(8)
    model.warnings_issued = {}  # TRL 0.24 writes into it; models of transformers 5 have none
    return (base or made)(
        model=model, args=arguments, train_dataset=rows, processing_class=tiny_tokenizer(vocab_size=512), **given
    )


def own_loss(trainer: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The loss that the trainer computes of a batch."""
    return trainer.compute_loss(trainer.model, copy.deepcopy(inputs))


def require_the_trainers_loss(trainer: Any, stage: str, inputs: dict[str, Any]) -> None:
    """Compares the losses of the five rows of a batch, and their gradients, with what the trainer computes of it."""
    trainer.model.eval()
    loss, given = stage_loss(trainer), copy.deepcopy(inputs)
    assert loss is not None
    assert loss.name == stage
    assert loss.rows_in(inputs) == 5
    assert loss.refused(trainer, Use.WEIGH) is None
    rows_B = loss.row_losses(trainer, trainer.model, inputs)
    assert inputs.keys() == given.keys()
    for key, value in given.items():
        assert torch.equal(value, inputs[key]) if isinstance(value, torch.Tensor) else value == inputs[key]
    assert rows_B.shape == (5,)
    assert len(set(rows_B.tolist())) == 5, "each row has a loss of its own"
    torch.testing.assert_close(rows_B.mean(), own_loss(trainer, inputs), rtol=1e-5, atol=1e-6)
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(rows_B.mean(), parameters, allow_unused=True)
    theirs = torch.autograd.grad(own_loss(trainer, inputs), parameters, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
