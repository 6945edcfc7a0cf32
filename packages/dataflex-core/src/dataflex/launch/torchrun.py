"""torchrun, with the environment variables that ``llamafactory-cli train`` reads."""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import yaml

from dataflex.launch.supervised import Launcher, pass_on, supervised
from dataflex.utils.secret_values import taken_out

_LAUNCHER = "DATAFLEX_LAUNCHER"  # the number of the process that started this one, in its environment


def is_enabled(name: str, environ: Mapping[str, str] | None = None) -> bool:
    """Returns whether an environment variable says yes (true, y or 1), as LLaMA-Factory reads them."""
    return (os.environ if environ is None else environ).get(name, "0").lower() in {"true", "y", "1"}


def is_worker() -> bool:
    """Returns whether a launcher has started this process as one of its ranks."""
    return "LOCAL_RANK" in os.environ


def wanted() -> bool:
    """Returns whether the run belongs under torchrun: asked for, or more than one device and no other launcher."""
    if is_worker() or is_enabled("USE_RAY"):
        return False
    if is_enabled("FORCE_TORCHRUN") or is_enabled("USE_MCA"):
        return True
    from llamafactory.extras.misc import get_device_count, use_kt

    return bool(get_device_count() > 1 and not use_kt())


def command(argv: Sequence[str], environ: Mapping[str, str], devices: int, name: str = "train") -> list[str]:
    """Returns the command that runs ``dataflex train argv`` on every rank.

    Args:
        argv: The file and its overrides; blanks in them are safe, as no shell reads the command.
        environ: NNODES, NODE_RANK, NPROC_PER_NODE, MASTER_ADDR, MASTER_PORT; for elastic launches RDZV_ID, MIN_NNODES,
            MAX_NNODES and MAX_RESTARTS.
        devices: Ranks on this machine where NPROC_PER_NODE does not say.
        name: Another command than ``train``.
    """
    nodes = environ.get("NNODES", "1")
    address = environ.get("MASTER_ADDR", "127.0.0.1")
    port = environ.get("MASTER_PORT") or str(_free_port())
    launcher = [sys.executable, "-m", "torch.distributed.run"]
    ranks = ["--nproc_per_node", environ.get("NPROC_PER_NODE", str(devices))]
    if "RDZV_ID" in environ:
        if "MIN_NNODES" in environ and "MAX_NNODES" in environ:
            nodes = f"{environ['MIN_NNODES']}:{environ['MAX_NNODES']}"
        meeting = ["--nnodes", nodes, "--rdzv_id", environ["RDZV_ID"], "--rdzv_backend", "c10d"]
        meeting += ["--rdzv_endpoint", f"{address}:{port}", "--max_restarts", environ.get("MAX_RESTARTS", "0")]
    else:
        meeting = ["--nnodes", nodes, "--node_rank", environ.get("NODE_RANK", "0")]
        meeting += ["--master_addr", address, "--master_port", port]
    return [*launcher, *meeting, *ranks, "--module", "dataflex", name, *argv]


def launch(argv: Sequence[str], command_name: str = "train", *, stops_itself: bool = False) -> int:
    """Runs the ranks of this machine and returns torchrun's exit code; 128 + N where signal N ended them.

    Args:
        argv: The file and its overrides.
        command_name: Another command than ``train``.
        stops_itself: Whether a rank that gets SIGTERM saves and ends by itself, and may be given the time it takes.
    """
    argv, secrets = _apart(argv)
    environ = followed() | secrets
    if is_enabled("OPTIM_TORCH", {"OPTIM_TORCH": "1"} | environ):  # LLaMA-Factory's memory settings for NCCL
        environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        environ.setdefault("TORCH_NCCL_AVOID_RECORD_STREAMS", "1")
    devices = 1
    if "NPROC_PER_NODE" not in environ:
        import torch

        devices = torch.accelerator.device_count() if torch.accelerator.is_available() else 1
    # Ranks that torchrun restarts when they end would be started again: those are torchrun's to stop.
    directly = stops_itself and environ.get("MAX_RESTARTS", "0") == "0"
    code = supervised(command(argv, environ, devices, command_name), environ, _to_ranks if directly else pass_on)
    words = {128 + signal.SIGINT: "interrupted\n", 128 + signal.SIGTERM: "stopped by SIGTERM\n"}
    sys.stderr.write(words.get(code, ""))  # behind what torchrun says of ranks that have ended
    return code


def _to_ranks(process: psutil.Process, number: int) -> None:
    """Sends SIGTERM to the ranks alone: torchrun would give them 30 seconds and then kill them."""
    ranks = [child for child in process.children() if "dataflex" in child.cmdline()]
    if number != signal.SIGTERM or not ranks:
        pass_on(process, number)
    for rank in ranks if number == signal.SIGTERM else []:
        rank.send_signal(number)


def followed() -> dict[str, str]:
    """Returns this process's environment for a ``dataflex-cli`` that is to stop where this process is killed."""
    return dict(os.environ) | {_LAUNCHER: str(os.getpid())}


def follow_launcher() -> None:
    """Lets this process stop where the ``dataflex-cli`` that started it is killed; a rank, where torchrun is, too."""
    if _LAUNCHER in os.environ:
        Launcher(int(os.environ[_LAUNCHER])).follow()


def _apart(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Returns the arguments without secrets, and the environment that the ranks take them from.

    What stands on a command line, every user of the machine can read in the list of processes. A secret is told by the
    name of its key, or stands in an address (``https://user:password@host``) or a mapping under any key.
    """
    shown: list[str] = []
    secrets: dict[str, str] = {}
    for text in argv:
        key, _, value = text.partition("=")
        hidden, found = taken_out({key: _parsed(value)})
        if found:
            text = f"{key}={_in_a_line(hidden[key])}"
            secrets |= found
        shown.append(text)
    return shown, secrets


def _in_a_line(value: Any) -> str:
    """Returns YAML that is read as the value again."""
    return yaml.safe_dump([value], default_flow_style=True, width=math.inf, allow_unicode=True).strip()[1:-1]


def _parsed(value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:  # whoever reads the configuration says so
        return None


def settle() -> None:
    """Waits a moment before a rank ends.

    After a collective call, a thread of gloo lets go of its tensors and needs the interpreter's lock for it. Where the
    interpreter is being shut down by then, the thread is ended in the middle and takes the process along
    (SIGABRT, "terminate called without an active exception"): a run that was done is reported as failed. Seen with
    torch 2.11, in one of about ten runs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        time.sleep(0.3)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
