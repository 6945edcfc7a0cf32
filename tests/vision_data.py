"""Rows with images as LLaMA-Factory tokenises them, and its collator, for tests in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from dataflex.testing import write_image_rows, write_vision_model

TEMPLATE = "qwen2_vl"
PIXELS = {"image_max_pixels": 4096, "image_min_pixels": 256}


@dataclass(frozen=True)
class VisionData:
    """What a run of LLaMA-Factory has.

    Attributes:
        folder: Where ``model`` and ``data`` are.
        dataset: The tokenised rows.
        target: Other tokenised rows.
        model: The model, as it is trained.
        tokenizer: The tokenizer.
        collator: Makes batches.
    """

    folder: Path
    dataset: Any
    target: Any
    model: Any
    tokenizer: Any
    collator: Any


def vision_keys(folder: Path, **keys: Any) -> dict[str, Any]:
    """Writes the model and two datasets, where they are not there, and returns the keys of a run with them."""
    if not (folder / "model").exists():
        write_vision_model(folder / "model")
        write_image_rows(folder / "data")
        write_image_rows(folder / "data", "target", (1, 0, 2), seed=5)
    return {
        "model_name_or_path": str(folder / "model"), "dataset_dir": str(folder / "data"), "template": TEMPLATE,
        "media_dir": str(folder / "data"), "dataset": "pictures", "eval_dataset": "target", "stage": "sft",
        "do_train": True, "finetuning_type": "lora", "lora_target": "all", "output_dir": str(folder / "run"),
        "use_cpu": True, "bf16": False, "report_to": "none", **PIXELS,
    } | keys  # fmt: skip


def vision_data(folder: Path, **keys: Any) -> VisionData:
    """Returns rows, model and collator, as LLaMA-Factory's own workflow of stage sft makes them."""
    from llamafactory.data import SFTDataCollatorWith4DAttentionMask, get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_model, load_tokenizer

    model_args, data_args, training_args, finetuning_args, _ = get_train_args(vision_keys(folder, **keys))
    parts = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(parts["tokenizer"], data_args)
    rows = get_dataset(template, model_args, data_args, training_args, stage="sft", **parts)
    model = load_model(parts["tokenizer"], model_args, finetuning_args, is_trainable=True)
    with torch.no_grad():  # LoRA's B is 0 at first, and then the gradient of A is
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    collator = SFTDataCollatorWith4DAttentionMask(
        template=template, model=model, pad_to_multiple_of=8, label_pad_token_id=-100, block_diag_attn=False,
        attn_implementation="sdpa", compute_dtype=torch.float32, **parts,
    )  # fmt: skip
    return VisionData(folder, rows["train_dataset"], rows["eval_dataset"], model, parts["tokenizer"], collator)
