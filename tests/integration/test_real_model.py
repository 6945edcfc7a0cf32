"""The benchmark on a real model, whole, on a tiny model made from a config: nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dataflex.testing import tiny_model, tiny_tokenizer

from benchmarks import real_model
from benchmarks.real_data import Sizes, selection_part
from benchmarks.real_table import report, sentences

ROWS = 100
WORDS = ["apples", "pears", "plums", "figs", "dates", "limes", "nuts", "beans", "peas", "corn"]


def row(number: int, kind: str) -> dict[str, str]:
    word = WORDS[number % len(WORDS)]
    return {"instruction": f"{kind} {number}: how many {word}?", "input": "", "output": f"{number} {word}"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in ("gsm8k_train", "gsm8k_test", "alpaca_en_demo"):
        (folder / f"{name}.json").write_text(json.dumps([row(number, name) for number in range(190)]))
    web = "\n".join(json.dumps({"text": f"page {n} of {WORDS[n % 10]} " * 8}) for n in range(60))
    (folder / "c4_demo.jsonl").write_text(web)
    info = {name: {"file_name": f"{name}.json"} for name in ("gsm8k_train", "gsm8k_test", "alpaca_en_demo")}
    info["c4_demo"] = {"file_name": "c4_demo.jsonl", "columns": {"prompt": "text"}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = tiny_tokenizer((data / "gsm8k_train.json").read_text().splitlines(), vocab_size=128)
    tokenizer.save_pretrained(folder)
    tiny_model(vocab_size=len(tokenizer), hidden=16, layers=1).save_pretrained(folder)
    return folder


def options(data: Path, model: Path, work: Path, *more: str) -> list[str]:
    rows = ["--rows", str(ROWS), "--held-out", "4", "--cutoff", "32", "--seeds", "1"]
    return ["--data", str(data), "--model", str(model), "--template", "empty", "--work", str(work), *rows, *more]


@pytest.mark.llamafactory
def test_runs_are_written_as_they_end_and_a_second_start_only_prints_the_table(data, model, tmp_path, capsys):
    names = ("random, longer", "rho_loss", "mixer odm")
    asked = options(data, model, tmp_path, "--only", *names, "--cases", "kind", "mixture")
    real_model.main(asked)
    printed = capsys.readouterr().out
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    by_name = {result["name"]: result for result in results}
    assert set(by_name) == set(names)
    longer, rho = by_name["random, longer"], by_name["rho_loss"]
    assert rho["chosen"]["rows"] == 96
    assert longer["chosen"]["rows"] == 96 + 8 * 15  # 116 rows of pool and target, 8 a step
    assert [update["peak"] >= update["held"] > 0 for update in rho["updates"]] == [True]
    assert [len(losses) for losses in rho["losses"].values()] == [4, 4]
    assert rho["losses"] != longer["losses"]
    table = report(results)
    assert table in printed
    assert "| rho_loss | 1 | " in table
    assert "| odm | " in table

    real_model.main(asked)
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == len(results)
    real_model.main(["--report", "--work", str(tmp_path)])
    assert capsys.readouterr().out.startswith(table)
    with pytest.raises(SystemExit, match=r"another setting \(cutoff: 32, not 40\) -> another --work"):
        real_model.main([*asked, "--cutoff", "40"])


def test_exchanged_answers_are_those_of_other_questions_and_no_row_is_in_two_parts(data, tmp_path):
    part = selection_part("answers", data, tmp_path, Sizes(ROWS, 16, 10, 4), seed=1)
    read = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    right = [row["output"].split()[0] == row["instruction"].split()[1][:-1] for row in read["pool"]]
    assert right == part.of_kind
    assert sum(right) == ROWS // 2
    asked = [row["instruction"] for name in ("pool", "target", "reference") for row in read[name]]
    assert len(set(asked)) == len(asked)
    answers = [row["output"] for row in read["pool"]]
    assert len(set(answers)) == len(answers)  # each stands once, so that no answer tells which half it is in


def ended(name: str, seed: int, losses: list[float]) -> dict:
    setting = {
        "model": "m",
        "bf16": True,
        "sizes": {"pool": 9, "target": 2},
        "cutoff": 8,
        "rank": 8,
        "rate": 1e-4,
        "batch": 8,
    }
    found = {"losses": {"gsm8k": losses, "alpaca": [1.0, 1.0]}, "updates": [], "setting": setting, "machine": "x"}
    return {"case": "kind", "seed": seed, "name": name, "took": 60, "chosen": {"of_kind": seed, "rows": 8}, **found}


def test_a_run_is_compared_with_the_random_run_of_its_own_seed_row_by_row():
    results = [ended("less", 2, [1.0, 3.0]), ended("random", 1, [2.0, 2.0]), ended("less", 1, [1.0, 1.0])]
    assert "| less | 2 | 1, 2 of 8 | 1.500 | -1.000 | 2 of 2 | 1.000 | +0.000 |" in report(results)
    results.append(ended("random", 2, [2.0, 2.5]))
    assert "| less | 2 | 1, 2 of 8 | 1.500 | -1.000, -0.250 | 2, 1 of 2 | 1.000 | +0.000, +0.000 |" in report(results)
    assert "1, 2 of 8 chosen rows are GSM8K where that is the target (random: 1, 2 of 8)" in sentences(results)
