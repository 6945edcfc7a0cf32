"""The environment every test runs in: no network, no accelerator, few threads. Set before torch is imported."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "2")
if "DATAFLEX_TEST_GPU" not in os.environ:  # the tests marked gpu are run with it
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import logging
from collections.abc import Iterator
from unittest.mock import patch

import pytest
from dataflex.core import registry
from hypothesis import settings

settings.register_profile("dataflex", deadline=None)  # a noisy machine is no failure
settings.load_profile("dataflex")


@pytest.fixture(autouse=True)
def _heard_log() -> None:
    """Lets a test hear dataflex's records, also after the command line has run in this process and taken them away."""
    logging.getLogger("dataflex").propagate = True


@pytest.fixture(autouse=True)
def _own_registrations() -> Iterator[None]:
    """Takes back what the plugin files of a test register: a run has a process of its own."""
    with patch.dict(registry._registered):
        yield


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """Takes back what a test leaves in the environment: the arguments of transformers 4.51 make runs after a bf16 one
    bf16 as well, and `torch_compile` compiles whatever comes after it."""
    with patch.dict(os.environ):
        yield
