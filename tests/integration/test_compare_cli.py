"""``dataflex-cli compare FILE`` with real runs: two arms with two seeds, cut and taken up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

pytestmark = [pytest.mark.llamafactory, pytest.mark.slow]

SHORT = {"warmup_step": 2, "update_step": 2, "update_times": 2, "save_steps": 2, "per_device_train_batch_size": 2}
ROWS = {"max_samples": 60, "eval_on_each_dataset": True}


def start(file):
    command = [sys.executable, "-m", "dataflex", "compare", str(file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


def test_a_comparison_that_is_interrupted_goes_on_and_ends_with_a_verdict(workspace, tmp_path):
    base = yaml.safe_load((workspace / "select_less.yaml").read_text())
    base |= SHORT | ROWS | {"eval_dataset": "sorting_eval,sorting_test", "plot_loss": False}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    content = {
        "base": "base.yaml",
        "arms": {"less": {}, "random": {"component_name": "random"}},
        "seeds": [1, 2],
        "controls": False,
        "output_dir": str(tmp_path / "compared"),
    }
    file = tmp_path / "compare.yaml"
    file.write_text(yaml.safe_dump(content))
    process = start(file)
    mark = tmp_path / "compared" / "random" / "seed-1" / "checkpoint-2" / "dataflex_complete.json"
    while not mark.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert out == ""
    assert "SIGINT: passed on" in err

    process = start(file)
    out, err = process.communicate()
    assert process.returncode == 0, err
    found = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    assert [(arm["name"], arm["against"], arm["steps"]) for arm in found["arms"]] == [
        ("random", None, [6, 6]),
        ("less", "random", [6, 6]),
    ]
    assert all(tokens > 0 for arm in found["arms"] for tokens in arm["tokens"])
    assert [*found["metrics"]] == ["eval_sorting_eval_loss", "eval_sorting_test_loss"]
    for metric in found["metrics"].values():
        assert all(0 < value < 20 for arm in metric["arms"].values() for value in arm["values"])
        assert metric["arms"]["less"]["says"] in out
    log = (tmp_path / "compared" / "random" / "seed-1.log").read_text()
    assert log.count("=== dataflex-cli compare starts this run") == 2
    assert not (tmp_path / "compared" / "dataflex_lock.json").exists()
