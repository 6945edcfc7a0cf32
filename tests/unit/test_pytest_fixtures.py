"""The fixtures that pytest finds by itself where dataflex-core is installed, and the two ranks that they lead to."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch
from dataflex.interfaces.selector import Selector
from dataflex.testing import RankError, RankProcesses, TokenRows

ROOT = Path(__file__).parents[2]


class Last(Selector):
    """The last rows."""

    draws = False

    def select(self, model, step_id, num_samples, **kwargs):
        return range(len(self.dataset) - num_samples, len(self.dataset))


def test_a_trainer_of_a_class_is_one_call_and_each_has_a_folder_of_its_own(trainer_of, rows, sources, tiny_model):
    one = trainer_of(rows, selector=Last, update_step=2, update_times=1, model=tiny_model, args={"max_steps": 2})
    two = trainer_of(sources, mixer="static", update_step=2, update_times=1)
    assert one.model is tiny_model
    assert one.args.output_dir != two.args.output_dir
    one.train()
    assert one.segments.chosen.rows.tolist() == list(range(len(rows) - 8, len(rows)))
    assert two.mixture_manager.names == ("a", "b")


def test_rows_sources_model_and_tokenizer_are_small_and_fit_each_other(rows, sources, tiny_model, tiny_tokenizer):
    vocabulary = tiny_model.config.vocab_size
    for dataset in (rows, *sources.values()):
        assert isinstance(dataset, TokenRows)
        assert max(max(dataset[i]["input_ids"]) for i in range(len(dataset))) < vocabulary
    assert tiny_tokenizer.pad_token_id == tiny_model.config.pad_token_id


def test_pytest_starts_with_the_fixtures_and_imports_no_torch(tmp_path):
    points = tomllib.loads((ROOT / "packages" / "dataflex-core" / "pyproject.toml").read_text())["project"]
    assert points["entry-points"]["pytest11"] == {"dataflex": "dataflex.testing.pytest_fixtures"}
    assert not [need for need in points["dependencies"] if need.startswith("pytest")]
    (tmp_path / "test_it.py").write_text(
        "import sys\ndef test_light():\n    assert 'dataflex.testing.pytest_fixtures' in sys.modules\n"
        "    assert not {'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    light = ["-p", "no:hypothesispytest", "-p", "dataflex.testing.pytest_fixtures"]
    environ = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # other plugins may import what they like
    done = subprocess.run(
        [*command, *light, str(tmp_path)], env=environ, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def total(number):
    found = torch.tensor([number + torch.distributed.get_rank()])
    torch.distributed.all_reduce(found)
    return found.item()


def kind_of_lock():
    import tqdm

    return type(tqdm.tqdm.get_lock()).__name__


def one_raises():
    if torch.distributed.get_rank() == 1:
        raise RuntimeError("only here")
    torch.distributed.barrier()


def one_stays_away():
    if torch.distributed.get_rank() == 0:
        torch.distributed.barrier()
    time.sleep(3600)


def one_dies():
    if torch.distributed.get_rank() == 1:
        os._exit(7)
    torch.distributed.barrier()


def test_two_ranks_answer_call_after_call_and_what_goes_wrong_ends_them_in_words(two_ranks):
    assert two_ranks(total, 3) == [7, 7]
    with pytest.raises(TypeError, match="give a function of a module"):
        two_ranks(lambda: 1)
    with pytest.raises(
        RankError, match=r"rank 0 waited for the others:\n(.|\n)*one_raises\n(.|\n)*RuntimeError: only here"
    ):
        two_ranks(one_raises)
    assert two_ranks(total, 4) == [9, 9]
    assert two_ranks(kind_of_lock) == ["RLock"] * 2, "progress bars would leave a semaphore behind, with a warning"


def test_ranks_that_hang_or_die_are_ended_with_where_they_were():
    ranks = RankProcesses(2)
    try:
        with pytest.raises(RankError, match=r"rank 1 died:\nthe process ended with exit code 7"):
            ranks(one_dies)
        with pytest.raises(RankError, match=r"rank 0 was not back after 2 s:\n(.|\n)*one_stays_away"):
            ranks(one_stays_away, timeout=2.0)
    finally:
        ranks.close()
