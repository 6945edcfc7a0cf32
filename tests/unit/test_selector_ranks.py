"""Two ranks choose what one process chooses, with every selector that compares rows or losses."""

from __future__ import annotations

import numpy as np
from dataflex.core.context import UpdateContext
from dataflex.testing import TokenRows, tiny_model, tiny_tokenizer
from dataflex_selectors.cluster_less import ClusterLessSelector
from dataflex_selectors.coincide import CoincideSelector
from dataflex_selectors.deita import DeitaSelector
from dataflex_selectors.delta_loss import DeltaLossSelector
from dataflex_selectors.dsir import DsirSelector
from dataflex_selectors.ifd import IfdSelector
from dataflex_selectors.near import NearSelector
from dataflex_selectors.perplexity import PerplexitySelector
from dataflex_selectors.rho_loss import RhoLossSelector
from dataflex_selectors.semdedup import SemDedupSelector
from dataflex_selectors.tsds import TsdsSelector
from every_component import run_objects
from rank_group import on_ranks, one_thread

UPDATES = 3


def choices(accelerator, folder):
    """Returns selector -> the rows of all updates."""
    rows, target = TokenRows(60, lengths=range(6, 40)), TokenRows(3, lengths=range(6, 40), seed=1)
    options = {"token_budget": 90}
    to_target = options | {"embedding": "model"}
    common = run_objects(rows, accelerator=accelerator, folder=folder)
    aimed = common | {"eval_dataset": target}
    selectors = {
        "near": NearSelector(**aimed, **to_target),
        "near ngrams": NearSelector(**aimed),
        "tsds": TsdsSelector(**aimed, **to_target),
        "tsds ngrams": TsdsSelector(**aimed),
        "cluster_less": ClusterLessSelector(**aimed, clusters=6, budget="ucb", **to_target),
        "cluster_less ngrams": ClusterLessSelector(**aimed, clusters=6, **options),
        "deita": DeitaSelector(**common, score="loss", threshold=0.97, too_few="relax", **to_target),
        "deita ngrams": DeitaSelector(**common, **options),
        "semdedup": SemDedupSelector(**common, eps=0.01, keep="random", **to_target),
        "semdedup ngrams": SemDedupSelector(**common, clusters=3, **options),
        "dsir": DsirSelector(**aimed, tokenizer=tiny_tokenizer(), buckets=50),
        "dsir tokens": DsirSelector(
            **aimed | {"eval_dataset": {"a": target, "b": rows}}, features="tokens", separate=True
        ),
        "coincide": CoincideSelector(**common, num_clusters=6, refresh=2, **options),
        "coincide opendcai": CoincideSelector(**common, variant="opendcai", **options),
        "delta_loss": DeltaLossSelector(**common, **options),
        "ifd": IfdSelector(**common, most=None, **options),
        "ifd by a model": IfdSelector(**common, most=None, reference_model=str(folder / "model"), header=1, **options),
        "perplexity": PerplexitySelector(**common, **options),
        "perplexity by a model": PerplexitySelector(**common, reference_model=str(folder / "model"), **options),
        "rho_loss": RhoLossSelector(**common, reference_model=str(folder / "model"), pool_factor=2, **options),
    }
    found = {}
    for name, selector in selectors.items():
        selector.bind(name, 7)
        picks = []
        for update in range(UPDATES):
            context = UpdateContext(update, UPDATES, 10 * update, 30, 1e-3, None)
            picks.append(selector.select(tiny_model(seed=update), 10 * update, 12, context=context).indices)
        found[name] = np.stack(picks)
    return found


def test_two_ranks_choose_what_one_process_chooses(tmp_path):
    tiny_model(seed=9).save_pretrained(tmp_path / "model")
    answers = on_ranks(choices, 2, tmp_path)
    with one_thread():
        alone = choices(None, tmp_path)
    assert len(alone) == 20
    for rank, answer in enumerate(answers):
        for name, expected in alone.items():
            np.testing.assert_array_equal(answer[name], expected, err_msg=f"{name} on rank {rank}")
