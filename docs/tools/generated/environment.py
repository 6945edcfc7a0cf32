"""Every environment variable that dataflex reads or sets. A test compares the names with the code."""

from __future__ import annotations

from collections.abc import Mapping

from generated.markdown import table

OWN: Mapping[str, str] = {
    "DATAFLEX_VERBOSITY": "how much a command says: `debug`, `info` (the default), `warning` or `error`; "
    "see [the command line](../cli.md#how-much-is-said)",
    "DATAFLEX_DISABLE_PLUGINS": "names of hook packages to leave out, separated by commas",
    "DATAFLEX_STOP_SECONDS": "seconds that ranks have after SIGTERM to save a checkpoint, before they are killed; 600 "
    "where it is not set; see [stopping a run](../cli.md#stopping-a-run)",
    "DATAFLEX_SECRET_": "the beginning of a name: `DATAFLEX_SECRET_HUB_TOKEN` is the value of the key `hub_token`, "
    "which [a run's own files](../outputs.md#dataflex_configyaml) leave out, when one is trained from again",
    "DATAFLEX_TEST_GPU": "`1`: `dataflex.testing` makes models and batches on the accelerator",
    "DATAFLEX_LAUNCHER": "set by `dataflex-cli` for the ranks that it starts: the number of its process, at whose end "
    "they stop",
}
"""Ours -> what it does."""

OTHERS: Mapping[str, str] = {
    "FORCE_TORCHRUN": "run under torchrun, on one device too",
    "NNODES": "machines of the run; 1 where it is not set",
    "NODE_RANK": "number of this machine, from 0",
    "NPROC_PER_NODE": "ranks of this machine; its devices where it is not set",
    "MASTER_ADDR": "address of the machine with `NODE_RANK` 0",
    "MASTER_PORT": "port on that machine; a free one where it is not set",
    "RDZV_ID": "name of an elastic launch; with it `NODE_RANK` is not needed",
    "MIN_NNODES": "fewest machines of an elastic launch",
    "MAX_NNODES": "most machines of an elastic launch",
    "MAX_RESTARTS": "how often torchrun starts the ranks of an elastic launch again; torchrun then stops them too",
    "OPTIM_TORCH": "`0` leaves out LLaMA-Factory's memory settings for NCCL and CUDA",
    "USE_RAY": "train in workers of Ray, as LLaMA-Factory does",
    "USE_MCA": "Megatron's trainer, through LLaMA-Factory; for static runs alone",
    "USE_KT": "KTransformers, as in LLaMA-Factory: the run is not put under torchrun",
    "USE_V1": "[LLaMA-Factory's next trainer](../cli.md#llama-factorys-next-trainer); for static runs alone",
    "ALLOW_EXTRA_ARGS": "keys that nobody knows are let through",
    "DISABLE_VERSION_CHECK": "LLaMA-Factory and dataflex accept versions that they were not tested with",
    "LLAMAFACTORY_VERBOSITY": "LLaMA-Factory's own log level, on top of `DATAFLEX_VERBOSITY`",
    "NO_COLOR": "log lines without colour on a terminal too",
    "TERM": "`dumb`: log lines without colour",
    "RANK": "set by a launcher: the number of the rank. Rank 0 writes files and log lines",
    "LOCAL_RANK": "set by a launcher: the number of the rank on its machine",
    "WORLD_SIZE": "set by a launcher: how many ranks there are",
}
"""Those of launchers and libraries that dataflex reads -> what they do."""

TEXT = """# Environment variables

## Of dataflex

{own}
## Of launchers and libraries

These mean what they mean to `llamafactory-cli` and to torchrun. All other variables go on to the libraries as they are.

{others}
Components may name variables themselves: `api_key_env` of the selector
[`nice`](../selectors.md#nice) is the name of the variable that holds the key of a judge.
"""


def page() -> str:
    """Returns the page."""
    own, others = (
        table(("variable", "meaning"), [(f"`{name}`", text) for name, text in rows.items()]) for rows in (OWN, OTHERS)
    )
    return TEXT.format(own=own, others=others)
