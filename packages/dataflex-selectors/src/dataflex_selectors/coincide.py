"""Rows of every skill, most of the skills that help others and are not all alike.

Hidden states of several layers -> one vector per row -> k-means -> rows of each cluster by what it is worth:

    x       = pooled states of the layers, vision and text apart                    scoring/layer_embeddings
    S_i     = mean cosine of centroid i with the others;  D_i = mean kernel in cluster i
    P_i     proportional to exp(S_i / (T D_i))                                      parts/concept_shares
    within: greedily, the row that brings the chosen ones nearest to the cluster    parts/mean_discrepancy

The clusters and the order in each are found at the first update and kept, as the method chooses one set of rows; with
``refresh`` they are made anew under the model as it is then. An update goes on where the last one stopped, until all
rows have come. No target is needed.

Cost: one forward pass over all rows, k-means, and 2 N n D multiplications, n being the rows of a cluster. Memory: that
of a stretch of rows, of k-means and of the largest cluster; the vectors of all rows are in a file under ``cache_dir``.
On checkpoints: 16 bytes a row. Rejected: keeping the vectors, to choose anew at each update; the order of a cluster's
first m rows is a part of the order of all.

Source: Lee, Li and Hwang, COINCIDE, arXiv 2406.10995; ``variant`` names the two programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.cost import Ahead, Cost, Work
from dataflex.core.errors import ComponentError, Problem
from dataflex.core.parameter_checks import (
    count_or_null,
    flag,
    one_of,
    positive,
    positive_or_null,
    require,
)
from dataflex.core.ranks.agreement import from_rank_0
from dataflex.core.registry import register_selector
from dataflex.model.hidden_states import layer_count
from dataflex.model.media_tokens import vision_token_ids
from dataflex.rows.columns import labelled_rows
from dataflex.scoring.k_means import ITERATIONS, k_means, tries
from dataflex.scoring.layer_embeddings import STRETCH_BYTES, layer_embeddings
from dataflex.scoring.trial import try_layers
from dataflex.train.selector.base_selector import Selection, Selector
from dataflex.utils.logging import logger
from dataflex.utils.progress import Progress
from numpy.typing import NDArray

from dataflex_selectors.parts.concept_shares import TOO_ALIKE, counts_by_remainder, counts_in_turn, transferability
from dataflex_selectors.parts.enough import require_enough, tell_of_clusters
from dataflex_selectors.parts.mean_discrepancy import KernelGroup, greedy_order

VARIANTS: Mapping[str, float] = {"authors": 1.0, "opendcai": 0.5**0.5}
"""Variant -> bandwidth of its kernel: exp(-d^2 / 2) of the authors' program, exp(-d^2) of OpenDCAI/DataFlex."""

_LAYERS = 5  # as the authors take
_EACH = 64  # rows of a cluster on average; 665,298 rows in 10,000 clusters in the paper


@dataclass(frozen=True)
class Concepts:
    """Clusters of rows and the order in each. The same on every rank.

    Attributes:
        label: (E,) cluster of each row that can be taken; every number from 0 up has rows.
        turn: (E,) place of the row in the order of its cluster.
        transferability: (C,) S.
        density: (C,) D.
        update: The update at which they were found.
    """

    label: NDArray[np.int64]
    turn: NDArray[np.int64]
    transferability: NDArray[np.float64]
    density: NDArray[np.float64]
    update: int

    def values(self, temperature: float) -> NDArray[np.float64]:
        """Returns S / (T D) of each cluster: (C,). Rows that all differ have a density that is no less than 1e-12."""
        return np.asarray(self.transferability / (temperature * self.density.clip(min=1e-12)))

    def first(self, room_E: NDArray[np.bool_], counts_C: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the next rows of each cluster: places, cluster by cluster in order.

        Args:
            room_E: Which rows can be taken.
            counts_C: How many of each cluster, at most as many as can.
        """
        order = np.lexsort((self.turn, self.label))
        order = order[room_E[order]]
        sizes_C = np.bincount(self.label[order], minlength=len(counts_C))
        rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes_C) - sizes_C, sizes_C)
        return np.asarray(order[rank < counts_C[self.label[order]]])


def concepts_of(
    vectors_ED: NDArray[np.float32],
    label_E: NDArray[np.int64],
    language_D: NDArray[np.bool_],
    variant: str,
    bandwidth: float,
    single: float,
    update: int = 0,
) -> Concepts:
    """Returns what is found out about clusters. Called on rank 0; a cluster's vectors are in memory at a time.

    Args:
        vectors_ED: (E, D) vectors of the rows.
        label_E: (E,) cluster of each; numbers that no row has are closed up.
        language_D: (D,) which numbers are of text; the authors compare centroids by these.
        variant: authors or opendcai.
        bandwidth: Of the kernel.
        single: Density of a cluster of one row.
        update: When they are found.
    """
    authors = variant == "authors"
    label_E = np.unique(label_E, return_inverse=True)[1].astype(np.int64)
    order = np.argsort(label_E, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(label_E))[:-1])
    turn_E, density_C = np.empty(len(label_E), dtype=np.int64), np.empty(len(members))
    centroids_CD = np.empty((len(members), vectors_ED.shape[1]), dtype=np.float32)
    with Progress("ordering the rows of each cluster", len(label_E)) as progress:
        for cluster, own in enumerate(members):
            own_nD = np.asarray(vectors_ED[own])
            centroids_CD[cluster] = own_nD.mean(axis=0, dtype=np.float64)
            group = KernelGroup(own_nD, bandwidth)
            density_C[cluster] = group.density(authors, single)
            turn_E[own[greedy_order(group)]] = np.arange(len(own))
            progress.done(len(own))
    compared_CD = centroids_CD[:, language_D] if authors else centroids_CD
    found_C = transferability(compared_CD, TOO_ALIKE if authors else None)
    return Concepts(label_E, turn_E, found_C, density_C, update)


def spread_layers(layers: int) -> list[int]:
    """Returns five layers from the first to the last, evenly spread; all where there are fewer."""
    return sorted({round(number) for number in np.linspace(1, layers, min(_LAYERS, layers))})


@register_selector("coincide")
class CoincideSelector(Selector):
    """Takes rows of every cluster of hidden states, most of those that are like the others and whose rows differ.

    Args:
        embedding_layers: Which hidden states: 0 for the embeddings up to the number of layers; negative ones count from
            the last. Null takes five from the first to the last.
        num_clusters: How many clusters; null for one to 64 rows.
        temperature: T of a cluster's share: smaller gives more rows to the clusters that are worth most.
        variant: authors follows the authors' program: centroids are compared by their text, cosines above 0.9 do not
            count, a row is a pair with itself in the density. opendcai follows OpenDCAI/DataFlex, which has neither.
        bandwidth: Of the kernel exp(-d^2 / (2 g^2)); null for the variant's, 1 of authors and 0.707 of opendcai.
        single_member_density: Density of a cluster of one row.
        refresh: Updates after which rows are embedded and clustered anew; null for never.
        exclude_seen: Whether rows of earlier updates are left out until all rows have come.
        token_budget: Tokens that the model embeds at once; null for a default that suits the device.
        **run: What every selector is given. ``cache_dir`` has the vectors of all rows while they are clustered.

    Raises:
        ConfigError: A parameter is out of its range; the message holds everything that is wrong.
    """

    reads_batches = True
    asks = "hidden states"

    def __init__(
        self,
        *,
        embedding_layers: list[int] | None = None,
        num_clusters: int | None = None,
        temperature: float = 1.0,
        variant: str = "authors",
        bandwidth: float | None = None,
        single_member_density: float = 1.0,
        refresh: int | None = None,
        exclude_seen: bool = True,
        token_budget: int | None = None,
        **run: Any,
    ) -> None:
        super().__init__(**run)
        require(
            "coincide selector",
            _layers_problem(embedding_layers),
            count_or_null("num_clusters", num_clusters, "one to 64 rows"),
            positive("temperature", temperature),
            one_of("variant", variant, list(VARIANTS)),
            positive_or_null("bandwidth", bandwidth, "the variant's"),
            positive("single_member_density", single_member_density),
            count_or_null("refresh", refresh, "never"),
            flag("exclude_seen", exclude_seen),
            count_or_null("token_budget", token_budget),
        )
        self.embedding_layers, self.num_clusters, self.variant = embedding_layers, num_clusters, variant
        self.temperature, self.single_member_density = float(temperature), float(single_member_density)
        self.bandwidth = VARIANTS[variant] if bandwidth is None else float(bandwidth)
        self.refresh, self.exclude_seen, self.token_budget = refresh, exclude_seen, token_budget
        self._eligible: NDArray[np.int64] | None = None
        self._concepts: Concepts | None = None
        self._seen: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Rows embedded, clustered and ordered where that is due. Vision blocks are not counted. See the base class."""
        size, layers = ahead.rows.rows, params["embedding_layers"]
        width = ahead.width * (_LAYERS if layers is None else len(layers))
        clusters = min(params["num_clusters"] or -(-size // _EACH), size)
        work = Work()
        if ahead.due(params["refresh"]) and size:
            rounds = ITERATIONS + 1 + tries(int(clusters) or 1)
            work = Work(hidden=ahead.rows, products=size * width * (clusters * rounds + 2 * size / max(1, clusters)))
        host = 24 * size + min(STRETCH_BYTES, 4.0 * width * size)
        return Cost(work, host_bytes=host, state_bytes=24 * size + 16 * clusters, cache_bytes=4.0 * width * size)

    def eligible(self) -> NDArray[np.int64]:
        """Returns the rows with a label, in row order: (E,). Looked up once."""
        if self._eligible is None:
            self._eligible = labelled_rows(self.dataset)
        return self._eligible

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses too few rows with a label, layers that the model does not have, and one without hidden states."""
        require_enough(max(1, run.most_rows), len(self.eligible()), len(self.dataset))
        so = "no row is compared with another of its cluster"
        tell_of_clusters(self.name, "num_clusters", self.num_clusters, len(self.eligible()), so)
        try_layers(model, self.dataset, self.eligible()[:2], self._layers(model), self.data_collator, self.accelerator)

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Returns the next rows of the clusters by their shares, in random order. See the base class.

        A row's score is S / (T D) of its cluster.

        Raises:
            ComponentError: Fewer rows have a label than were asked for.
        """
        context: UpdateContext = kwargs["context"]
        rows = self.eligible()
        require_enough(num_samples, len(rows), len(self.dataset))
        concepts = self._found(model, context)
        room_E = ~np.isin(rows, self._seen)
        logger.info(
            "%s: %d clusters of %d rows, %d of them open: with rows that have not come",
            self.name, len(concepts.density), len(rows), len(np.unique(concepts.label[room_E])),
        )  # fmt: skip
        left = int(room_E.sum())
        if left < num_samples:  # the last of this round, then the first of the next one
            last_E = np.flatnonzero(room_E)
            others_E = np.ones(len(rows), dtype=np.bool_)
            others_E[last_E] = False
            places = np.concatenate([last_E, self._taken(concepts, others_E, num_samples - left)])
            self._seen = rows[places[left:]]
        else:
            places = self._taken(concepts, room_E, num_samples)
            self._seen = np.concatenate([self._seen, rows[places]])
        if not self.exclude_seen:
            self._seen = self._seen[:0]
        places = self.generator(f"{context.update}, order").permutation(places)
        value_E = concepts.values(self.temperature)[concepts.label]
        return Selection(rows[places], value_E[places], candidates=(rows, value_E))

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float64]:
        """Returns S / (T D) of each row's cluster: (N,), NaN without a label. See the base class."""
        scores_N = np.full(len(self.dataset), np.nan)
        if len(rows := self.eligible()):
            concepts = self._found(model, kwargs["context"])
            scores_N[rows] = concepts.values(self.temperature)[concepts.label]
        return scores_N

    def state_dict(self) -> dict[str, Any]:
        """Returns the clusters, the order in each and the rows that have come."""
        return {"concepts": None if self._concepts is None else asdict(self._concepts), "seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._seen = np.asarray(state["seen"], dtype=np.int64)
        self._concepts = None
        if (kept := state["concepts"]) is not None:
            label, turn = (np.asarray(kept[key], dtype=np.int64) for key in ("label", "turn"))
            gain, density = (np.asarray(kept[key], dtype=np.float64) for key in ("transferability", "density"))
            self._concepts = Concepts(label, turn, gain, density, int(kept["update"]))

    def _taken(self, concepts: Concepts, room_E: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
        values_C = concepts.values(self.temperature)
        room_C = np.bincount(concepts.label[room_E], minlength=len(values_C))
        if self.variant == "authors":
            counts_C, _ = counts_in_turn(values_C, room_C, count)
        else:
            counts_C = counts_by_remainder(values_C, room_C, count)
        return concepts.first(room_E, counts_C)

    def _found(self, model: torch.nn.Module, context: UpdateContext) -> Concepts:
        """Returns the clusters, made anew where they are due. Collective."""
        known, update = self._concepts, context.update
        if known is None or (self.refresh is not None and not 0 <= update - known.update < self.refresh):
            layers, ids = self._layers(model), vision_token_ids(model)
            vectors_ED = layer_embeddings(
                model,
                self.dataset,
                layers,
                collator=self.data_collator,
                accelerator=self.accelerator,
                indices=self.eligible(),
                token_budget=self.token_budget,
                squash_tokens=self.variant == "opendcai",
                desc=f"{self.name}: embedding rows at step {context.step}",
                folder=self.cache_dir,
            )

            def found() -> Concepts:
                count = self.num_clusters or -(-len(vectors_ED) // _EACH)
                device = None if self.accelerator is None else self.accelerator.device
                label_E = k_means(vectors_ED, count, self.generator(f"{update}, clusters"), device)[:, 0]
                blocks = len(layers) * (2 if ids else 1)
                text = np.arange(blocks) % 2 == 1 if ids else np.ones(blocks, dtype=np.bool_)
                language_D = np.repeat(text, vectors_ED.shape[1] // blocks)
                given = (self.variant, self.bandwidth, self.single_member_density, update)
                return concepts_of(vectors_ED, label_E, language_D, *given)

            known = found() if self.accelerator is None else from_rank_0(self.accelerator, found)
        self._concepts = known
        return known

    def _layers(self, model: torch.nn.Module) -> list[int]:
        last = layer_count(model)
        if self.embedding_layers is None:
            return spread_layers(last)
        wanted = sorted({layer + last + 1 if layer < 0 else layer for layer in self.embedding_layers})
        if not (wanted[0] >= 0 and wanted[-1] <= last):
            raise ComponentError(
                f"embedding_layers: found {self.embedding_layers}, and the model has the hidden states 0 to {last} -> "
                "name some of these, or negative ones from the last (-1)"
            )
        return wanted


def _layers_problem(found: Any) -> Problem | None:
    numbers = isinstance(found, list | tuple) and found and all(type(layer) is int for layer in found)
    if found is None or numbers:
        return None
    what = f"found {found!r}, allowed: a list of whole numbers such as [4, 10, -1], or null for five layers"
    return Problem("embedding_layers", what)
