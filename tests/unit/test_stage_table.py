"""What a class asks for is read as it says it; what no stage would understand is an error, and not silence."""

from __future__ import annotations

import pytest
from dataflex.config.checks.conditional_words import holding
from dataflex.config.checks.stage_table import asked_for
from dataflex.core.component import Component
from dataflex.core.errors import ConfigError
from dataflex.core.kinds import KINDS, MIXER
from dataflex.core.registry import provided
from dataflex.discovery.catalog import lookup
from dataflex.interfaces.mixer import Mixer

PARAMS = {"embedding": "model", "folder": None, "reject": True}


@pytest.mark.parametrize(
    ("asks", "found"),
    [
        ("", None),
        ("gradients", "gradients"),
        ("hidden states if embedding=model", "hidden states"),
        ("hidden states if embedding=ngrams", None),
        ("gates if folder", None),
        ("gates if embedding", "gates"),
        ("generated answers if reject=true", "generated answers"),
        ("generated answers if reject=false", None),
    ],
)
def test_what_is_asked_for_depends_on_the_parameters(asks, found):
    assert asked_for(asks, PARAMS) == found


@pytest.mark.parametrize(
    ("asks", "said"),
    [
        ("gradient", "asks: found 'gradient', allowed: answers behind prompts, counts of tokens, gates, generated "),
        ("Gradients", "asks: found 'Gradients', allowed: "),
        ("gradients when folder", "asks: found 'gradients when folder', allowed: "),
        ("gradients if folders", "asks: found 'gradients if folders', allowed behind 'if': embedding, folder, reject"),
    ],
)
def test_what_nobody_understands_is_refused(asks, said):
    with pytest.raises(ConfigError) as caught:
        asked_for(asks, PARAMS)
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_component_of_ours_says_it_so_that_it_is_read(kind):
    for point in provided(kind):
        info = lookup(kind, point.name)
        assert info is not None
        asked_for(str(info.constants.get("asks", "")), dict.fromkeys(info.required, "given") | dict(info.parameters))


def test_a_mixer_of_ours_says_that_it_weighs_sources_where_it_does():
    for point in provided(MIXER):
        says = bool(lookup(MIXER, point.name).constants.get("weighs_sources"))
        assert says == (point.load().loss_weights is not Mixer.loss_weights), point.name


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_columns_that_our_classes_ask_for_are_those_of_the_parameters_that_they_name(kind):
    for point in provided(kind):
        constants, cls = lookup(kind, point.name).constants, point.load()
        scores, tokens = constants.get("scores_named_in"), constants.get("token_column_in")
        assert bool(scores) == (cls.needs_columns.__func__ is not Component.needs_columns.__func__), point.name
        assert bool(tokens) == (cls.needs_token_column.__func__ is not Component.needs_token_column.__func__)
        assert not scores or cls.needs_columns({scores: ["loss", "column:c"]}) == ("c",)
        assert not tokens or cls.needs_token_column({tokens: "c"}) == "c"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_our_classes_say_of_rows_that_they_need_names_their_parameters(kind):
    for point in provided(kind):
        info = lookup(kind, point.name)
        params = dict.fromkeys(info.required, "given") | dict(info.parameters)
        holding("needs_rows", str(info.constants.get("needs_rows", "")), ("eval_dataset", "mixer_eval_dataset"), params)
