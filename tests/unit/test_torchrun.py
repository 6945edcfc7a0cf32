import sys

import pytest
from dataflex.launch import torchrun
from dataflex.launch.torchrun import command, is_enabled, is_worker

WORKER = ["--module", "dataflex", "train", "a folder/run.yaml", "output_dir=b c"]
ARGV = WORKER[3:]


def flags(environ, devices=4):
    whole = command(ARGV, environ, devices)
    assert whole[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert whole[-len(WORKER) :] == WORKER  # arguments with blanks stay whole
    rest = whole[3 : -len(WORKER)]
    return dict(zip(rest[::2], rest[1::2], strict=True))


def test_one_node_uses_its_devices_and_a_free_port():
    found = flags({})
    assert int(found.pop("--master_port")) > 0
    assert found == {
        "--nnodes": "1",
        "--node_rank": "0",
        "--nproc_per_node": "4",
        "--master_addr": "127.0.0.1",
    }


def test_the_variables_of_llamafactory_are_obeyed():
    environ = {
        "NNODES": "2",
        "NODE_RANK": "1",
        "NPROC_PER_NODE": "8",
        "MASTER_ADDR": "node-0",
        "MASTER_PORT": "29501",
    }
    assert flags(environ) == {
        "--nnodes": "2",
        "--node_rank": "1",
        "--nproc_per_node": "8",
        "--master_addr": "node-0",
        "--master_port": "29501",
    }


def test_elastic_launches_meet_at_the_master():
    environ = {"RDZV_ID": "job", "MIN_NNODES": "1", "MAX_NNODES": "3", "MAX_RESTARTS": "2", "MASTER_PORT": "29501"}
    assert flags(environ) == {
        "--nnodes": "1:3",
        "--rdzv_id": "job",
        "--rdzv_backend": "c10d",
        "--rdzv_endpoint": "127.0.0.1:29501",
        "--max_restarts": "2",
        "--nproc_per_node": "4",
    }


@pytest.mark.parametrize(("value", "yes"), [("1", True), ("true", True), ("Y", True), ("0", False), ("no", False)])
def test_a_variable_says_yes_as_llamafactory_reads_it(value, yes):
    assert is_enabled("FORCE_TORCHRUN", {"FORCE_TORCHRUN": value}) is yes


def test_a_rank_does_not_launch_ranks(monkeypatch):
    monkeypatch.setenv("FORCE_TORCHRUN", "1")
    assert torchrun.wanted()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert is_worker()
    assert not torchrun.wanted()


def test_ray_places_its_own_workers(monkeypatch):
    monkeypatch.setenv("FORCE_TORCHRUN", "1")
    monkeypatch.setenv("USE_RAY", "1")
    assert not torchrun.wanted()
