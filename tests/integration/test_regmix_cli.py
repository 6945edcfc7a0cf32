"""``dataflex-cli regmix``: what is checked before the first proxy, what is kept, what is written, real proxies."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from dataflex.cli.main import run as cli
from dataflex.core.errors import ConfigError
from dataflex_mixers.regmix.proxy_losses import _train, devices
from dataflex_mixers.regmix.regmix_command import run

pytestmark = pytest.mark.llamafactory
SHORT = {"per_device_train_batch_size": 2, "max_samples": 60, "plot_loss": False, "save_strategy": "no"}


@pytest.fixture
def file(workspace, tmp_path, monkeypatch) -> Path:
    """A search over the workspace's three sources, with one evaluation set."""
    monkeypatch.chdir(tmp_path)
    base = yaml.safe_load((workspace / "mix_static.yaml").read_text()) | {"eval_dataset": "pretrain_eval"}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base | {"do_eval": True, "eval_on_each_dataset": True}))
    content = {
        "base": "base.yaml", "output_dir": str(tmp_path / "found"), "mixtures": 20, "regressor": "ridge",
        "proxy": SHORT | {"train_step": 3}, "simulate": 500, "top_k": 20,
    }  # fmt: skip
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


class Pretended:
    """Trains nothing: leaves what a proxy would leave, with a loss that is least at 5 : 3 : 2."""

    def __init__(self, fails=(), losses=None, together=1) -> None:
        self.fails, self.losses = fails, losses or {}
        self.meet = threading.Barrier(together)  # as many as are trained at a time wait for each other
        self.seen, self.overrides, self.environ, self.at_once, self.most = [], [], [], 0, 0
        self.lock = threading.Lock()

    def __call__(self, run, overrides, environ, programs) -> int:
        number = int(run.folder.name)
        with self.lock:
            self.seen.append(number)
            self.overrides.append(tuple(overrides))
            self.environ.append(dict(environ))
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        self.meet.wait(60)
        with self.lock:
            self.at_once -= 1
        if number in self.fails:
            return 7
        shares = np.array(run.config()["init_mixture_proportions"])
        loss = self.losses.get(number, 3 - 0.1 * float(np.log(shares + 1e-3) @ np.array([0.5, 0.3, 0.2])))
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "trainer_state.json").write_text(json.dumps({"global_step": 3, "max_steps": 3}))
        metrics = {"train_loss": 1.0, "eval_pretrain_eval_loss": loss, "eval_loss": 9.0}
        (run.folder / "all_results.json").write_text(json.dumps(metrics))
        note = {"dataflex_run": {"id": "0" * 16, "finished": 3}, "dataflex_versions": {}}
        (run.folder / "dataflex_config.yaml").write_text(yaml.safe_dump(note, explicit_end=True))
        return 0


def changed(file, **keys) -> Path:
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | keys))
    return file


def test_a_search_writes_the_mixture_and_what_it_rests_on(file, tmp_path, capsys):
    train = Pretended()
    assert run([str(file)], train) == 0
    assert train.seen == list(range(1, 21))
    out, folder = capsys.readouterr().out, tmp_path / "found"
    found = json.loads((folder / "regmix.json").read_text())
    assert found["targets"] == {"eval_pretrain_eval_loss": 1.0}
    assert math.isclose(sum(found["proportions"].values()), 1, rel_tol=1e-9)
    assert found["held_out"]["all targets"]["rank_correlation"] > 0.9
    assert "rank correlation on 4 held-out proxies: " in out
    lines = list(csv.DictReader((folder / "mixtures.csv").read_text().splitlines()))
    assert [line["held_out"] for line in lines].count("True") == 4
    for line, proxy in zip(lines, found["proxies"], strict=True):
        assert float(line["eval_pretrain_eval_loss"]) == proxy["losses"]["eval_pretrain_eval_loss"]
        plan = yaml.safe_load((folder / "proxies" / f"{proxy['proxy']:04d}.yaml").read_text())
        assert plan["init_mixture_proportions"] == list(proxy["proportions"].values())
        assert (plan["static_mix"], plan["train_step"], plan["seed"]) == (True, 3, 42)
        assert [float(line[name]) for name in proxy["proportions"]] == list(proxy["proportions"].values())
    final = yaml.safe_load((folder / "final.yaml").read_text())
    assert final["init_mixture_proportions"] == list(found["proportions"].values())
    assert (final["train_step"], final["output_dir"]) == (60, str(folder / "final"))
    assert cli(["validate", str(folder / "final.yaml")]) == 0
    overrides = ["static_mix=false", "component_name=regmix", f"components_cfg_file={folder / 'regmix.yaml'}"]
    assert cli(["validate", str(tmp_path / "base.yaml"), *overrides, "update_step=10"]) == 0
    assert "static (preset regmix): proportions=[" in capsys.readouterr().out


def table_of(file) -> list[dict]:
    with open(file.parent / "found" / "mixtures.csv", newline="") as opened:
        return list(csv.DictReader(opened))


def test_finished_proxies_are_kept_and_more_mixtures_are_further_ones(file):
    broken = Pretended(fails={3})
    assert run([str(file)], broken) == 1
    assert broken.seen == [1, 2, 3], "none is started after one that failed"
    assert [bool(row["eval_pretrain_eval_loss"]) for row in table_of(file)] == [True, True] + [False] * 18
    again = Pretended()
    assert run([str(file)], again) == 0
    assert again.seen == list(range(3, 21))
    assert again.overrides[0] == (), "it left nothing to go on from"
    assert run([str(file)], again) == 0
    assert len(again.seen) == 18, "everything is finished"
    more = Pretended()
    assert run([str(file), "mixtures=25"], more) == 0
    assert all(row["eval_pretrain_eval_loss"] for row in table_of(file))
    assert more.seen == [21, 22, 23, 24, 25]
    assert run([str(file), "regressor=linear", "top_k=5"], more) == 0
    assert len(more.seen) == 5, "another fit trains nothing"


def test_proxies_are_trained_as_many_at_a_time_as_was_asked_for(file):
    train = Pretended(together=4)
    assert run([str(file), "jobs=4"], train) == 0
    assert train.most == 4
    assert sorted(train.seen) == list(range(1, 21))


def test_each_proxy_has_a_device_of_its_own_where_several_are_trained(file, monkeypatch):
    monkeypatch.setattr("dataflex_mixers.regmix.searching.visible_devices", lambda: ["4", "6"])
    train = Pretended(together=2)
    assert run([str(file)], train) == 0
    assert train.most == 2
    assert {environ["CUDA_VISIBLE_DEVICES"] for environ in train.environ} == {"4", "6"}
    assert devices({"CUDA_VISIBLE_DEVICES": "4, 6"}, 2) == ["4", "6"]
    assert devices({}, 2) == ["0", "1"]
    assert devices({"CUDA_VISIBLE_DEVICES": ""}, 0) == []


def test_a_folder_of_another_search_is_refused(file, tmp_path):
    assert run([str(file)], Pretended()) == 0
    train = Pretended()
    for override, said in {
        "temperature=0.9": "temperature: 0.5 before, 0.9 now",
        "seed=1": "seed: 42 before, 1 now",
        "prior=[1,1,2]": r"prior: \[0.5, 0.3, 0.2\] before, \[0.25, 0.25, 0.5\] now",
    }.items():
        with pytest.raises(ConfigError, match=f"belongs to another search .*\n  - {said}"):
            run([str(file), override], train)
    with pytest.raises(ConfigError, match=r"(?s)holds a run of another configuration.*train_step: 3 before, 4 now"):
        run([str(file), "proxy.train_step=4"], train)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"other holds something, and regmix_search.yaml, by which a search is known"):
        run([str(file), f"output_dir={other}"], train)
    assert train.seen == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mixtures": 4}, "held_out: 0.2 of 4 mixtures holds out 0; a rank correlation needs more"),
        ({"mixtures": None}, "mixtures: is missing -> say how many proxies"),
        ({"mixtrues": 9}, "mixtrues: no such key of regmix; allowed: base, "),
        ({"regressor": "lightgbm"}, "regressor: lightgbm fits 16 mixtures; its trees split from 50 on"),
        ({"regressor": "forest"}, "regressor: found 'forest', allowed: lightgbm, linear, ridge"),
        ({"min_strength": 5, "max_strength": 3}, "min_strength: is 5, above max_strength: 3 -> lower it, or raise"),
        ({"top_k": 900}, "top_k: is 900, and 500 are simulated"),
        ({"prior": {"code": 1, "prose": 1}}, "prior: names code, prose; the sources are code, docstrings, prose"),
        ({"prior": [1, 0, 1]}, "prior: found [1, 0, 1], allowed: a number above 0 for each source"),
        ({"minimum": 0.4}, "minimum: is 0.4: with 3 sources each of equal shares would be below it"),
        ({"min_strength": 9}, "min_strength: is 9, above max_strength: 5"),
        ({"temperature": 1.5}, "temperature: found 1.5"),
        ({"proxy": {"static_mix": False}}, "proxy.static_mix: is given by regmix: a proxy keeps its mixture"),
        ({"proxy": {"mixture_by": "cluster:3"}}, "proxy.mixture_by: is given by regmix: the sources are those"),
        ({"proxy": {"learning_rat": 1}}, "proxy: learning_rat: neither dataflex nor"),
        ({"targets": {"prose_eval": 1}}, "targets.prose_eval: no run evaluates it alone; evaluated are pretrain_eval"),
        ({"targets": {"pretrain_eval": -1}}, "targets: found {'pretrain_eval': -1}, allowed: names of evaluation sets"),
        ({"jobs": 0}, "jobs: found 0"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_proxy(file, changes, said):
    train = Pretended()
    with pytest.raises(ConfigError) as error:
        run([str(changed(file, **changes))], train)
    assert said in str(error.value)
    assert train.seen == []
    assert not (file.parent / "found").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"static_mix": False, "component_name": "odm", "update_step": 9},
            "base: moves its mixture with the mixer 'odm'",
        ),
        ({"train_type": "static", "static_mix": None}, "base: does not mix its sources"),
        ({"mixture_by": "cluster:3"}, "base: mixture_by: found 'cluster:3': each run makes such sources"),
        ({"eval_dataset": None}, "base: eval_dataset: is missing: proxies are told apart by losses"),
        ({"do_eval": None}, "base: do_eval: nothing is evaluated"),
        ({"dataset": "code", "init_mixture_proportions": [1]}, "dataset"),
    ],
)
def test_a_base_that_no_mixture_can_be_found_for_is_refused(file, tmp_path, capsys, changes, said):
    base = tmp_path / "base.yaml"
    content = yaml.safe_load(base.read_text()) | changes
    base.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(ConfigError) as error:
        run([str(file)], Pretended())
    assert said in str(error.value)
    assert cli(["validate", str(file)]) == 2
    assert said in capsys.readouterr().err


def test_a_proxy_that_diverged_is_no_number_to_fit(file):
    with pytest.raises(ConfigError, match=r"proxy 2: its eval_pretrain_eval_loss is nan: it has diverged -> lower"):
        run([str(file)], Pretended(losses={2: math.nan}))


def test_a_composed_base_keeps_its_other_axes_and_its_mixer_is_the_static_one(file, tmp_path):
    base = tmp_path / "base.yaml"
    content = yaml.safe_load(base.read_text()) | {"train_type": "dynamic", "mixer": "static", "update_step": 20}
    base.write_text(yaml.safe_dump({key: value for key, value in content.items() if key != "static_mix"}))
    changed(file, proxy=SHORT | {"train_step": 3, "update_step": 3})
    assert run([str(file)], Pretended()) == 0
    final = yaml.safe_load((tmp_path / "found" / "final.yaml").read_text())
    assert (final["train_type"], final["mixer"], final["update_step"]) == ("dynamic", {"component": "static"}, 20)
    assert cli(["validate", str(tmp_path / "found" / "final.yaml")]) == 0


def test_sources_that_the_main_run_repeats_and_proxies_do_not_are_named(file, tmp_path, capsys):
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump(yaml.safe_load(base.read_text()) | {"train_step": 60_000}))
    assert cli(["plan", str(file)]) == 0
    out = capsys.readouterr().out
    assert "20 proxies of 3 steps each, 4 of them held out of the fit (ridge); the main run has 60000 steps" in out
    assert "warning: at the shares of the prior a row of code comes " in out
    assert "times in a proxy, which cannot show what repeating it costs -> give the proxies" in out


def test_validate_and_plan_know_the_file(file, capsys):
    assert cli(["validate", str(file)]) == 0
    out = capsys.readouterr().out
    assert "search.yaml can be run by dataflex-cli regmix" in out
    assert "runs:       20 proxies, 4 of them held out of the fit" in out
    assert cli(["validate", str(file), "mixtures=x"]) == 2
    without = file.with_name("without.yaml")
    without.write_text(yaml.safe_dump({k: v for k, v in yaml.safe_load(file.read_text()).items() if k != "mixtures"}))
    capsys.readouterr()
    assert cli(["validate", str(without)]) == 2
    assert "mixtures: is missing" in capsys.readouterr().err
    assert cli(["plan", str(file)]) == 0
    assert "the proxies take about " in capsys.readouterr().out


def test_mistakes_of_the_command_line_end_with_2(file, capsys):
    assert cli(["regmix"]) == 2
    assert cli(["regmix", str(file), "--overwrite"]) == 2
    assert "unexpected argument '--overwrite' -> dataflex-cli regmix FILE" in capsys.readouterr().err


@pytest.mark.slow
def test_real_proxies_are_cut_by_a_signal_and_kept(file, tmp_path, capsys):
    """A signal comes to this process while the second of two real proxies trains; the others are pretended."""
    pretended = Pretended()

    def train(one, overrides, environ, programs):
        if int(one.folder.name) > 2:
            return pretended(one, overrides, environ, programs)
        if int(one.folder.name) == 2:
            threading.Thread(target=interrupt_once_it_trains, args=(one.log,)).start()
        return _train(one, overrides, environ, programs)

    changed(file, proxy=SHORT | {"train_step": 2}, main={"max_samples": 60})
    assert run([str(file)], train) == 130
    assert "finished proxies are kept, and the same command goes on" in capsys.readouterr().err
    results = json.loads((tmp_path / "found" / "proxies" / "0001" / "all_results.json").read_text())
    assert 0 < results["eval_pretrain_eval_loss"] < 20
    assert pretended.seen == []
    assert run([str(file)], pretended) == 0
    assert pretended.seen == list(range(2, 21)), "the first is finished"


def interrupt_once_it_trains(log: Path) -> None:
    while not log.exists() or "dataflex-cli regmix starts this proxy" not in log.read_text():
        time.sleep(0.05)
    time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGINT)
