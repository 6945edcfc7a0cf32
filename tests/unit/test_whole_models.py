"""A second model is loaded whole, whatever transformers would do for the one that an engine trains."""

from __future__ import annotations

import os

import pytest
import torch
import transformers
from dataflex.model.whole import full_shape, whole_models
from dataflex.testing import tiny_model
from packaging.version import Version
from transformers import LlamaForCausalLM
from transformers.integrations import deepspeed


@pytest.fixture
def second_rank(monkeypatch):
    """FSDP reads weights on local rank 0 alone, and this is rank 1."""
    keys = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "LOCAL_RANK": "1"}
    for key, value in keys.items():
        monkeypatch.setenv(key, value)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_every_rank_reads_the_weights_under_fsdp(tmp_path, second_rank):
    model = tiny_model(seed=5)
    model.save_pretrained(tmp_path / "model")
    weight = model.lm_head.weight
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "model").lm_head.weight
    if Version(transformers.__version__) < Version("5.9"):  # later ones read them on every rank, but for missing keys
        assert theirs.is_meta or not torch.equal(theirs, weight), "transformers reads them on every rank by itself"
    with whole_models():
        ours = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(ours.lm_head.weight, weight)
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"


class Zero3:
    """What transformers asks of a configuration of DeepSpeed's."""

    def is_zero3(self):
        return True


def test_zero_3_is_out_of_sight_inside_and_there_again_afterwards():
    config = Zero3()
    deepspeed.set_hf_deepspeed_config(config)
    try:
        with whole_models():
            assert not deepspeed.is_deepspeed_zero3_enabled()
        with pytest.raises(RuntimeError, match="in the middle"), whole_models():
            raise RuntimeError("in the middle")
        assert deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()


def test_a_parameter_that_zero_3_has_taken_away_keeps_its_shape():
    parameter = torch.nn.Parameter(torch.empty(0))
    assert full_shape(parameter) == (0,)
    parameter.ds_shape = torch.Size((3, 2))
    assert full_shape(parameter) == (3, 2)
