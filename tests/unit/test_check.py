"""The check of a configuration: each bad input with its key, what was found and the way out; and no false alarm."""

from __future__ import annotations

import json
import os

import pytest
from dataflex.config import known_keys
from dataflex.config.check import check
from dataflex.config.resolved import write_config
from dataflex.core import registry
from dataflex.core.errors import InvalidConfigError
from dataflex.utils.logging import logger

ROWS = 20
SELECT = {
    "train_type": "dynamic_select",
    "component_name": "random",
    "warmup_step": 1,
    "update_step": 2,
    "update_times": 3,
}
MIX = SELECT | {"train_type": "dynamic_mix", "dataset": "a,b", "stage": "pt"}
STREAMS = {"streaming": True, "mixture_sample_rule": "uniform"}
WEIGHT = {"train_type": "dynamic_weight", "component_name": "loss", "warmup_step": 1, "train_step": 5}
STATIC = {"train_type": "static"}
SINCE_0_9_5 = {"use_asft_loss", "use_eaft_loss", "use_hyper_parallel"}  # an older llamafactory does not know these keys


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    """A working directory with a model folder, datasets a and b, broken ones, and plugin files in yaml/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", {})
    for folder in ("model", "data", "yaml", "broken_info", "no_info"):
        (tmp_path / folder).mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    rows = [{"instruction": "x", "input": "", "output": "y"}] * ROWS
    files = {
        "a.json": json.dumps(rows),
        "b.jsonl": "\n".join(map(json.dumps, rows)) + "\n\n",
        "lines.json": "\n".join(map(json.dumps, rows)),
        "none.json": "[]",
        "none.jsonl": "\n\n",
        "zero.json": "",
        "bad.json": '[{"a": 1},\n {"a": }]',
        "odd.xyz": "?",
    }
    for name, text in files.items():
        (tmp_path / "data" / name).write_text(text)
    info = {name.replace(".", "_"): {"file_name": name} for name in files}
    info |= {"a": {"file_name": "a.json"}, "b": {"file_name": "b.jsonl"}, "gone": {"file_name": "gone.json"}}
    info |= {
        "other": {"hf_hub_url": "x/z"},
        "hub": {"hf_hub_url": "x/y"},
        "five": {"file_name": "a.json", "num_samples": 5},
        "nofile": {"columns": {}},
    }
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "broken_info" / "dataset_info.json").write_text("{")
    plugin = "from dataflex.core.registry import register_{0}\n"
    plugin += "from dataflex.train.selector.base_selector import Selector\n@register_{0}('{1}')\nclass C(Selector):\n"
    plugin += "    def __init__(self, width=1): ...\n    def select(self, model, step_id, num_samples, **kwargs): ...\n"
    (tmp_path / "yaml" / "mine.py").write_text(plugin.format("selector", "mine"))
    (tmp_path / "yaml" / "leaves.py").write_text(plugin.format("selector", "mine") + "raise SystemExit(0)\n")
    (tmp_path / "yaml" / "clash.py").write_text(plugin.format("selector", "random"))
    (tmp_path / "yaml" / "syntax.py").write_text("x = (\n")
    (tmp_path / "yaml" / "loop.py").write_text(
        "from dataflex.core import registry\n"
        "from dataflex.train.selector.base_selector import Selector\n"
        "for n in ('l1', 'l2'):\n    registry.register_selector(n)(type(n, (Selector,), {'select': None}))\n"
    )
    (tmp_path / "yaml" / "c.yaml").write_text("selectors: {free: {name: random, params: {replacement: true}}}\n")
    (tmp_path / "yaml" / "typo.yaml").write_text("selectors: {random: {params: {replacment: true}}}\n")


def config(*parts, **keys):
    base = {
        "model_name_or_path": "./model",
        "stage": "sft",
        "do_train": True,
        "dataset": "a",
        "dataset_dir": "data",
        "output_dir": "out",
        "per_device_train_batch_size": 2,
        "num_train_epochs": 1.0,
    }
    for part in (*parts, keys):
        base |= part
    return {key: value for key, value in base.items() if value is not ...}


def run(tmp_path, *parts, **keys):
    return check(config(*parts, **keys), tmp_path / "yaml")


@pytest.mark.parametrize("base", [SELECT, MIX, WEIGHT, STATIC], ids=lambda base: base["train_type"])
def test_a_good_configuration_passes_and_llamafactorys_keys_come_back_untouched(tmp_path, base):
    spec = run(tmp_path, base)
    assert spec.arguments.train_type == base["train_type"]
    assert spec.llamafactory == {
        key: value for key, value in config(base).items() if key not in type(spec.arguments).names()
    }
    assert spec.epochs == 1.0
    assert (spec.component is None) == (base is STATIC)


BAD = [
    # keys of dataflex: names, types, ranges
    (
        STATIC,
        {"train_type": "dynamic_selct"},
        "train_type",
        ["'dynamic_selct'", "static | dynamic_select", "'dynamic_select'?"],
    ),
    (STATIC, {"train_type": 3}, "train_type", ["found 3", "use one of these"]),
    (
        SELECT,
        {"warmup_stepp": 3},
        "warmup_stepp",
        ["neither dataflex nor", "did you mean 'warmup_step' or 'warmup_steps'?"],
    ),
    (SELECT, {"learning_rat": 3}, "learning_rat", ["neither dataflex nor", "did you mean 'learning_rate'?"]),
    (STATIC, {"zzzzzz": 3}, "zzzzzz", ["neither dataflex nor", "ALLOW_EXTRA_ARGS=1"]),
    (SELECT, {"warmup_step": -1}, "warmup_step", ["found -1", "a whole number, 0 or more"]),
    (SELECT, {"warmup_step": True}, "warmup_step", ["found True", "a whole number"]),
    (SELECT, {"update_step": 2.5}, "update_step", ["found 2.5", "a whole number"]),
    (SELECT, {"update_step": "10"}, "update_step", ["found '10'", "a whole number"]),
    (SELECT, {"update_times": -2}, "update_times", ["found -2", "-1 or more", "until train_step or the epochs"]),
    (SELECT, {"train_step": -5}, "train_step", ["found -5", "0 or more"]),
    (MIX, {"static_mix": "true"}, "static_mix", ["found 'true'", "true | false", "remove the quotes"]),
    (MIX, {"static_mix": 1}, "static_mix", ["found 1", "write true or false"]),
    (MIX, {"mixture_sample_rule": "unifrom"}, "mixture_sample_rule", ["'unifrom'", "did you mean 'uniform'?"]),
    (SELECT, {"component_name": 5}, "component_name", ["found 5", "a text"]),
    (SELECT, {"components_cfg_file": []}, "components_cfg_file", ["found []", "a text"]),
    (SELECT, {"plugins": {"a": 1}}, "plugins", ["a list of Python files", "plugins: [selector.py]"]),
    # the schedule
    (SELECT, {"update_step": 0}, "update_step", ["is 0", "3 updates", "update_times: 0"]),
    (SELECT, {"update_step": 0, "update_times": -1}, "update_step", ["is 0", "updates until the end"]),
    (WEIGHT, {"update_step": 0, "update_times": 2}, "update_step", ["is 0", "2 updates"]),
    (SELECT, {"train_step": 5, "max_steps": 6}, "train_step", ["is 5 and max_steps is 6", "remove one of the two"]),
    (
        SELECT,
        {"train_step": 4, "warmup_step": 4},
        "train_step",
        ["ends before its first update", "warmup_step: 3 or less"],
    ),
    (
        WEIGHT,
        {"train_step": 0, "warmup_step": 0, "num_train_epochs": 0},
        "num_train_epochs",
        ["is 0", "set num_train_epochs"],
    ),
    (SELECT, {"num_train_epochs": 0}, "num_train_epochs", ["is 0", "train_step"]),
    # the component
    (
        SELECT,
        {"component_name": ...},
        "component_name",
        ["is missing", "needs a selector", "name one of: ", "custom, "],
    ),
    (SELECT, {"component_name": "randm"}, "component_name", ["no selector named 'randm'", "did you mean 'random'?"]),
    (SELECT, {"components_cfg_file": "nope.yaml"}, "components_cfg_file", ["nope.yaml: there is no such file"]),
    (
        SELECT,
        {"components_cfg_file": "typo.yaml"},
        "params.replacment",
        ["no parameter 'replacment'", "'replacement'?"],
    ),
    (
        SELECT,
        {"plugins": ["gone.py"]},
        "plugins",
        ["gone.py does not exist", "relative to the working directory or to the YAML's folder"],
    ),
    (SELECT, {"plugins": ["c.yaml"]}, "plugins", ["c.yaml is not a .py file"]),
    (SELECT, {"plugins": ["syntax.py"]}, "plugins", ["syntax.py, line 1: SyntaxError"]),
    (
        SELECT,
        {"plugins": ["clash.py"]},
        "plugins",
        ["would take the name of a component of dataflex-selectors", "rename it"],
    ),
    (SELECT, {"static_mix": True}, "static_mix", ["train_type is dynamic_select", "set train_type: dynamic_mix"]),
    (STATIC, {"static_mix": True}, "static_mix", ["train_type is static", "set train_type: dynamic_mix"]),
    # mixtures
    (MIX, {"dataset": "a"}, "dataset", ["two sources or more, found one: a", "dataset: a,b"]),
    (MIX, {"dataset": ["a", "b", "a"]}, "dataset", ["a is named more than once", "once"]),
    (
        MIX,
        {"init_mixture_proportions": [1]},
        "init_mixture_proportions",
        ["1 numbers for 2 datasets (a, b)", "one number per"],
    ),
    (
        MIX,
        {"mixture_sample_rule": "mixture"},
        "init_mixture_proportions",
        [
            "is missing; mixture_sample_rule: mixture takes the proportions from there",
            "or set mixture_sample_rule: strat",
        ],
    ),
    (MIX, {"streaming": True, "mixture_sample_rule": "mixture"}, "mixture_sample_rule", ["mixture asks for the sizes"]),
    (
        MIX,
        {"init_mixture_proportions": [0.5, -0.1]},
        "init_mixture_proportions",
        ["found -0.1", "finite numbers of 0 or more"],
    ),
    (
        MIX,
        {"init_mixture_proportions": [0, 0]},
        "init_mixture_proportions",
        ["nothing would be drawn", "a share above 0"],
    ),
    (MIX, {"init_mixture_proportions": [0.5, float("nan")]}, "init_mixture_proportions", ["found nan", "finite"]),
    (MIX, {"init_mixture_proportions": [float("inf"), 1]}, "init_mixture_proportions", ["found inf", "finite"]),
    (MIX, {"init_mixture_proportions": [True, "x"]}, "init_mixture_proportions", ["found True, 'x'", "finite"]),
    (MIX, {"init_mixture_proportions": [10**400, 1]}, "init_mixture_proportions", ["found 1000", "finite"]),
    (MIX, {"init_mixture_proportions": "1_0,1"}, "init_mixture_proportions", ["found '1_0'", "finite"]),
    (MIX, {"init_mixture_proportions": "0x10,1"}, "init_mixture_proportions", ["found '0x10'", "finite"]),
    (MIX, {"init_mixture_proportions": "\u0663,1"}, "init_mixture_proportions", ["found '\u0663'", "finite"]),
    (SELECT, {"train_step": 10**20}, "train_step", ["found 1000", "from 0 to 2147483647", "write a smaller"]),
    (SELECT, {"update_step": "\u0663"}, "update_step", ["found '\u0663'", "a whole number"]),
    (SELECT, {"components_cfg_file": "~nouser/x.yaml"}, "components_cfg_file", ["~nouser/x.yaml: there is no such"]),
    (SELECT, {"components_cfg_file": "a\0.yaml"}, "components_cfg_file", ["holds a NUL character", "remove it"]),
    (SELECT, {"component_name": "a\0"}, "component_name", ["holds a NUL character", "remove it"]),
    (SELECT, {"plugins": ["~nouser/x.py"]}, "plugins", ["~nouser/x.py does not exist"]),
    (SELECT, {"plugins": ["a\0.py"]}, "plugins", ["holds a NUL character", "remove it"]),
    (MIX, {"init_mixture_proportions": "0.5,half"}, "init_mixture_proportions", ["found 'half'", "finite"]),
    (
        MIX,
        {"init_mixture_proportions": {"a": 1}},
        "init_mixture_proportions",
        ["names no share of b", "give every source one"],
    ),
    (MIX, {"init_mixture_proportions": []}, "init_mixture_proportions", ["nothing would be drawn"]),
    (
        MIX,
        {"mix_strategy": "interleave_under"},
        "mix_strategy",
        ["the mixer alone decides", "init_mixture_proportions"],
    ),
    # the data
    (SELECT, {"dataset": ...}, "dataset", ["no dataset is named", "dataset_info.json"]),
    (STATIC, {"dataset": None}, "dataset", ["no dataset is named"]),
    (SELECT, {"dataset": "five,fiv"}, "dataset", ["'fiv' is not defined", "did you mean 'five'?"]),
    (SELECT, {"eval_dataset": "othr"}, "eval_dataset", ["'othr' is not defined", "did you mean 'other'?"]),
    (SELECT, {"dataset_dir": "nowhere"}, "dataset_dir", ["the folder nowhere does not exist", "dataset_info.json"]),
    (SELECT, {"dataset_dir": "no_info"}, "dataset_dir", ["no_info holds no dataset_info.json"]),
    (SELECT, {"dataset_dir": "broken_info"}, "dataset_dir", ["malformed", "repair"]),
    (SELECT, {"dataset": "gone"}, "dataset", ["the file of 'gone' does not exist: data/gone.json", "repair file_name"]),
    (SELECT, {"dataset": "nofile"}, "dataset", ["'nofile' has no file_name", "hf_hub_url"]),
    (SELECT, {"dataset": "none_json"}, "dataset", ["'none_json' is empty", "put rows into its file"]),
    (WEIGHT, {"dataset": "none_jsonl"}, "dataset", ["'none_jsonl' is empty"]),
    (STATIC, {"dataset": "zero_json"}, "dataset", ["'zero_json' is empty"]),
    (SELECT, {"dataset": "bad_json"}, "dataset", ["bad.json, line 2: malformed JSON"]),
    (SELECT, {"dataset": "odd_xyz"}, "dataset", ["file type 'xyz' cannot be read", "jsonl"]),
    # more rows than there are
    (
        SELECT,
        {"update_step": 11},
        "update_step",
        ["asks for 22 rows at once", "11 steps of 2 rows", "has 20", "replacement: true"],
    ),
    (SELECT, {"dataset": "b", "update_step": 11}, "update_step", ["asks for 22 rows", "has 20"]),
    (SELECT, {"dataset": "lines_json", "update_step": 11}, "update_step", ["asks for 22 rows", "has 20"]),
    (SELECT, {"dataset": "five", "update_step": 3}, "update_step", ["asks for 6 rows", "has 5"]),
    (SELECT, {"max_samples": 5, "update_step": 3}, "update_step", ["asks for 6 rows", "has 5"]),
    (SELECT, {"val_size": 0.5, "update_step": 6}, "update_step", ["asks for 12 rows", "has 10"]),
    (SELECT, {"gradient_accumulation_steps": 8}, "update_step", ["asks for 32 rows", "2 steps of 16 rows"]),
    (SELECT, {"warmup_step": 11}, "warmup_step", ["asks for 22 rows", "set warmup_step: 10, or "]),
    # the engine
    (STATIC, {"model_name_or_path": ...}, "model_name_or_path", ["is missing", "a folder that holds a model"]),
    (SELECT, {"model_name_or_path": "./nope"}, "model_name_or_path", ["./nope does not exist", "give a folder"]),
    (STATIC, {"model_name_or_path": "/nope/x"}, "model_name_or_path", ["/nope/x does not exist"]),
    (STATIC, {"model_name_or_path": "saves/no/x"}, "model_name_or_path", ["saves/no/x does not exist"]),  # on no hub
    (STATIC, {"adapter_name_or_path": "saves/no/x"}, "adapter_name_or_path", ["saves/no/x does not exist"]),
    (SELECT, {"output_dir": ...}, "output_dir", ["is missing", "name the folder"]),
    (SELECT, {"output_dir": "yaml/mine.py"}, "output_dir", ["is a file", "name a folder"]),
    (SELECT, {"stage": "ppo"}, "stage", ["found 'ppo'", "makes its rows as it trains", "train_type: static"]),
    (WEIGHT, {"do_train": ...}, "do_train", ["is False", "set do_train: true"]),
    (SELECT, {"streaming": True}, "streaming", ["rows by number", "set streaming: false"]),
    (MIX, {"streaming": True}, "mixture_sample_rule", ["mixture asks for the sizes", "init_mixture_proportions"]),
    (MIX, STREAMS | {"mixture_sample_rule": "stratified"}, "mixture_sample_rule", ["stratified asks for the sizes"]),
    (
        MIX,
        STREAMS | {"component_name": "temperature"},
        "streaming",
        ["'temperature' asks for the sizes", "another mixer"],
    ),
    (MIX, STREAMS | {"dataloader_num_workers": 4}, "dataloader_num_workers", ["found 4", "by one process", "set 1"]),
    (MIX, STREAMS | {"update_times": -1}, "train_step", ["is missing, and a stream has no end", "update_times"]),
    (WEIGHT, {"streaming": True}, "streaming", ["number of rows", "set streaming: false"]),
    (MIX, STREAMS | {"save_strategy": "epoch"}, "save_strategy", ["is epoch, but a stream has no end", "steps"]),
    (MIX, STREAMS | {"logging_strategy": "epoch", "stage": "sft"}, "logging_strategy", ["is epoch, but a stream has"]),
    (SELECT, {"auto_find_batch_size": True}, "auto_find_batch_size", ["depends on the batch size", "remove it"]),
    (WEIGHT, {"use_hyper_parallel": True}, "use_hyper_parallel", ["cannot reach", "train_type: static"]),
    (SELECT, {"use_mca": True}, "use_mca", ["Megatron", "cannot reach", "train_type: static"]),
    (WEIGHT, {"use_asft_loss": True}, "use_asft_loss", ["replaces the loss", "set use_asft_loss: false"]),
    # mixtures
    (
        MIX,
        {"mixture_unit": "token"},
        "mixture_unit",
        ["found 'token', allowed: rows | tokens", "did you mean 'tokens'?"],
    ),
    (
        MIX,
        {"mixer_eval_dataset": "b"},
        "mixer_eval_dataset",
        ["found 1 datasets for 2 sources (a, b)", "one dataset per"],
    ),
    (MIX, {"mixer_eval_dataset": 3}, "mixer_eval_dataset", ["found 3, allowed: one dataset per dataset"]),
    (MIX, {"mixer_eval_dataset": "b,gone"}, "mixer_eval_dataset", ["the file of 'gone' does not exist"]),
    (MIX, {"component_name": "dynamic_moe"}, "mixer_eval_dataset", ["is missing; the mixer 'dynamic_moe'", "val_size"]),
    (
        MIX,
        {"component_name": "odm", "component": {"reward": "eval_loss"}},
        "mixer_eval_dataset",
        ["is missing; the mixer 'odm' looks at held-out rows of each source", "val_size"],
    ),
    (
        MIX,
        {"component_name": "doge", "component": {"target": "eval"}},
        "eval_dataset",
        ["is missing; the mixer 'doge' aims at one", "val_size"],
    ),
    (
        MIX | {"objective_proportions": [1, 1]},
        {"init_mixture_proportions": {"b": 0, "a": 1}},
        "objective_proportions",
        ["give b a share of the loss, and the proportions of the rows are 0 there", "or 0 here"],
    ),
    (
        MIX | {"component_name": "doge", "component": {"use": "loss_weights"}},
        {"objective_proportions": [1, 1]},
        "objective_proportions",
        ["the mixer 'doge' weighs the loss of each source itself", "leave one of the two out"],
    ),
    (
        MIX | {"component_name": "odm", "component": {"reward": "gradient_norm"}},
        {"torch_compile": True},
        "torch_compile",
        ["the mixer 'odm' takes gradients of rows from training", "leave torch_compile out"],
    ),
    (MIX | {"dataset": "a"}, {"mixture_by": "colum:t"}, "mixture_by", ["did you mean 'column'"]),
    (
        MIX | {"init_mixture_proportions": {"t": 1, "u": 2}, "objective_proportions": {"t": 1, "u": 2}},
        {"mixture_by": "cluster:four"},
        "mixture_by",
        ["allowed: cluster:K with K a whole number"],
    ),
    (MIX, {"component_name": "doremi"}, "component", ["needs the parameter 'reference_model'"]),
    (SELECT, {"component_name": "rho_loss"}, "component.column, file, reference_model", ["needed: exactly one"]),
    (WEIGHT, {"component_name": "spans"}, "component", ["needs the parameter 'between' -> write component: {"]),
    (
        WEIGHT,
        {"component_name": "rho_tokens"},
        "component",
        ["needs the parameter 'reference_model' -> write"],
    ),
    (WEIGHT, {"use_eaft_loss": True}, "use_eaft_loss", ["replaces the loss", "set use_eaft_loss: false"]),
    (
        SELECT | {"component_name": "deita", "update_step": 1},
        {"component": {"score": "column:outptu"}},
        "component_name",
        ["the selector 'deita' has score: column:outptu, and no dataset of the run has a column 'outptu'", "'output'?"],
    ),
    (
        SELECT | {"component_name": "deita", "update_step": 1, "dataset": "a,b"},
        {"component": {"score": ["length", "column:level"]}},
        "component_name",
        ["score: column:level, and no dataset of the run", "their columns: input, instruction, output -> name one of"],
    ),
    (
        WEIGHT | {"component_name": "token_column"},
        {},
        "component_name",
        ["column: token_weights, and the dataset 'a' has no column 'token_weights'; its columns: input, instruction"],
    ),
    (
        WEIGHT | {"component_name": "token_column", "dataset": "b"},
        {"component": {"column": "outputs.weight"}},
        "component_name",
        ["the dataset 'b' has no column 'outputs'; its columns", "did you mean 'output'?"],
    ),
    (
        SELECT | {"component_name": "ifd", "update_step": 1},
        {"stage": "pt"},
        "stage",
        ["rows are one text each, and the selector 'ifd' looks at answers apart", "use stage: sft"],
    ),
    (
        SELECT | {"component_name": "ifd", "update_step": 1},
        {"train_on_prompt": True},
        "train_on_prompt",
        ["prompts are learnt as answers are, and the selector 'ifd'", "-> remove it"],
    ),
]


def bad(*case):
    """The case; marked where its answer needs to know LLaMA-Factory's keys."""
    marks = pytest.mark.llamafactory if "neither dataflex nor" in case[3] else ()
    return pytest.param(*case, marks=marks)


@pytest.mark.parametrize(
    ("base", "change", "key", "parts"), [bad(*case) for case in BAD], ids=lambda value: str(value)[:40]
)
def test_a_bad_input_is_one_problem_with_its_key_what_was_found_and_the_way_out(tmp_path, base, change, key, parts):
    known = known_keys.llamafactory_keys()
    if key in SINCE_0_9_5 and known is not None and key not in known:
        pytest.skip(f"the installed llamafactory has no {key}")
    with pytest.raises(InvalidConfigError) as caught:
        run(tmp_path, base, change)
    (problem,) = caught.value.problems
    assert problem.where.endswith(key)
    assert (
        "->" in str(problem) or ", line" in str(problem) or "no such file" in str(problem) or "allowed" in str(problem)
    )
    for part in parts:
        assert part in str(problem)
    assert caught.value.exit_code == 2


def test_all_problems_come_in_one_message(tmp_path):
    bad = {
        "learning_rat": 1,
        "update_step": -1,
        "stage": "ppo",
        "dataset": "x",
        "model_name_or_path": "./x",
        "streaming": True,
    }
    with pytest.raises(InvalidConfigError) as caught:
        run(tmp_path, MIX, bad, component_name="nope", init_mixture_proportions=[1, -1], output_dir=...)
    wanted = [
        "learning_rat",
        "update_step",
        "init_mixture_proportions",
        "component_name",
        "model_name_or_path",
        "output_dir",
    ]
    wanted += ["stage", "mixture_sample_rule", "dataset"]
    if known_keys.llamafactory_keys() is None:
        wanted.remove("learning_rat")  # could be one of LLaMA-Factory's
    assert set(wanted) == {p.where for p in caught.value.problems}
    assert str(caught.value).startswith(f"{len(caught.value.problems)} problems in the configuration:\n  - ")


GOOD = [
    (
        STATIC,
        {
            "stage": "kto",
            "dataset": "hub",
            "streaming": True,
            "mix_strategy": "interleave_under",
            "output_dir": ...,
            "num_train_epochs": 0,
        },
    ),
    (STATIC, {"do_train": ..., "dataset": ..., "do_predict": True, "eval_dataset": "a", "predict_with_generate": True}),
    (SELECT, {"warmup_step": 0}),
    (SELECT, {"update_times": 0, "update_step": 0}),
    (SELECT, {"warmup_step": None, "plugins": None}),
    (SELECT, {"update_step": 10}),
    (SELECT, {"update_step": 1000, "train_step": 11}),
    (SELECT, {"update_step": 1000, "update_times": -1, "warmup_step": 0}),  # a whole epoch without an update in between
    (SELECT, {"update_step": 11, "component_name": "free", "components_cfg_file": "c.yaml"}),
    (SELECT, {"update_step": 11, "packing": True}),
    (SELECT, {"update_step": 11, "stage": "pt"}),
    (SELECT, {"update_step": 11, "dataset": "a,b"}),
    (SELECT, {"update_step": 11, "dataset": "a,hub"}),
    (SELECT, {"dataset": ["a", "a"]}),
    (SELECT, {"dataset": "x/y", "dataset_dir": "ONLINE"}),
    (SELECT, {"dataset": "a", "dataset_dir": {"a": {"file_name": "data/a.json"}}}),
    (SELECT, {"label_smoothing_factor": 0.1, "enable_liger_kernel": True, "mix_strategy": "interleave_under"}),
    (SELECT, {"model_name_or_path": "org/model"}),
    (SELECT, {"predict_with_generate": True}),
    (SELECT, {"dataflex_versions": {}}),
    (MIX, {"init_mixture_proportions": [3, 0]}),
    (MIX, {"init_mixture_proportions": [3, 0], "mixture_sample_rule": "mixture"}),
    (MIX, {"mixture_sample_rule": "stratified"}),
    (SELECT, {"mixture_sample_rule": "mixture"}),
    (MIX, STREAMS),
    (MIX, STREAMS | {"dataset": "hub,other", "stage": "sft", "save_strategy": "epoch"}),  # the hub may say how long
    (MIX, {"save_strategy": "epoch"}),
    (MIX, STREAMS | {"update_times": -1, "train_step": 9, "dataloader_num_workers": 1}),
    (MIX, STREAMS | {"static_mix": True, "component_name": ..., "train_step": 9}),
    (MIX, {"init_mixture_proportions": "0.7, 0.3"}),
    (MIX, {"init_mixture_proportions": [1e308, 1e308]}),
    (MIX, {"init_mixture_proportions": [10**38, 1]}),
    (MIX, {"static_mix": True, "component_name": ..., "update_step": 0, "update_times": -1}),
    (WEIGHT, {"label_smoothing_factor": 0.1, "use_dft_loss": False}),
    (WEIGHT, {"use_dft_loss": True}),
    (SELECT, {"update_step": 1, "component_name": "ifd"}),
    (SELECT, {"update_step": 1, "component_name": "loss", "train_on_prompt": True}),
    (SELECT, {"update_step": 1, "component_name": "deita", "component": {"score": ["length", "column:output"]}}),
    (
        SELECT,
        {"dataset": "a,hub", "update_step": 1, "component_name": "deita", "component": {"score": "column:level"}},
    ),
    (WEIGHT, {"component_name": "token_column", "component": {"column": "output.weight"}}),
    (WEIGHT, {"train_step": 0, "warmup_step": 0}),
    (WEIGHT, {"train_step": 0, "warmup_step": 0, "num_train_epochs": ...}),
]


@pytest.mark.parametrize(("base", "change"), GOOD, ids=lambda value: str(value)[:60])
def test_what_can_be_run_is_not_refused(tmp_path, base, change):
    run(tmp_path, base, change)


def test_tokenised_data_needs_no_files(tmp_path):
    (tmp_path / "tokens").mkdir()
    with pytest.raises(InvalidConfigError, match=r"gone.json"):
        run(tmp_path, SELECT, dataset="gone", tokenized_path="tokens")
    (tmp_path / "tokens" / "state.json").write_text("{}")
    run(tmp_path, SELECT, dataset="gone", tokenized_path="tokens")


def test_max_steps_acts_as_train_step_and_the_replay_agrees(tmp_path):
    spec = run(tmp_path, SELECT, max_steps=6)
    assert spec.arguments.train_step == 6
    assert spec.llamafactory["max_steps"] == 6
    assert run(tmp_path, SELECT, max_steps=6, train_step=6).arguments.train_step == 6
    assert run(tmp_path, STATIC, max_steps=6).arguments.train_step == 0


def test_our_paths_become_absolute_from_the_working_directory_first_then_from_the_yamls_folder(tmp_path):
    spec = run(tmp_path, SELECT, plugins="mine.py", components_cfg_file="c.yaml")
    assert spec.arguments.plugins == (str(tmp_path / "yaml" / "mine.py"),)
    assert spec.arguments.components_cfg_file == str(tmp_path / "yaml" / "c.yaml")
    (tmp_path / "c.yaml").write_text("{}")
    assert run(tmp_path, SELECT, components_cfg_file="c.yaml").arguments.components_cfg_file == str(tmp_path / "c.yaml")


def test_a_component_of_a_plugin_file_is_known(tmp_path):
    spec = run(tmp_path, SELECT, plugins=["mine.py"], component_name="mine")
    assert spec.component.name == "mine"
    with pytest.raises(InvalidConfigError, match=r"no selector named 'mime'.*did you mean 'mine'"):
        run(tmp_path, SELECT, plugins=["mine.py"], component_name="mime")


def test_a_plugin_file_that_is_named_twice_is_no_conflict_with_itself(tmp_path):
    (tmp_path / "yaml" / "link.py").symlink_to("mine.py")
    os.link(tmp_path / "yaml" / "mine.py", tmp_path / "yaml" / "hard.py")
    names = ["mine.py", "mine.py", "../yaml/mine.py", str(tmp_path / "yaml" / "mine.py"), "link.py", "hard.py"]
    spec = run(tmp_path, SELECT, plugins=names, component_name="mine")
    assert spec.arguments.plugins == (str(tmp_path / "yaml" / "mine.py"),)


def test_a_pipe_as_components_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "yaml" / "pipe.yaml")
    with pytest.raises(InvalidConfigError, match=r"pipe\.yaml: it is a pipe or a device"):
        run(tmp_path, SELECT, components_cfg_file="pipe.yaml")


def test_dataset_info_with_a_key_twice_is_refused(tmp_path):
    text = '{"a": {"file_name": "a.json"}, "a": {"file_name": "b.jsonl"}}'
    (tmp_path / "data" / "dataset_info.json").write_text(text)
    with pytest.raises(InvalidConfigError, match="found duplicate key a"):
        run(tmp_path, SELECT)


def test_a_variable_in_a_components_file_is_refused_and_may_be_meant_as_it_stands(tmp_path):
    file = tmp_path / "yaml" / "v.yaml"
    file.write_text("selectors: {mine: {params: {width: '${oc.env:HOME}'}}}")
    keys = {"plugins": ["mine.py"], "component_name": "mine", "components_cfg_file": "v.yaml"}
    with pytest.raises(
        InvalidConfigError, match=r"selectors.mine.params.width: found '\$\{oc.env:HOME\}', and variables"
    ):
        run(tmp_path, SELECT, keys)
    file.write_text(r"selectors: {mine: {params: {width: ['a \${b}']}}}")
    spec = run(tmp_path, SELECT, keys)
    assert spec.component.params == {"width": ["a ${b}"]}
    write_config(spec, str(tmp_path), "0" * 16)
    again = run(tmp_path, SELECT, keys, components_cfg_file=str(tmp_path / "dataflex_components.yaml"))
    assert again.component.params == {"width": ["a ${b}"]}


def test_parameters_of_a_plugin_files_component_are_checked(tmp_path):
    (tmp_path / "p.yaml").write_text("selectors: {mine: {params: {widht: 3}}}")
    with pytest.raises(InvalidConfigError, match="no parameter 'widht'; allowed: seed, width -> did you mean 'width'"):
        run(tmp_path, SELECT, plugins=["mine.py"], component_name="mine", components_cfg_file="p.yaml")


def test_a_plugin_file_whose_names_are_computed_is_run_to_learn_them(tmp_path):
    assert run(tmp_path, SELECT, plugins=["loop.py"], component_name="l2").component.name == "l2"


def test_epochs_are_told_from_the_default(tmp_path):
    assert run(tmp_path, SELECT, num_train_epochs=...).epochs is None
    assert run(tmp_path, SELECT, num_train_epochs=2).epochs == 2.0


def test_extra_keys_may_be_allowed_but_not_a_misspelt_one_of_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("ALLOW_EXTRA_ARGS", "1")
    run(tmp_path, SELECT, some_new_key=1, learning_rat=1)
    with pytest.raises(InvalidConfigError, match="did you mean 'update_times'"):
        run(tmp_path, SELECT, update_time=1)


def test_without_llamafactorys_sources_unknown_keys_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(known_keys, "SOURCES", ("no_such_package_here.hparams",))
    known_keys.llamafactory_keys.cache_clear()
    try:
        run(tmp_path, SELECT, learning_rat=1)
    finally:
        known_keys.llamafactory_keys.cache_clear()


@pytest.mark.slow
@pytest.mark.llamafactory
def test_the_known_keys_are_exactly_the_fields_that_llamafactory_parses():
    import dataclasses

    from llamafactory.hparams.parser import _TRAIN_ARGS

    parsed = {field.name for cls in _TRAIN_ARGS for field in dataclasses.fields(cls) if field.init}
    assert known_keys.llamafactory_keys() == parsed


NOTES = [
    (
        SELECT,
        {"mixture_sample_rule": "uniform", "init_mixture_proportions": [1]},
        "mixture_sample_rule, init_mixture_proportions: no",
    ),
    (
        STATIC,
        {"component_name": "random", "warmup_step": 3},
        "component_name, warmup_step: no effect with train_type: static",
    ),
    (
        MIX,
        {"static_mix": True, "update_times": -1},
        "component_name, warmup_step, update_step: no effect with train_type: dyn",
    ),
    (MIX, {"static_mix": True}, "component_name: no effect with train_type: dynamic_mix with static_mix: true"),
    (
        MIX,
        {"mixture_sample_rule": "stratified", "init_mixture_proportions": [1, 2]},
        "init_mixture_proportions: no effect with mix",
    ),
    (SELECT, {"train_step": 4}, "train_step: 4 ends the run before its 3 updates, which take 7 steps"),
    (
        SELECT,
        {"disable_shuffling": True},
        "disable_shuffling: no effect with train_type: dynamic_select, which plans the order of the rows",
    ),
    (
        SELECT,
        {"num_train_epochs": 3.0},
        "num_train_epochs: 3 runs the whole schedule of 7 steps, warm-up included, 3 times: 21 steps -> leave num",
    ),
    (SELECT, {"num_train_epochs": 3.0, "train_step": 7}, None),
    (MIX, {"num_train_epochs": 3.0}, None),
    (WEIGHT, {"disable_shuffling": True}, None),
    (
        {"train_type": "dynamic", "selector": "random", "update_step": 2, "update_times": 3},
        {"mixture_unit": "tokens"},
        "mixture_unit: no effect with train_type: dynamic without a mixer",
    ),
    (SELECT, {"mixture_unit": "tokens"}, "mixture_unit: no effect with train_type: dynamic_select"),
    (MIX, {"component_name": "dynamic_moe", "val_size": 0.1}, None),
    (MIX, {"component_name": "dynamic_moe", "mixer_eval_dataset": "b,a", "mixture_unit": "tokens"}, None),
    (
        MIX,
        {"component_name": "loss", "mixer_eval_dataset": "b,a"},
        "mixer_eval_dataset: no effect, as the mixer 'loss' looks at no held-out rows with these parameters -> remove",
    ),
    (
        MIX,
        {"component_name": "odm", "mixer_eval_dataset": "b,a"},
        "mixer_eval_dataset: no effect, as the mixer 'odm' looks at no held-out rows",
    ),
    (MIX, {"component_name": "odm", "component": {"reward": "eval_loss"}, "mixer_eval_dataset": "b,a"}, None),
    (
        MIX,
        {"static_mix": True, "mixer_eval_dataset": "b,a"},
        "component_name, mixer_eval_dataset: no effect with train_type: dynamic_mix with static_mix: true",
    ),
    (SELECT, {"dataflex_versions": {"torch": "0.1"}}, "the configuration was written with torch 0.1 (now "),
    (SELECT, {}, None),
    (MIX, {"init_mixture_proportions": [1, 2]}, None),
    (WEIGHT, {}, None),
]


@pytest.mark.parametrize(("base", "change", "text"), NOTES, ids=lambda value: str(value)[:40])
def test_what_has_no_effect_is_said_once(tmp_path, base, change, text, monkeypatch):
    messages: list[str] = []
    monkeypatch.setattr(logger, "warning", messages.append)
    run(tmp_path, base, change)
    assert len(messages) == (0 if text is None else 1)
    assert text is None or text in messages[0]


def test_the_environment_cannot_hand_a_dynamic_run_to_another_trainer(tmp_path, monkeypatch):
    monkeypatch.setenv("USE_MCA", "1")
    run(tmp_path, STATIC, {})
    with pytest.raises(InvalidConfigError, match="USE_MCA: hands the training to Megatron's trainer"):
        run(tmp_path, SELECT, {})


@pytest.mark.parametrize(
    ("value", "way_out"),
    [("\u0661\u0660", "write a whole number in digits"), ("10", "remove the quotes"), (-1, "0 means no steps")],
)
def test_the_way_out_of_a_wrong_number_of_steps_is_one(tmp_path, value, way_out):
    with pytest.raises(InvalidConfigError, match=way_out):
        run(tmp_path, SELECT, update_step=value)


ENCODER_DECODER = '{"model_type": "t5", "is_encoder_decoder": true}'


@pytest.mark.parametrize(("base", "named"), [(WEIGHT, "weighter 'loss'"), (SELECT, "selector 'less'")])
def test_an_encoder_decoder_is_refused_for_what_looks_at_rows_of_a_causal_model(tmp_path, base, named):
    (tmp_path / "model" / "config.json").write_text(ENCODER_DECODER)
    said = rf"model_name_or_path: ./model holds an encoder-decoder \(t5\); the {named} needs the loss of each row"
    with pytest.raises(InvalidConfigError, match=said):
        run(tmp_path, base, component_name=named.split("'")[1], eval_dataset="b")


def test_an_encoder_decoder_is_left_to_the_trainer_where_nothing_looks_at_it(tmp_path):
    (tmp_path / "model" / "config.json").write_text(ENCODER_DECODER)
    run(tmp_path, SELECT)


@pytest.mark.parametrize(
    ("constant", "keys"), [("weighs_sources", {"objective_proportions": [1, 1]}), ("needs_rows", {})]
)
def test_a_constant_of_a_plugin_that_is_no_text_of_the_kind_is_a_problem_of_that_plugin(tmp_path, constant, keys):
    (tmp_path / "mine.py").write_text(
        "from dataflex.core.registry import register_mixer\nfrom dataflex.train.mixer.base_mixer import Mixer\n\n\n"
        f"@register_mixer('of_mine')\nclass Mine(Mixer):\n    {constant} = True\n\n"
        "    def mix(self, model, step_id, **kwargs):\n        return [0.5, 0.5]\n"
    )
    with pytest.raises(InvalidConfigError, match=rf"mixer 'of_mine': {constant}: found 'True', allowed: "):
        run(tmp_path, MIX, plugins=str(tmp_path / "mine.py"), component_name="of_mine", **keys)
