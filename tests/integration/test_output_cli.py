"""What the command line writes and reads again: no secret in any of it, and damage ends in one sentence."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import llamafactory.train.sft.workflow as sft
import pytest
import torch
import yaml
from dataflex.cli.main import run
from dataflex.config.known_keys import llamafactory_keys
from dataflex.core.files import COMPLETE, COMPONENTS, CONFIG, STATE
from dataflex.run.checkpoints import all_checkpoints, step_of
from dataflex.utils.secret_values import is_secret

pytestmark = pytest.mark.llamafactory

SENTINEL = "s3ntinel0Value"
SECRETS = sorted(key for key in llamafactory_keys() if is_secret(key))
SHORT = ["warmup_step=2", "update_step=2", "update_times=2", "save_steps=2"]
PLUGIN = '''
from dataflex.core.registry import register_selector
from dataflex.train.selector.base_selector import Selector, logger


@register_selector("asks")
class Asks(Selector):
    """Asks somebody, and tells everybody what it was given."""

    def __init__(self, dataset, accelerator, data_collator, cache_dir, api_key="", endpoint="", settings=None):
        super().__init__(dataset, accelerator, data_collator, cache_dir)
        self.settings = settings
        logger.info("made with %s and %s and %s", api_key, endpoint, settings)

    def select(self, model, step_id, num_samples, **kwargs):
        if self.settings["fails"]:
            raise RuntimeError(f"refused: {self.settings}")
        return list(range(num_samples))
'''


def components(folder, fails=False):
    params = {
        "api_key": SENTINEL,
        "endpoint": f"https://me:{SENTINEL}@host/v1?key={SENTINEL}",
        "settings": {"password": SENTINEL, "deep": [{"client_secret": SENTINEL}], "fails": fails},
    }
    name = "fails" if fails else "asks"  # registered for good in this process
    (folder / "asks.py").write_text(PLUGIN.replace('"asks"', f'"{name}"'))
    file = folder / "components.yaml"
    file.write_text(yaml.safe_dump({"selectors": {"mine": {"name": name, "params": params}}}))
    return ["component_name=mine", f"components_cfg_file={file}", f"plugins=['{folder / 'asks.py'}']"]


def hiding_places(folder):
    return [path for path in folder.rglob("*") if path.is_file() and SENTINEL.encode() in path.read_bytes()]


@pytest.mark.filterwarnings("ignore:.*push_to_hub_token.*:FutureWarning")  # one of the keys, and it has a new name
def test_no_secret_is_in_any_file_of_a_run_or_in_anything_that_it_says(train, tmp_path, capfd, monkeypatch):
    out = tmp_path / "run"
    given = [*SHORT, *components(tmp_path), *(f"{key}={SENTINEL}" for key in SECRETS), "do_eval=false"]
    assert {"hf_hub_token", "hub_token", "swanlab_api_key"} <= set(SECRETS)
    assert train("select_random", *given) == 0
    said = capfd.readouterr()
    assert "made with <secret> and https://<secret>@host/v1?key=<secret>" in said.err
    assert SENTINEL not in said.out + said.err
    assert [step_of(path) for path in all_checkpoints(out)] == [2, 4, 6]
    assert (out / "checkpoint-6" / "training_args.bin").exists()
    assert hiding_places(out) == []

    assert run(["validate", str(out / CONFIG)]) == 2
    said = capfd.readouterr().err
    for key in SECRETS:
        assert (
            f"{key}: this secret is not kept in the file -> give it again, or set DATAFLEX_SECRET_{key.upper()}" in said
        )
    for key in SECRETS:
        monkeypatch.setenv(f"DATAFLEX_SECRET_{key.upper()}", SENTINEL)
    assert run(["validate", str(out / CONFIG)]) == 2
    said = capfd.readouterr().err
    assert f"{out / COMPONENTS}: selectors.mine.params.api_key: this secret is not kept in the file" in said
    assert "params.settings.password" in said
    for key in ("API_KEY", "ENDPOINT", "ENDPOINT_2", "SETTINGS_PASSWORD", "SETTINGS_DEEP_CLIENT_SECRET"):
        monkeypatch.setenv(f"DATAFLEX_SECRET_{key}", SENTINEL)
    assert run(["validate", str(out / CONFIG)]) == 0
    said = capfd.readouterr()
    assert "api_key='<secret from $DATAFLEX_SECRET_API_KEY>'" in said.out
    assert SENTINEL not in said.out + said.err
    assert run(["train", str(out / CONFIG), f"output_dir={tmp_path / 'again'}"]) == 0
    assert hiding_places(tmp_path / "again") == []
    said = capfd.readouterr()
    assert SENTINEL not in said.out + said.err


def test_no_secret_is_in_the_traceback_of_a_component_that_fails(train, tmp_path, capfd):
    assert train("select_random", *SHORT, *components(tmp_path, fails=True), f"hub_token={SENTINEL}") == 1
    said = capfd.readouterr()
    assert "RuntimeError: refused: {" in said.err
    assert "'password': '<secret>'" in said.err
    assert SENTINEL not in said.out + said.err


def test_doremi_leaves_secrets_out_of_its_files_and_hands_them_on(workspace, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(workspace)
    static = yaml.safe_load((workspace / "mix_static.yaml").read_text())
    own = {
        "train_type",
        "static_mix",
        "mixture_sample_rule",
        "init_mixture_proportions",
        "component_name",
        "train_step",
    }
    common = {key: value for key, value in static.items() if key not in own}
    common |= {"output_dir": str(tmp_path / "out"), "finetuning_type": "full", "hub_token": SENTINEL}
    file, seen = tmp_path / "doremi.yaml", []
    steps = {"reference": {"train_step": 2}, "proxy": {"train_step": 2, "update_step": 1}, "final": {"train_step": 2}}
    file.write_text(yaml.safe_dump({"common": common, **steps}))

    def child(command, followed, **more):
        seen.append((yaml.safe_load(Path(command[-1]).read_text()), os.environ.get("DATAFLEX_SECRET_HUB_TOKEN")))
        return 7

    monkeypatch.setattr("dataflex_mixers.doremi.doremi_command.supervised", child)
    assert run(["doremi", str(file)]) == 7
    ((config, token),) = seen
    assert config["hub_token"] == "<secret from $DATAFLEX_SECRET_HUB_TOKEN>"
    assert token == SENTINEL
    assert "DATAFLEX_SECRET_HUB_TOKEN" not in os.environ
    assert hiding_places(tmp_path / "out") == []
    said = capfd.readouterr()
    assert SENTINEL not in said.out + said.err


class ReachedError(Exception):
    """The run got as far as its data: nothing was refused."""


DAMAGES = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "latin-1": lambda content: "train_type: \xe9\n".encode("latin-1"),
    "utf-16": lambda content: content.decode("latin-1").encode("utf-16"),
    "flipped": lambda content: content[:40] + bytes([content[40] ^ 16]) + content[41:],
    "folder": None,
}
FILES = (CONFIG, COMPONENTS, f"checkpoint-4/{COMPLETE}", f"checkpoint-4/{STATE}", "checkpoint-4/trainer_state.json")


@pytest.fixture(scope="module")
def stopped(workspace, tmp_path_factory):
    """A run that was stopped while it wrote its third checkpoint: its folder, a copy of it, and its command."""
    folder = tmp_path_factory.mktemp("stopped")
    quick = ["per_device_train_batch_size=4", "do_eval=false", "plot_loss=false", "cutoff_len=64", "max_samples=60"]
    command = ["train", str(workspace / "select_loss.yaml"), *quick, *SHORT, f"output_dir={folder / 'run'}"]
    save = torch.save

    def stops(what, path, *args, **kwargs):
        if "checkpoint-6/optimizer.pt" in str(path):
            raise OSError("stopped")
        save(what, path, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "save", stops)
        assert run(command) == 1
    shutil.copytree(folder / "run", folder / "saved")
    return folder / "run", folder / "saved", command


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_by_name_or_passed_over_by_name(stopped, name, damage, monkeypatch, capsys):
    out, saved, command = stopped
    shutil.rmtree(out)
    shutil.copytree(saved, out)
    path = out / name
    content = path.read_bytes()
    path.unlink()
    path.mkdir() if DAMAGES[damage] is None else path.write_bytes(DAMAGES[damage](content))

    def reached(*args, **kwargs):
        raise ReachedError

    monkeypatch.setattr(sft, "load_tokenizer", reached)
    try:
        code = run(command)
    except ReachedError:
        code = None
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if name.startswith("checkpoint-4"):
        assert code is None, said
        assert f"passing over the incomplete checkpoint {out / 'checkpoint-4'}: " in said
    elif name == CONFIG or damage == "folder":
        assert code == 2, said
        assert "error: output_dir: " in said
    else:
        assert code is None, said  # the presets that were used are written again


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [CONFIG, COMPONENTS])
def test_a_damaged_file_that_is_trained_from_again_is_one_sentence(stopped, name, damage, capsys):
    out, saved, _ = stopped
    shutil.rmtree(out)
    shutil.copytree(saved, out)
    content = (out / name).read_bytes()
    (out / name).unlink()
    (out / name).mkdir() if DAMAGES[damage] is None else (out / name).write_bytes(DAMAGES[damage](content))
    assert run(["validate", str(out / CONFIG)]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert name in said or (name, damage) == (CONFIG, "flipped")  # there it is a key that nobody knows
