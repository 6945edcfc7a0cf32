"""Liger's kernels, the real package, under the dynamic train types: what of them is put in, and what is left out.

Applying them replaces names of modules and needs no GPU, so it is tested wherever the package is; running them needs
one. Skipped where liger-kernel is not installed.
"""

from __future__ import annotations

from types import SimpleNamespace

import llamafactory.train.sft.workflow as sft
import pytest
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import RunSpec
from dataflex.integrations.llamafactory.patches import installed
from dataflex.testing import tiny_model
from llamafactory.model import loader
from transformers.models.llama import modeling_llama

pytestmark = pytest.mark.llamafactory

liger = pytest.importorskip("liger_kernel.transformers", reason="liger-kernel is not installed")
REPLACED = ("LlamaRMSNorm", "LlamaMLP", "apply_rotary_pos_emb")


@pytest.fixture
def unpatched(monkeypatch):
    """Puts back what Liger replaces, at the end of the test."""
    for name in REPLACED:
        monkeypatch.setattr(modeling_llama, name, getattr(modeling_llama, name))
    monkeypatch.setattr(modeling_llama.LlamaForCausalLM, "forward", modeling_llama.LlamaForCausalLM.forward)
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", torch.nn.functional.cross_entropy)


def applied(train_type: str | None) -> None:
    """Applies Liger as LLaMA-Factory does in training, with our adapter in place or, for None, without it."""
    keys = SimpleNamespace(enable_liger_kernel=True)
    config = tiny_model().config
    if train_type is None:
        loader.apply_liger_kernel(config, keys, is_trainable=True, require_logits=False)
        return
    with installed(RunSpec(DataflexArguments(train_type=train_type))):
        loader.apply_liger_kernel(config, keys, is_trainable=True, require_logits=False)


def test_a_weighted_run_has_ligers_kernels_and_the_forward_that_returns_logits(unpatched):
    before = {name: getattr(modeling_llama, name) for name in REPLACED}
    forward = modeling_llama.LlamaForCausalLM.forward
    applied("dynamic_weight")
    assert all(getattr(modeling_llama, name) is not before[name] for name in REPLACED)
    assert all(getattr(modeling_llama, name).__module__.startswith("liger_kernel") for name in REPLACED)
    assert type(tiny_model().model.norm) is liger.LigerRMSNorm
    assert modeling_llama.LlamaForCausalLM.forward is forward


@pytest.mark.parametrize("train_type", [None, "dynamic_select", "dynamic_mix"])
def test_any_other_run_has_the_fused_loss_that_returns_no_logits(unpatched, train_type):
    """Fails where Liger has another way to put its fused loss in: the test above would then say nothing."""
    applied(train_type)
    assert modeling_llama.LlamaForCausalLM.forward.__module__.startswith("liger_kernel")


@pytest.mark.parametrize("name", ["odm", "ado"])
def test_a_mixer_that_watches_the_losses_is_refused_before_a_model_is_loaded(train, capsys, monkeypatch, name):
    def load_model(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(sft, "load_model", load_model)
    assert train("mix_random", f"component_name={name}", "enable_liger_kernel=true") == 2
    said = capsys.readouterr().err
    assert f"enable_liger_kernel: the mixer '{name}' follows the loss of each source" in said
    assert "-> set enable_liger_kernel: false, or use a mixer that does not look at losses" in said
