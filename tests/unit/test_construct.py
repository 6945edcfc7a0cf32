"""Construction: user parameters and objects of the run meet the constructor by name, and nothing is dropped."""

from __future__ import annotations

import pytest
from dataflex.core.errors import BrokenPluginError, ConfigError, InvalidConfigError
from dataflex.discovery.construct import construct
from dataflex.train.selector.base_selector import Selector
from dataflex.train.weighter.base_weighter import Weighter

RUNTIME = {
    "dataset": [1, 2],
    "accelerator": "acc",
    "data_collator": "coll",
    "cache_dir": "/cache",
    "seed": 7,
    "output_dir": "/o",
}


class Plain(Selector):
    def select(self, model, step_id, num_samples, **kwargs):
        return []


class Tuned(Plain):
    def __init__(self, alpha, beta=2, **kwargs):
        super().__init__(**kwargs)
        self.alpha, self.beta = alpha, beta


class Weigh(Weighter):
    def __init__(self, strategy="uniform", **kwargs):
        super().__init__(**kwargs)
        self.strategy = strategy

    def get_weighted_loss(self, losses, *, ctx=None, model=None, inputs=None):
        return losses.mean()


class Foreign:
    def __init__(self, seed, strategy="a", **kwargs):
        self.seed, self.strategy, self.kwargs = seed, strategy, kwargs


def test_runtime_objects_reach_a_base_class_through_kwargs():
    made = construct(Tuned, {"alpha": 1}, RUNTIME)
    assert (made.alpha, made.beta, made.dataset, made.cache_dir) == (1, 2, [1, 2], "/cache")


def test_a_class_without_a_constructor_of_its_own_takes_its_bases():
    assert construct(Plain, {}, RUNTIME).accelerator == "acc"


def test_a_user_value_wins_for_what_a_user_may_override():
    assert construct(Plain, {"cache_dir": "/mine"}, RUNTIME).cache_dir == "/mine"
    assert construct(Foreign, {"seed": 1}, RUNTIME).seed == 1


def test_an_unknown_parameter_names_the_class_the_nearest_and_the_allowed():
    with pytest.raises(InvalidConfigError) as caught:
        construct(Tuned, {"alpha": 1, "betta": 3}, RUNTIME)
    assert "Tuned: no parameter 'betta'; allowed: alpha, beta, cache_dir -> did you mean 'beta'?" in str(caught.value)


def test_the_kwargs_of_dataflexs_own_base_class_hold_nothing():
    with pytest.raises(
        InvalidConfigError, match="no parameter 'stratgey'; allowed: strategy -> did you mean 'strategy'"
    ):
        construct(Weigh, {"stratgey": "x"}, RUNTIME)
    assert construct(Weigh, {}, RUNTIME).strategy == "uniform"


def test_a_foreign_class_with_kwargs_takes_any_user_parameter_but_no_unnamed_object_of_the_run():
    made = construct(Foreign, {"anything": 1}, RUNTIME)
    assert (made.seed, made.kwargs) == (7, {"anything": 1})


def test_an_injected_object_cannot_be_a_user_parameter():
    with pytest.raises(InvalidConfigError, match="'dataset' is given by dataflex -> remove 'dataset' from params"):
        construct(Plain, {"dataset": "x"}, RUNTIME)


def test_every_problem_with_the_parameters_is_in_one_message():
    with pytest.raises(InvalidConfigError) as caught:
        construct(Tuned, {"gamma": 1, "delta": 2}, RUNTIME)
    text = str(caught.value)
    assert text.startswith("3 problems")
    assert all(part in text for part in ("'gamma'", "'delta'", "'alpha' has no default and no value"))


def test_an_object_that_the_run_cannot_give_is_named():
    with pytest.raises(InvalidConfigError, match=r"'mixture_manager' has no default.*choose another component"):
        construct(type("M", (), {"__init__": lambda self, mixture_manager: None}), {}, RUNTIME)


def test_what_the_constructor_raises_is_reported_with_its_cause():
    class Failing:
        def __init__(self, path="/x"):
            raise FileNotFoundError(path)

    with pytest.raises(BrokenPluginError, match=r"Failing could not be constructed: FileNotFoundError: /y") as caught:
        construct(Failing, {"path": "/y"}, RUNTIME)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_config_error_of_the_constructor_passes_unchanged():
    class Choosy:
        def __init__(self, ratio=2.0):
            raise ConfigError("ratio: found 2.0, allowed: 0 to 1")

    with pytest.raises(ConfigError, match=r"^ratio: found 2.0, allowed: 0 to 1$"):
        construct(Choosy, {}, RUNTIME)
