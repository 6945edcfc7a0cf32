import sys

import pytest
from dataflex.config.load import read_config
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


FIXED = {
    "NNODES": "2",
    "NODE_RANK": "1",
    "NPROC_PER_NODE": "8",
    "MASTER_ADDR": "node-0",
    "MASTER_PORT": "29501",
}
ELASTIC = {"RDZV_ID": "job", "MIN_NNODES": "1", "MAX_NNODES": "3", "MAX_RESTARTS": "2", "MASTER_PORT": "29501"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (
            FIXED,
            {
                "--nnodes": "2",
                "--node_rank": "1",
                "--nproc_per_node": "8",
                "--master_addr": "node-0",
                "--master_port": "29501",
            },
        ),
        (
            ELASTIC,
            {
                "--nnodes": "1:3",
                "--rdzv_id": "job",
                "--rdzv_backend": "c10d",
                "--rdzv_endpoint": "127.0.0.1:29501",
                "--max_restarts": "2",
                "--nproc_per_node": "4",
            },
        ),
    ],
    ids=["fixed", "elastic"],
)
def test_the_variables_of_llamafactory_are_obeyed(environ, expected):
    assert flags(environ) == expected


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


def test_a_secret_of_the_command_line_reaches_the_ranks_by_their_environment(monkeypatch, tmp_path):
    started = []
    monkeypatch.setenv("NPROC_PER_NODE", "2")

    def supervised(command, env, to):
        started.append((command, env))
        return 0

    monkeypatch.setattr(torchrun, "supervised", supervised)
    file = tmp_path / "run.yaml"
    file.write_text("stage: sft\n")
    given = ["hub_token='0123'", "a.api_key=abc=d", "learning_rate=1e-4", "ms_hub_token=[x", "hf_hub_token=null"]
    assert torchrun.launch([str(file), *given]) == 0
    ((command, env),) = started
    assert "0123" not in str(command)
    assert "abc=d" not in str(command)
    assert command[-3:] == given[-3:]
    for name in ("DATAFLEX_SECRET_HUB_TOKEN", "DATAFLEX_SECRET_A_API_KEY"):
        monkeypatch.setenv(name, env[name])
    read = read_config(file, command[-5:-2])
    assert (read["hub_token"], read["a"], read["learning_rate"]) == ("0123", {"api_key": "abc=d"}, 1e-4)


def test_a_secret_inside_of_a_value_is_not_in_the_list_of_processes_either(monkeypatch, tmp_path):
    given = [
        "some_url=https://me:pa55word@host/x?key=qu3ry&n=1",
        "callbacks={kind: x, api_key: 5ecret, n: [1, 2.5]}",
        "urls=['https://me:0ther@host', plain]",
        "hub_token=12345678",
    ]
    shown, secrets = torchrun._apart(["run.yaml", *given, "other=a=b"])
    assert not any(word in str(shown) for word in ("pa55word", "qu3ry", "5ecret", "0ther", "12345678"))
    assert shown[0] == "run.yaml"
    assert shown[-1] == "other=a=b"
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "run.yaml"
    file.write_text("stage: sft\n")
    read = read_config(file, shown[1:])
    assert read["some_url"] == "https://me:pa55word@host/x?key=qu3ry&n=1"
    assert read["callbacks"] == {"kind": "x", "api_key": "5ecret", "n": [1, 2.5]}
    assert read["urls"] == ["https://me:0ther@host", "plain"]
    assert read["hub_token"] == "12345678"
