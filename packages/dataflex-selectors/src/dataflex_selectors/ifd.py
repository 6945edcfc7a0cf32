"""``ifd``: rows whose instruction helps the model least to write the answer, among those where it helps.

Li et al., From Quantity to Quality (Cherry LLM), arXiv 2308.12032; Li et al., Superfiltering, arXiv 2402.00530. With
the mean token loss of the answer behind its prompt, and alone:

    L(A | Q) = mean over the answer's tokens of -log p(a_t | Q, a_<t)
    L(A)     = the same without Q
    IFD      = L(A | Q) / L(A)                      ratio: loss          (Cherry LLM, equation 3)
    IFD      = exp(L(A | Q)) / exp(L(A))            ratio: perplexity    (Superfiltering)

A row with an IFD above ``most`` is never taken: its answer does not follow from its instruction. Of the others, those
with the highest are. Both losses are those of the model being trained at each update, or once those of
``reference_model``, which may be small and have another tokenizer, as in Superfiltering.

What stands before an answer alone: see :mod:`dataflex_selectors.parts.answer_rows`. Cost: a forward pass over the rows
and one over their answers. Rejected: one pass with the prompt masked by attention, which moves the positions of the
answer's tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.context import RowScores, RunAhead, UpdateContext
from dataflex.core.cost import Ahead, Amount, Cost, Work
from dataflex.core.errors import ComponentError, Problem
from dataflex.core.parameter_checks import at_least, count, count_or_null, model_or_null, one_of, positive, require
from dataflex.core.registry import register_selector
from dataflex.scoring import ScoreStore, per_sample_losses
from dataflex.scoring.model_beside import text_tokenizer
from dataflex.scoring.passes.fingerprint import dataset_digest, digest, model_digest
from dataflex.scoring.trial import try_losses
from dataflex.train.selector.base_selector import Selection, Selector
from dataflex.utils.logging import logger
from numpy.typing import NDArray

from dataflex_selectors.parts.answer_rows import AnswersAlone, header_of, rows_with_answers
from dataflex_selectors.parts.enough import SHOW_LABELS, require_enough, require_labelled
from dataflex_selectors.parts.other_model import losses_under, padded, try_losses_under
from dataflex_selectors.parts.pick import pick
from dataflex_selectors.parts.row_losses import RowLosses
from dataflex_selectors.parts.whole_weights import whole_weights

if TYPE_CHECKING:
    import torch

RATIOS = ("loss", "perplexity")
MODES = ("topk", "sample")
ALONE = "answers_alone"
NO_ANSWERS = (
    "no row has an answer behind a prompt that nothing is learnt from -> use rows with prompts (stage: sft, "
    "train_on_prompt: false)"
)


def instruction_following_difficulty(
    with_prompt_N: NDArray[np.floating[Any]], alone_N: NDArray[np.floating[Any]], ratio: str
) -> NDArray[np.float64]:
    """Returns the IFD of each row: (N,), NaN where a loss is NaN, or where both are 0 with ``ratio: loss``.

    Args:
        with_prompt_N: (N,) L(A | Q) in nats.
        alone_N: (N,) L(A) in nats.
        ratio: One of :data:`RATIOS`.
    """
    given_N, alone_N = with_prompt_N.astype(np.float64), alone_N.astype(np.float64)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        found_N = np.exp(given_N - alone_N) if ratio == "perplexity" else given_N / alone_N
    return np.asarray(np.where(np.isfinite(found_N), found_N, np.where(np.isnan(found_N), np.nan, np.inf)))


def in_band(scores_N: NDArray[np.float64], least: float, most: float | None, ratio: str) -> NDArray[np.float64]:
    """Returns the scores with -inf for those outside of the band: (N,), NaN where there is none.

    At the upper end the two programs differ: Cherry LLM keeps a score equal to it, Superfiltering does not.

    Args:
        scores_N: (N,) IFD.
        least: A score at or below it is left out; 0 leaves none out.
        most: The upper end; None for no such end.
        ratio: Whose rule holds at the upper end.
    """
    with np.errstate(invalid="ignore"):
        outside_N = scores_N <= least if least > 0 else np.isposinf(scores_N)
        if most is not None:
            outside_N |= scores_N >= most if ratio == "perplexity" else scores_N > most
    return np.where(outside_N | np.isposinf(scores_N), -np.inf, scores_N)


@register_selector("ifd")
class IfdSelector(Selector):
    """Takes the rows with the highest instruction-following difficulty below a bound (IFD, arXiv 2308.12032).

    Args:
        tokenizer: What the rows were tokenised with; None where the run has none.
        ratio: loss divides the loss behind the prompt by the loss alone; perplexity divides their exponentials.
        least: Rows with an IFD at or below it are never taken; 0 for no such end.
        most: Rows with an IFD above it are never taken, with ``ratio: perplexity`` also those at it; null for no end.
        reference_model: Name or path of a model that scores the rows once, which may have another tokenizer; null for
            the model being trained, at each update.
        header: How many tokens of a prompt's end stay before the answer alone; 0 for none, the first token of an answer
            is then not predicted; null for those that all prompts end with.
        mode: topk takes the highest, sample draws by them.
        temperature: Of sample: below 1 sharpens, above 1 softens.
        token_budget: Tokens that are scored at once; null for a default that suits the device.
        **run: What every selector is given; ``cache_dir`` keeps what a long scoring pass has computed.

    Raises:
        ConfigError: A parameter is out of its range; the message holds all that are.
    """

    reads_batches = True
    asks = "losses of tokens, answers behind prompts"

    def __init__(
        self,
        *,
        tokenizer: Any = None,
        ratio: str = "loss",
        least: float = 0.0,
        most: float | None = 1.0,
        reference_model: str | None = None,
        header: int | None = None,
        mode: str = "topk",
        temperature: float = 1.0,
        token_budget: int | None = None,
        **run: Any,
    ) -> None:
        super().__init__(**run)
        require(
            "ifd selector",
            one_of("ratio", ratio, RATIOS),
            at_least("least", least, 0),
            _above("most", most, least),
            model_or_null("reference_model", reference_model),
            None if header is None else count("header", header, least=0),
            one_of("mode", mode, MODES),
            positive("temperature", temperature),
            count_or_null("token_budget", token_budget),
            None if reference_model is None else whole_weights(self.accelerator, "a model that scores is loaded whole"),
        )
        self.tokenizer = tokenizer
        self.ratio, self.least, self.most = ratio, float(least), most
        self.reference_model, self.header = reference_model, header
        self.mode, self.temperature = mode, float(temperature)
        self.token_budget = token_budget
        self._losses = RowLosses(self, "fresh", 0, token_budget, keeps=True)
        self._kept: NDArray[np.float32] | None = None  # the IFD under ``reference_model``, once it has scored

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """A pass over the rows and one over their answers; those of ``reference_model`` once. See the base class."""
        answers = Amount(
            ahead.rows.rows, ahead.rows.labels + (params["header"] or 0) * ahead.rows.rows, ahead.rows.labels
        )
        size = 4.0 * ahead.rows.rows
        if params["reference_model"] is None:
            return Cost(Work(losses=ahead.rows, forward=answers), host_bytes=10 * size, cache_bytes=2 * size)
        others = {params["reference_model"]: ahead.rows + answers} if ahead.due() else {}
        return Cost(Work(others=others), host_bytes=10 * size, state_bytes=size, cache_bytes=2 * size)

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses too few rows with a prompt and an answer, and models that give rows no loss. See the base class."""
        require_labelled(self.dataset, run.most_rows)
        if run.most_rows:
            have, way_out = (
                "have an answer behind a prompt",
                f"{SHOW_LABELS}, rows with prompts (train_on_prompt: false)",
            )
            found = rows_with_answers(self.dataset, run.most_rows)
            require_enough(run.most_rows, found, len(self.dataset), have, way_out)
        if self.reference_model is None:
            try_losses(model, self.dataset, self.data_collator, self.accelerator)
            return
        try_losses_under("reference_model", self.reference_model, self, self.tokenizer)

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Scores all rows and takes ``num_samples`` of the band; the scores are their IFD.

        Raises:
            ComponentError: Fewer rows lie in the band than were asked for.
        """
        context: UpdateContext = kwargs["context"]
        scores_N = self.scores(model, step_id, context=context)
        inside = int(np.isfinite(scores_N).sum())
        bounds = f"above {self.least:g}" + ("" if self.most is None else f" and up to {self.most:g}")
        require_enough(num_samples, inside, len(scores_N), f"have an IFD {bounds}", "a wider band (least, most)")
        places = pick(scores_N[:, None], num_samples, self.mode, self.temperature, self.generator(context.update))
        return Selection(places, scores_N[places], candidates=scores_N)

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float64]:
        """Returns the IFD of every row: (N,), -inf outside of the band, NaN without an answer behind a prompt."""
        context: UpdateContext | None = kwargs.get("context")
        shared = None if context is None else context.scores
        found_N = self._under_model() if self.reference_model is not None else self._now(model, step_id, shared)
        return in_band(found_N.astype(np.float64), self.least, self.most, self.ratio)

    def _now(self, model: torch.nn.Module, step_id: int, shared: RowScores | None) -> NDArray[np.float64]:
        """Returns the IFD under the model being trained: (N,). Collective."""
        given_N = self._losses.fresh(model, step_id, shared)

        def store(*own: object) -> ScoreStore | None:
            def fingerprint() -> str:
                return digest(ALONE, model_digest(model), dataset_digest(self.dataset), step_id, *own)

            return ScoreStore.of(os.path.join(self.cache_dir, ALONE), self.accelerator, fingerprint, self.cache_owner)

        desc = f"{self.name}: answers alone at step {step_id}"
        return self._divided(model, self.dataset, self.tokenizer, given_N, store, desc)

    def _under_model(self) -> NDArray[np.float32]:
        """Returns the IFD under ``reference_model``: (N,), computed the first time. Collective."""
        if self._kept is None:
            assert self.reference_model is not None
            given_N, other = losses_under(
                "reference_model",
                self.reference_model,
                self,
                self.tokenizer,
                self.token_budget,
                "answers behind their prompts",
            )
            desc = f"{self.name}: answers alone under {other.shown}"
            store = partial(other.store, self, ALONE)
            found_N = self._divided(other.model, other.rows, other.tokenizer, given_N, store, desc)
            self._kept = found_N.astype(np.float32)
        return self._kept

    def _divided(
        self,
        model: torch.nn.Module,
        rows: Any,
        tokenizer: Any,
        given_N: NDArray[np.float32],
        store: Callable[..., ScoreStore | None],
        desc: str,
    ) -> NDArray[np.float64]:
        """Returns the IFD of rows, from their losses behind the prompts: (N,). Collective.

        Args:
            model: What scores the answers alone.
            rows: The rows in its tokens.
            tokenizer: The tokenizer of these; None where the run has none.
            given_N: (N,) L(A | Q).
            store: Makes the store of the pass from what else its values depend on.
            desc: What a progress bar says.
        """
        header: list[int] | int = header_of(rows) if self.header is None else self.header
        start_token = None if tokenizer is None else text_tokenizer(tokenizer).bos_token_id
        every = np.arange(len(rows), dtype=np.int64)
        alone = AnswersAlone(rows, every, header, start_token, f"{self.name}: looking for the answers of rows")
        if not len(alone):
            raise ComponentError(NO_ANSWERS)
        losses_A = per_sample_losses(
            model,
            alone,
            collator=padded,
            accelerator=self.accelerator,
            token_budget=self.token_budget,
            desc=desc,
            store=store(self.token_budget, header, start_token),
        )
        found_N = instruction_following_difficulty(given_N, alone.by_row(losses_A), self.ratio)
        missing = int(np.isnan(found_N).sum())
        if missing:
            logger.info(
                "%s: %d of %d rows have no IFD and are never taken: nothing stands before their answers, or these are "
                "empty or a single token",
                self.name,
                missing,
                len(found_N),
            )
        return found_N

    def state_dict(self) -> dict[str, Any]:
        """Returns the IFD under ``reference_model``, once it has scored the rows."""
        return {"ifd": self._kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._kept = None if state["ifd"] is None else np.asarray(state["ifd"], dtype=np.float32)


def _above(key: str, found: Any, least: Any) -> Problem | None:
    """Returns a problem unless ``found`` is None or a number above ``least``."""
    if found is None:
        return None
    problem = positive(key, found)
    if problem is None and isinstance(least, int | float) and found <= least:
        return Problem(key, f"found {found}, and least is {least}", "most must lie above least; null for no end")
    return problem
