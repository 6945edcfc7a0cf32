"""Each run of `examples/` trains: with a tiny model, data of the same form, and a few steps in place of its lengths."""

from __future__ import annotations

import json
from pathlib import Path

import example_stand_ins as stand_ins
import pytest
import yaml
from dataflex.cli.main import run
from dataflex.core.files import TRACE
from dataflex.testing import tiny_model, tiny_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
RUNS = sorted(path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.yaml"))

LEFT_OUT = {"mix/doremi_three_runs.yaml", "mix/regmix.yaml"}  # test_doremi_cli.py, test_regmix_cli.py train the like
LEFT_OUT |= {"weigh/token_column.yaml"}  # the stand-ins have no messages; test_message_weights.py trains the like
CHANGED = {
    "mix/doremi.yaml": ["component.reference_model=model"],
    "mix/dynamic_moe.yaml": ["model_name_or_path=experts"],
    "mix/ado.yaml": ["component.start_step=2", "component.skip_steps=1", "component.fit_every=2"],
    "order/pacing.yaml": ["component.until_step=4"],
    "select/near.yaml": ["component.embedding=ngrams"],
    "select/rho_loss.yaml": ["component.reference_model=model"],
    "select/ifd.yaml": ["component.reference_model=model", "component.most=null"],
    "select/perplexity.yaml": ["component.reference_model=model"],
    "select/nice.yaml": [
        "component.reward=contains", "component.reward_model=null", "component.fallback=reference",
        "component.samples=2", "component.max_new_tokens=4", "component.prompts=2",
    ],
    "weigh/rho_tokens.yaml": ["component.reference_model=model"],
    "weigh/spans.yaml": ["component.between=[{start: e, end: t, weight: 0.5}]"],
    "combine/filter_mix_order.yaml": ["mixer.from=2"],
    "combine/mix_select_weigh.yaml": ["weighter.from=3"],
    "combine/all_axes.yaml": ["weighter.from=3"],
    "stages/rm_weigh.yaml": ["component.share=0.5"],
}  # fmt: skip
"""File -> what cannot be had here (a model of a hub), or is longer than the few steps. All else stays as it stands."""

SMALL = ["max_samples=40", "cutoff_len=32", "per_device_train_batch_size=2", "gradient_accumulation_steps=1"]
QUIET = ["bf16=false", "plot_loss=false", "logging_steps=1", "disable_tqdm=true", "overwrite_cache=true"]
FEW = ["warmup_steps=1", "save_strategy='no'", "preprocessing_num_workers=1"]
SCORES_OF = {"select/scores.yaml", "weigh/column.yaml"}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    stand_ins.write_data(folder / "data")
    tokenizer = tiny_tokenizer()
    for name, kind in (("model", "qwen2"), ("experts", "qwen2_moe")):
        tiny_model(len(tokenizer) + 64, kind=kind, layers=1).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def schedule(config: dict) -> list[str]:
    """Returns a schedule of four steps, with updates at the places that the file has them."""
    if config["train_type"] == "static":
        return ["max_steps=2"]
    if config["train_type"] == "dynamic_weight":
        return ["warmup_step=1", "train_step=3"]
    return [f"warmup_step={min(config.get('warmup_step', 0), 1)}", "update_step=1", "update_times=4", "train_step=0"]


@pytest.mark.slow
@pytest.mark.llamafactory
@pytest.mark.filterwarnings("ignore:The `padding_value` property is deprecated")  # LLaMA-Factory's use of TRL
@pytest.mark.parametrize("file", [file for file in RUNS if file not in LEFT_OUT])
def test_the_run_of_an_example_trains(file: str, place: Path, monkeypatch):
    monkeypatch.chdir(place)
    config = yaml.safe_load((EXAMPLES / file).read_text(encoding="utf-8"))
    method = ["lora_rank=4"] if config["finetuning_type"] == "lora" else []
    given = ["model_name_or_path=model", *SMALL, *QUIET, *FEW, *method, *schedule(config), *CHANGED.get(file, [])]
    if file in SCORES_OF:
        written = f"scores/{file.split('/')[0]}"
        few = [part for part in given if not part.startswith(("warmup_step=", "train_step="))]
        assert run(["score", str(EXAMPLES / "select/loss.yaml"), *few, f"output_dir={written}"]) == 0
        given.append(f"component.file={written}/dataflex_scores.parquet")
    folder = place / "runs" / file.removesuffix(".yaml")
    assert run(["train", str(EXAMPLES / file), "--quiet", *given, f"output_dir={folder}"]) == 0
    log = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    losses = [line["loss"] for line in log if "loss" in line]
    assert len(losses) >= 2
    assert all(loss == loss and abs(loss) < 1e4 for loss in losses)
    if config["train_type"] != "static":
        lines = [json.loads(line) for line in (folder / TRACE).read_text(encoding="utf-8").splitlines()]
        assert {line["kind"] for line in lines} >= expected_kinds(config), "a part of the run decided nothing"


def expected_kinds(config: dict) -> set[str]:
    """Returns the kinds of the lines that the trace of a run must have."""
    short = {"dynamic_select": "select", "dynamic_mix": "mix", "dynamic_reorder": "order", "dynamic_weight": "weight"}
    if config["train_type"] in short:
        return {short[config["train_type"]]}
    kinds = {kind for key, kind in (("mixer", "mix"), ("order", "order"), ("weighter", "weight")) if key in config}
    selectors = config.get("selector", [])
    for part in selectors if isinstance(selectors, list) else [selectors]:
        kinds.add("filter" if isinstance(part, dict) and "keep" in part else "select")
    return kinds


def test_what_is_left_out_or_changed_is_there():
    assert set(RUNS) >= LEFT_OUT | CHANGED.keys() | SCORES_OF
