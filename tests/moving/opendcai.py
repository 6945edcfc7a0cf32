"""Runs every example of a checkout of OpenDCAI/DataFlex here, and prints a table: file by file, preset by preset.

    python tests/moving/opendcai.py CHECKOUT [--components FILE] [--train]

Nothing of the checkout is changed or copied to this repository. Tiny models and datasets stand in for those it names,
and what a small machine lacks is left out (DeepSpeed, flash attention, 16 bits, many workers); every other key and
value is theirs. With ``--train`` a run that validates trains three steps too, all in this process.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import yaml
from dataflex.cli.main import run as dataflex_cli
from dataflex.config.check import check
from dataflex.config.known_keys import llamafactory_keys
from dataflex.config.load import read_config
from dataflex.core.errors import InvalidConfigError

ROWS = 4000
EQUIPMENT = ("deepspeed", "flash_attn", "bf16", "preprocessing_num_workers", "ddp_timeout")
DATASETS = ("dataset", "eval_dataset", "mixer_eval_dataset")
QUICK = {
    "template": "default", "cutoff_len": 48, "max_samples": 64, "logging_steps": 1,
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
    "save_steps": 100, "eval_strategy": "no", "plot_loss": False, "disable_tqdm": True,
}  # fmt: skip
SHORT = {
    "dynamic_weight": {"warmup_step": 1, "train_step": 3},
    "dynamic_select": {"warmup_step": 1, "update_step": 1, "update_times": 2, "num_train_epochs": 1},
    "dynamic_mix": {"warmup_step": 1, "update_step": 1, "update_times": 2, "train_step": 0, "max_steps": None},
}
PRINTED = (  # where a refusal stands -> the change that its message prints
    ("odm.params.warmup_steps", {"warmup_step": 2000}),
    ("indices_path", {"components_cfg_file": None}),
    ("probs_path", {"components_cfg_file": None}),
    ("reward_model_backend", {"components_cfg_file": None}),
    ("odm.params.initial_proportions", {"init_mixture_proportions": [0.5, 0.5], "mixture_sample_rule": "mixture"}),
    ("init_mixture_proportions", {"mixture_sample_rule": "uniform"}),
)
WITHOUT_RUN = {
    "accelerate": "no run: a file for accelerate launch --config_file",
    "merge_lora": "export: its keys are LLaMA-Factory's alone",
}


@dataclass(frozen=True)
class Verdict:
    """What became of a file."""

    name: str
    said: str
    trained: str = ""


def write_stand_ins(folder: Path) -> None:
    """Writes a tiny model, one with experts, and the rows that every dataset name stands for."""
    from dataflex.testing import tiny_model
    from dataflex.workspace.small_model import write_model

    rows = [
        {"instruction": f"What is {i % 90} plus {i % 7}?", "input": "", "output": str(i % 90 + i % 7), "score": i % 13}
        for i in range(ROWS)
    ]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "text.json").write_text(json.dumps([{"text": f"{r['instruction']} {r['output']}."} for r in rows]))
    model, experts = folder / "model", folder / "experts"
    model.mkdir()
    write_model(model, (f"{row['instruction']} {row['output']}" for row in rows[:500]), 1)
    experts.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (experts / name).write_bytes((model / name).read_bytes())
    tokens = len(json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]) + 3
    tiny_model(tokens, kind="mixtral").save_pretrained(experts)


def names_in(value: Any) -> list[str]:
    """Returns the datasets of a key."""
    return [name.strip() for name in str(value).split(",")] if isinstance(value, str) else list(value or ())


def stood_in(config: Mapping[str, Any], folder: Path, components: Path | None) -> dict[str, Any]:
    """Returns a run of theirs with the stand-ins of :func:`write_stand_ins` for its models and datasets."""
    found = {key: value for key, value in config.items() if key not in EQUIPMENT}
    experts = found.get("component_name") == "dynamic_moe"
    found["model_name_or_path"] = str(folder / ("experts" if experts else "model"))
    info = (folder / "dataset_info.json").read_text() if (folder / "dataset_info.json").is_file() else "{}"
    entries = json.loads(info)
    for key in DATASETS:
        for name in names_in(found.get(key)):
            text = found.get("stage") == "pt"
            columns = {"columns": {"prompt": "text"}} if text else {}
            entries[name] = {"file_name": "text.json" if text else "rows.json", **columns}
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    found |= {"dataset_dir": str(folder), "output_dir": str(folder / "out"), "trust_remote_code": False}
    if components is not None and "components_cfg_file" in found:
        found["components_cfg_file"] = str(components)
    return found


def components_in(file: Path, folder: Path, small: bool) -> Path:
    """Returns a copy of their components file whose reference model is the stand-in.

    Args:
        file: Theirs.
        folder: Where the copy goes.
        small: Whether ``odm`` begins at once, as their own comment has it for trying things out.
    """
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    mixers = content.get("mixers") or {}
    if "doremi" in mixers:
        mixers["doremi"]["params"]["reference_model_path"] = str(folder / "model")
    if small and "odm" in mixers:
        mixers["odm"]["params"]["warmup_steps"] = 1
    copy = folder / ("small_components.yaml" if small else "components.yaml")
    copy.write_text(yaml.safe_dump(content), encoding="utf-8")
    return copy


def problems_of(config: Mapping[str, Any], folder: Path) -> list[Any]:
    """Returns what ``dataflex-cli validate`` says against a run."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    try:
        check(read_config(path), folder)
    except InvalidConfigError as error:
        return list(error.problems)
    return []


def validated(config: dict[str, Any], folder: Path) -> tuple[str, dict[str, Any] | None]:
    """Returns the verdict on a run, and the run that validates: as it is, or with the change that is printed."""
    problems = problems_of(config, folder)
    if not problems:
        return "runs as is", config
    changes = [change for problem in problems for where, change in PRINTED if problem.where.endswith(where)]
    if len(changes) == len([problem for problem in problems if not problem.what.startswith("presets of the pipeline")]):
        changed = config | {key: value for change in changes for key, value in change.items()}
        if not problems_of(changed, folder):
            lines = (f"{k} left out" if v is None else f"{k}: {v}" for c in changes for k, v in c.items())
            return f"runs after the printed change: {', '.join(lines)}", changed
    return f"refused: {'; '.join(map(str, problems))}".replace(str(folder), "..."), None


def train(config: Mapping[str, Any], folder: Path, number: int, small: Path) -> str:
    """Returns how three steps of a run end."""
    short = SHORT[config["train_type"]] if not config.get("static_mix") else {"train_step": 3, "warmup_step": 0}
    quick = {**config, **QUICK, **short, "output_dir": str(folder / f"out{number}")}
    for key in ("metric_for_best_model", "load_best_model_at_end", "eval_steps", "greater_is_better"):
        quick.pop(key, None)
    if quick.get("component_name") == "nice":  # else minutes on a CPU
        quick["component"] = {"prompts": 2, "samples": 2, "max_new_tokens": 4, "fallback": "reference"}
    if quick.get("components_cfg_file"):
        quick["components_cfg_file"] = str(small)
    path = folder / f"run{number}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in quick.items() if value is not None}))
    code = dataflex_cli(["train", str(path), "--quiet"])
    state = folder / f"out{number}" / "trainer_state.json"
    steps = json.loads(state.read_text())["global_step"] if state.is_file() else 0
    return f"{steps} steps" if code == 0 and steps == 3 else f"exit code {code} after {steps} steps"


def examples(checkout: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the name of each YAML of ``examples/`` and what it holds."""
    for path in sorted((checkout / "examples").rglob("*.yaml")):
        yield str(path.relative_to(checkout / "examples")), yaml.safe_load(path.read_text(encoding="utf-8"))


def presets(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each preset of their components file, and a run of it."""
    kinds = {"selectors": "select", "mixers": "mix", "weighters": "weight", "reorders": "reorder", "pipelines": "lego"}
    for section, body in yaml.safe_load(file.read_text(encoding="utf-8")).items():
        for name in body:
            steps = {"train_step": 40} if section == "weighters" else {"update_step": 10, "update_times": 20}
            mixes = {"mixture_sample_rule": "uniform", "mixer_eval_dataset": "c,d"}
            yield f"{section}.{name}", {
                "stage": "sft", "do_train": True, "finetuning_type": "lora", "template": "default",
                "dataset": "a,b", "eval_dataset": "c", "cutoff_len": 64, "train_type": f"dynamic_{kinds[section]}",
                "component_name": name, "components_cfg_file": str(file), "warmup_step": 10, **steps,
                **(mixes if section in ("mixers", "pipelines") else {}),
                "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_samples": 2000,
            }  # fmt: skip


def verdicts(checkout: Path, components: Path, folder: Path, trains: bool) -> Iterator[Verdict]:
    """Yields a verdict for each example, then for each preset."""
    theirs, small = components_in(components, folder, False), components_in(components, folder, True)
    for number, (name, content) in enumerate(examples(checkout)):
        if name.split("/")[0] in WITHOUT_RUN:
            known = llamafactory_keys() or frozenset()
            all_known = content.keys() <= known or "compute_environment" in content
            yield Verdict(name, WITHOUT_RUN[name.split("/")[0]] if all_known else f"unknown: {content.keys() - known}")
            continue
        said, usable = validated(stood_in(content, folder, theirs), folder)
        trained = "" if usable is None or not trains else train(usable, folder, number, small)
        yield Verdict(name, said, trained)
    for name, content in presets(theirs):
        yield Verdict(name, validated(stood_in(content, folder, theirs), folder)[0])


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--components", type=Path, help="their components.yaml; that of the checkout where absent")
    parser.add_argument("--train", action="store_true", help="train three steps of each run that validates")
    given = parser.parse_args()
    components = given.components or given.checkout / "src/dataflex/configs/components.yaml"
    logging.getLogger("dataflex").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_stand_ins(folder)
        for verdict in verdicts(given.checkout, components, folder, given.train):
            sys.stdout.write(f"| `{verdict.name}` | {verdict.said} | {verdict.trained} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
