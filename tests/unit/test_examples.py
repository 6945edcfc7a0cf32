"""The files of `examples/`: one for each strategy and combination, legal as they stand, and told in the README.

They name real models and LLaMA-Factory's demo data. Nothing is fetched: a name on a hub passes `validate`, and data of
the same shape and length stands in for the demo data.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import example_stand_ins as stand_ins
import pytest
import yaml
from dataflex.config.check import check
from dataflex.config.load import read_config, split
from dataflex.core import registry
from dataflex.core.errors import ConfigError
from dataflex.core.kinds import KINDS, ORDER
from dataflex.discovery.catalog import ComponentInfo, components
from dataflex.discovery.installed import has_package

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
FILES = sorted(EXAMPLES.rglob("*.yaml"))
PIPELINES = {"mix/doremi_three_runs.yaml", "mix/regmix.yaml"}  # several runs, read by `doremi` and `regmix`
RUNS = [path for path in FILES if path.relative_to(EXAMPLES).as_posix() not in PIPELINES]
OURS = [info for info in components() if info.name in registry.official(info.kind)]
COMPONENTS = [info for info in OURS if not info.constants.get("takes_rewards")]  # LLaMA-Factory has no GRPO
FOLDERS = {"selector": "select", "mixer": "mix", "order": "order", "weighter": "weigh"}
SHORT_FORMS = {"select": "dynamic_select", "mix": "dynamic_mix", "order": "dynamic_reorder", "weigh": "dynamic_weight"}
STAGES = {"pt", "sft", "rm", "dpo", "kto"}
STAGES_OF_ANSWERS = ("rm", "dpo", "kto")
AXES = ("selector", "mixer", "order", "weighter")
GROUPS = ["model", "method", "dataflex", "dataset", "output", "train"]
FILES_OF_PARAMETERS = {
    "column",
    "file",
    "model",
    "reference_model",
    "reward_model",
    "score",
    "weights",
}  # each user has others


OF_OTHER_DATA = {"weigh/token_column.yaml": "the dataset 'alpaca_en_demo' has no column 'messages'"}
"""Files whose comment says that they stop with the dataset that stands in them."""


def name(path: Path) -> str:
    return path.relative_to(EXAMPLES).as_posix()


def loaded(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def commands(path: Path) -> list[list[str]]:
    """Returns the words behind each `dataflex-cli` in the comment that a file begins with."""
    head = path.read_text(encoding="utf-8").partition("\n\n")[0].replace("\n# ", "\n")
    return [line.split()[1:] for line in head.splitlines() if line.startswith("dataflex-cli ")]


def overrides(path: Path) -> list[list[str]]:
    """Returns what the comment of a file says to give on the command line to try that very file."""
    own = f"examples/{name(path)}"
    return [words[2:] for words in commands(path) if words[:2] == ["train", own]]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    stand_ins.write_data(folder / "data")
    stand_ins.write_results(folder)
    return folder


def test_there_is_one_file_for_each_component_and_none_for_what_is_not_there():
    expected = {f"{FOLDERS[info.kind.name]}/{info.name}.yaml" for info in COMPONENTS}
    found = {name(path) for path in FILES if path.parent.name in SHORT_FORMS}
    assert {kind.name for kind in KINDS} == set(FOLDERS)
    assert found - PIPELINES == expected
    assert len(expected) == len(COMPONENTS) >= 37


def test_the_files_are_counted():
    folders = (*SHORT_FORMS, "combine", "stages", "static")
    by_folder = {folder: len(list((EXAMPLES / folder).glob("*.yaml"))) for folder in folders}
    assert by_folder == {"select": 21, "mix": 13, "order": 9, "weigh": 12, "combine": 13, "stages": 12, "static": 5}
    assert sum(by_folder.values()) == len(FILES)


@pytest.mark.parametrize("info", COMPONENTS, ids=lambda info: f"{info.kind.name}-{info.name}")
def test_the_file_of_a_component_trains_with_it(info: ComponentInfo):
    folder = FOLDERS[info.kind.name]
    config = loaded(EXAMPLES / folder / f"{info.name}.yaml")
    assert config["train_type"] == SHORT_FORMS[folder]
    assert config["component_name"] == info.name


def test_each_stage_has_a_static_baseline():
    assert {loaded(path)["stage"] for path in (EXAMPLES / "static").glob("*.yaml")} == STAGES
    assert {loaded(path)["train_type"] for path in (EXAMPLES / "static").glob("*.yaml")} == {"static"}


@pytest.mark.parametrize("stage", STAGES_OF_ANSWERS)
@pytest.mark.parametrize("axis", SHORT_FORMS)
def test_each_stage_of_answers_has_each_axis(stage: str, axis: str):
    path = EXAMPLES / "stages" / f"{stage}_{axis}.yaml"
    if (stage, axis) == ("kto", "mix"):
        assert not path.exists(), "a mixture has several sources, and there is one demo set for kto"
        return
    config = loaded(path)
    assert (config["stage"], config["train_type"]) == (stage, SHORT_FORMS[axis])


def test_dpo_has_every_axis_in_one_run():
    config = loaded(EXAMPLES / "stages/dpo_combine.yaml")
    assert (config["stage"], config["train_type"]) == ("dpo", "dynamic")
    assert set(AXES) <= config.keys()


@pytest.mark.parametrize("stage", STAGES_OF_ANSWERS)
def test_a_stage_is_compared_with_its_static_run_by_nothing_but_what_is_dynamic(stage: str):
    """Model, method, data and learning rate of a dynamic file are those of the stage's baseline."""
    baseline = loaded(EXAMPLES / "static" / f"{stage}.yaml")
    same = ("model_name_or_path", "finetuning_type", "lora_rank", "template", "cutoff_len", "learning_rate")
    for path in (EXAMPLES / "stages").glob(f"{stage}_*.yaml"):
        config = loaded(path)
        assert {key: config[key] for key in same} == {key: baseline[key] for key in same}
        assert [config.get(key) for key in ("pref_beta", "pref_loss")] == [
            baseline.get(key) for key in ("pref_beta", "pref_loss")
        ]
        assert baseline["dataset"] in _names(config["dataset"])


def test_each_pair_of_axes_is_combined_and_all_of_them_and_filters_with_a_selector():
    configs = [loaded(path) for path in (EXAMPLES / "combine").glob("*.yaml")]
    held = [{axis for axis in AXES if axis in config} for config in configs]
    assert all(config["train_type"] == "dynamic" for config in configs)
    for pair in itertools.combinations(AXES, 2):
        assert set(pair) in held, f"no example has {' and '.join(pair)} alone"
    assert set(AXES) in held
    filters = [config["selector"] for config in configs if isinstance(config.get("selector"), list)]
    assert any("keep" in parts[0] and not (isinstance(parts[-1], dict) and "keep" in parts[-1]) for parts in filters)
    parts = str(configs)
    assert "'every'" in parts
    assert "'from'" in parts


@pytest.mark.parametrize("path", sorted((EXAMPLES / "stages").glob("*.yaml")), ids=name)
def test_docs_stages_says_that_what_a_file_of_a_stage_trains_with_works_there(path: Path):
    text = (ROOT / "docs/stages.md").read_text(encoding="utf-8")
    works = dict(re.findall(r"^\| (select|mix|weigh) \| ([^|]+) \|", text, flags=re.MULTILINE))
    config = loaded(path)
    alone = {FOLDERS[axis]: config[axis] for axis in AXES if axis in config}
    alone |= {axis: config["component_name"] for axis in SHORT_FORMS if config["train_type"] == SHORT_FORMS[axis]}
    for axis, given in alone.items():
        for part in given if isinstance(given, list) else [given]:
            component = part["component"] if isinstance(part, dict) else part
            assert axis == "order" or f"`{component}`" in works[axis]


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_each_file_validates_as_it_stands_and_as_its_comment_says(path: Path, place: Path, monkeypatch, caplog):
    monkeypatch.chdir(place)
    if name(path) == "select/near.yaml" and not has_package("sentence_transformers"):
        pytest.importorskip("sentence_transformers", reason="select/near.yaml embeds rows by a model of that package")
    if name(path) in OF_OTHER_DATA:
        with pytest.raises(ConfigError, match=OF_OTHER_DATA[name(path)]):
            check(read_config(path, []), path.parent)
        return
    for given in [[], *overrides(path)]:
        spec = check(read_config(path, given), path.parent)
        ours, _ = split(loaded(path))
        assert spec.arguments.train_type == ours["train_type"]
    assert caplog.messages == [], "a file that people start from must not warn"


def test_near_validates_without_its_extra_too(place: Path, monkeypatch):
    monkeypatch.chdir(place)
    check(read_config(EXAMPLES / "select/near.yaml", ["component.embedding=ngrams"]), EXAMPLES)


def test_doremis_three_runs_validate(place: Path, monkeypatch):
    from dataflex_mixers.doremi.three_runs import STEPS, parse

    monkeypatch.chdir(place)
    pipeline = parse(read_config(EXAMPLES / "mix/doremi_three_runs.yaml"), {})
    for step in STEPS:
        config = {key: value for key, value in pipeline.config(step).items() if key != "components_cfg_file"}
        if step == "proxy":
            config["component"] = pipeline.components()["mixers"]["doremi"]["params"]
        check(config, EXAMPLES)


def test_the_search_of_regmix_validates(place: Path, monkeypatch, capsys):
    from dataflex_mixers.regmix.regmix_command import validate

    monkeypatch.chdir(place)
    assert validate([str(EXAMPLES / "mix/regmix.yaml")]) == 0
    assert "64 proxies, 12 of them held out of the fit" in capsys.readouterr().out


@pytest.mark.parametrize("path", FILES, ids=name)
def test_each_file_begins_with_what_it_is_and_has_the_groups_of_llamafactory(path: Path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert text.endswith("\n")
    groups = re.findall(r"^ *### (\w+)$", text, flags=re.MULTILINE)
    expected = {"mix/doremi_three_runs.yaml": ["method", "dataset", "output", "train"], "mix/regmix.yaml": []}
    expected = expected.get(name(path), GROUPS)
    assert groups == expected


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_commands_in_comments_name_files_that_are_there(path: Path):
    for words in commands(path):
        assert words[0] in ("train", "score", "doremi", "regmix")
        assert (ROOT / words[1]).is_file()
        assert all("=" in word for word in words[2:])


def test_what_a_comment_says_to_compute_first_lands_where_the_file_looks(place: Path, monkeypatch):
    """The scores of `score ... output_dir=X` are X/dataflex_scores.parquet, a trained model lies in its output_dir."""
    found = 0
    for path in RUNS:
        made = [word.partition("=")[2] for words in commands(path) for word in words if word.startswith("output_dir=")]
        component = loaded(path).get("component") or {}
        for folder in made:
            found += 1
            assert component.get("file", component.get("reference_model", "")).startswith(folder)
    assert found >= 3


def test_scored_rows_are_those_of_the_files_that_take_the_scores():
    keys = ("model_name_or_path", "dataset", "template", "cutoff_len", "stage")
    scored = loaded(EXAMPLES / "select/loss.yaml")
    for taker in ("select/scores.yaml", "weigh/column.yaml"):
        assert {key: loaded(EXAMPLES / taker)[key] for key in keys} == {key: scored[key] for key in keys}


def test_no_two_files_write_to_one_folder():
    folders = [loaded(path)["output_dir"] for path in RUNS]
    assert len(set(folders)) == len(folders)


def test_both_models_are_there_and_every_model_is_a_name_on_a_hub():
    models = {loaded(path)["model_name_or_path"] for path in RUNS}
    assert any("Qwen2.5-0.5B" in model for model in models)
    assert any("Llama-3.1-8B" in model for model in models)
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", model) for model in models)


def test_the_data_are_llamafactorys_demo_sets():
    named = {part for path in RUNS for key in ("dataset", "eval_dataset") for part in _names(loaded(path).get(key))}
    assert named == set(stand_ins.DATASETS)


def _names(value: str | None) -> list[str]:
    return [] if value is None else value.split(",")


def _papers() -> list[Any]:
    """Returns (kind, name, block) of each YAML block of docs/papers.md."""
    text = (ROOT / "docs/papers.md").read_text(encoding="utf-8")
    found = []
    for info in COMPONENTS:
        part = re.search(rf"^## {info.kind.section}$(.*?)(?=^## |\Z)", text, flags=re.M | re.S | re.I)
        own = re.search(rf"^### `{info.name}`(.*?)(?=^##|\Z)", part[1] if part else "", flags=re.M | re.S)
        for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", own[1] if own else "", flags=re.M | re.S)):
            found.append(pytest.param(info, yaml.safe_load(block), id=f"{info.kind.name}-{info.name}-{number}"))
    return found


def test_papers_has_a_configuration_for_all_but_the_starting_points():
    assert {param.values[0].name for param in _papers()} == {info.name for info in COMPONENTS} - {"custom"}


@pytest.mark.parametrize(("info", "block"), _papers())
def test_each_file_keeps_the_papers_settings_of_docs_papers(info: ComponentInfo, block: dict[str, Any]):
    config = loaded(EXAMPLES / FOLDERS[info.kind.name] / f"{info.name}.yaml")
    if "train_type" in block:
        assert {key: config.get(key) for key in block} == block
        return
    component = config.get("component") or {}
    presets = [entry["params"] for entry in block[info.kind.section].values()]
    kept = [{k: v for k, v in params.items() if k not in FILES_OF_PARAMETERS} for params in presets]
    assert any(params.items() <= component.items() for params in kept)


def _table() -> dict[str, str]:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| \[`([\w/]+\.yaml)`\]\(\1\) \|(.*)\|$", text, flags=re.MULTILINE))


def test_the_readmes_tables_list_every_file_once():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert sorted(_table()) == [name(path) for path in FILES]
    assert len(re.findall(r"^\| \[`", text, flags=re.MULTILINE)) == len(FILES)


@pytest.mark.parametrize("info", COMPONENTS, ids=lambda info: f"{info.kind.name}-{info.name}")
def test_the_readme_names_the_paper_that_docs_papers_names(info: ComponentInfo):
    row = _table()[f"{FOLDERS[info.kind.name]}/{info.name}.yaml"]
    head = (EXAMPLES / FOLDERS[info.kind.name] / f"{info.name}.yaml").read_text(encoding="utf-8")
    for number in re.findall(r"arXiv (\d{4}\.\d{5})", head):
        assert number in row
        assert number in (ROOT / "docs/papers.md").read_text(encoding="utf-8")


def test_links_of_the_readme_lead_somewhere():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert targets
    for target in targets:
        assert (EXAMPLES / target.partition("#")[0]).exists(), target


def test_orders_alone_say_where_scores_come_from_unless_they_look_at_none():
    for info in COMPONENTS:
        if info.kind is ORDER:
            config = loaded(EXAMPLES / "order" / f"{info.name}.yaml")
            fixed = info.constants.get("needs_scores") is False or "by" in info.constants
            assert fixed or config["order"]["by"]
