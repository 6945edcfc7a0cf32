"""The values of LLaMA-Factory's keys: every bad one is refused by name before a model is loaded, no usual one is."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import os

import pytest
from dataflex.config.check import check
from dataflex.config.checks.ranges import RANGES, WHOLE_FLOATS
from dataflex.config.checks.values import PATHS, value_problems
from dataflex.config.declared_values import OPEN, declared_value, integrations, log_levels, templates
from dataflex.config.known_keys import llamafactory_keys
from dataflex.core.errors import InvalidConfigError

NAN, INF = math.nan, math.inf
KEYS = sorted(llamafactory_keys() or ())


def known(key):
    return declared_value(key) is not None


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory with a model, an adapter, a folder that is neither, and one dataset."""
    monkeypatch.chdir(tmp_path)
    for name in ("model", "adapter", "empty", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "file.bin").write_text("")
    (tmp_path / "twice.json").write_text('{"a": 1, "a": 2}')
    (tmp_path / "list.json").write_text("[1]")
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "data" / "a.json").write_text(json.dumps([{"instruction": "x", "input": "", "output": "y"}] * 20))
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "a.json"}}))


STATIC = {"train_type": "static"}
SELECT = {
    "train_type": "dynamic_select", "component_name": "random", "warmup_step": 1, "update_step": 1, "update_times": 2,
}  # fmt: skip
BASE = {
    "model_name_or_path": "./model", "stage": "sft", "do_train": True, "dataset": "a", "dataset_dir": "data",
    "output_dir": "out", "template": "empty", "per_device_train_batch_size": 1,
}  # fmt: skip

BAD = [
    # key, value, what the message says
    ("per_device_train_batch_size", 0, "found 0, allowed: a whole number of at least 1"),
    ("per_device_train_batch_size", -4, "found -4, allowed: a whole number of at least 1"),
    ("per_device_train_batch_size", None, "found None, allowed: a whole number of at least 1"),
    ("per_device_train_batch_size", "8", "found '8', allowed: a whole number of at least 1 -> remove the quotes"),
    ("per_device_train_batch_size", 2.5, "found 2.5, allowed: a whole number of at least 1"),
    ("per_device_train_batch_size", 2.0, "found 2.0, allowed: a whole number of at least 1 -> write 2"),
    ("per_device_train_batch_size", [8], "found [8], allowed: a whole number of at least 1"),
    ("per_device_train_batch_size", INF, "found inf, allowed: a whole number of at least 1"),
    ("per_device_train_batch_size", True, "found True, allowed: a whole number of at least 1"),
    ("per_device_train_batch_size", 10**40, "allowed: a whole number of at least 1 -> write a smaller number"),
    ("per_device_eval_batch_size", 0, "found 0, allowed: a whole number of at least 1"),
    ("gradient_accumulation_steps", 0, "found 0, allowed: a whole number of at least 1"),
    ("gradient_accumulation_steps", 1.5, "found 1.5, allowed: a whole number of at least 1"),
    ("gradient_accumulation_steps", "2", "found '2', allowed: a whole number of at least 1 -> remove the quotes"),
    ("max_steps", "12", "found '12', allowed: a whole number from -1 to 2147483647 -> remove the quotes"),
    ("max_steps", True, "found True, allowed: a whole number from -1"),
    ("max_steps", NAN, "found nan, allowed: a whole number from -1"),
    ("max_steps", 1e3, "found 1000.0, allowed: a whole number from -1 to 2147483647 -> write 1000"),
    ("max_steps", -2, "found -2, allowed: a whole number from -1"),
    ("num_train_epochs", INF, "found inf, allowed: a number of at least 0 -> write a finite number"),
    ("num_train_epochs", NAN, "found nan, allowed: a number of at least 0"),
    ("num_train_epochs", -1, "found -1, allowed: a number of at least 0"),
    ("num_train_epochs", "3", "found '3', allowed: a number of at least 0 -> remove the quotes"),
    ("val_size", -0.1, "found -0.1, allowed: 0, a share below 1, or a whole number of rows"),
    ("val_size", 1.0, "found 1.0, allowed: 0, a share below 1, or a whole number of rows"),
    ("val_size", 2.5, "found 2.5, allowed: 0, a share below 1, or a whole number of rows"),
    ("val_size", NAN, "found nan, allowed: 0, a share below 1, or a whole number of rows"),
    ("val_size", INF, "found inf, allowed: 0, a share below 1, or a whole number of rows"),
    ("val_size", "0.1", "found '0.1', allowed: a number of at least 0 -> remove the quotes"),
    ("max_samples", 0, "found 0, allowed: a whole number of at least 1"),
    ("max_samples", -5, "found -5, allowed: a whole number of at least 1"),
    ("max_samples", "10,5,5", "found '10,5,5', allowed: a whole number of at least 1, or null"),
    ("cutoff_len", 0, "found 0, allowed: a whole number of at least 1"),
    ("seed", "a", "found 'a', allowed: a whole number from 0 to 4294967295"),
    ("seed", 1.5, "found 1.5, allowed: a whole number from 0 to 4294967295"),
    ("seed", -1, "found -1, allowed: a whole number from 0 to 4294967295"),
    ("seed", 2**32, "found 4294967296, allowed: a whole number from 0 to 4294967295"),
    ("data_seed", "a", "found 'a', allowed: a whole number from 0"),
    ("save_steps", INF, "found inf, allowed: a number of at least -1 -> write a finite number"),
    ("save_steps", 2.5, "found 2.5, allowed: a share below 1, or whole steps"),
    ("eval_steps", NAN, "found nan, allowed: a number of at least 0"),
    ("logging_steps", INF, "found inf"),
    ("logging_steps", "10", "found '10', allowed: a number of at least 0 -> remove the quotes"),
    ("output_dir", ["out"], "found ['out'], allowed: a text, or null"),
    ("output_dir", 5, "found 5, allowed: a text"),
    ("output_dir", "a\0b", "which holds a NUL character -> remove it"),
    ("output_dir", "\ud800", "which holds half of a character"),
    ("output_dir", " ", "found ' ', allowed: a path"),
    ("output_dir", "${oc.env:HOME}/out", "variables are not replaced"),
    ("dataset_dir", ["data"], "found ['data'], allowed: a text, or a mapping"),
    ("dataset_dir", 5, "found 5, allowed: a text"),
    ("dataset_dir", "a\0b", "which holds a NUL character"),
    ("dataset_dir", None, "found None, allowed: a text"),
    ("tokenized_path", ["x"], "found ['x'], allowed: a text, or null"),
    ("cache_dir", ["x"], "found ['x'], allowed: a text, or null"),
    ("cache_dir", "", "found '', allowed: a path"),
    ("dataset", 5, "found 5, allowed: a text, or a list of texts, or null -> quote it"),
    ("dataset", ["a", 5], "found 5 in the list, allowed: texts -> quote it"),
    ("dataset", {"a": 1}, "found {'a': 1}, allowed: a text, or a list of texts"),
    ("template", "lama3", "found 'lama3', allowed: alpaca | "),
    ("template", "llama-3", "did you mean 'llama3'?"),
    ("template", ["llama3"], "found ['llama3'], allowed: alpaca | "),
    ("finetuning_type", "loar", "found 'loar', allowed: lora | oft | freeze | full -> did you mean 'lora'?"),
    ("finetuning_type", None, "found None, allowed: lora | oft | freeze | full"),
    ("stage", "sftt", "found 'sftt', allowed: pt | sft | rm | ppo | dpo | kto -> did you mean 'sft'?"),
    ("resume_from_checkpoint", 5, "found 5, allowed: true | false, or a text, or null -> quote it"),
    ("model_name_or_path", 5, "found 5, allowed: a text"),
    ("model_name_or_path", ["a/b"], "found ['a/b'], allowed: a text"),
    ("model_name_or_path", "./missing", "./missing does not exist (looked from "),
    ("model_name_or_path", "/dev/null", "/dev/null is no folder -> give a folder that holds a model"),
    ("model_name_or_path", "file.bin", "file.bin is no folder"),
    ("model_name_or_path", "empty", "the folder empty holds no config.json, so it is not a model"),
    ("model_name_or_path", "broken", "broken/config.json is no JSON, so the folder is not a model"),
    ("model_name_or_path", "~nouser/x", "~nouser/x does not exist"),
    ("adapter_name_or_path", "./missing", "./missing does not exist"),
    ("adapter_name_or_path", "adapter,./model", "the folder ./model holds no adapter_config.json"),
    ("adapter_name_or_path", ["a"], "found ['a'], allowed: a text, or null -> write one text, with commas"),
    ("eval_strategy", False, "found False, allowed: no | steps | epoch -> quote it, as YAML reads no as false: 'no'"),
    ("save_strategy", False, "quote it, as YAML reads no as false: 'no'"),
    ("save_strategy", "step", "found 'step', allowed: no | steps | epoch | best -> did you mean 'steps'?"),
    ("lr_scheduler_type", "cosin", "did you mean 'cosine'?"),
    ("optim", "adamw_torchh", "did you mean 'adamw_torch'?"),
    ("report_to", "wandbb", "did you mean 'wandb'?"),
    ("report_to", ["tensorboard", "wandbb"], "did you mean 'wandb'?"),
    ("log_level", "inf", "did you mean 'info'?"),
    ("flash_attn", "fa4", "found 'fa4', allowed: auto | disabled | sdpa | fa2"),
    ("fsdp", "full_shard auto_wra", "found 'auto_wra', allowed: full_shard | "),
    ("bf16", "true", "found 'true', allowed: true | false -> remove the quotes"),
    ("fp16", 2, "found 2, allowed: true | false"),
    ("learning_rate", "1e-5", "found '1e-5', allowed: a number of at least 0 -> remove the quotes"),
    ("learning_rate", -1e-5, "found -1e-05, allowed: a number of at least 0"),
    ("learning_rate", None, "found None, allowed: a number of at least 0"),
    ("learning_rate", "\u0663", "found '\u0663', allowed: a number of at least 0 -> write a number"),
    ("max_grad_norm", NAN, "found nan, allowed: a number -> write 0, which does not clip either"),
    ("warmup_ratio", 1.5, "found 1.5, allowed: a number from 0 to 1"),
    ("lora_dropout", 1.5, "found 1.5, allowed: a number from 0 to 1"),
    ("lora_rank", 0, "found 0, allowed: a whole number of at least 1"),
    ("adam_beta2", 1, "found 1, allowed: a number from 0 below 1"),
    ("dataloader_num_workers", -1, "found -1, allowed: a whole number of at least 0"),
    ("lr_scheduler_kwargs", '{"a": 1, "a": 2}', "found duplicate key a"),
    ("lr_scheduler_kwargs", "abc", "found 'abc', allowed: a mapping -> write a mapping in YAML"),
    ("interleave_probs", "a,b", "found 'a', allowed: numbers, one per dataset -> write 0.7,0.3"),
    ("max_steps", 1e10, "allowed: a whole number from -1 to 2147483647 -> write a whole number"),
    ("output_dir", ["a"], "-> write one path"),
    ("output_dir", "file.bin", "file.bin is a file -> name a folder"),
    ("output_dir", "file.bin/under/it", "which is a file -> name a folder"),
    ("resume_from_checkpoint", "out/checkpoint-9", "out/checkpoint-9 does not exist (looked from"),
    ("resume_from_checkpoint", "file.bin", "file.bin is no folder -> give the folder of a checkpoint"),
    ("quantization_bit", 3, "found 3, allowed with quantization_method: bnb: 4 | 8 -> write 4"),
    ("lora_target", [], "found [], allowed: names of modules, or all"),
    ("lora_target", "", "found '', allowed: names of modules, or all"),
    ("deepspeed", "pipe.json", "pipe.json is no file: a folder, a pipe or a device"),
    ("accelerator_config", "pipe.json", "pipe.json is no file: a folder, a pipe or a device"),
    ("accelerator_config", "empty", "empty is no file: a folder, a pipe or a device"),
    ("deepspeed", "twice.json", "found duplicate key a"),
    ("fsdp_config", "list.json", "list.json holds no mapping"),
    ("lr_scheduler_kwargs", "{a", "malformed JSON"),
    ("deepspeed", "nowhere.json", "there is no file nowhere.json"),
]


@pytest.mark.parametrize("run", [STATIC, SELECT], ids=["static", "dynamic"])
@pytest.mark.parametrize(("key", "value", "said"), BAD, ids=lambda part: repr(part)[:40])
def test_a_value_that_cannot_be_taken_is_one_problem_with_what_is_allowed(tmp_path, run, key, value, said):
    if not known(key):
        pytest.skip(f"the installed packages have no {key}")
    with pytest.raises(InvalidConfigError) as caught:
        check(BASE | run | {key: value}, tmp_path)
    (problem,) = caught.value.problems
    assert problem.where == key
    assert said in str(problem)[len(key) + 2 :]
    assert "->" in str(problem) or "allowed" in str(problem) or "line" in str(problem)


def shapes(key):
    """Values that no field of such a type can hold."""
    types = declared_value(key).types
    if OPEN in types:
        return []
    wrong = [b"x"]
    if "dict" not in types and key != "dataset_dir":
        wrong.append({"a": 1})
    if "list" not in types and not declared_value(key).split:
        wrong += [["a"], [1]]
    if not types & {"str"}:
        wrong += ["abc", ""]
    if types & {"int", "float"}:
        wrong.append(NAN)
    if "int" in types:
        wrong += ["8", 1.5, INF, -INF, True, 10**40]
    if types & {"str"} and "bool" not in types:
        wrong += ["a\0b"]
    if "bool" in types and "str" not in types:
        wrong += ["true", 3]
    return wrong


def test_every_key_refuses_what_its_type_cannot_hold():
    tried = [(key, value) for key in KEYS for value in shapes(key)]
    assert len({key for key, _ in tried}) >= len(KEYS) - 2
    for key, value in tried:
        found = value_problems({key: value})
        assert [problem.where for problem in found if problem.way_out] == [key], (key, value, found)


def test_every_key_is_declared_and_few_are_left_open():
    unread = [key for key in KEYS if declared_value(key) is None]
    assert unread == []
    opened = {key for key in KEYS if OPEN in declared_value(key).types}
    assert opened <= {"parallelism_config", "generation_config"}


@pytest.mark.llamafactory
def test_what_is_declared_is_what_the_imported_classes_declare():
    """The choices and the switches, as typing and Enum see them: what is read from text must not be a guess."""
    import typing

    from llamafactory.hparams.parser import _TRAIN_ARGS

    seen = 0
    for cls in _TRAIN_ARGS:
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if not field.init:
                continue
            parts = typing.get_args(hints[field.name]) or (hints[field.name],)
            is_literal = typing.get_origin(hints[field.name]) is typing.Literal
            declared = declared_value(field.name)
            enums = [part for part in parts if isinstance(part, type) and issubclass(part, enum.Enum)]
            if is_literal:
                assert set(declared.choices) == {part for part in parts if isinstance(part, str)}, field.name
            elif enums:
                assert set(declared.choices) == {member.value for member in enums[0]}, field.name
            inside = [type(value) for part in parts for value in typing.get_args(part)]  # of a Literal in a union
            for kind in (int, float, bool):
                assert (kind.__name__ in declared.types) == (kind in [*parts, *inside]) or is_literal, field.name
            seen += 1
    assert seen == len(KEYS)


@pytest.mark.llamafactory
def test_every_default_passes():
    from llamafactory.hparams.parser import _TRAIN_ARGS

    for cls in _TRAIN_ARGS:
        for field in dataclasses.fields(cls):
            if not field.init:
                continue
            default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
            value = default.value if isinstance(default, enum.Enum) else default
            assert value_problems({field.name: value}) == [], field.name


@pytest.mark.llamafactory
def test_every_choice_and_every_template_passes():
    from llamafactory.data.template import TEMPLATES
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(templates()) == set(TEMPLATES)
    assert set(integrations()) == {*INTEGRATION_TO_CALLBACK, "all", "none"}
    assert {"debug", "info", "passive"} <= set(log_levels())
    for key in KEYS:
        for choice in declared_value(key).choices:
            assert value_problems({key: choice}) == [], (key, choice)


USUAL = [
    {"model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct", "trust_remote_code": True, "template": "llama3"},
    {"model_name_or_path": "./model", "adapter_name_or_path": "adapter", "finetuning_type": "lora"},
    {"model_name_or_path": "model", "adapter_name_or_path": "adapter, org/adapter", "create_new_adapter": False},
    {"stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_rank": 8, "lora_target": "all"},
    {"lora_target": "q_proj,v_proj"}, {"lora_target": ["q_proj", "v_proj"]}, {"lora_alpha": 16}, {"lora_alpha": 16.0},
    {"lora_dropout": 0}, {"lora_dropout": 0.05}, {"additional_target": "embed_tokens,lm_head"}, {"use_dora": True},
    {"loraplus_lr_ratio": 16.0}, {"pissa_init": True, "pissa_iter": -1},
    {"dataset": "identity,alpaca_en_demo"}, {"dataset": ["a", "b"]}, {"eval_dataset": "a"}, {"dataset_dir": "ONLINE"},
    {"dataset_dir": "REMOTE:org/data"}, {"dataset_dir": {"a": {"file_name": "a.json"}}}, {"media_dir": None},
    {"cutoff_len": 2048, "max_samples": 1000, "overwrite_cache": True, "preprocessing_num_workers": 16},
    {"preprocessing_num_workers": None}, {"dataloader_num_workers": 0}, {"streaming": True, "buffer_size": 128},
    {"mix_strategy": "interleave_over", "interleave_probs": "0.3,0.7"}, {"interleave_probs": [0.3, 0.7]},
    {"max_samples": None}, {"tokenized_path": "saves/tokens"}, {"packing": None}, {"packing": True},
    {"neat_packing": True}, {"train_on_prompt": False, "mask_history": True}, {"tool_format": None},
    {"default_system": "You are ${helpful}."}, {"enable_thinking": None}, {"template": None},
    {"output_dir": "saves/llama3-8b/lora/sft", "logging_steps": 10, "save_steps": 500, "plot_loss": True},
    {"output_dir": "~/saves"}, {"overwrite_output_dir": True, "save_only_model": False, "report_to": "none"},
    {"report_to": "wandb"}, {"report_to": ["wandb", "tensorboard"]}, {"report_to": None}, {"report_to": "all"},
    {"run_name": "llama3 2024-01-01"}, {"run_name": 7}, {"swanlab_run_name": 20240101},
    {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "learning_rate": 1.0e-4},
    {"num_train_epochs": 3.0}, {"num_train_epochs": 3}, {"num_train_epochs": 0.5}, {"max_steps": -1},
    {"max_steps": None},
    {"lr_scheduler_type": "cosine", "warmup_ratio": 0.1}, {"warmup_steps": 20}, {"warmup_ratio": 0},
    {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
    {"lr_scheduler_kwargs": '{"min_lr_rate": 0.1}'}, {"bf16": True, "ddp_timeout": 180000000}, {"ddp_timeout": 1.8e8},
    {"bf16": 1, "fp16": 0}, {"do_eval": None}, {"resume_from_checkpoint": None}, {"resume_from_checkpoint": True},
    {"resume_from_checkpoint": "saves/x/checkpoint-500"}, {"resume_from_checkpoint": False},
    {"val_size": 0.1, "eval_strategy": "steps", "eval_steps": 500, "per_device_eval_batch_size": 1}, {"val_size": 100},
    {"val_size": 0}, {"val_size": 2.0}, {"val_size": 1}, {"eval_steps": 0.1, "save_steps": 0.2}, {"eval_steps": None},
    {"eval_strategy": "no", "save_strategy": "best"}, {"save_steps": 0}, {"save_steps": -1}, {"logging_steps": 0.01},
    {"optim": "adamw_torch", "optim_args": "beta=0.9"}, {"optim": "paged_adamw_8bit"}, {"max_grad_norm": 0},
    {"max_grad_norm": INF}, {"max_grad_norm": 1}, {"weight_decay": 0.1, "adam_beta2": 0.95, "adam_epsilon": 1e-8},
    {"deepspeed": {"zero_optimization": {"stage": 2}}}, {"deepspeed": '{"a": 1}'}, {"deepspeed": None},
    {"fsdp": "full_shard auto_wrap", "fsdp_config": {"min_num_params": 1}}, {"fsdp": True}, {"fsdp": ""},
    {"fsdp": ["full_shard", "auto_wrap"]}, {"accelerator_config": {"even_batches": True}},
    {"gradient_checkpointing_kwargs": {"use_reentrant": False}}, {"ddp_backend": "cpu:gloo,cuda:nccl"},
    {"flash_attn": "fa2", "enable_liger_kernel": True, "rope_scaling": "linear"}, {"rope_scaling": None},
    {"quantization_bit": 4, "quantization_method": "bnb", "quantization_type": "nf4", "double_quantization": True},
    {"use_badam": True, "badam_mode": "layer", "badam_switch_interval": 50, "badam_verbose": 2},
    {"use_galore": True, "galore_layerwise": True, "galore_target": "mlp,self_attn", "galore_rank": 128},
    {"freeze_trainable_layers": -8, "freeze_trainable_modules": "all", "use_llama_pro": True},
    {"pref_beta": 0.1, "pref_loss": "sigmoid", "dpo_label_smoothing": 0.0}, {"ref_model": None},
    {"reward_model": "org/reward", "ppo_epochs": 4}, {"image_max_pixels": 262144, "video_max_pixels": 16384},
    {"image_max_pixels": 2.6e5}, {"use_swanlab": True, "swanlab_mode": "offline"}, {"infer_backend": "vllm"},
    {"do_sample": True, "temperature": 0.95, "top_p": 0.7, "top_k": 50, "max_new_tokens": 512},
    {"predict_with_generate": True, "eval_num_beams": None}, {"include_num_input_tokens_seen": True},
    {"debug": "underflow_overflow"}, {"log_level": "info", "disable_tqdm": None}, {"seed": 0}, {"seed": 2**32 - 1},
    {"data_seed": 7}, {"neftune_noise_alpha": 5}, {"label_names": ["labels"]}, {"master_port": 29500},
    {"ray_num_workers": 4, "ray_init_kwargs": {"num_cpus": 2}}, {"hub_model_id": "me/m", "push_to_hub": True},
    {"model_revision": "main"}, {"model_revision": None}, {"include_for_metrics": []}, {"save_total_limit": 3},
    {"early_stopping_steps": 5}, {"optim_target_modules": ["q"]}, {"torch_compile": True},
]  # fmt: skip


@pytest.mark.parametrize("keys", USUAL, ids=lambda keys: ",".join(keys))
def test_what_people_write_passes(keys):
    assert value_problems({key: value for key, value in keys.items() if known(key)}) == []


@pytest.mark.parametrize("name", ["org/model", "gpt2", "./model", "model"])
def test_a_hubs_name_and_a_models_folder_pass(tmp_path, name):
    check(BASE | STATIC | {"model_name_or_path": name}, tmp_path)


def test_a_home_that_nobody_replaces_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InvalidConfigError, match="'~' is not replaced by LLaMA-Factory -> write "):
        check(BASE | STATIC | {"model_name_or_path": "~/model"}, tmp_path)


@pytest.mark.llamafactory
def test_a_template_of_a_plugin_file_may_be_named(tmp_path):
    (tmp_path / "mine.py").write_text("from llamafactory.data.template import register_template\n")
    check(BASE | STATIC | {"template": "mine", "plugins": ["mine.py"]}, tmp_path)
    with pytest.raises(InvalidConfigError, match="template: found 'mine'"):
        check(BASE | STATIC | {"template": "mine"}, tmp_path)


def test_a_secret_of_the_wrong_type_is_not_shown():
    (problem,) = value_problems({"hub_token": 1234567890})
    assert "1234567890" not in str(problem)


@pytest.mark.llamafactory
def test_all_wrong_values_come_in_one_message_with_the_other_problems(tmp_path):
    wrong = {"seed": "a", "dataset_dir": 5, "val_size": -1, "output_dir": 5, "template": "x", "update_step": -1}
    with pytest.raises(InvalidConfigError) as caught:
        check(BASE | SELECT | wrong, tmp_path)
    assert {problem.where for problem in caught.value.problems} == set(wrong)


@pytest.mark.llamafactory
def test_the_tables_name_keys_that_exist_somewhere():
    """A misspelt key in a table would check nothing; those of other versions are few."""
    for table in (RANGES, WHOLE_FLOATS, PATHS):
        assert len(set(table) - set(KEYS)) <= 5


def test_only_supervised_training_generates(tmp_path):
    with pytest.raises(InvalidConfigError, match="predict_with_generate: is true, and stage: pt generates nothing"):
        check(BASE | STATIC | {"stage": "pt", "predict_with_generate": True}, tmp_path)
