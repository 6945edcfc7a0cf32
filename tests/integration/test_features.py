"""LLaMA-Factory's own features under every dynamic train type; each cell of the table in docs/compatibility.md."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import llamafactory.train.pt.workflow as pt
import llamafactory.train.sft.workflow as sft
import pytest
import torch
from dataflex.config.known_keys import llamafactory_keys
from dataflex.rows.streams import Stream
from dataflex.run.record import read_trace
from feature_cells import CELLS, FEATURES, REFUSED, TRAIN_TYPES, command, written
from feature_run import Watched, watch
from safetensors.torch import load_file

pytestmark = pytest.mark.llamafactory

DOCS = Path(__file__).parents[2] / "docs"
RUNS = [
    pytest.param(*cell, marks=[pytest.mark.gpu] if FEATURES[cell[0]].gpu else [])
    for cell, outcome in CELLS.items()
    if outcome != REFUSED
]
REFUSALS = [cell for cell, outcome in CELLS.items() if outcome == REFUSED]


def skip_where_it_cannot_run(name: str) -> None:
    feature = FEATURES[name]
    if feature.package is not None and importlib.util.find_spec(feature.package[1]) is None:
        pytest.skip(f"{name} needs the package {feature.package[0]}")
    if feature.gpu and not torch.cuda.is_available():
        pytest.skip(f"{name} needs a CUDA device")
    known = llamafactory_keys()
    if feature.key and known is not None and feature.key not in known:
        pytest.skip(f"the installed llamafactory has no {feature.key}")


@pytest.fixture
def run_cell(train, tmp_path, monkeypatch):
    def run_cell_(name: str, train_type: str, *more: str, out: str = "run") -> Watched:
        skip_where_it_cannot_run(name)
        with monkeypatch.context() as patched:
            seen = watch(patched, tmp_path / out)
            assert train(*command(name, train_type), *more, out=out) == 0
        return seen

    return run_cell_


_plain: dict[str, Watched] = {}


@pytest.fixture
def plain_run(run_cell):
    """The LoRA run of a train type, which the features that change the loss are compared with."""

    def plain_run_(train_type: str) -> Watched:
        if train_type not in _plain:
            _plain[train_type] = run_cell("lora", train_type, out="plain")
        return _plain[train_type]

    return plain_run_


@pytest.mark.filterwarnings(
    "ignore:BAdam expect model to be loaded in fp16:UserWarning",
    "ignore:This implementation of AdamW is deprecated:FutureWarning",  # GaLore's own
)
@pytest.mark.parametrize(("name", "train_type"), RUNS)
def test_the_feature_is_in_force_and_the_run_is_dynamic(name, train_type, run_cell, plain_run):
    seen = run_cell(name, train_type)
    steps = seen.trainer.state.max_steps
    assert len(seen.losses) == steps >= 6
    assert all(math.isfinite(loss) for loss in seen.losses)
    updates = [] if train_type == "dynamic_weight" else list(range(2, steps, 2))
    assert [line["step"] for line in read_trace(seen.out) if "update" in line] == updates
    assert len(seen.weighed) == (steps - 2 if train_type == "dynamic_weight" else 0)
    assert all(torch.isfinite(losses).all() and len(losses.unique()) > 1 for losses in seen.weighed)
    assert seen.changed()
    CHECKS[name](seen, plain_run(train_type))


@pytest.mark.parametrize(("name", "train_type"), REFUSALS)
def test_the_refusal_says_why_and_the_way_out_before_a_model_is_loaded(name, train_type, train, capsys, monkeypatch):
    def load_model(*args, **kwargs):
        raise AssertionError("a model was loaded")

    if FEATURES[name].key:
        skip_where_it_cannot_run(name)
    monkeypatch.setattr(sft, "load_model", load_model)
    monkeypatch.setattr(pt, "load_model", load_model)
    assert train(*command(name, train_type)) == 2
    (problem,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  - ")]
    assert FEATURES[name].refused[train_type] in problem
    assert " -> " in problem


def test_the_documented_table_is_the_one_that_is_run():
    page = (DOCS / "compatibility.md").read_text(encoding="utf-8")
    assert page == written(page)
    assert CHECKS.keys() == {name for (name, _), outcome in CELLS.items() if outcome != REFUSED}
    assert len(CELLS) == len(FEATURES) * len(TRAIN_TYPES)


def lora(seen: Watched, plain: Watched) -> None:
    assert all("lora_" in name for name in seen.changed())
    assert (seen.out / "adapter_model.safetensors").exists()


def dora(seen: Watched, plain: Watched) -> None:
    magnitudes = {name for name in seen.before if "lora_magnitude_vector" in name}
    assert magnitudes
    assert magnitudes <= seen.changed()


def pissa(seen: Watched, plain: Watched) -> None:
    lora(seen, plain)
    original = load_file(Path(seen.trainer.model.peft_config["default"].base_model_name_or_path) / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    layer = seen.model.base_model.model.model.layers[0].self_attn.q_proj
    residual = layer.base_layer.weight.detach()
    assert not torch.allclose(residual, original[f"{name}.weight"], atol=1e-3)  # the first singular values are gone
    trained = residual + layer.get_delta_weight("default").detach()
    converted = load_file(seen.out / "pissa_converted" / "adapter_model.safetensors")
    a, b = (converted[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    assert a.shape[0] == 16  # the trained adapter of rank 8 less the initial one
    assert torch.allclose(original[f"{name}.weight"] + layer.scaling["default"] * b @ a, trained, atol=1e-5)


def freeze(seen: Watched, plain: Watched) -> None:
    assert all(".layers.1." in name for name in seen.changed())


def full(seen: Watched, plain: Watched) -> None:
    weights = {name for name in seen.before if name.endswith("weight")}
    assert weights <= seen.changed()


def optimizer(expected: str):
    def check(seen: Watched, plain: Watched) -> None:
        assert type(seen.optimizer).__name__ == expected

    return check


def badam(seen: Watched, plain: Watched) -> None:
    assert type(seen.optimizer).__name__ == "BlockOptimizer"
    assert not any("norm.weight" in name and "layers" not in name for name in seen.changed())
    blocks = {name.split("layers.")[1][0] for name in seen.changed() if "layers." in name}
    assert blocks == {"0", "1"}  # it switched from one to the other


def low_rank(package: str):
    def check(seen: Watched, plain: Watched) -> None:
        full(seen, plain)
        assert type(seen.optimizer).__module__.startswith(package)
        assert any(group.get("rank") == 8 and group["params"] for group in seen.optimizer.param_groups)

    return check


def layerwise(seen: Watched, plain: Watched) -> None:
    full(seen, plain)
    assert type(seen.optimizer).__name__ == "DummyOptimizer"
    for own in seen.optimizer.optimizer_dict.values():
        assert all(state["step"] == seen.trainer.state.max_steps for state in own.state.values())


def packed(seen: Watched, plain: Watched) -> None:
    rows = seen.trainer.train_dataset
    assert len(rows) < len(plain.trainer.train_dataset)
    assert all(len(rows[i]["input_ids"]) == 64 for i in range(len(rows)))
    if seen.weighed:
        batch = seen.trainer.args.per_device_train_batch_size
        assert sum(map(len, seen.weighed)) > batch * len(seen.weighed), "documents are weighed, and not rows"


def neatly_packed(seen: Watched, plain: Watched) -> None:
    packed(seen, plain)
    rows = seen.trainer.train_dataset
    row = next(rows[i] for i in range(len(rows)) if 2 in rows[i]["attention_mask"])
    mask = seen.trainer.data_collator([dict(row)])["attention_mask"]
    assert mask.shape == (1, 1, 64, 64)
    second = row["attention_mask"].index(2)  # the first token of the second document sees nothing of the first
    assert (mask[0, 0, second, :second] < -1e30).all()
    assert mask[0, 0, second, second] == 0


def label_smoothing(seen: Watched, plain: Watched) -> None:
    assert seen.trainer.label_smoother is not None
    norms, others = seen.logged("grad_norm"), plain.logged("grad_norm")  # of full precision, where losses are rounded
    assert norms.keys() == others.keys()
    assert len(norms) == len(seen.losses)
    assert all(norms[step] != others[step] for step in norms)


def smaller_loss(seen: Watched, plain: Watched) -> None:
    assert seen.trainer.compute_loss_func is not None
    assert all(a < b for a, b in zip(seen.losses, plain.losses, strict=True))


def other_loss(seen: Watched, plain: Watched) -> None:
    assert seen.trainer.compute_loss_func is not None
    assert all(a != b for a, b in zip(seen.losses, plain.losses, strict=True))


def neftune(seen: Watched, plain: Watched) -> None:
    assert all(a != b for a, b in zip(seen.losses, plain.losses, strict=True))


def evaluated_by_steps(seen: Watched, plain: Watched) -> None:
    keys = {"eval_loss"}
    if hasattr(seen.trainer.train_dataset, "names"):  # a mixture holds rows out of each source
        keys = {f"eval_{name}_loss" for name in seen.trainer.train_dataset.names}
    for key in keys:
        assert list(seen.logged(key)) == [2, 4, 6]
        assert all(math.isfinite(loss) for loss in seen.logged(key).values())


def evaluated_by_epochs(seen: Watched, plain: Watched) -> None:
    half = seen.trainer.state.max_steps // 2
    assert list(seen.logged("eval_loss")) == [half, 2 * half]
    assert seen.trainer.state.epoch == 2


def plotted(seen: Watched, plain: Watched) -> None:
    evaluated_by_steps(seen, plain)
    assert (seen.out / "training_loss.png").exists()
    assert len(list(seen.out.glob("training_eval*_loss.png"))) > 0
    trace = read_trace(seen.out)
    assert (seen.out / "dataflex_shares.png").exists() == any("proportions" in line for line in trace)
    assert (seen.out / "dataflex_scores.png").exists() == any("scores" in line for line in trace)
    assert not list(seen.out.glob("training_dataflex_*.png")), "one figure per metric says nothing"


def bf16(seen: Watched, plain: Watched) -> None:
    assert seen.trainer.accelerator.mixed_precision == "bf16"
    assert seen.dtypes == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for n, p in seen.model.named_parameters() if "lora_" in n)
    assert seen.losses == pytest.approx(plain.losses, rel=0.05)


def streamed(seen: Watched, plain: Watched) -> None:
    mixed = seen.trainer.train_dataset
    assert all(isinstance(source, Stream) and source.rows_read for source in mixed.sources)


def checkpointing(seen: Watched, plain: Watched) -> None:
    assert seen.model.is_gradient_checkpointing
    assert seen.losses == pytest.approx(plain.losses, rel=1e-4)


CHECKS = {
    "lora": lora,
    "dora": dora,
    "pissa": pissa,
    "freeze": freeze,
    "full": full,
    "badam": badam,
    "galore": low_rank("galore_torch"),
    "galore_layerwise": layerwise,
    "apollo": low_rank("apollo_torch"),
    "adam_mini": optimizer("Adam_mini"),
    "muon": optimizer("Muon"),
    "packing": packed,
    "neat_packing": neatly_packed,
    "label_smoothing": label_smoothing,
    "dft": smaller_loss,
    "eaft": other_loss,
    "asft": other_loss,
    "neftune": neftune,
    "val_size": evaluated_by_steps,
    "eval_dataset": evaluated_by_epochs,
    "plot_loss": plotted,
    "bf16": bf16,
    "checkpointing": checkpointing,
    "liger": lora,
    "streaming": streamed,
}
