"""``dataflex.dynamic``: what a call may say, what is refused in which words, and the class that comes back."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from abc import ABC
from typing import get_type_hints

import dataflex
import numpy as np
import pytest
import transformers
from dataflex import dynamic
from dataflex.api.keywords import AXES, DATASETS, OWN, Keywords, allowed
from dataflex.api.run import checked_run
from dataflex.config.arguments import DataflexArguments
from dataflex.config.check import check
from dataflex.config.summary import in_words
from dataflex.core import registry
from dataflex.core.errors import ConfigError, InvalidConfigError
from dataflex.core.kinds import MIXER, ORDER, SELECTOR, WEIGHTER
from dataflex.discovery import component_classes
from dataflex.interfaces.order import Order
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.mixer.base_mixer import Mixer
from dataflex.train.selector.base_selector import Selector
from dataflex.train.trainer import BY_TRAIN_TYPE
from dataflex.train.weighter.base_weighter import Weighter
from dataflex_selectors.loss import LossSelector
from transformers import Trainer

STEPS = {"warmup_step": 1, "update_step": 1, "update_times": 2}
NAMES = {SELECTOR: "random", MIXER: "random", ORDER: "shuffle", WEIGHTER: "loss"}


class Every(Selector):
    """Takes rows from the front."""

    draws = False

    def __init__(self, start=0, **kwargs):
        super().__init__(**kwargs)
        self.start = start

    def select(self, model, step_id, num_samples, **kwargs):
        return np.arange(self.start, self.start + num_samples) % len(self.dataset)


class Even(Mixer):
    draws = False

    def mix(self, model, step_id, **kwargs):
        return np.full(len(self.mixture_manager.names), 1 / len(self.mixture_manager.names))


class Reverse(Order):
    draws = False

    def arrange(self, scores, *, context):
        return np.arange(len(scores))[::-1]


class Uniform(Weighter):
    draws = False

    def get_weighted_loss(self, losses, *, ctx, model, inputs):
        return losses.mean()


OWN_CLASSES = {SELECTOR: Every, MIXER: Even, ORDER: Reverse, WEIGHTER: Uniform}


def steps(kind):
    return STEPS if kind is not WEIGHTER else {"train_step": 3}


def trained(cls, folder, **changes):
    mixed = cls.kind is MIXER
    rows = {"a": TokenRows(16), "b": TokenRows(16, seed=1)} if mixed else TokenRows(32)
    given = {"model": tiny_model(), "args": tiny_training_args(folder, max_steps=-1), "train_dataset": rows}
    made = cls(**(given | {"data_collator": pad_collate} | changes))
    made.train()
    return made


def refusal(*args, **keywords):
    with pytest.raises(ConfigError) as refused:
        dynamic(*args, **keywords)
    return str(refused.value)


def test_importing_dataflex_and_dynamic_loads_neither_torch_nor_transformers():
    code = (
        "import sys; import dataflex; from dataflex import dynamic; import inspect; inspect.signature(dynamic); "
        "assert 'dynamic' in dir(dataflex); "
        "print([name for name in ('torch', 'transformers', 'numpy', 'llamafactory') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_key_is_a_keyword_for_type_checkers_and_for_help():
    names = {*OWN, *DataflexArguments.names()} - DATASETS
    assert set(get_type_hints(Keywords)) == names == set(allowed())
    shown = inspect.signature(dynamic).parameters
    assert set(shown) == {"base", *names}
    assert shown["update_times"].default == -1
    assert "selector" in dynamic.__doc__
    assert dataflex.dynamic is dynamic


@pytest.mark.parametrize(
    "key", sorted(set(DataflexArguments.names()) - DATASETS - {"train_type", "component_name", *AXES})
)
def test_every_key_reaches_the_run_or_is_refused_in_the_words_of_validate(key):
    refused = refusal(Trainer, selector="random", **STEPS | {key: object()})
    assert f"  - {key}: found <object" in refused or "params" in refused or "component" in refused


@pytest.mark.parametrize("kind", NAMES, ids=lambda kind: kind.name)
def test_a_run_of_each_kind_trains_and_is_the_run_of_its_keys(tmp_path, kind):
    by_axis = dynamic(Trainer, **{kind.name: NAMES[kind]}, **steps(kind))
    by_keys = dynamic(Trainer, train_type=kind.train_type, component_name=NAMES[kind], **steps(kind))
    assert by_axis.recipe[1].spec == by_keys.recipe[1].spec
    done = trained(by_axis, tmp_path)
    assert done.state.global_step == 3
    assert isinstance(done, BY_TRAIN_TYPE[kind.train_type])
    assert isinstance(done, Trainer)
    assert (tmp_path / "dataflex_config.yaml").exists()


def test_a_static_mixture_needs_no_mixer(tmp_path):
    cls = dynamic(Trainer, static_mix=True, train_step=3, init_mixture_proportions=[0.25, 0.75])
    assert trained(cls, tmp_path).mixture_manager.proportions.tolist() == [0.25, 0.75]


@pytest.mark.parametrize("kind", NAMES, ids=lambda kind: kind.name)
def test_a_class_is_taken_as_it_is_and_twice(tmp_path, kind):
    cls = OWN_CLASSES[kind]
    made = [dynamic(Trainer, **{kind.name: cls}, **steps(kind)) for _ in range(2)]
    done = trained(made[1], tmp_path)
    assert type(done.component) is cls
    assert component_classes.find(kind, cls.__name__) is cls


def test_a_class_of_a_package_is_found_under_the_packages_name():
    run = dynamic(Trainer, selector=LossSelector, **STEPS).recipe[1]
    assert registry.split_name(run.spec.component.name)[1] == "loss"
    assert component_classes.find(SELECTOR, run.spec.component.name) is LossSelector


def test_a_class_whose_name_is_taken_gets_a_longer_one():
    twin = type("random", (Every,), {"__module__": "typed_at_a_prompt"})
    assert dynamic(Trainer, selector=twin, **STEPS).recipe[1].spec.component.name == "typed_at_a_prompt.random"


PLUGIN = """
import numpy as np
from dataflex.core.registry import register_selector
from dataflex.train.selector.base_selector import Selector

@register_selector("front")
class Front(Selector):
    def __init__(self, start=0, **kwargs):
        super().__init__(**kwargs)
        self.start = start

    def select(self, model, step_id, num_samples, **kwargs):
        return np.arange(self.start, self.start + num_samples) % len(self.dataset)
"""


WAVE = """
from dataflex.core.registry import register_order
from dataflex.interfaces.order import Order

@register_order("wave")
class Wave(Order):
    def arrange(self, scores, *, context):
        return scores.argsort()
"""


def test_a_plugin_file_is_named_in_each_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PLUGIN)
    ways = [
        {"selector": "mine.py"},
        {"selector": tmp_path / "mine.py"},
        {"selector": "front", "plugins": "mine.py"},
        {"selector": "front", "plugins": [tmp_path / "mine.py"]},
    ]
    runs = [dynamic(Trainer, params={"start": 3}, **way, **STEPS).recipe[1] for way in ways]
    assert {run.spec.component.name for run in runs} == {"front"}
    assert {run.spec.arguments.plugins for run in runs} == {(str(tmp_path / "mine.py"),)}
    (tmp_path / "mine.py").write_text(PLUGIN + PLUGIN.replace('"front"', '"second"').replace("Front", "Second"))
    assert "selector: mine.py registers 2 selectors: front, second -> " in refusal(Trainer, selector="mine.py", **STEPS)
    assert "registers no mixer" in refusal(Trainer, mixer="mine.py", **STEPS)


def test_presets_and_parameters_are_those_of_the_components_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("selectors: {hard: {name: loss, params: {focus: high}}}")
    made = dynamic(Trainer, selector="hard", components_cfg_file="mine.yaml", **STEPS)
    assert made.recipe[1].spec.component.params["focus"] == "high"
    whole = dynamic(Trainer, selector={"name": "loss", "params": {"focus": "low"}}, **STEPS)
    assert whole.recipe[1].spec.component.params["focus"] == "low"
    assert "components_cfg_file" in refusal(Trainer, selector="hard", components_cfg_file="no.yaml", **STEPS)


SAME = [
    ({"component_name": "les"}, {"selector": "les"}),
    ({"component_name": "loss", "component": {"focsu": 1}}, {"selector": "loss", "params": {"focsu": 1}}),
    ({"component_name": "loss", "component": {"focus": "x"}}, {"selector": "loss", "params": {"focus": "x"}}),
    ({"component_name": "tsds", "component": {"embedding": 3}}, {"selector": "tsds", "component": {"embedding": 3}}),
    ({"component_name": "random", "warmup_step": -3}, {"selector": "random", "warmup_step": -3}),
    ({"component_name": "random", "update_step": 0}, {"selector": "random", "update_step": 0}),
    ({"component_name": "random", "plugins": ["no.py"]}, {"selector": "random", "plugins": ["no.py"]}),
]


@pytest.mark.parametrize(("keys", "keywords"), SAME, ids=[str(number) for number in range(len(SAME))])
def test_the_words_are_those_of_validate(tmp_path, keys, keywords):
    yaml = {"train_type": "dynamic_select", "stage": "sft", "dataset": "a", "dataset_dir": {"a": {}}, "do_train": True}
    with pytest.raises(InvalidConfigError) as validated:
        check(yaml | STEPS | {"output_dir": "run", "eval_dataset": "a"} | keys, tmp_path)
    theirs = [problem for problem in validated.value.problems if problem.where in keys or "." in problem.where]
    with pytest.raises(InvalidConfigError) as refused:
        dynamic(Trainer, **STEPS | keywords)
    for problem in theirs:
        if problem.where != "plugins":  # the paths differ
            assert (problem.what, problem.way_out) in [(own.what, own.way_out) for own in refused.value.problems]
    assert all(problem.where.partition(".")[0] in keywords for problem in refused.value.problems)


WRONG = [
    ({"selektor": "less"}, "selektor: dynamic has no such keyword -> did you mean 'selector'?"),
    ({"selector": "less", "mixer": "odm", "params": {}}, "params: does not say of which component -> write selector={"),
    ({"selector": "less", "mixer": 3}, "mixer: found 3, allowed: a name, a class, the path of a plugin file, or a map"),
    ({"selector": ["random", Uniform]}, "selector[1]: selector 'Uniform' ("),
    ({"selector": ["random", "less"]}, "selector[1]: chooses the rows of each stretch, and so does selector[0]"),
    (
        {"selector": {"name": "loss", "keep": 3}},
        "selector.keep: found 3, allowed: a number above 0, up to 1 -> write",
    ),
    ({"selector": {"name": "loss", "component": "loss"}}, "selector: found both name and component"),
    ({"weighter": {"name": "loss", "every": 3}}, "weighter.every: no such key; allowed: component, from, name, params"),
    (
        {"selector": "less", "mixer": {"name": "odm", "params": {"x": 1}}},
        "mixer.params.x: the mixer 'odm' has no",
    ),
    (
        {"selector": "less", "mixer": "odm", "train_type": "dynamic_mix"},
        "train_type: is 'dynamic_mix', and selector",
    ),
    (
        {"selector": "less", "mixer": "odm", "component_name": "odm"},
        "component_name: is of the short forms of one",
    ),
    ({"train_type": "dynamic"}, "train_type: train_type: dynamic has no axis"),
    ({}, "selector | mixer | order | weighter: nothing is dynamic"),
    ({"train_type": "static"}, "selector | mixer | order | weighter: nothing is dynamic"),
    ({"selector": "random", "learning_rate": 1}, "learning_rate: is one of the training arguments -> give it in args"),
    ({"selector": "random", "warmup_steps": 1}, "TrainingArguments(warmup_steps=...), or: did you mean 'warmup_step'?"),
    ({"selector": "random", "eval_dataset": []}, "-> give it to the class: dynamic(Trainer, ...)(eval_dataset=...)"),
    ({"mixer": "odm", "mixer_eval_dataset": []}, "mixer_eval_dataset: is an argument of the trainer, not of dynamic"),
    ({"selector": "loss", "focus": "low"}, "it is a parameter of the selector 'loss' -> write params={'focus': ...}"),
    ({"selector": "random", "params": [1]}, "params: found [1], allowed: a mapping from parameters to values"),
    ({"selector": "random", "params": {}, "component": {}}, "params and component: are both given; they mean the same"),
    ({"selector": "random", "component_name": "loss"}, "component_name: says what selector= says already"),
    ({"selector": "random", "train_type": "dynamic_mix"}, "train_type: says what selector= says already"),
    ({"selector": 3}, "selector: found 3, allowed: a name, a class, the path of a plugin file, or a mapping"),
    ({"selector": {"nam": "loss"}}, "selector.nam: no such key; allowed: component, every, from, keep, name, params"),
    ({"selector": {"params": {}}}, "selector: found no name of a component in the mapping"),
    ({"selector": {"name": "loss", "params": 3}}, "selector.params: found 3, allowed: a mapping"),
    ({"selector": transformers.Trainer}, "is not a Selector"),
    ({"selector": Uniform()}, "selector: found <"),
    ({"weighter": Uniform()}, "-> give the class, weighter=Uniform, and what its constructor takes in params"),
    ({"selector": "no_such_file.py"}, "selector: plugin file"),
    ({"mixer": "doremi"}, "needs the parameter 'reference_model'"),
]


@pytest.mark.parametrize(("keywords", "message"), WRONG, ids=[message[:50] for _, message in WRONG])
def test_what_a_call_cannot_mean_is_refused_before_there_is_a_model(keywords, message):
    assert message in refusal(Trainer, **STEPS | keywords)


def test_several_axes_are_the_run_of_their_keys(tmp_path, monkeypatch):
    """A list, mappings, names, a class and a plugin file; nothing trains it here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PLUGIN)
    filters = {"name": "loss", "keep": 0.5, "every": 2, "params": {"focus": "low"}}
    keywords = {
        "selector": [filters, {"component": "mine.py", "from": 1}],
        "mixer": Even,
        "weighter": {"component": "loss", "from": 2},
        "warmup_step": 1,
        "update_step": 1,
        "update_times": 2,
    }
    run = checked_run(Trainer, keywords)
    kept, chooser, mixer, weighter = run.spec.parts
    assert run.spec.arguments.train_type == "dynamic"
    assert run.spec.arguments.plugins == (str(tmp_path / "mine.py"),)
    assert (kept.component.name, kept.keep, kept.every) == ("loss", 0.5, 2)
    assert kept.component.params["focus"] == "low"
    assert (chooser.component.name, chooser.start) == ("front", 1)
    assert component_classes.find(MIXER, mixer.component.name) is Even
    assert (weighter.component.name, weighter.start) == ("loss", 2)
    assert checked_run(Trainer, run.keywords).spec == run.spec
    assert in_words(run.spec).startswith("filter to half by loss every 2nd update; shares by Even; rows by front")


def test_the_keys_of_a_yaml_are_the_run_of_the_keywords(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(WAVE)
    keys = {"train_type": "dynamic_reorder", "component_name": "wave", "order": {"by": "length"}, "plugins": "mine.py"}
    short = checked_run(Trainer, keys | STEPS).spec
    own = checked_run(Trainer, {"order": {"name": "wave", "by": "length"}, "plugins": "mine.py"} | STEPS).spec
    assert short == own
    assert (short.order.by, short.order.over) == ("length", "run")
    keys = {"train_type": "dynamic", "order": {"component": "wave", "by": "length"}, "plugins": "mine.py"}
    whole = checked_run(Trainer, keys | STEPS).spec
    assert whole.parts == own.axes


def test_one_axis_with_a_place_of_its_own_is_composed_and_without_is_the_short_form():
    plain, placed = (
        checked_run(Trainer, {"selector": {"component": "loss"} | rest, **STEPS}).spec for rest in ({}, {"every": 1})
    )
    assert (plain.arguments.train_type, placed.arguments.train_type) == ("dynamic_select", "dynamic")
    assert [part.component for part in plain.axes] == [part.component for part in placed.axes]


@pytest.mark.parametrize("base", [3, dict, tiny_model, Trainer.train], ids=["number", "class", "function", "method"])
def test_what_is_no_trainer_is_refused(base):
    with pytest.raises(TypeError, match=r"dynamic takes transformers\.Trainer or a subclass, found"):
        dynamic(base, selector="random", **STEPS)


class Unloaded(Trainer):
    """A trainer that must not be reached: it would load a model."""

    def __init__(self, *args, **kwargs):
        raise AssertionError("the model would be loaded now")


SOURCES = {"a": TokenRows(8), "b": TokenRows(8)}
BEFORE = [
    ({"selector": "less"}, {}, "eval_dataset: is missing; the selector 'less' aims at one -> give eval_dataset, or "),
    ({"weighter": "adapt", "train_step": 2}, {}, "eval_dataset: is missing; the weighter 'adapt' aims at one"),
    (
        {"mixer": "doge", "params": {"target": "eval"}},
        {"train_dataset": SOURCES},
        "eval_dataset: is missing; the mixer 'doge' aims at one -> give eval_dataset",
    ),
    (
        {"mixer": "odm", "params": {"reward": "eval_loss"}},
        {"train_dataset": SOURCES},
        "mixer_eval_dataset: is missing; the mixer 'odm' looks at held-out rows of each source -> give mixer_eval_",
    ),
    ({"selector": "random"}, {"train_dataset": SOURCES}, "train_dataset: found a mapping of datasets (a, b), but"),
    (
        {"selector": "random"},
        {"train_dataset": None},
        "train_type: dynamic_select needs a train dataset -> give train_",
    ),
    ({"mixer": "random"}, {"train_dataset": SOURCES["a"]}, "needs two sources or more"),
    ({"selector": "random"}, {"max_steps": 1}, "so the run ends before its first update"),
    ({"selector": "random"}, {"auto_find_batch_size": True}, "auto_find_batch_size: is True, but what"),
    ({"weighter": "loss"}, {"compute_loss_func": print}, "compute_loss_func: computes the loss of a batch itself"),
    (
        {"weighter": "dataset", "params": {"weights": {"c": 1.0}}},
        {"train_dataset": SOURCES},
        "weights.c: no such source; there are a, b",
    ),
]


@pytest.mark.parametrize(("keywords", "given", "message"), BEFORE, ids=[message[:50] for *_, message in BEFORE])
def test_what_only_the_trainers_arguments_tell_is_refused_before_they_load_a_model(tmp_path, keywords, given, message):
    arguments = {key: given[key] for key in ("max_steps", "auto_find_batch_size") if key in given}
    rest = {"train_dataset": TokenRows(8)} | {key: value for key, value in given.items() if key not in arguments}
    cls = dynamic(Unloaded, **STEPS | keywords)
    with pytest.raises(ConfigError) as refused:
        cls("a/path", args=tiny_training_args(tmp_path, **({"max_steps": -1} | arguments)), **rest)
    assert message in str(refused.value)


class OwnLooking(Mixer):
    def __init__(self, mixture_manager, mixer_eval_dataset):
        super().__init__(mixture_manager)

    def mix(self, model, step_id, **kwargs):
        return self.mixture_manager.proportions


@pytest.mark.parametrize(
    ("mixer", "params", "told"),
    [
        ("odm", {}, "as the mixer 'odm' looks at no held-out rows"),
        ("odm", {"reward": "eval_loss"}, None),
        (OwnLooking, {}, None),
    ],
)
def test_held_out_rows_that_no_mixer_looks_at_are_told(tmp_path, caplog, mixer, params, told):
    cls = dynamic(Unloaded, mixer=mixer, params=params, **STEPS)
    with pytest.raises(AssertionError, match="would be loaded now"):
        cls(
            "a/path", args=tiny_training_args(tmp_path, max_steps=-1), train_dataset=SOURCES,
            mixer_eval_dataset=SOURCES,
        )  # fmt: skip
    assert ("mixer_eval_dataset: no effect" in caplog.text) == (told is not None)
    assert told is None or told in caplog.text


def test_epochs_beside_a_schedule_are_said_to_have_no_effect(tmp_path, caplog):
    trained(dynamic(Trainer, selector="random", **STEPS), tmp_path)
    assert "num_train_epochs" not in caplog.text
    arguments = tiny_training_args(tmp_path / "two", max_steps=-1, num_train_epochs=2)
    trained(dynamic(Trainer, selector="random", **STEPS), tmp_path / "two", args=arguments)
    assert "num_train_epochs: 2 has no effect: the run is 3 steps long by its schedule" in caplog.text


def test_keys_without_effect_are_said_as_validate_says_them(caplog):
    dynamic(Trainer, selector="random", mixture_unit="tokens", **STEPS)
    assert "mixture_unit: no effect with train_type: dynamic_select" in caplog.text


@pytest.mark.parametrize("kind", NAMES, ids=lambda kind: kind.name)
def test_the_class_shows_the_call_and_is_pickled(kind):
    cls = dynamic(Trainer, **{kind.name: OWN_CLASSES[kind]}, **steps(kind))
    again = pickle.loads(pickle.dumps(cls))
    assert repr(again) == repr(cls)
    assert repr(cls).startswith(f"dynamic(Trainer, {kind.name}={OWN_CLASSES[kind].__name__}, ")
    assert again.recipe[1].spec == cls.recipe[1].spec
    assert cls.__name__ == "DynamicTrainer"
    assert "Trainer with dynamic training" in cls.__doc__
    assert copy.deepcopy(cls) is cls


Pickled = dynamic(Trainer, selector="random", **STEPS)


class Mine(Pickled):
    """A subclass of a user's own."""

    def __init__(self, *args, extra=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = extra


def test_a_subclass_of_the_class_is_an_ordinary_class(tmp_path):
    assert pickle.loads(pickle.dumps(Mine)) is Mine
    assert repr(Mine) == f"<class '{__name__}.Mine'>"
    done = trained(Mine, tmp_path, extra=3)
    assert (done.extra, done.state.global_step) == (3, 3)


class Abstract(Trainer, ABC):
    """A trainer whose class has a class of its own."""


def test_a_base_with_a_metaclass_is_a_base_too(tmp_path):
    cls = dynamic(Abstract, selector="random", **STEPS)
    assert pickle.loads(pickle.dumps(cls)).recipe[1].spec == cls.recipe[1].spec
    assert trained(cls, tmp_path).state.global_step == 3
