"""A run resumed from any step is, bit for bit, the run that was never stopped; and checkpoints are kept as ever."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader, skip_first_batches
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.files import COMPLETE, STATE
from dataflex.core.kinds import MIXER, SELECTOR, WEIGHTER
from dataflex.core.registry import register_selector
from dataflex.run.checkpoints import all_checkpoints, incompleteness, step_of
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.selector.base_selector import Selector
from dataflex.train.trainer import MixTrainer, SelectTrainer, WeightTrainer, trainer_class
from dataflex.upstream.sampler_pass import PassKeeper
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerControl, TrainerState

pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning")  # peft, of a tiny model

MIXINS = {SELECTOR: SelectTrainer, MIXER: MixTrainer, WEIGHTER: WeightTrainer}
TYPES = {SELECTOR: "dynamic_select", MIXER: "dynamic_mix", WEIGHTER: "dynamic_weight"}
STEPS = 8
WHERE = {1: "inside warm-up", 2: "on an update", 4: "inside a segment", 5: "on the last update", 7: "after it"}


@dataclass(frozen=True)
class Case:
    kind: Any
    name: str
    params: dict[str, Any] = field(default_factory=dict)
    accumulation: int = 1
    workers: int = 0
    checkpointing: bool = False
    lora: bool = False
    streams: bool = False

    def __str__(self):
        chosen = [f"workers {self.workers}", "gradient checkpointing" * self.checkpointing, "LoRA" * self.lora]
        chosen.append("streams" * self.streams)
        return ", ".join(filter(None, [f"{TYPES[self.kind]} {self.name} x{self.accumulation}", *chosen]))


CASES = [
    Case(SELECTOR, "random", accumulation=1),
    Case(SELECTOR, "random", {"replacement": True}, accumulation=4, lora=True),
    Case(SELECTOR, "loss", accumulation=4, checkpointing=True, lora=True),
    Case(SELECTOR, "loss", {"focus": "low"}, accumulation=1, workers=2),
    Case(SELECTOR, "custom", accumulation=4, checkpointing=True),
    Case(MIXER, "random", accumulation=4, workers=2),
    Case(MIXER, "random", {"concentration": 0.3}, checkpointing=True, lora=True),
    Case(MIXER, "static", {"proportions": [1, 3]}, accumulation=1),
    Case(MIXER, "random", streams=True),
    Case(MIXER, "random", {"concentration": 0.3}, accumulation=4, workers=1, streams=True),
    Case(WEIGHTER, "loss", accumulation=4, lora=True),
    Case(WEIGHTER, "loss", {"strategy": "extremes"}, workers=2, checkpointing=True),
    Case(WEIGHTER, "custom", accumulation=4),
]


def model(lora=False):
    tiny = tiny_model()
    for layer in tiny.model.layers:
        layer.self_attn.attention_dropout = 0.1  # a draw too many or too few shows in every loss after it
    if not lora:
        return tiny
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return get_peft_model(tiny, LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]))


def arguments(folder, accumulation=1, **changes):
    sizes = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    return tiny_training_args(folder, **({"max_steps": -1, "learning_rate": 1e-2} | sizes | changes))


def spec(kind, name, params=None):
    keys = {"warmup_step": 2, "update_step": 3, "update_times": 2, "mixture_sample_rule": "uniform"}
    given = DataflexArguments(train_type=TYPES[kind], component_name=name, **keys)
    return RunSpec(given, ComponentSpec(kind, name, name, params or {}))


def stream(rows):
    """Returns the rows as a stream; its source of 11 rows is read more than once in a run."""
    return datasets.Dataset.from_list([rows[i] for i in range(len(rows))]).to_iterable_dataset().skip(0)


def trainer(case, folder, **changes):
    rows: Any = TokenRows(40, lengths=range(8, 17))  # 5 steps a pass, so that a weighted run goes round
    if case.kind is MIXER:
        rows = {"a": TokenRows(11, lengths=16), "b": TokenRows(90, lengths=16, seed=2)}
        rows = {name: stream(source) for name, source in rows.items()} if case.streams else rows
    engine = {"gradient_checkpointing": case.checkpointing, "dataloader_num_workers": case.workers}
    if case.checkpointing:
        engine["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    return trainer_class(MIXINS[case.kind], Trainer)(
        model=model(case.lora),
        args=arguments(folder, case.accumulation, **engine, **changes),
        train_dataset=rows,
        data_collator=pad_collate,
        dataflex=spec(case.kind, case.name, case.params),
    )


def end(done):
    """Everything that must be equal: weights, optimizer, scheduler and the losses of all steps."""
    optimizer = {
        f"{number} {name}": torch.as_tensor(value).clone()
        for number, state in done.optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    losses = [entry["loss"] for entry in done.state.log_history if "loss" in entry]
    weights = {name: value.clone() for name, value in done.model.state_dict().items()}
    return weights | optimizer | {"scheduler": done.lr_scheduler.state_dict(), "losses": losses}


def differences(a, b):
    same = {
        name: torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name]
        for name in a.keys() & b.keys()
    }
    return sorted((a.keys() ^ b.keys()) | {name for name, equal in same.items() if not equal})


def places(case):
    """Three of the five; over the cases of a kind, all of them."""
    return [list(WHERE)[(CASES.index(case) + skip) % len(WHERE)] for skip in (0, 2, 4)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_resuming_anywhere_ends_as_the_run_that_was_never_stopped(case, tmp_path):
    whole = trainer(case, tmp_path / "whole", save_strategy="steps", save_steps=1)
    whole.train()
    expected = end(whole)
    assert len(expected["losses"]) == STEPS
    for step in places(case):
        resumed = trainer(case, tmp_path / f"from {step}")
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert differences(end(resumed), expected) == [], WHERE[step]


def test_the_matrix_covers_every_component_and_every_setting():
    shipped = {(SELECTOR, "random"), (SELECTOR, "loss"), (SELECTOR, "custom"), (MIXER, "random"), (MIXER, "static")}
    shipped |= {(WEIGHTER, "loss"), (WEIGHTER, "custom")}
    assert {(case.kind, case.name) for case in CASES} == shipped
    for kind in MIXINS:
        mine = [case for case in CASES if case.kind is kind]
        assert {step for case in mine for step in places(case)} == WHERE.keys()
        assert {case.accumulation for case in mine} == {1, 4}
        assert {case.workers for case in mine} >= {0, 2}
        assert {case.checkpointing for case in mine} == {case.lora for case in mine} == {True, False}


def test_true_continues_from_the_newest_complete_checkpoint(tmp_path, caplog):
    case = Case(SELECTOR, "loss")
    whole = trainer(case, tmp_path / "run", save_strategy="steps", save_steps=3)
    whole.train()
    (tmp_path / "run" / "checkpoint-8" / "optimizer.pt").unlink()
    resumed = trainer(case, tmp_path / "run", save_strategy="steps", save_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert differences(end(resumed), end(whole)) == []
    assert "passing over the incomplete checkpoint" in caplog.text
    assert "checkpoint-8: optimizer.pt is missing" in caplog.text
    assert all(incompleteness(path) is None for path in all_checkpoints(tmp_path / "run"))


@register_selector("static_order")
class StaticOrder(Selector):
    def select(self, model, step_id, num_samples, **kwargs):
        order = torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(self.seed)).numpy()
        return order[step_id * 8 : step_id * 8 + num_samples]

    def warmup(self, num_samples, replacement=False):
        return self.select(None, 0, num_samples)


RUNS = {
    "plain": None,
    "select": (SELECTOR, "static_order", {}),
    "weight": (WEIGHTER, "loss", {"strategy": "uniform"}),
}


def run(which, folder, patience=None, **changes):
    """A run over the same rows in the same order, whichever trainer does it."""
    chosen = RUNS[which]
    base = Trainer if chosen is None else trainer_class(MIXINS[chosen[0]], Trainer)
    return base(
        model=model(),
        args=arguments(folder, **({"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1} | changes)),
        train_dataset=TokenRows(64, lengths=16),
        eval_dataset=TokenRows(8, lengths=16, seed=9),
        data_collator=pad_collate,
        callbacks=None if patience is None else [EarlyStoppingCallback(patience)],
        **({} if chosen is None else {"dataflex": spec(*chosen)}),
    )


def kept(folder):
    return [step_of(path) for path in all_checkpoints(folder)]


# The rows are noise: the evaluation loss rises nearly from the first step on, so its least is early, its greatest late.
BEST = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "greater_is_better": False}
KEEPING = {
    "limit": {"save_total_limit": 3},
    "limit 1": {"save_total_limit": 1},
    "every third step": {"save_steps": 3, "save_total_limit": 2},
    "only the model": {"save_only_model": True, "save_total_limit": 2},
    "best": BEST,
    "best and limit 2": BEST | {"save_total_limit": 2},
    "best and limit 1": BEST | {"save_total_limit": 1},
    "greatest and limit 1": BEST | {"save_total_limit": 1, "greater_is_better": True},
    "early stopping": BEST | {"patience": 2, "save_total_limit": 2},
    "saved when best": BEST | {"save_strategy": "best", "save_total_limit": 2},
    "never": {"save_strategy": "no"},
}


@pytest.mark.parametrize("changes", KEEPING.values(), ids=KEEPING)
def test_checkpoints_are_kept_as_the_plain_trainer_keeps_them(changes, tmp_path):
    plain = run("plain", tmp_path / "plain", **changes)
    plain.train()
    for which in ("select", "weight"):
        dynamic = run(which, tmp_path / which, **changes)
        dynamic.train()
        assert kept(tmp_path / which) == kept(tmp_path / "plain"), which
        assert all(incompleteness(path) is None for path in all_checkpoints(tmp_path / which))
        for name in ("global_step", "best_global_step", "best_metric"):
            assert getattr(dynamic.state, name) == getattr(plain.state, name), (which, name)
        assert differences(end(dynamic), end(plain)) == [], which
    for path in all_checkpoints(tmp_path / "plain"):
        theirs, ours = ({p.name for p in folder.iterdir()} for folder in (path, tmp_path / "select" / path.name))
        assert ours - theirs == {STATE, COMPLETE}
        assert theirs <= ours


def test_the_cases_above_can_tell_a_best_checkpoint_and_a_stop_from_the_last_step(tmp_path):
    done = run("select", tmp_path, **KEEPING["early stopping"])
    done.train()
    assert done.state.best_global_step < done.state.global_step < STEPS


@pytest.mark.parametrize("changes", ["best and limit 2", "early stopping"])
def test_best_and_patience_survive_a_resume(changes, tmp_path):
    whole = run("select", tmp_path / "whole", **(KEEPING[changes] | {"save_total_limit": None}))
    whole.train()
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for path in all_checkpoints(tmp_path / "again")[1:]:
        shutil.rmtree(path)
    resumed = run("select", tmp_path / "again", **(KEEPING[changes] | {"save_total_limit": None}))
    resumed.train(resume_from_checkpoint=True)
    assert kept(tmp_path / "again") == kept(tmp_path / "whole")
    assert resumed.state.best_global_step == whole.state.best_global_step
    assert differences(end(resumed), end(whole)) == []


def test_resuming_from_weights_alone_works_as_ever_and_says_what_is_missing(tmp_path, caplog):
    case = Case(SELECTOR, "custom")
    changes = {"save_strategy": "steps", "save_steps": 4, "save_only_model": True}
    trainer(case, tmp_path / "whole", **changes).train()
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    resumed = trainer(case, tmp_path / "again", **changes)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == STEPS
    assert f"{checkpoint} was saved with save_only_model: true, without optimizer" in caplog.text


class Rewrites(TrainerCallback):
    """Writes into a checkpoint after the trainer, as LLaMA-Factory's callback for processors does."""

    def on_save(self, args, state, control, **kwargs):
        folder = f"{args.output_dir}/checkpoint-{state.global_step}"
        with open(f"{folder}/config.json", "a") as file:
            file.write("\n")
        with open(f"{folder}/processor_config.json", "w") as file:
            file.write("{}")


def test_a_callback_that_rewrites_files_of_a_checkpoint_does_not_make_it_incomplete(tmp_path):
    case = Case(SELECTOR, "custom")
    made = trainer(case, tmp_path, save_strategy="steps", save_steps=1, save_total_limit=1)
    made.add_callback(Rewrites())
    made.train()
    (left,) = all_checkpoints(tmp_path)
    assert incompleteness(left) is None
    (left / "processor_config.json").unlink()
    assert incompleteness(left) == "processor_config.json is missing"


def test_the_position_is_found_without_walking_the_rows_before_it(tmp_path):
    """Resuming reads rows of what is left alone; were the loop to skip batches, it would read those before as well."""
    read = []

    class Watched(TokenRows):
        def __getitem__(self, row):
            read.append(row)
            return super().__getitem__(row)

    class Forgets(TrainerCallback):
        """The rows that are read to know the dataset again are a few thousand of however many."""

        def on_train_begin(self, *args, **kwargs):
            read.clear()

    def made(folder, **changes):
        return trainer_class(SelectTrainer, Trainer)(
            model=model(),
            args=arguments(folder, **changes),
            train_dataset=Watched(64, lengths=16),
            data_collator=pad_collate,
            callbacks=[Forgets()],
            dataflex=spec(SELECTOR, "random"),
        )

    made(tmp_path / "whole", save_strategy="steps", save_steps=7).train()
    planned = np.load(tmp_path / "whole" / "dataflex_selections" / "step_00000005.npz")["indices"].tolist()
    made(tmp_path / "again").train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))
    assert read == planned[-8:]
    assert np.unique(read).size == 8


@pytest.mark.parametrize("world", [1, 2])
def test_a_loader_that_skips_batches_stays_in_the_pass_the_run_was_resumed_in(world):
    """As transformers 4.51 resumes: it names the pass first and skips then, and the skipping loader begins at 0."""

    def made():
        plain = DataLoader(range(16), batch_size=2, sampler=SeedableRandomSampler(range(16), data_seed=42))
        return prepare_data_loader(plain, num_processes=world, process_index=0, put_on_device=False)

    whole = made()
    list(whole)  # the first pass; accelerate 1.3 tells a sampler inside of two no number
    whole.set_epoch(1)
    expected = [batch.tolist() for batch in whole]
    resumed = made()
    resumed.set_epoch(1)
    state, args = TrainerState(epoch=1.25), tiny_training_args("unused")
    PassKeeper().on_epoch_begin(args, state, TrainerControl(), train_dataloader=resumed)
    assert [batch.tolist() for batch in skip_first_batches(resumed, 2)] == expected[2:]
