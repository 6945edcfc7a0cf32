"""One run of the real-model benchmark: a YAML, ``dataflex-cli train`` on it, and the losses of what it leaves.

Losses are those that ``dataflex-cli score`` gives each held-out row with the selector ``loss``: the mean over the
tokens of its answer, in nats. They are compared row by row.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from dataflex import hookimpl
from dataflex.cli.main import run as command
from dataflex.discovery.plugins import plugin_manager
from dataflex.run.outcome import outcome

from benchmarks.real_data import HELD_OUT, SOURCES, Part

WARMUP, SEGMENT = 6, 12
"""Steps on rows at random, and steps on the rows of the one update."""


class RunFailedError(Exception):
    """A command ended with another code than 0; it has said why."""

    def __init__(self, command: str, code: int) -> None:
        super().__init__(f"dataflex-cli {command} ended with {code}")
        self.code = code


@dataclass
class Meter:
    """Seconds and memory of updates: a plugin that looks at the process before and after each.

    Attributes:
        device: ``cpu`` or ``cuda``.
        updates: For each update its seconds, those of all threads on a CPU, the highest memory in it, and what was
            held when it began; GiB. On a CPU it is the process's memory (as far as the system tells), on a GPU that of
            torch's allocator.
    """

    device: str
    updates: list[dict[str, float]] = field(default_factory=list)
    _held: float = 0.0
    _cpu: float = 0.0

    @hookimpl
    def dataflex_before_update(self) -> None:
        """Sets the marks back."""
        self._cpu = time.process_time()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._held = torch.cuda.memory_allocated() / 2**30
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the highest resident size counts anew
        except OSError:
            self._held = float("nan")
            return
        self._held = _resident("VmRSS")

    @hookimpl
    def dataflex_after_update(self, decision: Mapping[str, Any]) -> None:
        """Notes what the update took."""
        cpu = time.process_time() - self._cpu
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device == "cuda" else _resident("VmHWM")
        peak = peak if self._held == self._held else float("nan")
        self.updates.append({"seconds": decision["seconds"], "cpu": cpu, "peak": peak, "held": self._held})


def _resident(key: str) -> float:
    """Returns a size of this process in GiB; NaN where the system has no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith(f"{key}:")), float("nan"))


@dataclass(frozen=True)
class Setting:
    """What all runs of a table share.

    Attributes:
        model: Folder of the model.
        template: LLaMA-Factory's template.
        device: ``cpu`` or ``cuda``.
        bf16: Whether the model computes in bf16 by autocast; the adapter and its optimizer stay in fp32.
        cutoff: Tokens of a row.
        batch: Rows of a step.
        rate: Learning rate, falling linearly to 0.
        rank: Of LoRA, on all linear layers.
    """

    model: Path
    template: str
    device: str
    bf16: bool
    cutoff: int
    batch: int
    rate: float
    rank: int


def keys(setting: Setting, part: Part, out: Path, seed: int, stage: str = "sft") -> dict[str, Any]:
    """Returns the keys of LLaMA-Factory that all YAML files share."""
    return {
        "model_name_or_path": str(setting.model),
        "template": setting.template,
        "stage": stage,
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": setting.rank,
        "lora_target": "all",
        "dataset_dir": str(part.folder),
        "cutoff_len": setting.cutoff,
        "per_device_train_batch_size": setting.batch,
        "per_device_eval_batch_size": setting.batch,
        "learning_rate": setting.rate,
        "lr_scheduler_type": "linear",
        "bf16": setting.bf16,
        "use_cpu": setting.device == "cpu",
        "disable_gradient_checkpointing": True,
        "seed": seed,
        "output_dir": str(out),
        "overwrite_output_dir": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": "none",
    }


def trained(config: Mapping[str, Any], meter: Meter) -> float:
    """Trains as a YAML of these keys says, through the command line, and returns the seconds that it took."""
    out = Path(config["output_dir"])
    out.mkdir(parents=True, exist_ok=True)
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
    manager = plugin_manager()
    manager.register(meter, name="benchmarks.real_model")
    began = time.perf_counter()
    try:
        code = command(["train", str(file)])
    finally:
        manager.unregister(meter)
    if code != 0:
        raise RunFailedError(f"train {file}", code)
    return time.perf_counter() - began


def row_losses(config: Mapping[str, Any], dataset: str, adapter: Path | None) -> list[float]:
    """Returns the mean token loss of each row of the datasets, by ``dataflex-cli score``."""
    out = Path(f"{config['output_dir']}-{dataset.split('_')[0]}-losses")
    out.mkdir(parents=True, exist_ok=True)
    changed = {
        "dataset": dataset,
        "output_dir": str(out),
        "train_type": "dynamic_select",
        "component_name": "loss",
        "update_step": SEGMENT,
        "update_times": 1,
    }
    if adapter is not None:
        changed["adapter_name_or_path"] = str(adapter)
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**config, **changed}, sort_keys=False), encoding="utf-8")
    code = command(["score", str(file), "--overwrite"])
    if code != 0:
        raise RunFailedError(f"score {file}", code)
    return [float(loss) for loss in pq.read_table(out / "dataflex_scores.parquet")["score"].to_pylist()]


def held_out_losses(setting: Setting, part: Part, out: Path, adapter: Path | None) -> dict[str, list[float]]:
    """Returns held-out set -> the loss of each of its rows."""
    losses = row_losses(keys(setting, part, out, 1), ",".join(f"held_{name}" for name in HELD_OUT), adapter)
    half = len(losses) // len(HELD_OUT)
    assert half * len(HELD_OUT) == len(losses), "the sets are of one size"
    return {name: losses[n * half : (n + 1) * half] for n, name in enumerate(HELD_OUT)}


def selected(
    setting: Setting, part: Part, out: Path, seed: int, component: str, params: Mapping[str, Any], steps: int = SEGMENT
) -> dict[str, Any]:
    """Trains with a selector: a warm-up, and ``steps`` steps with an update before each 12. Returns what came of it."""
    config = keys(setting, part, out, seed) | {
        "dataset": "pool",
        "eval_dataset": "target",
        "train_type": "dynamic_select",
        "component_name": component,
        "warmup_step": WARMUP,
        "update_step": SEGMENT,
        "update_times": -1,
        "train_step": WARMUP + steps,
    }
    if params:
        config["component"] = dict(params)
    meter = Meter(setting.device)
    seconds = trained(config, meter)
    _, *updates = sorted((out / "dataflex_selections").glob("step_*.npz"))  # the first is the warm-up
    chosen = np.concatenate([np.load(file)["indices"] for file in updates])
    of_kind = np.array(part.of_kind)[chosen]
    return {
        "chosen": {"of_kind": int(of_kind.sum()), "rows": len(chosen), "order": of_kind.astype(int).tolist()},
        "updates": meter.updates,
        "seconds": seconds,
        "losses": held_out_losses(setting, part, out, out),
    }


def weighted(
    setting: Setting, part: Part, out: Path, seed: int, component: str, params: Mapping[str, Any]
) -> dict[str, Any]:
    """Trains with a weighter, or plainly with the component ``static``, for as many steps as a selector's run."""
    config = keys(setting, part, out, seed) | {"dataset": "pool", "max_steps": WARMUP + SEGMENT}
    if component != "static":
        config |= {
            "eval_dataset": "target",
            "train_type": "dynamic_weight",
            "component_name": component,
            "component": dict(params),
            "warmup_step": WARMUP,
            "update_step": SEGMENT,
            "update_times": 1,
        }
        del config["max_steps"]
    seconds = trained(config, Meter(setting.device))
    return {"updates": [], "seconds": seconds, "losses": held_out_losses(setting, part, out, out)}


def mixed(
    setting: Setting, part: Part, out: Path, seed: int, component: str, params: Mapping[str, Any]
) -> dict[str, Any]:
    """Trains on a mixture of three sources; ``sizes`` keeps their shares by size."""
    config = keys(setting, part, out, seed, "pt") | {
        "dataset": ",".join(SOURCES),
        "eval_dataset": ",".join(f"held_{source}" for source in SOURCES),
        "eval_on_each_dataset": True,
        "do_eval": True,
        "train_type": "dynamic_mix",
        "mixture_sample_rule": "stratified",
        "warmup_step": WARMUP,
        "update_step": 4,
        "update_times": 6,
    }
    config |= {"static_mix": True} if component == "sizes" else {"component_name": component}
    if params:
        config["component"] = dict(params)
    meter = Meter(setting.device)
    seconds = trained(config, meter)
    losses = outcome(out).losses
    return {
        "updates": meter.updates,
        "seconds": seconds,
        "losses": {source: [losses[f"eval_held_{source}_loss"]] for source in SOURCES},
    }


def irreducible(setting: Setting, part: Part, out: Path, seed: int, steps: int) -> Path:
    """Trains on the reference rows and writes the losses of that model on the pool, for rho_loss."""
    file = out.with_suffix(".npy")
    config = keys(setting, part, out, seed) | {"dataset": "reference", "max_steps": steps}
    trained(config, Meter(setting.device))
    np.save(file, np.array(row_losses(keys(setting, part, out, seed), "pool", out)))
    return file
