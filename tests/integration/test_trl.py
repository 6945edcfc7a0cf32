"""The mixins over the trainers of TRL: they tokenise, log and collate for themselves."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import datasets
import pytest
import torch
import transformers
import trl
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import ConfigError
from dataflex.core.kinds import KINDS, MIXER, SELECTOR, WEIGHTER
from dataflex.run.record import read_updates
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_tokenizer, tiny_training_args
from dataflex.train.trainer import BY_TRAIN_TYPE, MixTrainer, SelectTrainer, WeightTrainer, trainer_class
from dataflex.upstream.relied_on import TRAINING
from trl.trainer import sft_trainer

EVERY_KIND = [kind for kind in KINDS if kind.train_type in BY_TRAIN_TYPE]  # those that a trainer of their own runs
WORDS = ["red", "green", "blue", "seven", "eight", "nine"]


def texts(count, word):
    return datasets.Dataset.from_dict({"text": [f"{word} {WORDS[i % 6]} {'very ' * (i % 4)}{i}" for i in range(count)]})


def spec(kind, name, params=None, **keys):
    keys = {"warmup_step": 1, "update_step": 1, "update_times": 2} | keys
    found = None if name is None else ComponentSpec(kind, name, name, params or {})
    return RunSpec(DataflexArguments(train_type=kind.train_type, component_name=name, **keys), found)


def sft(mixin, run, folder, rows, **changes):
    keys = {"max_length": 32, "per_device_train_batch_size": 2, "report_to": "none", "save_strategy": "no"} | changes
    config = trl.SFTConfig(output_dir=str(folder), use_cpu=True, bf16=False, disable_tqdm=True, logging_steps=1, **keys)
    tokenizer = tiny_tokenizer()
    made = trainer_class(mixin, trl.SFTTrainer)
    return made(tiny_model(len(tokenizer)), config, None, rows, processing_class=tokenizer, dataflex=run)


def rows_of(kind):
    return {"a": texts(6, "fox"), "b": texts(9, "owl")} if kind is MIXER else texts(12, "fox")


@pytest.mark.parametrize(("kind", "name"), [(SELECTOR, "loss"), (MIXER, "odm"), (WEIGHTER, "loss")], ids=str)
def test_texts_are_tokenised_by_trl_and_its_metrics_stand_beside_ours(tmp_path, kind, name):
    run = spec(kind, name, update_times=2) if kind is not WEIGHTER else spec(kind, name, train_step=3, update_times=0)
    done = sft(BY_TRAIN_TYPE[kind.train_type], run, tmp_path, rows_of(kind))
    done.train()
    logged = [entry for entry in done.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logged] == [1, 2, 3]
    assert all(0 <= entry["mean_token_accuracy"] <= 1 for entry in logged)
    assert "input_ids" in done.train_dataset[0]
    if kind is WEIGHTER:
        assert "dataflex/weight/max" in logged[-1]
    else:
        assert len(read_updates(tmp_path)) == 2


def test_sources_are_known_to_a_weighter_over_trl(tmp_path):
    run = spec(WEIGHTER, "dataset", {"weights": {"a": 1.0, "b": 3.0}}, train_step=2, update_times=0, warmup_step=0)
    done = sft(WeightTrainer, run, tmp_path, rows_of(MIXER))
    done.train()
    assert done.training_objective.context.source_names == ("a", "b")
    assert len(done.train_dataset) == 15


def test_logits_that_trl_measures_are_not_left_out(tmp_path):
    rows = rows_of(WEIGHTER)
    with pytest.raises(ConfigError, match=r"weight_logits: chunked cannot be done: the trainer of TRL computes its"):
        sft(WeightTrainer, spec(WEIGHTER, "loss", train_step=3, weight_logits="chunked"), tmp_path, rows)


def test_each_source_is_prepared_as_a_static_run_prepares_it(tmp_path):
    sources = rows_of(MIXER)
    mixed = sft(MixTrainer, spec(MIXER, "random"), tmp_path / "mixed", sources)
    for number, (name, rows) in enumerate(sources.items()):
        config = trl.SFTConfig(
            output_dir=str(tmp_path / name), use_cpu=True, bf16=False, report_to="none", max_length=32
        )
        alone = trl.SFTTrainer(mixed.model, config, train_dataset=rows, processing_class=mixed.processing_class)
        assert mixed.train_dataset.sources[number].to_dict() == alone.train_dataset.to_dict()
    assert mixed.mixture_manager.sizes.tolist() == [6, 9]


def test_a_mixture_of_streams_is_prepared_too(tmp_path):
    sources = {name: rows.to_iterable_dataset() for name, rows in rows_of(MIXER).items()}
    mixed = sft(MixTrainer, spec(MIXER, "random", mixture_sample_rule="uniform"), tmp_path, sources, max_steps=3)
    mixed.train()
    assert mixed.state.global_step == 3


FLATTENING = {"transformers": transformers.DataCollatorWithFlattening}
if "padding_free" in inspect.signature(sft_trainer.DataCollatorForLanguageModeling).parameters:
    FLATTENING["trl"] = lambda: sft_trainer.DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)


class Counting:
    """A collator that counts its batches once training may begin."""

    def __init__(self, collate):
        self.collate, self.batches = collate, 0

    def __call__(self, rows):
        self.batches += 1
        return self.collate(rows)


def made_with(kind, name, folder, collate):
    rows = TokenRows(24, lengths=range(6, 12))
    return trainer_class(BY_TRAIN_TYPE[kind.train_type], transformers.Trainer)(
        model=tiny_model(),
        args=tiny_training_args(folder, max_steps=-1, per_device_train_batch_size=2),
        train_dataset={"a": rows, "b": TokenRows(24, seed=1)} if kind is MIXER else rows,
        eval_dataset=TokenRows(4, seed=2),
        data_collator=collate,
        dataflex=spec(kind, name, PARAMS.get(name)),
    )


PARAMS = {"near": {"embedding": "model"}, "tsds": {"embedding": "model"}}
READING = [(SELECTOR, name) for name in ("loss", "less", "cluster_less", "zeroth", "delta_loss", "near", "tsds")]
READING += [(MIXER, "odm"), (MIXER, "ado")]


@pytest.mark.parametrize("flattening", FLATTENING.values(), ids=FLATTENING)
@pytest.mark.parametrize(("kind", "name"), READING, ids=str)
def test_a_collator_that_flattens_rows_is_refused_before_training(tmp_path, kind, name, flattening):
    with pytest.raises(ConfigError, match=r"data_collator: the .* looks at single rows .* of 2 rows -> use a collator"):
        made_with(kind, name, tmp_path, flattening())


@pytest.mark.parametrize("name", ["random", "near"])
def test_a_selector_that_makes_no_batch_takes_any_collator(tmp_path, monkeypatch, name):
    monkeypatch.setitem(PARAMS, "near", {})
    collate = Counting(transformers.DataCollatorWithFlattening())
    made = made_with(SELECTOR, name, tmp_path, collate)
    assert collate.batches == 0
    made.train()
    assert made.state.global_step == 3


@pytest.mark.parametrize("name", ["loss", "dataset"])
def test_rows_that_are_flattened_are_weighed_as_rows(tmp_path, name):
    run = spec(WEIGHTER, name, {"weights": {"a": 1.0, "b": 3.0}} if name == "dataset" else None, warmup_step=0)
    seen = []
    made = trainer_class(WeightTrainer, transformers.Trainer)(
        model=tiny_model(),
        args=tiny_training_args(tmp_path, max_steps=2, per_device_train_batch_size=3),
        train_dataset={"a": TokenRows(6, lengths=range(6, 9)), "b": TokenRows(6, lengths=range(6, 9), seed=1)},
        data_collator=transformers.DataCollatorWithFlattening(),
        dataflex=run,
    )
    step = made.component.training_step

    def watched(trainer, model, inputs, **kwargs):
        lengths = trainer.by_sample(torch.ones_like(inputs["input_ids"])).sum(dim=1).tolist()
        rows = [len(trainer.train_dataset[int(row)]["input_ids"]) for row in trainer.batch_rows]
        seen.append((lengths, rows))
        return step(trainer, model, inputs, **kwargs)

    made.component.training_step = watched
    made.train()
    assert [lengths for lengths, _ in seen] == [rows for _, rows in seen]
    assert [len(rows) for _, rows in seen] == [3, 3]


def preference_collate(rows):
    """Makes a batch as TRL's collator for pairs does."""
    return {
        f"{part}_input_ids": torch.tensor([row[part]["input_ids"][:5] for row in rows])
        for part in ("prompt", "chosen", "rejected")
    }


def stacked_collate(rows):
    """Makes a batch as LLaMA-Factory's collator for pairs does: all chosen answers, then all rejected ones."""
    return pad_collate([row[part] for part in ("chosen", "rejected") for row in rows])


@pytest.mark.parametrize("collate", [preference_collate, stacked_collate])
def test_pairs_are_refused_under_scoring(tmp_path, collate):
    parts = [TokenRows(8, seed=seed) for seed in range(3)]
    pairs = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in zip(*parts, strict=True)]
    made = trainer_class(SelectTrainer, transformers.Trainer)
    rest = {"model": tiny_model(), "train_dataset": pairs, "data_collator": collate}
    with pytest.raises(ConfigError, match=r"looks at single rows of a batch, but .*_collate made .* -> use"):
        made(args=tiny_training_args(tmp_path), dataflex=spec(SELECTOR, "loss"), **rest)
    made(args=tiny_training_args(tmp_path, max_steps=-1), dataflex=spec(SELECTOR, "random"), **rest)


def own_names(cls):
    """Names that a mixin gives to itself or its class."""
    return names_in(inspect.getsource(cls))


def names_in(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


MIXINS = {
    cls
    for mixin in BY_TRAIN_TYPE.values()
    for cls in mixin.__mro__
    if cls.__module__.startswith("dataflex.") and cls.__name__.endswith("Trainer")
}


OVERRIDDEN = {
    *(TRAINING["transformers.Trainer"]),
    *("compute_loss", "evaluate", "evaluation_loop", "get_batch_samples", "get_eval_dataloader", "get_test_dataloader"),
    *("get_train_dataloader", "log", "save_metrics", "save_model", "save_state", "train", "train_dataset"),
    *("training_step", "_prepare_dataset"),
}
"""Names of the trainers underneath that a mixin has on purpose."""

THEIRS = {"Trainer": [Path(inspect.getfile(transformers.Trainer))]}
THEIRS["Seq2SeqTrainer"] = [*THEIRS["Trainer"], Path(inspect.getfile(transformers.Seq2SeqTrainer))]
TRL = Path(trl.__file__).parent
THEIRS |= {
    f"{name.upper()}Trainer": [
        *THEIRS["Trainer"],
        *sorted(TRL.rglob(f"{name}_trainer.py")),
        *TRL.rglob("base_trainer.py"),
    ]
    for name in ("sft", "dpo", "reward", "kto")
}


def class_names_in(source):
    """Names that a class has: methods, attributes of the class, and attributes that its methods give to objects."""
    yield from names_in(source)
    for node in ast.walk(ast.parse(source)):
        for inner in node.body if isinstance(node, ast.ClassDef) else ():
            targets = (
                inner.targets
                if isinstance(inner, ast.Assign)
                else [inner.target]
                if isinstance(inner, ast.AnnAssign)
                else []
            )
            yield from (target.id for target in targets if isinstance(target, ast.Name))


@pytest.mark.parametrize("theirs", THEIRS)
def test_no_attribute_of_a_mixin_is_one_of_the_trainer_underneath_but_those_it_overrides(theirs):
    ours = {name for cls in MIXINS for name in class_names_in(inspect.getsource(cls))}
    assert len(MIXINS) >= 5
    assert {"component", "batch_rows", "mixture_manager"} <= ours
    found = {name for file in THEIRS[theirs] for name in class_names_in(file.read_text(encoding="utf-8"))}
    assert len(THEIRS[theirs]) > 1 or theirs == "Trainer"
    assert {"_train_batch_size", "compute_loss", "control"} <= found
    assert {name for name in ours & found if not name.startswith("__")} <= OVERRIDDEN
    private = {name for name in ours if name.startswith("_") and not name.startswith("__")}
    assert {name for name in private - OVERRIDDEN if not name.startswith("_dataflex_")} == set()


def by_hand(kind, run, folder):
    return trainer_class(BY_TRAIN_TYPE[kind.train_type], transformers.Trainer)(
        model=tiny_model(),
        args=tiny_training_args(folder),
        train_dataset={"a": TokenRows(8), "b": TokenRows(8)},
        data_collator=pad_collate,
        dataflex=run,
    )


BAD = [
    ({"train_type": "dynamic_selct"}, "train_type: found 'dynamic_selct'"),
    ({"train_type": "static"}, "train_type: is static, but this trainer runs dynamic_"),
    ({"warmup_step": -3}, "warmup_step: found -3"),
    ({"update_step": True}, "update_step: found True"),
    ({"update_times": -2}, "update_times: found -2"),
    ({"train_step": 1.5}, "train_step: found 1.5"),
    ({"weight_objective": "rows"}, "weight_objective: found 'rows'"),
    ({"init_mixture_proportions": (0.5, -1)}, "init_mixture_proportions: found -1"),
]


@pytest.mark.parametrize(("keys", "message"), BAD, ids=[next(iter(keys)) for keys, _ in BAD])
@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.name)
def test_a_run_built_by_hand_is_checked_as_the_command_line_checks_it(tmp_path, kind, keys, message):
    name = {"selector": "random", "mixer": "random", "order": "shuffle", "weighter": "loss"}[kind.name]
    right = {"train_type": kind.train_type, "component_name": name, "warmup_step": 1, "update_step": 1}
    with pytest.raises(ConfigError) as refused:
        by_hand(kind, RunSpec(DataflexArguments(**right | keys), ComponentSpec(kind, name, name)), tmp_path)
    assert message in str(refused.value)


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.name)
def test_a_component_of_another_kind_is_refused(tmp_path, kind):
    other = next(each for each in EVERY_KIND if each is not kind)
    run = RunSpec(DataflexArguments(train_type=kind.train_type, train_step=2), ComponentSpec(other, "random", "random"))
    said = f"component: is the {other.name} 'random', but this trainer needs a {kind.name}"
    with pytest.raises(ConfigError, match=said):
        by_hand(kind, run, tmp_path)


class Passing(transformers.Trainer):
    """A trainer of a user's own that hands on what it is given."""

    def __init__(self, *args, extra=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = extra


@pytest.mark.parametrize("base", [transformers.Trainer, Passing], ids=lambda base: base.__name__)
@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.name)
def test_arguments_without_their_names_are_seen(tmp_path, kind, base):
    name = {"selector": "random", "mixer": "random", "order": "shuffle", "weighter": "loss"}[kind.name]
    rows = {"a": TokenRows(16), "b": TokenRows(16, seed=1)} if kind is MIXER else TokenRows(16)
    arguments = tiny_training_args(tmp_path, max_steps=-1)
    cls = trainer_class(BY_TRAIN_TYPE[kind.train_type], base)
    keys = spec(kind, name) if kind is not WEIGHTER else spec(kind, name, train_step=3, update_times=0)
    done = cls(tiny_model(), arguments, pad_collate, rows, dataflex=keys)
    done.train()
    assert done.state.global_step == 3
    with pytest.raises(TypeError, match="multiple values for argument 'train_dataset'"):
        cls(tiny_model(), arguments, pad_collate, rows, train_dataset=rows, dataflex=keys)


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.name)
def test_a_train_dataset_that_is_missing_is_named(tmp_path, kind):
    with pytest.raises(ConfigError, match="train"):
        trainer_class(BY_TRAIN_TYPE[kind.train_type], transformers.Trainer)(
            tiny_model(), tiny_training_args(tmp_path), pad_collate, dataflex=spec(kind, "random")
        )
