"""Keys and presets of OpenDCAI/DataFlex: read as ours by one table, or refused with the lines to write instead."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml
from dataflex.config.component_choice import resolve
from dataflex.config.moved.moved_keys import read_keys
from dataflex.config.moved.moved_parameters import RunKeys, differences, read_preset
from dataflex.config.moved.moved_table import NOT_SAID, REFUSED, SAME, absent, components, keys
from dataflex.config.presets import packaged_components, read_components
from dataflex.core import registry
from dataflex.core.errors import InvalidConfigError
from dataflex.core.kinds import BY_SECTION, KINDS, MIXER, SELECTOR, WEIGHTER
from dataflex.discovery.catalog import lookup

from tests.moving.moved_page import PAGE, written

MOVES = [
    pytest.param(section, component, move, id=f"{section}-{component}-{move.name}")
    for section, body in components().items()
    for component, moves in body.items()
    for move in moves.values()
]
PACKAGED = [(kind, key) for kind in KINDS for key in packaged_components(kind)]


def write(tmp_path: Path, section: str, component: str, **params: object) -> Path:
    path = tmp_path / "components.yaml"
    path.write_text(yaml.safe_dump({section: {component: {"name": component, "params": params}}}, sort_keys=False))
    return path


def resolved(tmp_path, kind, component, run=None, overrides=None, **params):
    file = write(tmp_path, kind.section, component, **params)
    return resolve(kind, component, file, overrides=overrides, run=run or RunKeys())


def refusals(tmp_path, kind, component, run=None, **params):
    with pytest.raises(InvalidConfigError) as caught:
        resolved(tmp_path, kind, component, run, **params)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(("section", "component", "move"), MOVES)
def test_each_row_leads_to_a_parameter_that_the_component_has_and_shadows_none(section, component, move):
    info = lookup(BY_SECTION[section], component)
    assert info is not None
    assert info.accepts is not None
    if move.fate == SAME:
        assert move.name in info.accepts
    else:
        assert move.name not in info.accepts  # else a preset of ours would be read as theirs
    assert {move.to, *move.adds, *(name for _, ours in move.becomes for name in ours)} - {""} <= info.accepts
    assert move.fate != REFUSED or (move.refused and move.instead), "a refusal without a way out"
    if move.default is not NOT_SAID and not move.at_most and not move.times:
        assert info.parameters[move.ours] != move.converted(move.default), "the defaults are the same by now"


def test_each_key_that_is_not_ours_is_read_or_refused():
    for move in keys().values():
        assert move.fate == SAME or move.to or move.instead


@pytest.mark.parametrize(("section", "name"), [(s, name) for s, names in absent().items() for name in names])
def test_a_component_that_is_not_here_is_refused_by_name_and_leaves_the_table_when_it_comes(section, name, tmp_path):
    kind = BY_SECTION[section]
    assert name not in registry.official(kind)
    (said,) = refusals(tmp_path, kind, name, cache_dir="x", temperature=1.0)
    assert said.startswith(f"component_name: the {kind.name} '{name}' of OpenDCAI/DataFlex is not here yet -> nearest")


@pytest.mark.parametrize(("kind", "key"), PACKAGED, ids=lambda value: getattr(value, "name", value))
def test_a_preset_of_ours_is_read_as_ever_and_says_nothing(kind, key, tmp_path, caplog):
    (entry,) = packaged_components(kind)[key]
    info = lookup(kind, entry.name)
    params = dict.fromkeys(info.required, "x") | dict(entry.params)
    read = read_preset(kind.section, entry.name, params, "here", RunKeys())
    assert (read.params, read.spelled, read.problems, read.unused, read.differing) == (params, {}, [], [], [])
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({kind.section: {key: {"name": entry.name, "params": params}}}))
    assert read_components(file)[kind.section][key].theirs is None
    assert not caplog.records


def test_renamed_parameters_reach_the_component_and_the_log_says_so_once(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="dataflex")
    spec = resolved(tmp_path, WEIGHTER, "adapt", tau=0.5, refresh_interval=7, anchor_batch_size=8, clip=None)
    assert (spec.params["temperature"], spec.params["refresh"]) == (0.5, 7)
    said = [record.getMessage().partition("weighters.adapt: ")[2] for record in caplog.records]
    assert said == [
        "parameters of OpenDCAI/DataFlex without effect here: anchor_batch_size (embedding is batched by tokens); clip "
        "(weights are below 1 in any case)",
        "parameters of OpenDCAI/DataFlex read by our names: tau as temperature, refresh_interval as refresh",
    ]


def test_a_wrong_value_is_told_where_and_as_it_is_written(tmp_path):
    (said,) = refusals(tmp_path, WEIGHTER, "adapt", tau=-1.0)
    assert "components.yaml: weighters.adapt.params.tau: " in said


def test_an_unknown_parameter_names_the_nearest_and_one_of_theirs_under_component_names_ours(tmp_path):
    (said,) = refusals(tmp_path, SELECTOR, "loss", focsu="high")
    assert "did you mean 'focus'" in said
    with pytest.raises(InvalidConfigError, match=r"components\.yaml it is temperature; write that"):
        resolved(tmp_path, WEIGHTER, "adapt", overrides={"tau": 1.0})


def test_two_spellings_of_one_parameter_are_refused_where_they_disagree(tmp_path):
    (said,) = refusals(tmp_path, WEIGHTER, "adapt", tau=1.0, temperature=2.0)
    assert said.endswith("temperature: says 2.0 for temperature, and tau says 1.0 -> leave one out")


def test_what_a_file_of_theirs_leaves_out_is_told_and_what_a_file_of_ours_does_is_not(tmp_path, caplog):
    select = RunKeys({"train_type": "dynamic_select"})
    resolved(tmp_path, SELECTOR, "loss", select, score_batch_size=8)
    said = [record.getMessage().partition("score_batch_size): ")[2] for record in caplog.records]
    assert "focus is not given: high there, low here -> focus: high" in said
    assert any(sentence.startswith("update_times is not given: 1 there") for sentence in said)
    caplog.clear()
    resolved(tmp_path, SELECTOR, "loss", select, score_batch_size=8, overrides={"focus": "low"})
    assert not any("focus is not given" in record.getMessage() for record in caplog.records)
    caplog.clear()
    resolved(tmp_path, SELECTOR, "loss", select, focus_weight=2.0)
    assert not caplog.records


def test_odm_begins_with_the_first_update_and_with_the_proportions_of_the_run(tmp_path):
    theirs = {"alpha": 0.8, "warmup_steps": 20, "initial_proportions": [1, 3], "min_exploration_rate": 0.05}
    fits = RunKeys({"init_mixture_proportions": (0.25, 0.75)}, 20)
    spec = resolved(tmp_path, MIXER, "odm", fits, **theirs)
    assert (spec.params["smoothing"], spec.params["min_share"]) == (0.8, 0.05)
    even = RunKeys({"mixture_sample_rule": "uniform"}, 20)
    assert resolved(tmp_path, MIXER, "odm", even, **theirs | {"initial_proportions": [0.5, 0.5]})
    early, other = refusals(tmp_path, MIXER, "odm", RunKeys({"init_mixture_proportions": (0.5, 0.5)}, 19), **theirs)
    assert "at step 19 -> write warmup_step: 20 in the run's YAML" in early
    assert "-> write init_mixture_proportions: [1, 3] in the run's YAML" in other


def test_a_scale_that_never_reached_the_mixer_is_left_out_with_a_warning(tmp_path, caplog):
    resolved(tmp_path, MIXER, "odm", RunKeys({}, 2000), reward_scale=15.0)
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "mixers.odm: left out, of OpenDCAI/DataFlex, so that results differ: reward_scale (there it never" in said


def test_held_out_rows_are_their_batches_times_their_size():
    read = read_preset("mixers", "dynamic_moe", {"c": 0.1, "collect_steps": 5, "eval_batch_size": 8}, "x", RunKeys())
    assert read.params == {"smoothing": 0.1, "eval_rows": 40}
    assert read_preset("mixers", "dynamic_moe", {"collect_steps": 5}, "x", RunKeys()).params == {"eval_rows": 160}
    assert read_preset("mixers", "dynamic_moe", {"eval_batch_size": 8}, "x", RunKeys()).params == {"eval_rows": 80}
    told = list(differences("mixers", "dynamic_moe", {}, (), {"eval_rows": 64, "freeze_gate": True}, RunKeys()))
    assert told == [
        "freeze_gate is not given: false there, true here -> freeze_gate: false",
        "eval_rows is not given: 320 there, 64 here -> eval_rows: 320",
    ]


@pytest.mark.parametrize(
    ("section", "component", "given", "run", "said"),
    [
        ("mixers", "static", {"proportions": None}, {}, "proportions: null is equal shares there"),
        ("weighters", "loss", {"strategy": "uniform"}, {}, "strategy: uniform is a softmax of the losses there"),
        (
            "mixers",
            "static",
            {"proportions": [1, 2]},
            {"train_type": "dynamic_mix", "mixture_sample_rule": "stratified", "update_times": 1},
            "mixture_sample_rule: stratified is for the whole run there",
        ),
    ],
)
def test_a_value_that_means_something_else_there_is_told_in_a_file_of_theirs(section, component, given, run, said):
    (told,) = differences(section, component, given, (), {}, RunKeys(run))
    assert told.startswith(said)
    assert not list(differences(section, component, given, given, {}, RunKeys({"update_times": 1})))


def test_a_reference_model_is_needed(tmp_path):
    theirs = {"reference_model_path": "folder", "reweight_eta": 0.1, "reweight_eps": 0.01}
    read = read_preset("mixers", "doremi", theirs, "x", RunKeys())
    assert read.params == {"reference_model": "folder", "eta": 0.1, "smoothing": 0.01}
    (said,) = refusals(tmp_path, MIXER, "doremi", reference_model_path=None)
    assert "dataflex-cli doremi, which trains it" in said


JUDGE = {"api_url": "https://h.example/v1/chat/completions", "api_key": "KEY", "model_name": "m", "temperature": 0.0}


def test_a_judge_behind_an_address_is_read_and_a_model_served_in_the_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("KEY", "secret")
    backends = {"local_vllm": {"hf_model_name_or_path": "m", "vllm_top_k": 40}, "api": JUDGE}
    given = {"mc_samples": 4, "generation_temperature": 0.7, "max_prompt_length": 9, "reward_backend_params": backends}
    spec = resolved(tmp_path, SELECTOR, "nice", reward_model_backend="api", **given)
    asked = [spec.params[name] for name in ("reward", "endpoint", "endpoint_model", "api_key_env", "samples")]
    assert asked == ["endpoint", "https://h.example/v1", "m", "KEY", 4]
    (said,) = refusals(tmp_path, SELECTOR, "nice", reward_model_backend="local_vllm", **given)
    assert "found local_vllm" in said
    assert "reward: endpoint, endpoint: http://localhost:8000/v1" in said


@pytest.mark.parametrize(
    ("component", "params", "said"),
    [
        ("near", {"indices_path": "top.npy"}, "found top.npy, and near finds neighbours itself"),
        ("tsds", {"probs_path": "p.npy"}, "found p.npy, and tsds computes its chances itself"),
        ("cluster_less", {"cluster_size": 32}, "write clusters: N, the rows of the dataset divided by 32"),
        ("cluster_less", {"clustering_method": "lsh"}, "found lsh, and clusters are those of k-means -> remove it"),
    ],
)
def test_what_has_no_counterpart_is_refused_with_what_to_write(component, params, said, tmp_path):
    (problem,) = refusals(tmp_path, SELECTOR, component, **params)
    assert said in problem


def test_clusters_are_embedded_by_the_model_in_training_where_none_is_named(tmp_path):
    theirs = {"cluster_size": 64, "samples_per_cluster": 3, "embedding_model_name_or_path": None, "embedding_layer": -1}
    spec = resolved(tmp_path, SELECTOR, "cluster_less", **theirs)
    assert (spec.params["embedding"], spec.params["representatives"], spec.params["clusters"]) == ("model", 3, None)
    named = {"embedding_model_name_or_path": "some/model"}
    assert read_preset("selectors", "cluster_less", named, "x", RunKeys()).params == {"embedding": "some/model"}


def test_the_former_name_of_reorders_is_read(tmp_path):
    file = tmp_path / "c.yaml"
    preset = {"kind": "dynamic", "pattern": "sorting", "score_source": "model_loss"}
    file.write_text(yaml.safe_dump({"reorderers": {"easy": {"params": preset}}}))
    entry = read_components(file)["orders"]["easy"]
    assert (entry.name, entry.by, entry.theirs) == ("sorting", "loss", "reorderers")


MOE = {"train_type": "dynamic_mix", "component_name": "dynamic_moe"}


def test_freeze_gate_is_a_parameter_of_the_mixer_that_has_it():
    read = read_keys(MOE | {"component": {"eta": 1.0}}, {"freeze_gate": True, "stage": "sft"})
    assert read.ours["component"] == {"eta": 1.0, "freeze_gate": True}
    assert (read.theirs, read.problems) == ({"stage": "sft"}, [])
    assert read.notes == ["freeze_gate of OpenDCAI/DataFlex is read as component: {freeze_gate: true}"]
    (said,) = read_keys(MOE | {"component": {"freeze_gate": False}}, {"freeze_gate": True}).problems
    assert said.way_out == "remove it, and write component: {freeze_gate: VALUE}"


def test_freeze_gate_elsewhere_is_without_effect_refused_or_as_unknown_as_ever():
    mix = {"train_type": "dynamic_mix", "component_name": "odm"}
    assert read_keys(mix, {"freeze_gate": False}).problems == []
    (said,) = read_keys(mix, {"freeze_gate": True}).problems
    assert "gate_proj of Llama and Qwen" in said.what
    select = read_keys({"train_type": "dynamic_select"}, {"freeze_gate": True})
    assert select.theirs == {"freeze_gate": True}


def test_a_least_improvement_is_refused_unless_it_is_0():
    assert read_keys({}, {"early_stopping_min_delta": 0.0}).theirs == {}
    (said,) = read_keys({}, {"early_stopping_min_delta": 0.01}).problems
    assert str(said).startswith("early_stopping_min_delta: is 0.01 of OpenDCAI/DataFlex: LLaMA-Factory's")


def test_a_run_without_their_keys_comes_back_as_it_is():
    ours, theirs = {"train_type": "dynamic_select"}, {"stage": "sft", "freezing_gate": 1}
    read = read_keys(ours, theirs)
    assert (read.ours, read.theirs, read.problems, read.notes) == (ours, theirs, [], [])


def test_the_page_has_the_tables_of_the_code():
    page = PAGE.read_text(encoding="utf-8")
    assert written(page) == page, "run python tests/moving/moved_page.py"


def test_no_message_holds_a_key_that_stands_beside_the_name_of_one():
    """Both name one parameter of ours: the file says so without the key."""
    theirs = {"reward_model_backend": "api", "reward_backend_params": {"api": {"api_key": "sk-1-very-secret"}}}
    params = {"api_key_env": "FOO"} | theirs
    (problem,) = read_preset("selectors", "nice", params, "x", RunKeys()).problems
    assert "and api_key_env says FOO" in str(problem)
    assert "very-secret" not in str(problem)
