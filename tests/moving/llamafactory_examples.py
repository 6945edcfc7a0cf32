"""LLaMA-Factory's own examples and demo data, as they are and with the lines of each axis added.

    python tests/moving/llamafactory_examples.py CHECKOUT [--only TEXT] [--out TABLE.md]

CHECKOUT is a clone of LLaMA-Factory. For each of its training files: `validate` as it is and with each axis; then two
steps of training with a tiny model of the same class. A static run is trained twice, by `dataflex-cli` and by
LLaMA-Factory's own entry, and their losses must be equal to the last bit. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ["WANDB_DISABLED"] = "true"

import lf_stand_ins as stand_ins
import yaml
from dataflex.cli.main import run

FOLDERS = ("train_full", "train_lora", "train_qlora", "extras")
AXES = {
    "select": ["train_type=dynamic_select", "component_name=loss"],
    "mix": ["train_type=dynamic_mix", "component_name=random"],
    "order": ["train_type=dynamic_reorder", "component_name=sorting", "order.by=length"],
    "weigh": ["train_type=dynamic_weight", "component_name=loss"],
}
SCHEDULE = ["warmup_step=1", "update_step=1", "update_times=1"]
SECOND = {
    "dpo_en_demo": "dpo_zh_demo", "dpo_zh_demo": "dpo_en_demo", "c4_demo": "wiki_demo", "wiki_demo": "c4_demo",
    "kto_en_demo": "kto_again", "mllm_demo": "mllm_again", "mllm_video_demo": "mllm_demo",
    "identity": "alpaca_en_demo",
}  # fmt: skip
"""A dataset that stands alone in its file -> the second one that a mixture of it takes."""

REPLACED = {"med": "alpaca_en_demo", "math": "alpaca_en_demo", "rlhf_v": "dpo_en_demo"}
"""A dataset that the checkout does not hold -> what is trained on in its place."""

SHORT = [
    "max_samples=12", "cutoff_len=256", "preprocessing_num_workers=1", "dataloader_num_workers=0", "bf16=false",
    "per_device_train_batch_size=2", "gradient_accumulation_steps=1", "plot_loss=false", "logging_steps=1",
    "save_strategy='no'", "disable_tqdm=true", "overwrite_cache=true", "num_train_epochs=1", "report_to=none",
    "deepspeed=null", "quantization_bit=null",
]  # fmt: skip
"""What a machine without an accelerator, and two steps, ask for."""

NEEDS = {
    "use_badam": "badam", "use_galore": "galore-torch", "use_apollo": "apollo-torch", "use_adam_mini": "adam-mini",
    "fp8": "an accelerator with FP8", "mixture_of_depths": "mixture-of-depth",
}  # fmt: skip
"""Key -> what must be there for it, and is not here: such a file is only validated."""


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def dataflex(command: str, file: Path, given: list[str]) -> str:
    """Returns "" where `dataflex-cli` ended well, else the first line that it said of the reason."""
    said, quiet = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(quiet):
        try:
            code = run([command, *(["--quiet"] if command == "train" else []), str(file), *given])
        except Exception as error:  # noqa: BLE001  # the table says it
            return f"{type(error).__name__}: {error}".splitlines()[0]
    if code == 0:
        return ""
    lines = [line.strip() for line in said.getvalue().splitlines() if line.strip()]
    found = [line for line in lines if line.startswith(("- ", "error:"))] or lines[-1:]
    problems = [line[2:] for line in found if line.startswith("- ")]
    return "; ".join(problems) if problems else found[-1].removeprefix("error: ")


def losses(folder: Path) -> list[float]:
    log = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [line["loss"] for line in log if "loss" in line]


def factory(config: dict[str, Any], output: Path) -> str:
    """Trains by LLaMA-Factory alone; returns "" or why it ended."""
    from llamafactory.train.tuner import run_exp

    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            run_exp(config | {"output_dir": str(output)})
        except Exception as error:  # noqa: BLE001  # the table says it
            return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


class Examples:
    """What is tried on one checkout."""

    def __init__(self, checkout: Path, scratch: Path) -> None:
        self.scratch, self.count = scratch, 0
        self.models = stand_ins.write(scratch / "models")
        self.data = scratch / "data"  # what a file writes to `saves` lands here too, and not in the checkout
        shutil.copytree(checkout / "data", self.data)
        (scratch / "examples").symlink_to(checkout / "examples")
        info = json.loads((self.data / "dataset_info.json").read_text(encoding="utf-8"))
        info["kto_again"] = info["kto_en_demo"]  # there is one demo set for kto, and a mixture has two sources
        info["mllm_again"] = info["mllm_demo"]
        (self.data / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")

    def output(self) -> Path:
        self.count += 1
        return self.scratch / "saves" / str(self.count)

    def axis_lines(self, axis: str, dataset: str) -> list[str]:
        lines = [*AXES[axis], *(["warmup_step=1", "train_step=2"] if axis == "weigh" else SCHEDULE)]
        names = [name.strip() for name in dataset.split(",")]
        if axis == "mix" and len(names) == 1:
            names.append(SECOND.get(names[0], "identity"))
        return [*lines, f"dataset={','.join(names)}"]

    def checked(self, path: Path, config: dict[str, Any]) -> dict[str, str]:
        """Returns what `validate` says of the file as it is ("") and of each axis."""
        found = {}
        data = f"dataset_dir={self.data}"
        with inside(self.scratch):
            same = [f"dataset={config['dataset']}"] if "dataset" in config else []  # REPLACED, or the same
            found["as is"] = dataflex("validate", path, same)
            for axis in AXES if "dataset" in config else ():
                more = [*self.axis_lines(axis, config["dataset"]), "num_train_epochs=1", data]
                found[axis] = dataflex("validate", path, more)
        return found

    def trained(self, path: Path, config: dict[str, Any]) -> dict[str, str]:
        """Returns how two steps went, as it is and for each axis."""
        name = stand_ins.family(str(config["model_name_or_path"]))
        if name is None:
            return dict.fromkeys(["as is", *AXES], "no stand-in for this model")
        missing = [need for key, need in NEEDS.items() if config.get(key)]
        missing += ["another command: it only predicts"] if not config.get("do_train") else []
        if missing:
            return dict.fromkeys(["as is", *AXES], f"needs {missing[0]}")
        common = [*SHORT, f"model_name_or_path={self.models[name]}", f"dataset_dir={self.data}"]
        common += ["freeze_trainable_layers=1"] if "freeze_trainable_layers" in config else []  # a tiny model has two
        found = {}
        with inside(self.scratch):
            found["as is"] = self.static(path, config, common)
            for axis in AXES if "dataset" in config else ():
                output = self.output()
                lines = [*self.axis_lines(axis, config["dataset"]), f"output_dir={output}"]
                found[axis] = dataflex("train", path, [*common, *lines])
                if not found[axis] and len(losses(output)) != 2:
                    found[axis] = f"made {len(losses(output))} steps of 2"
        return found

    def static(self, path: Path, config: dict[str, Any], common: list[str]) -> str:
        ours, theirs = self.output(), self.output()
        common = [*common, f"dataset={config['dataset']}"]
        wrong = dataflex("train", path, [*common, "max_steps=2", f"output_dir={ours}"])
        if wrong:
            return wrong
        if config.get("tokenized_path"):
            return ""  # it prepares the data and ends; a second one would find them there
        given = {k: yaml.safe_load(v) for k, _, v in (part.partition("=") for part in [*common, "max_steps=2"])}
        alone = {k: v for k, v in (config | given).items() if v is not None}
        wrong = factory(alone, theirs)
        if wrong:
            return f"LLaMA-Factory: {wrong}"
        return "" if losses(ours) == losses(theirs) else f"other losses: {losses(ours)} and {losses(theirs)}"


def training_files(checkout: Path, only: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    for folder in FOLDERS:
        for path in sorted((checkout / "examples" / folder).rglob("*.yaml")):
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            if only in str(path) and isinstance(config, dict) and "stage" in config:
                if "dataset" in config:
                    config["dataset"] = REPLACED.get(config["dataset"], config["dataset"])
                yield path.relative_to(checkout), config


def data_files(examples: Examples, only: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yields (dataset, stage, keys) of each demo set."""
    info = json.loads((examples.data / "dataset_info.json").read_text(encoding="utf-8"))
    for name, entry in info.items():
        if only not in name or not name.endswith(("demo", "identity")) or "file_name" not in entry:
            continue
        columns = entry.get("columns", {})
        if entry.get("ranking"):
            stages = ["dpo", "rm"]
        else:
            stages = ["kto"] if "kto_tag" in columns else ["pt"] if "prompt" in columns else ["sft"]
        media = {"images", "audios", "videos"} & columns.keys()
        model = "qwen3-vl" if media else "qwen3"
        for stage in stages:
            keys = [
                f"stage={stage}", "do_train=true", "finetuning_type=lora", "lora_rank=4", "lora_target=all",
                f"dataset={name}", f"model_name_or_path={examples.models[model]}", f"dataset_dir={examples.data}",
            ]  # fmt: skip
            keys += [] if stage == "pt" else ["template=qwen3_vl_nothink" if media else "template=qwen3_nothink"]
            yield name, stage, keys + (["max_samples=6"] if media else [])


def cell(text: str) -> str:
    """Returns what is wrong, without the way out, as text of a table."""
    first = re.sub(r"\s+", " ", text).partition(" -> ")[0]
    return (first if len(first) < 200 else f"{first[:190]} ...").replace("|", "\\|") or "runs"


def table(title: str, rows: list[list[str]]) -> str:
    head = [title, "as it is", *AXES]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--only", default="", help="a part of the path of the files, or of the name of the data")
    parser.add_argument("--what", choices=("files", "validate", "data", "all"), default="all")
    parser.add_argument("--out", type=Path, help="where the tables go; else to standard output")
    asked = parser.parse_args()
    checkout = asked.checkout.resolve()
    parts = []
    with tempfile.TemporaryDirectory() as scratch:
        examples = Examples(checkout, Path(scratch))
        if asked.what in ("files", "validate", "all"):
            rows = []
            for path, config in training_files(checkout, asked.only):
                name = f"`{path.relative_to('examples')}`"
                checked = examples.checked(path, config)
                row = {axis: cell(checked[axis]) for axis in checked}
                if asked.what != "validate":
                    trained = examples.trained(path, config)
                    row = {a: cell(trained[a]) if not checked[a] else f"refused: {cell(checked[a])}" for a in checked}
                rows.append([name, *(row.get(axis, "") for axis in ("as is", *AXES))])
                print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
            parts.append(table("file", rows))
        if asked.what in ("data", "all"):
            rows = []
            for name, stage, keys in data_files(examples, asked.only):
                row = [f"`{name}`, {stage}"]
                file = examples.scratch / "empty.yaml"
                file.write_text("{}\n", encoding="utf-8")
                for axis in ("as is", *AXES):
                    lines = ["max_steps=2"] if axis == "as is" else examples.axis_lines(axis, name)
                    given = [*SHORT, *keys, *lines, f"output_dir={examples.output()}"]
                    row.append(cell(dataflex("train", file, given)))
                rows.append(row)
                print(*row, sep=" | ", file=sys.stderr, flush=True)
            parts.append(table("data", rows))
    text = "\n".join(parts)
    if asked.out:
        asked.out.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
