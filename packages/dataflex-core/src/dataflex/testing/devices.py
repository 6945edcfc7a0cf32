"""Where the fixture kit makes its models and batches."""

from __future__ import annotations

import os

import torch

VARIABLE = "DATAFLEX_TEST_GPU"
"""Set to 1, it has tests run on the accelerator that torch sees, if it sees one: CUDA, XPU, NPU, MPS."""


def device() -> torch.device:
    """Returns the device of the tests: the CPU, or with ``DATAFLEX_TEST_GPU=1`` the first accelerator if there is one.

    So the same command runs on any machine; :func:`described` says which device it was, and a test run should show it.

    Raises:
        RuntimeError: The variable has another value.
    """
    if not asked() or not torch.accelerator.is_available():
        return torch.device("cpu")
    found = torch.accelerator.current_accelerator()
    assert found is not None
    return torch.device(found.type, 0)


def asked() -> bool:
    """Returns whether ``DATAFLEX_TEST_GPU`` asks for an accelerator.

    Raises:
        RuntimeError: The variable is neither 1 nor 0.
    """
    value = os.environ.get(VARIABLE, "0")
    if value not in ("", "0", "1"):
        raise RuntimeError(f"{VARIABLE}: found {value!r}, allowed: 1 for the accelerator, 0 or unset for the CPU")
    return value == "1"


def described() -> str:
    """Returns the device of the tests and why it is this one, for the report of a test run."""
    found = device()
    if found.type == "cpu":
        why = f", as torch {torch.__version__} sees no accelerator" if asked() else f", as {VARIABLE}=1 is not set"
        return f"cpu{why}"
    name = torch.cuda.get_device_name(found) if found.type == "cuda" else "the first that torch sees"
    return f"{found} ({name})"
