"""A hint is given for what is misspelt, and for nothing that only looks alike."""

from __future__ import annotations

import pytest
from dataflex.config.arguments import DataflexArguments
from dataflex.config.known_keys import llamafactory_keys
from dataflex.core.errors import nearest
from dataflex.core.spelling import RENAMED, alike
from dataflex.discovery.catalog import components

KEYS = sorted({*DataflexArguments.names(), *(llamafactory_keys() or ())})
TAKEN = {f"{info.kind.name} {info.name}": info.accepts for info in components() if info.version and info.accepts}
PARAMETERS = {name for accepts in TAKEN.values() for name in accepts}
CLOSE = ({"normalise", "normalize"}, {"scope", "score", "scores"}, {"share", "shares"}, {"beta", "eta"})
"""Names of parameters of several components that differ by a letter; a hint from one to the other does no harm."""
PLURAL = {"warmup_step", "warmup_steps"}  # ours and transformers', for the same steps
LEAST = 3  # letters of a name that may have a wrong one


def misspelt(name):
    """Yields a name with a letter left out, doubled, changed, and two of them swapped."""
    middle = len(name) // 2
    yield name[:middle] + name[middle + 1 :]
    yield name[:middle] + name[middle] + name[middle:]
    yield name[:middle] + "q" + name[middle + 1 :]
    yield name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :]


@pytest.mark.parametrize("names", [KEYS, *map(sorted, TAKEN.values())], ids=["keys of a run", *TAKEN])
def test_each_name_is_hinted_when_a_letter_is_wrong(names):
    tried = [(name, wrong) for name in names if len(name.replace("_", "")) > LEAST for wrong in misspelt(name)]
    missed = [(name, wrong) for name, wrong in tried if wrong not in names and name not in alike(wrong, names)]
    assert not missed


@pytest.mark.parametrize("name", ["trainType", "train-type", "TRAIN_TYPE", "traintype", " train_type"])
def test_case_and_dashes_do_not_matter(name):
    assert nearest(name, KEYS) == "did you mean 'train_type'?"


@pytest.mark.parametrize("component", TAKEN)
def test_a_name_that_means_something_elsewhere_is_not_hinted_to_another(component):
    foreign = (PARAMETERS | set(KEYS)) - TAKEN[component]
    hinted = {name: alike(name, TAKEN[component]) for name in foreign if name not in RENAMED}
    close = {name for name, hint in hinted.items() if any({name, *hint} <= each for each in CLOSE)}
    assert {name: hint for name, hint in hinted.items() if hint and name not in close} == {}


def test_a_parameter_of_a_component_is_not_hinted_to_a_key_of_the_run():
    assert {name: alike(name, KEYS) for name in PARAMETERS - set(KEYS) if alike(name, KEYS)} == {}


@pytest.mark.parametrize(
    ("found", "allowed"),
    [
        ("cluster_size", {"clusters", "budget"}),
        ("generation_temperature", {"draw_temperature", "top_p"}),
        ("freeze_gate", {"freeze_vision_tower", "freeze_trainable_layers"}),
        ("x", {"by"}),
        ("use_lora", {"use_dora", "lora_rank"}),
        ("min_samples", {"max_samples"}),
        ("top_n", {"top_k", "top_p"}),
        ("adam_beta1", {"adam_beta2"}),
        ("use_unsloth", {"use_unsloth_gc"}),
    ],
)
def test_names_that_share_a_part_are_not_hinted(found, allowed):
    assert nearest(found, allowed) == ""


def test_another_programs_word_is_hinted_where_the_value_means_the_same():
    assert nearest("generation_temperature", {"temperature", "top_p"}) == "did you mean 'temperature'?"
    assert nearest("lr", {"learning_rate", "top_p"}) == "did you mean 'learning_rate'?"


@pytest.mark.llamafactory
def test_another_programs_word_is_one_of_llamafactorys_keys():
    assert nearest("generation_temperature", KEYS) == "did you mean 'temperature'?"
    assert nearest("lr", KEYS) == "did you mean 'learning_rate'?"
    assert set(RENAMED.values()) <= PARAMETERS | set(KEYS)


def test_names_that_are_equally_near_are_both_shown():
    assert nearest("top_", {"top_k", "top_p"}) == "did you mean 'top_k' or 'top_p'?"


@pytest.mark.parametrize("names", [KEYS, *map(sorted, TAKEN.values())], ids=["keys of a run", *TAKEN])
def test_no_name_that_is_allowed_is_hinted_in_the_place_of_another(names):
    """Each one is left out in turn, as an older version of the packages might, and asked for."""
    hinted = {name: alike(name, set(names) - {name}) for name in names}
    assert {name: hint for name, hint in hinted.items() if hint and not {name, *hint} <= PLURAL} == {}


@pytest.mark.parametrize("found", ["generation_temperature", "sampling_temperature"])
def test_the_temperature_of_drawn_texts_is_hinted_where_texts_are_drawn(found):
    hinted = {who for who, accepts in TAKEN.items() if alike(found, accepts) == ("temperature",)}
    assert hinted == {who for who, accepts in TAKEN.items() if {"temperature", "top_p"} <= accepts}
    assert len(hinted) < sum("temperature" in accepts for accepts in TAKEN.values())
