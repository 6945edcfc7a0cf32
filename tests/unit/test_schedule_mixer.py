"""The mixers ``temperature`` and ``schedule``: their numbers, the file that changes, and what they refuse."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from dataflex.core.errors import ConfigError
from dataflex.planning.mixture import MixtureManager
from dataflex_mixers.schedule import ScheduleMixer
from dataflex_mixers.temperature import TemperatureMixer, tempered

NAMES = ("web", "code")
ALONE = SimpleNamespace(is_main_process=True, num_processes=1)
POINTS = [
    {"at": 10, "proportions": [3, 1]},
    {"at": 20, "proportions": {"code": 1}},
    {"at": 40, "proportions": [0.5, 0.5]},
]


def manager(**more):
    return MixtureManager(NAMES, (100, 900), (0.5, 0.5), seed=1, **more)


def mixer(**params):
    return ScheduleMixer(manager(), ALONE, **params)


def at(made, step):
    return made.mix(None, step)


def test_temperature_by_hand():
    a, b = math.sqrt(100), math.sqrt(900)
    made = TemperatureMixer(manager(), temperature=2)
    np.testing.assert_allclose(made.mix(None, 0), [a / (a + b), b / (a + b)], rtol=1e-12)
    np.testing.assert_allclose(tempered(np.array([100.0, 900.0]), 1.0), [0.1, 0.9], rtol=1e-12)
    np.testing.assert_allclose(tempered(np.array([1.0, 1e12]), 1e9), [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(tempered(np.array([1e8, 1e9]), 0.01), [0, 1], atol=1e-12)


def test_temperature_counts_tokens_where_the_mixture_does():
    made = TemperatureMixer(manager(mean_lengths=[90, 10]), temperature=1)
    np.testing.assert_allclose(made.mix(None, 0), [0.5, 0.5], rtol=1e-12)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "2", True, None])
def test_temperature_refuses_what_is_no_positive_number(value):
    with pytest.raises(ConfigError, match=r"temperature of the temperature mixer: found .*, allowed: a number above 0"):
        TemperatureMixer(manager(), temperature=value)


@pytest.mark.parametrize(
    ("interpolation", "expected"),
    [
        ("linear", {0: 0.75, 10: 0.75, 15: 0.375, 20: 0.0, 35: 0.375, 40: 0.5, 99: 0.5}),
        ("step", {0: 0.75, 10: 0.75, 19: 0.75, 20: 0.0, 39: 0.0, 40: 0.5, 99: 0.5}),
        (
            "cosine",
            {0: 0.75, 12: 0.75 * (1 - (1 - math.cos(0.2 * math.pi)) / 2), 15: 0.375, 20: 0.0, 30: 0.25, 99: 0.5},
        ),
    ],
)
def test_each_interpolation_by_hand(interpolation, expected):
    made = mixer(points=POINTS, interpolation=interpolation)
    for step, web in expected.items():
        np.testing.assert_allclose(at(made, step), [web, 1 - web], atol=1e-12, err_msg=str(step))


def test_positions_may_be_tokens_which_are_counted_and_kept():
    made = mixer(points=POINTS, by="tokens")
    assert made.observes
    assert ScheduleMixer.may_observe({"by": "tokens"})
    made.observe(1, np.array([2.0, np.nan]), np.array([15, 0]))
    np.testing.assert_allclose(at(made, 999), [0.375, 0.625])
    again = mixer(points=POINTS, by="tokens")
    again.load_state_dict(made.state_dict())
    np.testing.assert_allclose(at(again, 0), [0.375, 0.625])
    assert again.details() == {"at": 15}


def test_by_steps_nothing_is_observed():
    assert not mixer(points=POINTS).observes
    assert not ScheduleMixer.may_observe({"by": "steps"})


def write(path, points, **more):
    path.write_text(yaml.safe_dump({"points": points, **more}))


def test_a_file_that_changes_is_taken_over_at_the_next_update_and_the_trace_says_so(tmp_path):
    path = tmp_path / "mixture.yaml"
    write(path, [{"at": 0, "proportions": [1, 1]}])
    made = mixer(file=str(path))
    np.testing.assert_allclose(at(made, 0), [0.5, 0.5])
    first = made.details()
    assert "schedule_changed" not in first
    write(path, [{"at": 0, "proportions": [1, 0]}, {"at": 10, "proportions": [0, 1]}], interpolation="step")
    np.testing.assert_allclose(at(made, 5), [1, 0])
    assert made.details()["schedule_changed"] is True
    assert made.details()["schedule_digest"] != first["schedule_digest"]
    at(made, 10)
    assert "schedule_changed" not in made.details()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("points: [", "malformed YAML"),
        ("[1, 2]", "found a list, allowed: a mapping"),
        ("points: [{at: 0, proportions: [1]}]", "allowed: 2 numbers, one per source"),
        (None, "there is no such file"),
        ("points: [{at: 0x10, proportions: [1, 1]}]", "found 0x10, allowed: decimal numbers"),
        ("points: []\npoints: []", "duplicate key points"),
        ("points: " + "[" * 2000 + "]" * 2000, "nested too deeply"),
    ],
)
def test_a_file_that_has_become_wrong_leaves_the_last_good_one_in_force_and_says_so(tmp_path, caplog, content, reason):
    path = tmp_path / "mixture.yaml"
    write(path, [{"at": 0, "proportions": [3, 1]}])
    made = mixer(file=str(path))
    path.write_text(content) if content is not None else path.unlink()
    np.testing.assert_allclose(at(made, 7), [0.75, 0.25])
    assert reason in made.details()["schedule_error"]
    write(path, [{"at": 0, "proportions": [1, 3]}])
    np.testing.assert_allclose(at(made, 8), [0.25, 0.75])
    assert "schedule_error" not in made.details()


def test_a_checkpoint_holds_the_text_in_force(tmp_path):
    path = tmp_path / "mixture.yaml"
    write(path, [{"at": 0, "proportions": [3, 1]}])
    first = mixer(file=str(path))
    write(path, [{"at": 0, "proportions": [1, 1]}])
    again = mixer(file=str(path))
    again.load_state_dict(first.state_dict())
    path.unlink()
    np.testing.assert_allclose(at(again, 0), [0.75, 0.25])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "points, file of the schedule mixer: one of the two is needed, and not both"),
        ({"points": POINTS, "file": "x"}, "one of the two is needed, and not both"),
        ({"points": POINTS, "by": "epochs"}, "by of the schedule mixer: found 'epochs', allowed: steps, tokens"),
        ({"points": POINTS, "interpolation": "cubic"}, "interpolation of the schedule mixer: found 'cubic'"),
        ({"points": []}, r"points of the schedule mixer: found \[\], allowed: a list of points"),
        ({"points": [{"at": 0}]}, r"points\[0\] of the schedule mixer: found .*allowed: a mapping with the keys"),
        ({"points": [{"at": -1, "proportions": [1, 1]}]}, r"points\[0\].at of the schedule mixer: found -1"),
        ({"points": [{"at": 0, "proportions": {"wed": 1}}]}, "no source wed; the sources: web, code -> did you mean"),
        ({"points": [{"at": 0, "proportions": [0, 0]}]}, "found only zeros, allowed: numbers of 0 or more, not all 0"),
        ({"points": [{"at": 0, "proportions": [1, "x"]}]}, "found 'x', allowed: numbers"),
        ({"points": [POINTS[1], POINTS[0]]}, "at is 20, 10; each must be larger than the one before"),
        ({"file": "/no/such/file.yaml"}, "file of the schedule mixer: /no/such/file.yaml: there is no such file"),
    ],
)
def test_what_is_wrong_is_refused_by_key_found_and_allowed(params, message):
    with pytest.raises(ConfigError, match=message):
        mixer(**params)


def test_a_wrong_file_is_refused_by_its_name_with_every_problem(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text("points: [{at: x, proportions: [1]}]\ninterpolatoin: step\n")
    with pytest.raises(ConfigError) as error:
        mixer(file=str(path))
    said = str(error.value)
    assert "3 problems" in said
    assert f"{path}: interpolatoin: no such key -> did you mean 'interpolation'?" in said
    assert f"{path}: points[0].at: found 'x'" in said
