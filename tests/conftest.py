"""The environment every test runs in: no network, no accelerator, few threads. Set before torch is imported."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "2")
if "DATAFLEX_TEST_GPU" not in os.environ:  # the tests marked gpu are run with it
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from hypothesis import settings

settings.register_profile("dataflex", deadline=None)  # a noisy machine is no failure
settings.load_profile("dataflex")
