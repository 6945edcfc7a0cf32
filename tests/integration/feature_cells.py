"""LLaMA-Factory's own features under each dynamic train type: what is run, what is refused and why.

``test_features.py`` runs every cell, and compares the table in docs/compatibility.md with :func:`table`. To write it
anew: ``python tests/integration/feature_cells.py docs/compatibility.md``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

BEGIN, END = "<!-- the tables: written by tests/integration/feature_cells.py -->", "<!-- end of the tables -->"

SCHEDULE = ("warmup_step=2", "update_step=2", "update_times=2")
TRAIN_TYPES: Mapping[str, tuple[str, ...]] = {
    "dynamic_select": ("select_loss", *SCHEDULE),
    "dynamic_mix": (
        "mix_random",
        *SCHEDULE,
        "stage=sft",
        "dataset=instructions,instructions_eval",
        "template=default",
        "init_mixture_proportions=[0.7,0.3]",
        "finetuning_type=lora",
    ),
    "dynamic_weight": ("weight_loss", "warmup_step=2", "train_step=6"),
}
FULL = "finetuning_type=full"
EVALUATED = ("val_size=0.2", "eval_dataset=null")


@dataclass(frozen=True)
class Feature:
    """A row of the table.

    Attributes:
        title: What it is called.
        overrides: What switches it on.
        package: What has to be installed for it beside dataflex, with the module that it brings.
        refused: Train type -> words of the complaint; the sentence goes into the docs.
        key: A key that llamafactory 0.9.4 does not have.
        gpu: Whether it needs a CUDA device.
        extra: More overrides for one train type.
    """

    title: str
    overrides: tuple[str, ...]
    package: tuple[str, str] | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    gpu: bool = False
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


OTHER_LOOP = "hands the training to HyperParallel's trainer, which train_type: {} cannot reach"
BATCH_SIZE = "what train_type: {} plans depends on the batch size"

FEATURES: Mapping[str, Feature] = {
    "lora": Feature("LoRA", ()),
    "dora": Feature("DoRA", ("use_dora=true",)),
    "pissa": Feature("PiSSA, converted at the end", ("pissa_init=true", "pissa_convert=true", "lora_rank=8")),
    "freeze": Feature("freeze tuning", ("finetuning_type=freeze", "freeze_trainable_layers=1")),
    "full": Feature("full fine-tuning", (FULL,)),
    "badam": Feature(
        "BAdam, layer-wise",
        (FULL, "use_badam=true", "badam_switch_interval=2", "badam_switch_mode=ascending"),
        package=("badam", "badam"),
    ),
    "galore": Feature(
        "GaLore",
        (FULL, "use_galore=true", "galore_rank=8", "optim=adamw_torch"),
        package=("galore-torch", "galore_torch"),
    ),
    "galore_layerwise": Feature(
        "GaLore, layer-wise",
        (FULL, "use_galore=true", "galore_rank=8", "galore_layerwise=true", "optim=adamw_torch"),
        package=("galore-torch", "galore_torch"),
    ),
    "apollo": Feature(
        "APOLLO",
        (FULL, "use_apollo=true", "apollo_rank=8", "optim=adamw_torch"),
        package=("apollo-torch", "apollo_torch"),
    ),
    "adam_mini": Feature("Adam-mini", (FULL, "use_adam_mini=true"), package=("adam-mini", "adam_mini")),
    "muon": Feature("Muon", (FULL, "use_muon=true")),
    "packing": Feature("packing", ("packing=true",)),
    "neat_packing": Feature("neat packing", ("packing=true", "neat_packing=true")),
    "label_smoothing": Feature("label smoothing", ("label_smoothing_factor=0.1",)),
    "dft": Feature("DFT loss", ("use_dft_loss=true",)),
    "eaft": Feature(
        "EAFT loss",
        ("use_eaft_loss=true",),
        key="use_eaft_loss",
        refused={"dynamic_weight": "the EAFT loss replaces the loss that dynamic_weight weighs"},
    ),
    "asft": Feature(
        "ASFT loss",
        (FULL, "use_asft_loss=true"),
        key="use_asft_loss",
        refused={"dynamic_weight": "the ASFT loss replaces the loss that dynamic_weight weighs"},
    ),
    "neftune": Feature("NEFTune", ("neftune_noise_alpha=50",)),
    "val_size": Feature("`val_size`, `eval_strategy: steps`", (*EVALUATED, "eval_strategy=steps", "eval_steps=2")),
    "eval_dataset": Feature(
        "`eval_dataset`, `eval_strategy: epoch`",
        ("eval_dataset=instructions_eval", "eval_strategy=epoch", "max_samples=12", "update_times=-1"),
        extra={
            "dynamic_select": ("num_train_epochs=2",),
            "dynamic_mix": ("num_train_epochs=2",),
            "dynamic_weight": ("num_train_epochs=2", "train_step=0"),
        },
    ),
    "plot_loss": Feature("`plot_loss`", ("plot_loss=true", *EVALUATED, "eval_strategy=steps", "eval_steps=2")),
    "bf16": Feature("bf16 on the CPU", ("bf16=true", "use_cpu=true")),
    "checkpointing": Feature("gradient checkpointing", ("disable_gradient_checkpointing=false",)),
    "liger": Feature(
        "Liger kernels",
        ("enable_liger_kernel=true",),
        package=("liger-kernel", "liger_kernel"),
        gpu=True,
    ),
    "streaming": Feature(
        "`streaming`",
        ("streaming=true",),
        refused={
            "dynamic_select": "asks for rows by number, and a stream has neither numbers nor an end",
            "dynamic_weight": "knows its dataset by the number of rows, which a stream does not have",
        },
        extra={"dynamic_mix": ("max_samples=null", "buffer_size=16")},  # LLaMA-Factory refuses max_samples
    ),
    "auto_find_batch_size": Feature(
        "`auto_find_batch_size`", ("auto_find_batch_size=true",), refused={t: BATCH_SIZE.format(t) for t in TRAIN_TYPES}
    ),
    "hyper_parallel": Feature(
        "`use_hyper_parallel`, `USE_MCA=1`",
        ("use_hyper_parallel=true",),
        key="use_hyper_parallel",
        refused={t: OTHER_LOOP.format(t) for t in TRAIN_TYPES},
    ),
}
"""Name of the row -> what is run."""

PASS, REFUSED, UNTRIED = "pass", "refused", "not tried"

CELLS: Mapping[tuple[str, str], str] = {
    (name, train_type): REFUSED if train_type in feature.refused else UNTRIED if feature.gpu else PASS
    for name, feature in FEATURES.items()
    for train_type in TRAIN_TYPES
}
"""(row, train type) -> what becomes of it. What needs a GPU has a test, which has not been run on one yet."""


def command(name: str, train_type: str) -> tuple[str, ...]:
    """Returns the run of a cell: the workspace's file and its overrides, in the order in which they apply."""
    feature = FEATURES[name]
    return (*TRAIN_TYPES[train_type], *feature.overrides, *feature.extra.get(train_type, ()))


def table() -> str:
    """Returns the tables of docs/compatibility.md."""
    head = [f"| feature | switched on by | {' | '.join(f'`{t}`' for t in TRAIN_TYPES)} | needs | test |"]
    head.append("| --- " * (len(TRAIN_TYPES) + 4) + "|")
    rows = [_row(name) for name in FEATURES]
    why = ["", "Refused:", "", "| feature | train type | what the error says |", "| --- | --- | --- |"]
    for feature in FEATURES.values():
        why += [f"| {feature.title} | `{train_type}` | {words} |" for train_type, words in feature.refused.items()]
    return "\n".join([*head, *rows, *why])


def _row(name: str) -> str:
    feature = FEATURES[name]
    cells = [CELLS[name, train_type] for train_type in TRAIN_TYPES]
    keys = [o.replace("=", ": ") for o in feature.overrides if o not in EVALUATED] or ["finetuning_type: lora"]
    needs = [f"`{feature.package[0]}`"] if feature.package else []
    needs += ["a CUDA device"] if feature.gpu else []
    needs += ["llamafactory 0.9.5"] if feature.key else []
    shown = ", ".join(f"`{key}`" for key in keys)
    return f"| {feature.title} | {shown} | {' | '.join(cells)} | {', '.join(needs)} | `-k {name}` |"


def written(page: str) -> str:
    """Returns a page with its tables as they should be."""
    assert BEGIN in page
    assert END in page
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n\n{table()}\n\n{END}", page, flags=re.DOTALL)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
