"""Planned prompts on two ranks: both keep the rewards that one rank keeps, and a resumed run ends as the whole one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trl
from packaging.version import Version

from tests.integration.online_rank import trained

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(Version(trl.__version__) < Version("0.24"), reason="prompts are planned from TRL 0.24 on"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Passing `generation_config`"),
]
HUNG = 500  # seconds; a guard against a hang, far above what two runs take


def planned(folder: Path) -> dict[str, list[int]]:
    files = sorted((folder / "dataflex_selections").glob("*.npz"))
    return {path.name: np.load(path)["indices"].tolist() for path in files}


def test_two_ranks_keep_the_rewards_of_one_and_resume_inside_of_a_generation(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environ = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    script = str(Path(__file__).parent / "online_rank.py")
    done = subprocess.run(
        [*launcher, script, str(tmp_path)], env=environ, capture_output=True, text=True, check=False, timeout=HUNG
    )
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["resumed"] == first["whole"]
    alone = trained(tmp_path / "alone", 1)
    for key in ("sums", "counts", "steps", "shares"):
        assert first["whole"][key] == alone[key]
    assert sum(alone["counts"]) == 4 * 4 * 4  # 4 generations of 4 prompts
    assert planned(tmp_path / "whole") == planned(tmp_path / "alone")
