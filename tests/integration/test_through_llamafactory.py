"""What LLaMA-Factory's workflows do around a dynamic run: the trainer they take, the numbers they compute."""

from __future__ import annotations

import json
import types

import llamafactory.train.sft.workflow as workflow
import llamafactory.train.tuner as tuner
import pytest
import transformers

pytestmark = pytest.mark.llamafactory

SCHEDULE = ["warmup_step=2", "update_step=1", "update_times=2"]
MIX = [
    *SCHEDULE,
    "stage=sft",
    "dataset=instructions,instructions_eval",
    "template=default",
    "init_mixture_proportions=[0.7,0.3]",
]
STREAMS = [*MIX, "streaming=true", "max_samples=null", "max_steps=null", "buffer_size=16"]
RUNS = {
    "select": ("select_random", *SCHEDULE),
    "mix": ("mix_random", *MIX),
    "stream": ("mix_random", *STREAMS, "dataloader_num_workers=1"),
    "weight": ("weight_loss", "warmup_step=1", "train_step=4"),
}


@pytest.mark.parametrize("kind", RUNS)
def test_tokens_per_second_are_those_that_were_trained_on(train, tmp_path, monkeypatch, kind):
    tokens, prepare = [], transformers.Trainer._prepare_inputs

    def watched(self, inputs):
        if self.model.training:
            tokens.append(int(inputs["attention_mask"].sum()))
        assert not any(key.startswith("dataflex") for key in inputs)
        return prepare(self, inputs)

    monkeypatch.setattr(transformers.Trainer, "_prepare_inputs", watched)
    accumulated = ["gradient_accumulation_steps=2", "per_device_train_batch_size=2"]
    assert train(*RUNS[kind], *accumulated, "include_effective_tokens_per_second=true") == 0
    metrics = json.loads((tmp_path / "run" / "train_results.json").read_text())
    assert len(tokens) == 8
    assert metrics["effective_tokens_per_sec"] * metrics["train_runtime"] == pytest.approx(sum(tokens))


@pytest.fixture
def static_workflow(monkeypatch):
    """LLaMA-Factory's workflow as a release might write it: its trainer stands under another name."""

    def install(trainer):
        code = workflow.run_sft.__code__
        names = tuple("ItsTrainer" if name == "CustomSeq2SeqTrainer" else name for name in code.co_names)
        assert names != code.co_names
        monkeypatch.setattr(workflow, "ItsTrainer", trainer, raising=False)
        renamed = types.FunctionType(
            code.replace(co_names=names), vars(workflow), "run_sft", workflow.run_sft.__defaults__
        )
        monkeypatch.setattr(tuner, "run_sft", renamed)

    return install


@pytest.mark.parametrize("kind", ["select", "mix", "weight"])
def test_another_trainer_is_stopped_before_it_trains(train, tmp_path, capsys, static_workflow, kind):
    static_workflow(workflow.CustomSeq2SeqTrainer)
    assert train(*RUNS[kind]) == 2
    said = capsys.readouterr().err
    assert "LLaMA-Factory trains with llamafactory.train.sft.trainer.CustomSeq2SeqTrainer, so this is not the" in said
    assert not (tmp_path / "run" / "trainer_state.json").exists()


class LoopOfItsOwn(workflow.CustomSeq2SeqTrainer):
    def train(self, *args, **kwargs):
        self.state.log_history = []
        return types.SimpleNamespace(metrics={"train_runtime": 1.0, "epoch": 1.0})


def test_a_run_that_another_loop_trained_is_no_success(train, capsys, static_workflow):
    static_workflow(LoopOfItsOwn)
    assert train(*RUNS["select"]) == 2
    said = capsys.readouterr().err
    assert "came to its end without the trainer of dataflex, so this is not the train_type: dynamic_select" in said


def test_scoring_with_another_trainer_is_refused_too(workspace, tmp_path, monkeypatch, capsys, static_workflow):
    from dataflex.cli.main import run

    monkeypatch.chdir(tmp_path)
    static_workflow(workflow.CustomSeq2SeqTrainer)
    assert run(["score", str(workspace / "select_loss.yaml"), f"output_dir={tmp_path / 'scores'}"]) == 2
    assert "LLaMA-Factory trains with" in capsys.readouterr().err


def test_the_names_are_put_back_after_a_failure(train, static_workflow):
    before = (transformers.Trainer.train, tuner._training_function, workflow.calculate_tps)
    static_workflow(workflow.CustomSeq2SeqTrainer)
    train(*RUNS["select"])
    assert before == (transformers.Trainer.train, tuner._training_function, workflow.calculate_tps)
