"""Every component that reads the model gives rows with images what it gives each of them in a batch of its own."""

from __future__ import annotations

import numpy as np
import pytest
from dataflex.core.errors import ConfigError
from dataflex.core.kinds import SELECTOR
from every_component import made, scores
from vision_data import VisionData, vision_data

pytestmark = [
    pytest.mark.llamafactory,
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),  # of torch's own forward mode
]

SCORED = {
    "loss": {}, "less": {"gradient_type": "sgd"}, "cluster_less": {"gradient_type": "sgd", "clusters": 3},
    "cluster_less by the model": {"gradient_type": "sgd", "clusters": 3, "embedding": "model"},
    "zeroth": {}, "zeroth by jvp": {"method": "jvp"}, "near": {"embedding": "model"}, "near ngrams": {},
    "coincide": {"num_clusters": 3}, "coincide opendcai": {"num_clusters": 3, "variant": "opendcai"},
    "rho_loss": {"reference_model": "MODEL"}, "tsds": {"embedding": "model"},
}  # fmt: skip
NO_MODEL = {"random", "custom", "scores"}  # never look at it


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> VisionData:
    return vision_data(tmp_path_factory.mktemp("vision"))


def selector(data, name, params, folder, budget=None):
    known = name.split()[0]
    params = {key: str(data.folder / "model") if value == "MODEL" else value for key, value in params.items()}
    objects = {"dataset": data.dataset, "data_collator": data.collator, "tokenizer": data.tokenizer}
    aimed = {"eval_dataset": data.target} if known not in ("loss", "coincide", "rho_loss") else {}
    return made(SELECTOR, known, params | {"token_budget": budget}, cache_dir=str(folder), **objects, **aimed)


@pytest.mark.parametrize("name", SCORED)
def test_scores_do_not_depend_on_the_company_of_a_row(data, tmp_path, name):
    found = scores(selector(data, name, SCORED[name], tmp_path / "a"), data.model)
    alone = scores(selector(data, name, SCORED[name], tmp_path / "b", budget=1), data.model)
    assert np.isfinite(found).all()
    assert len(set(found.round(6))) > 1
    assert found == pytest.approx(alone, rel=2e-3, abs=1e-5)


def test_nice_refuses_prompts_with_images(data, tmp_path):
    with pytest.raises(ConfigError, match="row 0 of the evaluation set 'eval' has images, videos or sounds, and answ"):
        selector(data, "nice", {}, tmp_path)
