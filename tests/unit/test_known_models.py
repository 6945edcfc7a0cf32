"""The classes that people fine-tune most, tiny: every route against the plain model; `nox -s models` tries all."""

from __future__ import annotations

import copy

import pytest
import transformers
from dataflex.core.errors import DataflexError

from tests.models import cells
from tests.models.build import Collator, tiny
from tests.models.classes import every_class

pytestmark = pytest.mark.filterwarnings(
    "ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"  # peft 0.21: Mixtral's experts
)
KNOWN = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3", "gpt2", "mixtral", "qwen2_moe")
ALONE = ("mamba", "falcon_mamba", "modernbert-decoder", "gemma3")
"""In some releases these compute their loss without a loss function."""
BY_TYPE = {tried.model_type: tried for tried in reversed(every_class())}  # text, where a type has both
SCALED = ("gemma2",)  # its logits are capped behind the output layer, so they cannot be left out


@pytest.fixture(scope="module", params=KNOWN)
def made(request):
    return request.param, tiny(BY_TYPE[request.param]), Collator(request.param)


@pytest.mark.parametrize("cell", [name for name in cells.CELLS if name not in ("weighter_chunked", "states")])
def test_what_is_computed_by_row_equals_the_plain_model(made, cell):
    _, model, collate = made
    assert cells.CELLS[cell](copy.deepcopy(model), collate) <= 1


def test_embeddings_are_made_of_the_last_hidden_states(made):
    _, model, collate = made
    assert cells.states_are_last(model, collate) == "last"


@pytest.mark.parametrize("name", KNOWN)
def test_a_weighter_leaves_logits_out_only_where_nothing_is_done_to_them(name):
    model, collate = tiny(BY_TYPE[name]), Collator(name)
    if name in SCALED:
        with pytest.raises(DataflexError, match="its logits are scaled -> set weight_logits: full"):
            cells.weighter(model, collate, "chunked")
    else:
        assert cells.weighter(model, collate, "chunked") <= 1


@pytest.mark.parametrize("logits", ["full", "chunked"])
@pytest.mark.parametrize("name", ALONE)
def test_a_weighter_weighs_a_loss_that_the_class_computes_by_itself(name, logits):
    if name not in BY_TYPE:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    assert cells.weighter(tiny(BY_TYPE[name]), Collator(name), logits) <= 1


def test_the_sweep_knows_every_class_of_the_installed_transformers():
    found = every_class()
    assert len(found) >= 140 or transformers.__version__ < "5"
    assert len({(tried.model_type, tried.class_name) for tried in found}) == len(found)
