"""Rows drawn by how much likelier their n-grams are in the target than in the train dataset (DSIR).

Xie, Santurkar, Ma and Liang, Data Selection for Language Models via Importance Resampling, NeurIPS 2023,
arXiv 2302.03169. Texts -> counts of hashed n-grams in B buckets (parts/hashed_words) -> two distributions over buckets:

    p_b   = share of bucket b in the train dataset,  q_b = (count_b + a) / (total + a B) in the target
    l_i   = sum over the n-grams of row i of  ln(q_b + 1e-8) - ln(p_b + 1e-8)            log importance weight
    rows with the largest l_i + g_i, g_i standard Gumbel noise: drawn without replacement with weights exp(l_i)

No model is needed: it takes two passes over the texts of the train dataset, once in a run. Long rows have large
weights, of either sign, as l_i is a sum; ``per_ngram`` divides it by the number of n-grams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.cost import Ahead, Cost, Work
from dataflex.core.errors import ConfigError, Problem, nearest
from dataflex.core.parameter_checks import at_least, count, count_or_null, flag, is_number, one_of, positive, require
from dataflex.core.registry import register_selector
from dataflex.rows.columns import labelled_rows
from dataflex.scoring import read_target
from dataflex.train.selector.base_selector import Selection, Selector
from numpy.typing import NDArray

from dataflex_selectors.parts.drawing import draw
from dataflex_selectors.parts.enough import require_enough
from dataflex_selectors.parts.ranking import first_places
from dataflex_selectors.parts.row_grams import FEATURES, RowGrams

if TYPE_CHECKING:
    import torch

MODES = ("sample", "topk")
FIT_PER_BUCKET = 100_000
"""N-grams of the train dataset for each bucket after which its distribution is known, as in the authors' program."""
_SMALL = 1e-8  # added to a share before the logarithm, as there
_WORDS = 8.0  # what words cost, in n-grams of tokens that are counted


def log_ratio(target_B: NDArray[np.float64], raw_B: NDArray[np.float64], smoothing: float) -> NDArray[np.float64]:
    """Returns ln(q_b + 1e-8) - ln(p_b + 1e-8) of each bucket: (B,).

    Args:
        target_B: (B,) counts of the target, at least one of them above 0, or ``smoothing`` is.
        raw_B: (B,) counts of the train dataset, at least one of them above 0.
        smoothing: a, added to each count of the target.
    """
    q_B = (target_B + smoothing) / (target_B.sum() + smoothing * len(target_B))
    p_B = raw_B / raw_B.sum()
    return np.asarray(np.log(q_B + _SMALL) - np.log(p_B + _SMALL))


def counts_by_share(total: int, shares_J: NDArray[np.float64]) -> list[int]:
    """Returns how many rows each target takes: int(total share), and the last one what is left besides."""
    found = [int(total * share) for share in shares_J / shares_J.sum()]
    found[-1] += total - sum(found)
    return found


def in_turn(
    weights_NJ: NDArray[np.floating],
    counts_J: list[int],
    generator: np.random.Generator | None,
    temperature: float = 1.0,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the rows that the targets take in turn, and the target of each: (S,) twice.

    Args:
        weights_NJ: (N, J) log importance weights; -inf for a row that is not to be taken.
        counts_J: Rows that each target takes; together at most as many as can be taken.
        generator: Draws the Gumbel noise, anew for each target; None for the largest weights.
        temperature: By which weights are divided before the noise is added.
    """
    free_N, rows, takers = weights_NJ[:, 0] > -np.inf, [], []
    for target, wanted in enumerate(counts_J):
        places = np.flatnonzero(free_N)
        weights = weights_NJ[places, target].astype(np.float64)
        if generator is None:
            taken = places[first_places(wanted, -weights)]
        else:
            taken = places[draw(weights, wanted, False, generator, temperature)] if wanted else places[:0]
        free_N[taken] = False
        rows.append(taken)
        takers.append(np.full(len(taken), target, dtype=np.int64))
    return np.concatenate(rows), np.concatenate(takers)


@register_selector("dsir")
class DsirSelector(Selector):
    """Draws rows whose n-grams are likelier in the evaluation set than in the train dataset (DSIR).

    Args:
        eval_dataset: The target: a tokenised dataset, or several by name.
        tokenizer: Turns tokens into text where words are counted.
        features: words of the text that the tokens of a row stand for, without special tokens, or the tokens.
        ngrams: The largest number of neighbouring words that are counted together.
        buckets: Buckets that n-grams are hashed to.
        smoothing: Added to the target's count of each bucket.
        per_ngram: Whether a row's weight is divided by the number of its n-grams.
        min_length: Rows with fewer words, or tokens, are never taken.
        fit_ngrams: N-grams of the train dataset, ``ngrams`` for each token, that its distribution is made from, of rows
            drawn at random; null for 100,000 for each bucket.
        separate: Whether each evaluation set takes rows of its own; otherwise all of them are one target.
        shares: Of separate: name -> share of the rows that the set takes; null for shares by their numbers of n-grams.
        mode: sample draws by the weights, topk takes the largest.
        temperature: Of sample: by which weights are divided; 1 is the paper's.
        exclude_seen: Whether rows of earlier updates are left out until all rows have come.
        **run: What every selector is given, see :class:`~dataflex.interfaces.selector.Selector`.

    Raises:
        ConfigError: A parameter is out of its range, there is no evaluation set, one of them has no n-gram, or the run
            has no tokenizer; the message holds everything that is wrong.
    """

    reads_tokens = True

    def __init__(
        self,
        *,
        eval_dataset: Any,
        tokenizer: Any = None,
        features: str = "words",
        ngrams: int = 2,
        buckets: int = 10_000,
        smoothing: float = 1.0,
        per_ngram: bool = False,
        min_length: int = 1,
        fit_ngrams: int | None = None,
        separate: bool = False,
        shares: Mapping[str, float] | None = None,
        mode: str = "sample",
        temperature: float = 1.0,
        exclude_seen: bool = True,
        **run: Any,
    ) -> None:
        super().__init__(**run)
        target = read_target(eval_dataset)
        require(
            "dsir selector",
            target.problem,
            one_of("features", features, FEATURES),
            count("ngrams", ngrams),
            count("buckets", buckets, least=2),
            at_least("smoothing", smoothing, 0),
            flag("per_ngram", per_ngram),
            count("min_length", min_length),
            count_or_null("fit_ngrams", fit_ngrams, null="100,000 for each bucket"),
            flag("separate", separate),
            _shares_problem(shares, separate),
            one_of("mode", mode, MODES),
            positive("temperature", temperature),
            flag("exclude_seen", exclude_seen),
            _without_tokenizer(features, tokenizer),
            _unknown_sets(shares, target.sets),
        )
        self._grams = RowGrams(features, ngrams, buckets, tokenizer, self.accelerator)
        self.smoothing, self.per_ngram, self.min_length = float(smoothing), per_ngram, min_length
        self.fit_ngrams = FIT_PER_BUCKET * buckets if fit_ngrams is None else fit_ngrams
        self.shares = None if shares is None else np.array([float(shares[name]) for name in target.sets])
        self.mode, self.temperature, self.exclude_seen = mode, float(temperature), exclude_seen
        every = {name: [rows] for name, rows in target.sets.items()}
        self._named_targets = every if separate else {"": list(target.sets.values())}
        self._target_counts: NDArray[np.float64] | None = None  # (J, B)
        self._eligible: NDArray[np.int64] | None = None
        self._weights: NDArray[np.float32] | None = None  # (E, J) log importance weights; -inf for a row too short
        self._by_count: NDArray[np.float64] = np.ones(1)  # (J,) shares of the targets by their n-grams
        self._seen: NDArray[np.bool_] = np.zeros(len(self.dataset), dtype=np.bool_)  # (N,) not to be given again

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Two passes over the n-grams of all rows, at the first update. See the base class."""
        size = ahead.rows.rows
        targets = ahead.sets if params["separate"] else 1
        counted = (ahead.rows.times(2) + ahead.target).times(_WORDS if params["features"] == "words" else 1.0)
        work = Work(ngrams=counted) if ahead.due() else Work()
        kept = (4.0 * targets + 0.125) * size
        return Cost(work, host_bytes=(4.0 * targets + 40) * size, state_bytes=kept)

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses too few rows with a label, and a target without n-grams. See the base class."""
        require_enough(max(1, run.most_rows), len(self.eligible()), len(self.dataset))
        self._targets()

    def eligible(self) -> NDArray[np.int64]:
        """Returns the rows with tokens and a label, in row order: (E,). Looked up once."""
        if self._eligible is None:
            self._eligible = labelled_rows(self.dataset)
        return self._eligible

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Returns the rows drawn; the score of a row is its log importance weight for the target that took it.

        Raises:
            ComponentError: Fewer rows have a label and are long enough than are asked for.
        """
        context: UpdateContext = kwargs["context"]
        rows, weights_EJ = self.eligible(), self._known()
        free_E = weights_EJ[:, 0] > -np.inf
        have, way_out = f"have a label and {self.min_length} {self._grams.features} or more", "a smaller min_length"
        require_enough(num_samples, int(free_E.sum()), len(self.dataset), have, way_out)
        generator = self.generator(context.update) if self.mode == "sample" else None
        places, takers = self._taken(weights_EJ, free_E, num_samples, generator)
        return Selection(rows[places], weights_EJ[places, takers], candidates=(rows, self._mixed(weights_EJ)))

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float64]:
        """Returns the log importance weight of every row: (N,), NaN without a label, -inf for a row too short.

        With ``separate``, that for the mixture of the targets by their shares. See the base class.
        """
        scores_N = np.full(len(self.dataset), np.nan)
        scores_N[self.eligible()] = self._mixed(self._known())
        return scores_N

    def _taken(
        self,
        weights_EJ: NDArray[np.float32],
        free_E: NDArray[np.bool_],
        total: int,
        generator: np.random.Generator | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns places of eligible rows, each once, and the target that took each."""
        if not self.exclude_seen:
            return in_turn(weights_EJ, self._each_takes(total), generator, self.temperature)
        seen_E = self._seen[self.eligible()]
        left = int((free_E & ~seen_E).sum())
        before = in_turn(_only(weights_EJ, ~seen_E), self._each_takes(min(total, left)), generator, self.temperature)
        places, takers = before
        if left < total:  # the last of this round, then some of the next one
            self._seen[:] = False
            more = in_turn(_only(weights_EJ, seen_E), self._each_takes(total - left), generator, self.temperature)
            places, takers = np.concatenate([places, more[0]]), np.concatenate([takers, more[1]])
        self._seen[self.eligible()[places]] = True
        return places, takers

    def _each_takes(self, total: int) -> list[int]:
        return counts_by_share(total, self._shares())

    def _shares(self) -> NDArray[np.float64]:
        found = self._by_count if self.shares is None else self.shares
        return np.asarray(found / found.sum())

    def _mixed(self, weights_EJ: NDArray[np.float32]) -> NDArray[np.float64]:
        """Returns ln sum_j share_j exp(l_ij): the log weight for the mixture of the targets, (E,)."""
        if weights_EJ.shape[1] == 1:
            return weights_EJ[:, 0].astype(np.float64)
        with np.errstate(divide="ignore"):
            return np.asarray(np.logaddexp.reduce(weights_EJ + np.log(self._shares()), axis=1))

    def _known(self) -> NDArray[np.float32]:
        """Returns the log importance weights: (E, J). The first time, all texts are read. Collective."""
        if self._weights is None:
            targets_JB, rows = self._targets(), self.eligible()
            self._by_count = targets_JB.sum(axis=1)
            seed = int(self.generator("fit").integers(2**62))
            raw_B = self._grams.counts(self.dataset, rows, f"{self.name}: n-grams of all rows", self.fit_ngrams, seed)
            if not raw_B.any():
                return np.full((len(rows), len(targets_JB)), -np.inf, dtype=np.float32)
            ratio_BJ = np.stack([log_ratio(counts_B, raw_B, self.smoothing) for counts_B in targets_JB], axis=1)
            sums_EJ, lengths_E = self._grams.sums(self.dataset, rows, ratio_BJ, f"{self.name}: weights of rows")
            if self.per_ngram:
                sums_EJ /= np.maximum(1, ngrams_of(lengths_E, self._grams.most))[:, None].astype(np.float32)
            self._weights = np.where((lengths_E >= self.min_length)[:, None], sums_EJ, np.float32(-np.inf))
        return self._weights

    def _targets(self) -> NDArray[np.float64]:
        """Returns the counts of each target: (J, B). Collective the first time."""
        if self._target_counts is None:
            self._target_counts = np.stack([self._counted(name, sets) for name, sets in self._named_targets.items()])
        return self._target_counts

    def _counted(self, name: str, sets: Sequence[Any]) -> NDArray[np.float64]:
        """Returns the counts of a target: (B,). Collective.

        Raises:
            ConfigError: It has no n-gram.
        """
        found_B = np.zeros(self._grams.buckets)
        for own in sets:
            desc = f"{self.name}: n-grams of the target"
            found_B += self._grams.counts(own, np.arange(len(own), dtype=np.int64), desc)
        if not found_B.any():
            which = f"the evaluation set {name!r} has" if name else "the evaluation set has"
            raise ConfigError(
                f"eval_dataset: no row of {which} {self._grams.features} besides special tokens -> check eval_dataset, "
                "or use features: tokens"
            )
        return found_B

    def state_dict(self) -> dict[str, Any]:
        """Returns the weights, once they are known, and which rows were given."""
        seen = {"seen": np.packbits(self._seen), "size": len(self._seen)}
        return seen | {"weights": self._weights, "by_count": self._by_count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._seen = np.unpackbits(np.asarray(state["seen"]), count=int(state["size"])).astype(np.bool_)
        self._weights = None if state["weights"] is None else np.asarray(state["weights"], dtype=np.float32)
        self._by_count = np.asarray(state["by_count"], dtype=np.float64)


def ngrams_of(lengths_N: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Returns how many n-grams of 1 to ``most`` words rows of so many words have: (N,)."""
    return np.asarray(sum(np.maximum(0, lengths_N - size + 1) for size in range(1, most + 1)))


def _only(weights_EJ: NDArray[np.float32], wanted_E: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(wanted_E[:, None], weights_EJ, np.float32(-np.inf))


def _without_tokenizer(features: Any, tokenizer: Any) -> Problem | None:
    if features != "words" or tokenizer is not None:
        return None
    what = "'words' are read from text, and the run has no tokenizer to turn tokens into text"
    return Problem("features", what, "give the trainer a processing_class, or use tokens")


def _shares_problem(shares: Any, separate: Any) -> Problem | None:
    if shares is None:
        return None
    allowed = "allowed: a share above 0 for each evaluation set by its name, or null"
    if not isinstance(shares, Mapping) or not shares or not all(is_number(s) and s > 0 for s in shares.values()):
        return Problem("shares", f"found {shares!r}, {allowed}")
    if separate is False:
        return Problem("shares", f"found {shares!r} beside separate: false", "set separate: true, or remove it")
    return None


def _unknown_sets(shares: Any, sets: Mapping[str, Any]) -> Problem | None:
    """Returns a problem unless the shares are those of the evaluation sets."""
    if not isinstance(shares, Mapping) or not sets or set(shares) == set(sets):
        return None
    unknown = [name for name in shares if name not in sets]
    missing = [name for name in sets if name not in shares]
    what = f"found shares of {sorted(map(str, shares))}, and the evaluation sets are {sorted(sets)}"
    close = nearest(str(unknown[0]), list(sets)) if unknown else ""
    return Problem("shares", what, close or f"give one for each set: {', '.join(missing) or 'no other'}")
