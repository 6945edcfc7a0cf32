"""``dataflex-cli doremi``: the three runs in their order, the weights handed on, what is passed over and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from dataflex.cli.main import run as cli
from dataflex.config.resolved import recorded_run
from dataflex.core.errors import ConfigError
from dataflex_mixers.doremi.doremi_command import run, validate
from dataflex_mixers.doremi.handover import FILE

pytestmark = pytest.mark.llamafactory
TIMES = {"logging_steps": 1, "save_steps": 100, "disable_tqdm": True, "plot_loss": False, "do_eval": False}


@pytest.fixture
def file(workspace, tmp_path, monkeypatch) -> Path:
    """A small DoReMi file over the workspace's three sources."""
    monkeypatch.chdir(tmp_path)
    base = yaml.safe_load((workspace / "mix_static.yaml").read_text())
    own = ("train_type", "static_mix", "mixture_sample_rule", "init_mixture_proportions", "train_step")
    common = {key: value for key, value in base.items() if key not in own} | TIMES | {"max_samples": 60}
    common |= {"output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 4}
    sections = {"common": common, "reference": {"train_step": 2}, "final": {"train_step": 3}}
    sections["proxy"] = {"train_step": 4, "update_step": 2, "params": {"eta": 5.0}}
    path = tmp_path / "doremi.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


class Pretended:
    """Trains nothing: leaves what each run would leave."""

    def __init__(self, out: Path, fails: str | None = None) -> None:
        self.out, self.fails, self.seen = out, fails, []

    def __call__(self, file: Path, *overrides: str) -> int:
        step = file.stem.partition("_")[2]
        self.seen.append(step)
        self.overrides = overrides
        if step == self.fails:
            return 7
        folder = self.out / step
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "trainer_state.json").write_text("{}")
        if step == "proxy":
            shares = {"code": 0.5, "docstrings": 0.125, "prose": 0.375}
            (folder / FILE).write_text(json.dumps({"proportions": shares}))
        return 0


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def test_the_steps_are_those_of_doremi_and_hand_their_results_on(file, tmp_path):
    train = Pretended(tmp_path / "out")
    assert run([str(file)], train) == 0
    assert train.seen == ["reference", "proxy", "final"]
    reference, proxy, final = (read(tmp_path / "out" / f"{i}_{s}.yaml") for i, s in enumerate(train.seen, start=1))
    assert (reference["static_mix"], reference["mixture_sample_rule"]) == (True, "stratified")
    assert (proxy["component_name"], proxy["mixture_sample_rule"], proxy["train_step"]) == ("doremi", "uniform", 4)
    params = read(tmp_path / "out" / "proxy_components.yaml")["mixers"]["doremi"]["params"]
    assert params == {"eta": 5.0, "reference_model": str(tmp_path / "out" / "reference")}
    assert final["init_mixture_proportions"] == [0.5, 0.125, 0.375]
    assert final["static_mix"] is True
    assert {keys["mixture_unit"] for keys in (reference, proxy, final)} == {"tokens"}


def test_a_key_of_all_three_files_can_be_unset(file, tmp_path):
    train = Pretended(tmp_path / "out")
    assert run([str(file), "learning_rate=null", "max_samples=null"], train) == 0
    for number, step in enumerate(train.seen, start=1):
        keys = read(tmp_path / "out" / f"{number}_{step}.yaml")
        assert "learning_rate" in read(file)["common"]
        assert "learning_rate" not in keys
        assert keys["max_samples"] is None


def test_a_step_that_fails_ends_the_command_and_the_next_call_goes_on_there(file, tmp_path):
    broken = Pretended(tmp_path / "out", fails="proxy")
    assert run([str(file)], broken) == 7
    assert broken.seen == ["reference", "proxy"]
    again = Pretended(tmp_path / "out")
    assert run([str(file)], again) == 0
    assert again.seen == ["proxy", "final"]
    assert run([str(file)], again) == 0
    assert again.seen == ["proxy", "final"], "everything is finished"


def test_a_finished_step_is_not_taken_for_one_of_another_configuration(file, tmp_path):
    run([str(file), "reference"], Pretended(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"'reference' is finished in .*not as 1_reference.yaml would have it now"):
        run([str(file), "reference", "learning_rate=0.1"], Pretended(tmp_path / "out"))
    train = Pretended(tmp_path / "out")
    assert run([str(file), "reference", "learning_rate=0.1", "--overwrite"], train) == 0
    assert train.seen == ["reference"]
    assert train.overrides == ("overwrite_output_dir=true",)
    assert "overwrite_output_dir" not in read(tmp_path / "out" / "1_reference.yaml")
    assert run([str(file), "reference", "learning_rate=0.1"], train) == 0
    assert train.seen == ["reference"], "it is finished, as it would be now"


def test_a_finished_proxy_is_not_taken_for_one_of_other_parameters(file, tmp_path):
    train = Pretended(tmp_path / "out")
    run([str(file)], train)
    said = file.read_text()
    file.write_text(said.replace("eta: 5.0", "eta: 2.0"))
    for _ in range(2):  # what the proxy had is still known
        with pytest.raises(
            ConfigError, match=r"'proxy' is finished in .*not as proxy_components.yaml would have it now"
        ):
            run([str(file)], train)
    assert run([str(file), "proxy", "--overwrite"], train) == 0
    assert train.seen == ["reference", "proxy", "final", "proxy"]
    assert run([str(file)], train) == 0


def test_a_proxy_is_not_taken_for_one_of_another_reference_model(file, tmp_path):
    train = Pretended(tmp_path / "out")
    run([str(file)], train)
    weights = tmp_path / "out" / "proxy" / FILE
    weights.write_text(json.dumps(json.loads(weights.read_text()) | {"reference": "0" * 16}))
    record = tmp_path / "out" / "reference" / "dataflex_config.yaml"
    record.write_text(f"dataflex_run: {{id: '{'0' * 16}'}}\ndataflex_versions: {{}}\n")
    assert run([str(file)], train) == 0
    record.write_text(f"dataflex_run: {{id: '{'1' * 16}'}}\ndataflex_versions: {{}}\n")
    for step in ("proxy", "final"):
        with pytest.raises(ConfigError, match=r"but with another reference model than that of .*reference -> train it"):
            run([str(file), step], train)


@pytest.mark.parametrize("where", ["file", "command line"])
def test_overwriting_in_the_file_does_not_train_finished_steps_again_at_each_start(where, file, tmp_path, capsys):
    given = ["overwrite_output_dir=true"]
    if where == "file":
        sections = read(file)
        sections["common"]["overwrite_output_dir"], given = True, []
        file.write_text(yaml.safe_dump(sections))
    train = Pretended(tmp_path / "out", fails="proxy")
    assert run([str(file), *given], train) == 7
    train.fails = None
    assert run([str(file), *given], train) == 0
    assert train.seen == ["reference", "proxy", "proxy", "final"]
    assert train.overrides == ()
    said = capsys.readouterr().err
    assert "overwrite_output_dir is left out" in said
    assert "--overwrite trains the steps anew" in said


def test_a_step_alone_needs_the_one_before(file, tmp_path):
    with pytest.raises(ConfigError, match="holds no finished reference model -> train it first"):
        run([str(file), "proxy"], Pretended(tmp_path / "out"))
    with pytest.raises(ConfigError, match="holds no finished proxy -> train it first"):
        run([str(file), "final"], Pretended(tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"porxy": {}}, ["porxy: no such section", "did you mean 'proxy'?"]),
        ({"final": {"static_mix": False}}, ["final: static_mix: is given by DoReMi -> remove it"]),
        ({"proxy": {"output_dir": "x"}}, ["proxy: output_dir: differs from that of the other steps"]),
        ({"reference": {"finetuning_type": "lora"}}, ["reference: finetuning_type: found 'lora'"]),
        (
            {"proxy": {"train_step": 4, "params": {"eat": 1}}},
            ["proxy: params.eat: ", "no parameter 'eat'", "'eta'?"],
        ),
        ({"proxy": {"params": {"reference_model": "x"}}}, ["proxy: params.reference_model: is given by DoReMi"]),
        ({"proxy": {"train_step": 4, "params": {"eta": -1}}}, ["proxy: params.eta: found -1, allowed: a number above"]),
        ({"final": {"learning_rat": 1}}, ["final: learning_rat: neither dataflex nor", "learning_rate"]),
        ({"reference": {"train_step": -1}}, ["reference: train_step: found -1"]),
        ({"final": {"mixture_by": "cluster:3"}}, ["final: mixture_by: found 'cluster:3': each run makes such sources"]),
    ],
)
def test_all_three_runs_are_checked_before_the_first_starts(file, tmp_path, changes, messages):
    file.write_text(yaml.safe_dump(read(file) | changes))
    train = Pretended(tmp_path / "out")
    with pytest.raises(ConfigError) as error:
        run([str(file)], train)
    assert all(message in str(error.value) for message in messages), str(error.value)
    assert train.seen == []
    with pytest.raises(ConfigError) as same:
        validate([str(file)])
    assert str(same.value) == str(error.value)
    assert not (tmp_path / "out").exists()


def test_validate_says_what_the_runs_are_and_plan_which_file_it_takes(file, tmp_path, capsys):
    file.write_text(yaml.safe_dump(read(file) | {"rounds": 2}))
    assert cli(["validate", str(file)]) == 0
    out = capsys.readouterr().out
    assert (
        "doremi.yaml can be run by dataflex-cli doremi\n  runs:       up to 2 rounds of reference and proxy, then"
        in out
    )
    assert "sources:    code, docstrings, prose" in out
    assert not (tmp_path / "out").exists()
    assert cli(["validate", str(file), "learning_rat=1"]) == 2
    assert "reference: learning_rat: neither dataflex nor" in capsys.readouterr().err
    assert cli(["plan", str(file)]) == 2
    assert "give it the file of a step, such as 2_proxy.yaml" in capsys.readouterr().err


def test_the_command_is_listed_and_its_mistakes_end_with_2(capsys, file):
    assert cli(["help"]) == 0
    assert "find a mixture with DoReMi" in capsys.readouterr().out
    assert cli(["doremi"]) == 2
    assert cli(["doremi", str(file), "prxoy"]) == 2
    assert "expected a step (reference, proxy, final) or key=value" in capsys.readouterr().err


def test_three_real_runs_end_with_a_model_on_the_mixture_that_was_found(file, tmp_path):
    assert run([str(file)]) == 0
    out = tmp_path / "out"
    weights = json.loads((out / "proxy" / FILE).read_text())
    assert weights["steps"] == 4
    assert weights["unit"] == "tokens"
    assert weights["reference"] == recorded_run(out / "reference").id
    assert (out / "final" / "model.safetensors").exists()
    final = read(out / "final" / "dataflex_config.yaml")
    assert final["init_mixture_proportions"] == list(weights["proportions"].values())


class Rounds:
    """Trains nothing: the proxy of each round finds the next of given weights."""

    def __init__(self, *found: list[float], fails: str | None = None) -> None:
        self.found, self.fails, self.seen = found, fails, []

    def __call__(self, file: Path, *overrides: str) -> int:
        step, folder = file.stem.partition("_")[2], Path(read(file)["output_dir"])
        place = f"{folder.parent.name}/{step}"
        self.seen.append(place)
        if place == self.fails:
            return 7
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "trainer_state.json").write_text("{}")
        if step == "proxy":
            weights = self.found[int(folder.parent.name.removeprefix("round-")) - 1]
            shares = dict(zip(("code", "docstrings", "prose"), weights, strict=True))
            (folder / FILE).write_text(json.dumps({"proportions": shares}))
        return 0


FAR = [[0.5, 0.125, 0.375], [0.25, 0.25, 0.5], [0.2501, 0.2501, 0.4998]]


def test_each_round_has_the_reference_that_the_round_before_found(file, tmp_path):
    file.write_text(yaml.safe_dump(read(file) | {"rounds": 2}))
    train = Rounds(*FAR)
    assert run([str(file)], train) == 0
    assert train.seen == ["round-1/reference", "round-1/proxy", "round-2/reference", "round-2/proxy", "out/final"]
    out = tmp_path / "out"
    first, second = (read(out / f"round-{number}" / "1_reference.yaml") for number in (1, 2))
    assert first["mixture_sample_rule"] == "stratified"
    assert (second["mixture_sample_rule"], second["init_mixture_proportions"]) == ("mixture", FAR[0])
    assert (second["static_mix"], second["train_step"]) == (True, 2), "it is as small as the first reference"
    params = read(out / "round-2" / "proxy_components.yaml")["mixers"]["doremi"]["params"]
    assert params["reference_model"] == str(out / "round-2" / "reference")
    assert read(out / "3_final.yaml")["init_mixture_proportions"] == FAR[1]


def test_rounds_end_when_no_weight_moves_by_a_thousandth(file, tmp_path):
    file.write_text(yaml.safe_dump(read(file) | {"rounds": 9}))
    train = Rounds(*FAR)
    assert run([str(file)], train) == 0
    assert train.seen[-3:] == ["round-3/reference", "round-3/proxy", "out/final"]
    assert read(tmp_path / "out" / "3_final.yaml")["init_mixture_proportions"] == FAR[2]


def test_rounds_go_on_where_they_were_stopped(file, tmp_path):
    file.write_text(yaml.safe_dump(read(file) | {"rounds": 2}))
    broken = Rounds(*FAR, fails="round-2/proxy")
    assert run([str(file)], broken) == 7
    again = Rounds(*FAR)
    assert run([str(file)], again) == 0
    assert again.seen == ["round-2/proxy", "out/final"]
    weights = tmp_path / "out" / "round-1" / "proxy" / FILE
    weights.write_text(json.dumps({"proportions": {"code": 0.1, "docstrings": 0.1, "prose": 0.8}}))
    with pytest.raises(
        ConfigError, match=r"'reference' is finished in .*round-2.*not as 1_reference.yaml would have it"
    ):
        run([str(file)], again)


def test_the_way_out_of_rounds_that_were_otherwise_is_one_that_they_have(file, tmp_path):
    content = read(file) | {"rounds": 2}
    file.write_text(yaml.safe_dump(content))
    assert run([str(file)], Rounds(*FAR)) == 0
    file.write_text(yaml.safe_dump(content | {"final": {"train_step": 9}}))
    final, aside = tmp_path / "out" / "final", tmp_path / "aside"
    with pytest.raises(ConfigError) as error:
        run([str(file)], Rounds(*FAR))
    assert f"train it anew: move {final} away, and give the same command" in str(error.value)
    final.rename(aside)
    again = Rounds(*FAR)
    assert run([str(file)], again) == 0
    assert again.seen == ["out/final"]
    file.write_text(yaml.safe_dump(content | {"reference": {"train_step": 3}}))
    with pytest.raises(ConfigError, match=r"move .*round-1 and later rounds away"):
        run([str(file)], again)


@pytest.mark.parametrize(
    ("rounds", "step", "said"),
    [
        (2, "proxy", "proxy: found a step alone, and rounds: 2 -> leave the step out"),
        (0, None, "rounds: found 0, allowed: a whole number from 1 to 100"),
        (True, None, "rounds: found True, allowed: a whole number"),
        ("2", None, "rounds: found '2', allowed: a whole number"),
    ],
)
def test_rounds_that_cannot_be_run_are_refused(file, rounds, step, said):
    file.write_text(yaml.safe_dump(read(file) | {"rounds": rounds}))
    train = Rounds(*FAR)
    with pytest.raises(ConfigError) as error:
        run([str(file), *filter(None, [step])], train)
    assert said in str(error.value)
    assert train.seen == []


def test_a_flag_alone_names_no_file():
    with pytest.raises(ConfigError, match="no file given -> dataflex-cli doremi FILE"):
        run(["--overwrite"])
