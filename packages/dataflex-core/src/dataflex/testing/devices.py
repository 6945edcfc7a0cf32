"""Where the fixture kit makes its models and batches."""

from __future__ import annotations

import os

import torch

VARIABLE = "DATAFLEX_TEST_GPU"
"""Set to 1, it has tests run on the accelerator that torch sees: CUDA, XPU, NPU, MPS."""


def device() -> torch.device:
    """Returns the device of the tests: the CPU, or with ``DATAFLEX_TEST_GPU=1`` the first accelerator.

    Raises:
        RuntimeError: An accelerator was asked for and torch sees none; or the variable has another value.
    """
    asked = os.environ.get(VARIABLE, "0")
    if asked in ("", "0"):
        return torch.device("cpu")
    if asked != "1":
        raise RuntimeError(f"{VARIABLE}: found {asked!r}, allowed: 1 for the accelerator, 0 or unset for the CPU")
    if not torch.accelerator.is_available():
        raise RuntimeError(
            f"{VARIABLE}=1 asks for an accelerator, and torch {torch.__version__} sees none -> install the torch of "
            "the device and its driver, or unset the variable"
        )
    found = torch.accelerator.current_accelerator()
    assert found is not None
    return torch.device(found.type, 0)
