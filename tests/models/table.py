"""Writes docs/models.md from what the sweep found: one row for each class, counts on top.

python -m tests.models.table --out docs/models.md OUTCOMES.json [OUTCOMES.json ...]
"""

# ruff: noqa: E501 - rows of tables

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

COLUMNS = {
    "losses": "losses",
    "chunked": "losses without logits",
    "weighter": "uniform weighter",
    "weighter_chunked": "weighter without logits",
    "hidden": "hidden states",
    "lora": "LoRA by row",
    "full": "full by row",
}
_MARKS = {"exact": "exact", "refused": "refused", "upstream": "upstream", "defect": "**wrong**"}

INTRO = """# Models

`nox -s models` tries every causal language model class of the installed transformers, and every class of vision and
text on rows of text alone; `nox -s models-latest` does so with the newest versions. Each class is built tiny from its
own configuration, one layer of each kind that it has, with random weights, in float32 on the CPU, without a cache as in
training, and tried on four rows of 5 to 17 tokens in one padded batch. This page is written by it.

| column | what is compared |
| --- | --- |
| losses | the loss of each row, from the logits at label positions, with the loss that the model itself computes of that row alone; to 1e-6 |
| losses without logits | the same, from the output layer in chunks; the logits are taken where the class changes them afterwards |
| uniform weighter | the losses of two training steps under a weighter that weighs all alike, with the plain `Trainer`'s |
| weighter without logits | the same with `weight_logits: chunked` |
| hidden states | what `near` and `adapt` read of each row, with what the plain model's output layer is given for that row alone; to 1e-4 |
| LoRA by row | the gradient of each row through LoRA on all linear layers, with autograd's of that row alone; to 1e-4 of the parameter's largest number, or 2e-6 of the model's |
| full by row | the same for every parameter of the model |

*exact*: equal. *refused*: a run that needs it ends before its first step with the reason below. *not built*: transformers
could not build the class or run it on text alone; its reason stands in place of the outcomes. *upstream*: PEFT cannot adapt
the class, or the plain model gives no gradients in eval mode or other ones to a row beside other rows.

LoRA leaves out what PEFT cannot wrap: `out_proj` and `conv1d` of Mamba layers, and routers that return a tuple (`llama4`,
`phimoe`); LLaMA-Factory's `lora_target: all` ends in PEFT's own error there, also in a static run.

Encoder-decoders (T5, BART and the like as `...ForConditionalGeneration`) are refused by name for every component that
looks at the loss or the states of a row. A component that never looks at the model (`random`, `scores`, `static`) trains
what the base trainer can train.

## Rows with images

A run of LLaMA-Factory with a model of images and text (stage sft, `images` in `dataset_info.json`) goes through scoring
as one of text does. Tokens of an image stand in `input_ids`, so lengths, budgets and labels count them. The collator
makes the patches of a batch, which stand one after the other and not by row; where a row is needed alone, it is collated
alone. Tried with a tiny Qwen2-VL, rows of 0 to 3 images, against each row alone.

| what reads rows | with images |
| --- | --- |
| losses: `loss`, `delta_loss`, `rho_loss`, `zeroth`, orders `by: loss`, the weighters, `odm`, `ado`, `doremi` | as with text; a `reference_model` of images is loaded as one |
| gradients: `less`, `cluster_less` | as with text while the vision tower and the projector are frozen, LLaMA-Factory's default. Where they are trained, their gradients come from the whole model, one row at a time: exact, and about as slow as batches of one row. Under FSDP and ZeRO-3 a trained tower is refused by name |
| hidden states: `near`, `tsds`, `cluster_less` with `embedding: model`, `adapt`, `balancer` | as with text; tokens of images are pooled with the others |
| `coincide` | tokens of images and of text are pooled apart |
| `nice` | refused before the model is loaded where an evaluation row has images: answers are generated from tokens alone. Train rows may have them |
| `embedding: ngrams` | works, and sees of an image only how many tokens it has |
| a sentence-transformers model | works, and reads the text alone |
| `random`, `custom`, `scores`, `static`, `temperature`, `schedule` | never look at the model |

| rows | |
| --- | --- |
| without an image among others | LLaMA-Factory puts a masked image into a batch without any; the row's numbers are those that it has without |
| videos | their tokens count as those of images |
| sounds | not tried |
| packed (`neat_packing`) | work; the packed row is scored as one |
| `tokenized_path` | works |
| DPO and KTO with images | TRL's trainers are refused with them; with LLaMA-Factory not tried |

What a long pass keeps is not used again where an image file has another size or time of change. `dataflex-cli plan`
counts the tokens of images by their sizes and the model's `patch_size` and `merge_size` (the Qwen-VL family) or its
`image_seq_length`, and says so; the passes of the vision tower are counted as if every token went through it.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outcomes", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    lines = [INTRO]
    for file in given.outcomes:
        report = json.loads(file.read_text(encoding="utf-8"))
        lines += _section(report["versions"], report["classes"], report["date"])
    given.out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return 0


def _section(versions: dict[str, str], classes: dict[str, Any], date: str) -> list[str]:
    built = {name: found for name, found in classes.items() if not found["built"]}
    reasons: dict[str, int] = {}
    head = ["class", *COLUMNS.values(), "states read", "reasons"]
    lines = [
        f"## transformers {versions['transformers']}",
        "",
        f"{date}, torch {versions['torch']}, peft {versions['peft']}. {len(classes)} classes tried, {len(built)} built.",
        "",
        "| | exact | refused | upstream | wrong |",
        "| --- | --- | --- | --- | --- |",
    ]
    for key, title in COLUMNS.items():
        count = Counter(found["cells"][key]["outcome"] for found in built.values() if key in found["cells"])
        lines.append(f"| {title} | {count['exact']} | {count['refused']} | {count['upstream']} | {count['defect']} |")
    lines += ["", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, found in classes.items():
        lines.append(f"| {' | '.join(_row(name, found, reasons))} |")
    lines += ["", "Reasons:", ""]
    return [*lines, *(f"{number}. {reason}" for reason, number in reasons.items()), ""]


def _row(name: str, found: dict[str, Any], reasons: dict[str, int]) -> list[str]:
    model_type, class_name = name.split(" ")
    label = f"`{class_name}` ({model_type})"
    if found["built"]:
        return [label, *["not built"] * len(COLUMNS), "", _escaped(found["built"])]
    cells = found["cells"]
    numbers = []
    for key in COLUMNS:
        if key in cells and cells[key]["outcome"] != "exact":
            reason = _general(_escaped(cells[key]["detail"].replace(class_name, "the class")))
            numbers.append(reasons.setdefault(reason, len(reasons) + 1))
    marks = [_MARKS[cells[key]["outcome"]] if key in cells else "" for key in COLUMNS]
    states = cells.get("states", {}).get("detail", "")
    return [label, *marks, states, ", ".join(map(str, dict.fromkeys(numbers)))]


def _general(reason: str) -> str:
    """Returns the reason without the numbers of the rows that it was seen on."""
    return re.sub(r": (on row \d|row \d|embeddings of two rows|of the first rows) .*?(?=, so | -&gt;| ->)", "", reason)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
