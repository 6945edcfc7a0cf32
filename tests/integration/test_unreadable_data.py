"""A data file that cannot be read ends in a sentence that names it, also where ``validate`` did not look into it.

The files are those of ``tests/unit/test_data_files.py``: what is refused there fails here, what passes is read here.
"""

from __future__ import annotations

import gc
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.errors import ConfigError
from dataflex.core.kinds import SELECTOR

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from data_files import ALPACA, BAD, KILLS, READ, lines, write  # the folder of the unit tests comes first

pytestmark = [
    pytest.mark.llamafactory,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # datasets leaves CSVs open
]

LATER = (
    "answers that are all null",
    "a message whose text is null",
    "conversations that are all empty",
    "turns that are out of order in all rows",
)
"""Cases whose rows are read, and dropped when they are tokenised."""


@pytest.fixture
def read(tmp_path):
    """``read(case)`` returns the rows of ``bad`` as LLaMA-Factory reads them in a dynamic run."""
    import llamafactory.data.loader as loader
    from dataflex.integrations.llamafactory.patches import installed
    from dataflex.integrations.llamafactory.reading import named
    from llamafactory.hparams import DataArguments
    from transformers import TrainingArguments

    keys = DataflexArguments(train_type="dynamic_select", component_name="random")
    spec = RunSpec(keys, ComponentSpec(SELECTOR, "random", "random", {}))
    model_args = SimpleNamespace(cache_dir=str(tmp_path / "cache"), hf_hub_token=None)

    def read_(case, **data):
        write(tmp_path / "data", case)
        data_args = DataArguments(template="empty", dataset="bad", dataset_dir=str(tmp_path / "data"), **data)
        args = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True)
        with installed(spec), named(data_args):
            return loader._get_merged_dataset(["bad"], model_args, data_args, args, "sft")

    return read_


@pytest.fixture(autouse=True)
def _files_are_closed_here() -> Iterator[None]:
    """Lets go of what readers of datasets leave open where they fail, which a later test would be warned of."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.parametrize("case", [name for name in BAD if name not in (*KILLS, *LATER)])
def test_what_validate_refuses_cannot_be_read_and_is_named(read, case):
    with pytest.raises(ConfigError) as caught:
        read(BAD[case])
    said = str(caught.value)
    assert " -> " in said
    assert re.search(r"\bbad\b", said) or "data/" in said, said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("case", READ)
def test_what_validate_lets_pass_is_read(read, case):
    assert len(read(READ[case])) > 0


def test_a_row_of_a_large_file_is_named_when_it_is_read(read, monkeypatch):
    from dataflex.config.checks import data_files as files

    monkeypatch.setattr(files, "LARGEST", 10)
    wrong = {"instruction": 5, "input": "", "output": "y"}
    with pytest.raises(ConfigError, match=r"a.jsonl, row 5, column 'instruction': found 5"):
        read(({"a.jsonl": lines([*ALPACA, wrong])}, {"file_name": "a.jsonl"}, []))
    with pytest.raises(ConfigError, match=r"a.jsonl, line 5: malformed JSON"):
        read(({"a.jsonl": lines(ALPACA) + '{"instruction": '}, {"file_name": "a.jsonl"}, []))
