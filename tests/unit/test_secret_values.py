"""Secrets: told by the names of their keys, masked wherever something is written or printed, given again on replay."""

from __future__ import annotations

import io
import logging
import re
from types import SimpleNamespace

import pytest
import yaml
from dataflex.cli.main import run
from dataflex.config.arguments import DataflexArguments
from dataflex.config.known_keys import llamafactory_keys
from dataflex.config.load import read_config
from dataflex.config.resolved import write_config
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import BrokenPluginError, ConfigError
from dataflex.core.files import COMPONENTS, CONFIG, STATE
from dataflex.core.kinds import SELECTOR
from dataflex.discovery.catalog import components
from dataflex.discovery.construct import construct
from dataflex.run.completeness import mark_complete
from dataflex.run.output_dir import require_free_output_dir
from dataflex.utils import logging as dataflex_logging
from dataflex.utils import secret_values
from dataflex.utils.secret_values import is_secret, masked, remember, revealed, scrubbed, taken_out, without_secrets

RUN = "0123456789abcdef"
SENTINEL = "s3ntinel-Value"
SENTINEL_URL = f"ask https://u:{SENTINEL}@h"
NONE_OF_THEM = {  # keys of LLaMA-Factory and transformers that speak of tokens and hold no secret
    "add_special_tokens", "add_tokens", "average_tokens_across_devices", "ignore_pad_token_for_loss",
    "include_effective_tokens_per_second", "include_num_input_tokens_seen", "include_tokens_per_second",
    "init_special_tokens", "max_new_tokens", "new_special_tokens_config", "skip_special_tokens",
    "split_special_tokens", "tokenized_path", "use_fast_tokenizer",
}  # fmt: skip
SUSPICIOUS = re.compile("token|secret|passw|passphrase|api_?key|webhook|credential|auth|cookie", re.IGNORECASE)


def words(text):
    return text.split()


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(secret_values, "_known", set())


@pytest.mark.llamafactory
def test_every_key_of_llamafactory_that_sounds_like_a_secret_is_one_or_is_known_not_to_be():
    keys = llamafactory_keys()
    assert {key for key in keys if SUSPICIOUS.search(key) and not is_secret(key)} <= NONE_OF_THEM
    secrets = {key for key in keys if is_secret(key)}
    assert {"hf_hub_token", "hub_token", "ms_hub_token", "om_hub_token", "swanlab_api_key"} <= secrets
    assert {"swanlab_lark_secret", "swanlab_lark_webhook_url"} <= secrets
    assert all(SUSPICIOUS.search(key) for key in secrets)


def test_no_parameter_of_a_component_and_no_key_of_ours_is_taken_for_a_secret():
    names = {name for info in components() for name in info.accepts or ()} | set(DataflexArguments.names())
    assert [name for name in names if is_secret(name)] == []


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "api_token",
        "push_to_hub_token",
        "authToken",
        "accesstoken",
        "apiKey",
        "APIKey",
        "api_key",
        "x-api-key",
        "API_KEYS",
        "secret",
        "client_secret",
        "Password",
        "passwd",
        "db_password2",
        "webhook",
        "slack_webhook_url",
        "credentials",
        "http_auth",
        "Authorization",
        "AWS_SECRET_ACCESS_KEY",
        "private_key",
        "hub_tokens",
    ],
)
def test_names_of_secrets(name):
    assert is_secret(name)
    assert SENTINEL not in str(masked({"deep": [{name: SENTINEL}]}))
    assert SENTINEL not in str(masked({name: [SENTINEL, {"x": SENTINEL}]}))
    assert without_secrets({name: SENTINEL, "seed": 1}) == {"seed": 1}


@pytest.mark.parametrize(
    "name",
    [
        "tokens",
        "max_new_tokens",
        "skip_special_tokens",
        "tokenized_path",
        "eos_token",
        "pad_token",
        "image_token",
        "decoder_start_token",
        "per_token",
        "author",
        "key",
        "sort_key",
        "keyboard",
        "token_file",
        "credentials_path",
        "api_key_env",
        "secretary",
        "weight_objective",
    ],
)
def test_names_that_only_sound_like_it(name):
    value = {name: "OPENAI_API_KEY"}
    assert masked(value) == value
    assert without_secrets(value) == value


@pytest.mark.parametrize("value", [None, True, False, ""])
def test_what_holds_nothing_to_hide_stays(value):
    assert masked({"hub_token": value}) == {"hub_token": value}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"https://me:{SENTINEL}@host/v1", "https://<secret from $DATAFLEX_SECRET_URL>@host/v1"),
        (f"https://{SENTINEL}@host", "https://<secret from $DATAFLEX_SECRET_URL>@host"),
        (f"https://host/v1?a=1&key={SENTINEL}&b=2", "https://host/v1?a=1&key=<secret from $DATAFLEX_SECRET_URL>&b=2"),
        (f"https://h/?api_key={SENTINEL}", "https://h/?api_key=<secret from $DATAFLEX_SECRET_URL>"),
        (f"s3://id:{SENTINEL}@bucket/x", "s3://<secret from $DATAFLEX_SECRET_URL>@bucket/x"),
        (f'{{"_redis_password": "{SENTINEL}"}}', "<secret from $DATAFLEX_SECRET_URL>"),
        ("ssh://git@host/a", "ssh://git@host/a"),
        ("https://host/a@b?page=2", "https://host/a@b?page=2"),
        ("saves/sk-learn?token", "saves/sk-learn?token"),
    ],
)
def test_addresses_that_carry_a_secret(text, shown):
    assert masked({"url": text}) == {"url": shown}
    hidden, environment = taken_out({"url": text})
    assert hidden == {"url": shown}
    assert all(SENTINEL in value for value in environment.values())


@pytest.mark.parametrize("found", [SENTINEL, "sk-abcdef0123", "hf_AbCdEf", "https://h", "lower_case"])
def test_a_key_in_the_place_of_a_variables_name_is_hidden_and_a_variables_name_is_not(found, monkeypatch):
    assert masked({"api_key_env": found}) == {"api_key_env": "<secret from $DATAFLEX_SECRET_API_KEY_ENV>"}
    assert masked({"api_key_env": "JUDGE_KEY", "other": found})["api_key_env"] == "JUDGE_KEY"
    monkeypatch.setenv("lower_case", "x")
    assert masked({"api_key_env": "lower_case"}) == {"api_key_env": "lower_case"}


def test_what_is_taken_out_comes_back_from_the_environment_and_nowhere_else(monkeypatch):
    config = {
        "hub_token": "a-token", "url": "https://u:p@h/?key=k&token=t", "judge": {"api_key": "b", "n": 3},
        "passwords": ["c", "d"], "hub-token": "another", "plain": [1, None, "x"],
    }  # fmt: skip
    hidden, environment = taken_out(config)
    assert masked(hidden) == hidden == masked(config)
    assert len(environment) == len(set(environment.values())) == 8
    back, missing = revealed(hidden)
    assert back == hidden
    assert {variable for _, variable in missing} == set(environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert revealed(hidden) == (config, [])


def spec(**keys):
    arguments = DataflexArguments(train_type="dynamic_select", component_name="mine", warmup_step=1, update_step=1)
    params = {"api_key": SENTINEL, "endpoint": f"https://h/?key={SENTINEL}", "nested": {"password": SENTINEL}}
    return RunSpec(arguments, ComponentSpec(SELECTOR, "mine", "random", params), {"learning_rate": 1e-4, **keys})


def test_the_written_files_hold_no_secret_and_are_read_with_the_environment_or_an_override(tmp_path, monkeypatch):
    write_config(spec(hub_token=SENTINEL), str(tmp_path), RUN)
    for name in (CONFIG, COMPONENTS):
        assert SENTINEL not in (tmp_path / name).read_text()
    with pytest.raises(ConfigError) as refused:
        read_config(tmp_path / CONFIG)
    assert str(refused.value).endswith(
        "hub_token: this secret is not kept in the file -> give it again, or set DATAFLEX_SECRET_HUB_TOKEN"
    )
    assert read_config(tmp_path / CONFIG, ["hub_token=again"])["hub_token"] == "again"
    monkeypatch.setenv("DATAFLEX_SECRET_HUB_TOKEN", "from outside")
    assert read_config(tmp_path / CONFIG)["hub_token"] == "from outside"


def test_a_rotated_secret_is_no_difference_between_two_runs_and_no_difference_prints_one(tmp_path):
    write_config(spec(hub_token="the old one", data="https://u:old@h"), str(tmp_path), RUN)
    args = SimpleNamespace(
        process_index=0,
        output_dir=str(tmp_path),
        should_save=True,
        resume_from_checkpoint=None,
        overwrite_output_dir=False,
    )
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / STATE).touch()
    mark_complete(tmp_path / "checkpoint-1", RUN, 1)
    args.resume_from_checkpoint = str(tmp_path / "checkpoint-1")
    require_free_output_dir(spec(hub_token=SENTINEL, ms_hub_token="new", data=f"https://u:{SENTINEL}@h"), args)
    with pytest.raises(ConfigError) as refused:
        require_free_output_dir(spec(hub_token=SENTINEL, data=f"https://u:{SENTINEL}@other"), args)
    assert "data: https://<secret from $DATAFLEX_SECRET_DATA>@h before" in str(refused.value)
    assert SENTINEL not in str(refused.value)


def test_messages_of_others_do_not_repeat_what_this_process_has_read(capsys, monkeypatch, caplog):
    remember({"hub_token": SENTINEL, "port": "80", "u": "https://u:longpassword@h", "password": "a"})
    assert scrubbed(f"no access with {SENTINEL} and longpassword at 80") == "no access with <secret> and <secret> at 80"
    assert scrubbed("abc") == "abc"  # one letter is in every word
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    dataflex_logging._stderr.handle(logging.makeLogRecord({"msg": f"using {SENTINEL}", "levelno": logging.ERROR}))
    assert SENTINEL not in written.getvalue()
    assert "using <secret>" in written.getvalue()


def test_a_constructor_that_fails_shows_its_parameters_without_their_secrets():
    class Client:
        def __init__(self, api_key, size):
            raise RuntimeError(f"refused: {api_key}")

    with pytest.raises(BrokenPluginError) as caught:
        construct(Client, {"api_key": SENTINEL, "size": 3}, {})
    assert "RuntimeError: refused: <secret>" in str(caught.value)
    assert "'size': 3" in str(caught.value)
    assert SENTINEL not in str(caught.value)


@pytest.mark.parametrize("override", [f"--hub_token={SENTINEL}", f"hub_token=[{SENTINEL}"])
def test_an_override_that_cannot_be_read_is_named_without_its_value(override, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("stage: sft\n")
    assert run(["validate", str(tmp_path / "run.yaml"), override]) == 2
    said = capsys.readouterr().err
    assert "hub_token=..." in said
    assert SENTINEL not in said


@pytest.mark.llamafactory  # all keys of its own that hold a secret
def test_validate_prints_no_secret(tmp_path, capsys):
    params = {"reward": "endpoint", "endpoint": "https://h/v1", "endpoint_model": "m", "instruction": SENTINEL_URL}
    wrong = {"endpoint": f"https://u:{SENTINEL}@h/v1?key={SENTINEL}", "api_key_env": SENTINEL}
    for name, given in (("components.yaml", params), ("wrong.yaml", params | wrong)):
        (tmp_path / name).write_text(yaml.safe_dump({"selectors": {"mine": {"name": "nice", "params": given}}}))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text('{"a": {"file_name": "a.json"}}')
    (tmp_path / "data" / "a.json").write_text('[{"instruction": "x", "input": "", "output": "y"}]')
    keys = {
        "train_type": "dynamic_select", "component_name": "mine", "components_cfg_file": "components.yaml",
        "warmup_step": 1, "update_step": 1, "update_times": 1, "dataset": "a", "dataset_dir": str(tmp_path / "data"),
        "val_size": 0.5, "stage": "sft", "do_train": True, "model_name_or_path": "m", "output_dir": "out",
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "template": "default",
        **{key: SENTINEL for key in llamafactory_keys() if is_secret(key)},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(keys))
    code = run(["validate", str(tmp_path / "run.yaml")])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert "<secret from $DATAFLEX_SECRET_INSTRUCTION>@h" in shown.out
    assert SENTINEL not in shown.out + shown.err
    overrides = [f"component.api_key_env={SENTINEL}", f"component.instruction={SENTINEL_URL}"]
    for argv in (["components_cfg_file=wrong.yaml"], overrides):
        assert run(["validate", str(tmp_path / "run.yaml"), *argv]) == 2
        shown = capsys.readouterr()
        assert "api_key_env: it is not the name of an environment variable" in shown.err
        assert SENTINEL not in shown.out + shown.err
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(keys | {"learning_rat": 1, "warmup_step": SENTINEL}))
    assert run(["validate", str(tmp_path / "run.yaml")]) == 2
    assert SENTINEL not in capsys.readouterr().err


UNREAD = "sk-SECRETunread123456"
UNREADABLE = {  # what is refused while it is read, before anybody knows its secrets
    "override": ["validate", "run.yaml", f"component={{api_key: {UNREAD}, x: ["],
    "override key twice": ["validate", "run.yaml", f"component={{api_key: {UNREAD}, api_key: 1}}"],
    "address": ["validate", "run.yaml", f'model_name_or_path="https://u:{UNREAD}@h'],
    "number": ["validate", "run.yaml", f"ray_init_kwargs={{webhook_url: https://h/{UNREAD}, a: 010}}"],
    "NUL": ["validate", "nul.yaml"],
    "NUL in JSON": ["validate", "nul.json"],
    "variable": ["validate", "variable.yaml"],
    "a list for an entry": ["validate", "entry.yaml"],
    "a list for params": ["validate", "params.yaml"],
}


@pytest.mark.parametrize("argv", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_refused_without_its_secret(argv, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    components = {
        "variable": f"selectors: {{nice: {{params: {{api_key: '{UNREAD}${{x}}'}}}}}}",
        "entry": f"selectors: {{nice: [{{api_key: {UNREAD}}}]}}",
        "params": f"selectors: {{nice: {{params: [{{api_key: {UNREAD}}}]}}}}",
    }
    plain = "train_type: dynamic_select\ncomponent_name: nice\n"
    (tmp_path / "run.yaml").write_text(plain)
    (tmp_path / "nul.yaml").write_text(f'api_key: "{UNREAD}\\0"\n')
    (tmp_path / "nul.json").write_text(f'{{"api_key": "{UNREAD}\\u0000"}}')
    for name, text in components.items():
        (tmp_path / f"{name}.yaml").write_text(f"{plain}components_cfg_file: {name}.components.yaml\n")
        (tmp_path / f"{name}.components.yaml").write_text(text)
    assert run(argv) == 2
    said = "".join(capfd.readouterr())
    assert "error: " in said
    assert UNREAD not in said
