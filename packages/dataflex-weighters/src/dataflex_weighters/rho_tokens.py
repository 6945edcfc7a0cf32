"""``rho_tokens``: of all tokens, those with the largest excess loss over a reference model are trained on.

Lin et al., "Rho-1: Not All Tokens Are What You Need" (NeurIPS 2024), arXiv 2404.07965. With c_t the loss of token t
under the model and r_t that under a reference that was trained on data as it should be:

    e_t = c_t - r_t                                                    excess loss (equation 3)
    z_t = 1 for the share k of the tokens with the largest e_t, else 0 (equation 5)
    L   = sum z_t c_t / sum z_t                                        (equation 4, over the whole step)

Tokens that are learnt have a small c; tokens that are noise have a large r. Of equal tokens the earlier ones count.

Cost: a forward pass of the reference over each row, once and kept on disk, or at each step. On several ranks two small
collectives per step, and with ``scope: batch`` one per micro-batch. Not covered: a reference with other tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from dataflex.core.cost import Ahead, Cost, Work
from dataflex.core.errors import CheckpointError
from dataflex.core.parameter_checks import count_or_null, flag, model_or_null, one_of, require, text
from dataflex.core.parameter_checks import share as a_share
from dataflex.core.ranks.gather_samples import gather_samples
from dataflex.core.registry import register_weighter
from dataflex.objective.label_counts import predicted
from dataflex.scoring.model_beside import within_vocabulary
from dataflex.scoring.passes.fingerprint import model_digest
from dataflex.scoring.passes.row_pass import Collator
from dataflex.scoring.trial import try_losses
from dataflex.train.weighter.base_weighter import StepContext, Weighter
from dataflex.utils.logging import logger
from numpy.typing import NDArray

from dataflex_weighters.parts.kept_token_losses import DTYPES, KeptTokenLosses
from dataflex_weighters.parts.reference_model import (
    KEY,
    engine_problem,
    loaded_reference,
    reference_losses,
    require_same_tokens,
)
from dataflex_weighters.parts.token_places import HostBatch, before_labels, on_host, placed_numbers

SCOPES = ("batch", "row")


def kept_tokens(counts: NDArray[np.int64], share: float, least: int = 1) -> NDArray[np.int64]:
    """Returns how many of so many tokens are trained on: the share, rounded down; at least ``least`` of any.

    0.3 of 10 is 3, whatever floats make of it. The shape is that of ``counts``.

    Args:
        counts: Numbers of tokens.
        share: k, above 0 and at most 1.
        least: How many at least, where there are as many.
    """
    wanted = np.maximum(least, np.floor(share * counts + 1e-9)).astype(np.int64)
    return np.asarray(np.minimum(counts, wanted))


def selected(excess_X: torch.Tensor, groups_X: torch.Tensor, kept_S: torch.Tensor) -> torch.Tensor:
    """Returns which tokens have the largest excess of their group: (X,) bool. The host does not wait for the device.

    Of equal ones the first in X count, so every rank takes the same.

    Args:
        excess_X: (X,) e of each token.
        groups_X: (X,) int64 the group that each is compared in; a number outside of 0 to S - 1 for none.
        kept_S: (S,) int64 how many of each group are taken, at most its tokens.
    """
    order_X = torch.sort(-excess_X, stable=True).indices
    groups, by_group_X = torch.sort(groups_X[order_X], stable=True)
    order_X = order_X[by_group_X]  # by group, and inside of it by falling excess
    S = len(kept_S)
    starts_S = torch.searchsorted(groups, torch.arange(S, device=groups.device))
    inside_X = (groups >= 0) & (groups < S)
    number_X = groups.clamp(0, S - 1)
    taken_X = (torch.arange(len(groups), device=groups.device) - starts_S[number_X] < kept_S[number_X]) & inside_X
    return torch.empty_like(taken_X).scatter_(0, order_X, taken_X)


@register_weighter("rho_tokens")
class RhoTokensWeighter(Weighter):
    """Trains on the share of tokens with the largest excess loss over a reference model (arXiv 2404.07965).

    Args:
        dataset: The train dataset, tokenised.
        accelerator: The run's accelerator.
        data_collator: Makes a batch of tensors from a list of rows.
        cache_dir: The weighter's folder, for the losses that are kept.
        reference_model: Name or path of the reference, a causal model with the tokenizer of the run.
        share: k, the share of tokens that are trained on, above 0 and at most 1. Rounded down, at least one token.
        scope: What tokens are compared with: ``batch``, those of the micro-batch of all ranks; ``row``, those of their
            own row, or document of a packed row.
        cached: Whether the reference reads all rows once, before the first step that is weighed, and its losses are
            kept on disk; otherwise it stays in memory and reads each micro-batch.
        cache_dtype: Of the losses on disk: ``float32``, or ``float16`` for half of the space.
        token_budget: Tokens that the reference reads at once for them; null for a default that suits the device.
        tokenizer: What the rows were tokenised with, where the run knows it.

    Raises:
        ConfigError: A parameter has another value; the message holds every problem.
    """

    draws = False
    weighs_tokens = True
    reads_batches = True
    asks = "losses under another model"

    def __init__(
        self,
        dataset: Any,
        accelerator: Any,
        data_collator: Collator,
        cache_dir: str,
        reference_model: str,
        share: float = 0.6,
        scope: str = "batch",
        cached: bool = True,
        cache_dtype: str = "float32",
        token_budget: int | None = None,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        require(
            "rho_tokens weighter",
            text("reference_model", reference_model) or model_or_null("reference_model", reference_model),
            a_share("share", share),
            one_of("scope", scope, SCOPES),
            flag("cached", cached),
            one_of("cache_dtype", cache_dtype, tuple(DTYPES)),
            count_or_null("token_budget", token_budget),
            engine_problem(accelerator),
        )
        self.dataset, self.accelerator, self.data_collator, self.tokenizer = (
            dataset,
            accelerator,
            data_collator,
            tokenizer,
        )
        self.reference_model, self.share, self.scope, self.cached = str(reference_model), float(share), scope, cached
        self._kept = KeptTokenLosses(cache_dir, cache_dtype, token_budget) if cached else None
        self._reference: Any = None  # the model, while it is in memory
        self._digest: str | None = None  # of the reference
        self._told = False  # what share it keeps
        self._batches: list[HostBatch] = []  # of the present step
        self._references: list[torch.Tensor] = []  # (B, T) r of each micro-batch, where they are kept
        self._taken: list[int] = []  # tokens that are taken of each micro-batch, over all ranks
        self._width = 0  # most places of tokens that a micro-batch of any rank has

    @classmethod
    def cost(cls, params: Any, ahead: Ahead) -> Cost:
        """The reference over all rows once, or over those of each step. See the base class."""
        name = str(params["reference_model"])
        if not params["cached"]:
            return Cost(step=Work(others={name: ahead.step}), device_bytes=ahead.model_bytes)
        disk = DTYPES[params["cache_dtype"]]().itemsize * ahead.rows.tokens
        return Cost(Work(others={name: ahead.rows} if ahead.due() else {}), cache_bytes=disk + 8 * ahead.rows.rows)

    def check_run(self, model: torch.nn.Module, run: Any) -> None:
        """Refuses a reference that cannot be loaded, has other tokens, or gives rows no loss. See the base class."""
        require_same_tokens(self.reference_model, self.tokenizer)
        reference = self._load()
        collator = within_vocabulary(KEY, self.reference_model, reference, self.data_collator)
        try_losses(reference, self.dataset, collator, None)
        self._reference = None if self.cached else reference

    def mean_token_weight(self, batches: Sequence[Any], *, ctx: StepContext) -> float:
        """Returns the share of the step's tokens that are taken, and looks up their reference losses.

        On every rank. The first time, the reference may read all rows: collective.
        """
        if self._reference is None and (self._kept is None or self._kept.losses is None):
            self._begin()
        self._batches = on_host(batches)
        counts_M, taken_M = self._counted(batches)
        self._taken = taken_M.tolist()
        if self._kept is not None:
            losses, device = self._kept.losses_of, ctx.accelerator.device
            placed = [placed_numbers(b, self.dataset, losses, "the reference losses") for b in self._batches]
            self._references = [before_labels(numbers_BT, device) for numbers_BT in placed]
        kept = float(taken_M.sum() / max(1, counts_M.sum()))
        if not self._told:
            self._told = True
            logger.info(
                "%s: trains on %d of the %d tokens of its first step, %.1f %% (share: %g, scope: %s)",
                self.name, taken_M.sum(), counts_M.sum(), 100 * kept, self.share, self.scope,
            )  # fmt: skip
        return kept

    def token_weights(self, losses_BT: torch.Tensor, *, ctx: StepContext, model: Any, inputs: Any) -> torch.Tensor:
        """Returns z: (B, T), 1 for a token that is taken and 0 for another. See the base class."""
        there_BT = predicted(inputs["labels"].to(losses_BT.device))
        excess_BT = losses_BT - self._reference_losses(ctx, inputs).to(losses_BT)  # e, equation 3
        taken_BT = (
            self._by_row(excess_BT, there_BT, ctx) if self.scope == "row" else self._by_batch(excess_BT, there_BT, ctx)
        )
        # Of a reference that gives no number nothing can be told; the objective refuses NaN after the step.
        sound = (excess_BT.isfinite() | ~losses_BT.isfinite() | ~there_BT).all()
        return torch.where(sound, taken_BT.to(losses_BT), torch.nan)

    def get_weighted_loss(self, losses: torch.Tensor, *, ctx: Any = None, model: Any = None, inputs: Any = None) -> Any:
        """Returns the plain mean: samples have no weights beside those of their tokens. See the base class."""
        return losses.mean()

    def state_dict(self) -> dict[str, Any]:
        """Returns a digest of the reference: a resumed run must have the same."""
        return {"reference": self._digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compares the reference with that of :meth:`state_dict`.

        Raises:
            CheckpointError: It is another.
        """
        if None not in (self._digest, state["reference"]) and state["reference"] != self._digest:
            raise CheckpointError(
                f"reference_model: {self.reference_model} holds other weights than when the checkpoint was written -> "
                "name the model of that run, or begin anew"
            )

    def _by_row(self, excess_BT: torch.Tensor, there_BT: torch.Tensor, ctx: StepContext) -> torch.Tensor:
        samples = ctx.samples
        counts_S = samples.loss_sums(there_BT)
        numbers_S = torch.arange(len(counts_S), device=excess_BT.device)
        groups_BT = samples.at_losses(numbers_S).expand_as(there_BT).masked_fill(~there_BT, len(counts_S))
        table = _kept_table(there_BT.numel(), self.share).to(excess_BT.device, non_blocking=True)
        return selected(excess_BT.flatten(), groups_BT.flatten(), table[counts_S]).view_as(there_BT)

    def _by_batch(self, excess_BT: torch.Tensor, there_BT: torch.Tensor, ctx: StepContext) -> torch.Tensor:
        excess_X, there_X = excess_BT.flatten(), there_BT.flatten()
        everyone_G, counted_G, own = gather_samples(excess_X, there_X, ctx.accelerator, self._width)
        kept = torch.tensor([self._taken[ctx.micro_batch]]).to(excess_BT.device, non_blocking=True)
        return selected(everyone_G, (~counted_G).long(), kept)[own].view_as(there_BT)

    def _reference_losses(self, ctx: StepContext, inputs: Any) -> torch.Tensor:
        number = ctx.micro_batch
        if self._kept is not None:
            return self._references[number]
        return reference_losses(self._reference, inputs, ctx.accelerator, int(self._batches[number].predicted.sum()))

    def _counted(self, batches: Sequence[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns how many tokens each micro-batch has and how many are taken, over all ranks: (M,) each."""
        own_M = np.array([batch.predicted.sum() for batch in self._batches], dtype=np.int64)
        taken_M = self._of_rows(batches) if self.scope == "row" else own_M
        width = max(batch.tokens.size for batch in self._batches)
        if self.accelerator is not None and self.accelerator.num_processes > 1:
            mine = torch.from_numpy(np.concatenate([own_M, taken_M, [width]])).to(self.accelerator.device)
            everyone_RX = self.accelerator.gather(mine).view(self.accelerator.num_processes, -1).cpu().numpy()
            own_M, taken_M = np.split(everyone_RX[:, :-1].sum(axis=0), 2)
            width = int(everyone_RX[:, -1].max())
        self._width = width
        return own_M, taken_M if self.scope == "row" else kept_tokens(own_M, self.share)

    def _of_rows(self, batches: Sequence[Any]) -> NDArray[np.int64]:
        """Returns how many tokens of each micro-batch of this rank are taken, row by row: (M,). One read."""
        counts = [batch.samples.loss_sums(predicted(batch.inputs["labels"])) for batch in batches]
        sizes = [len(counts_S) for counts_S in counts]
        read = np.split(torch.cat(counts).cpu().numpy(), np.cumsum(sizes)[:-1])
        return np.array([kept_tokens(counts_S, self.share).sum() for counts_S in read], dtype=np.int64)

    def _load(self) -> Any:
        reference = loaded_reference(self.reference_model, self.accelerator)
        self._digest = model_digest(reference)
        return reference

    def _begin(self) -> None:
        """Loads the reference; where its losses are kept, has it read the rows, and lets it go."""
        reference = self._load()
        if self._kept is None:
            self._reference = reference
            return
        collator = within_vocabulary(KEY, self.reference_model, reference, self.data_collator)
        self._kept.read_or_make(
            reference, self.dataset, collator, self.accelerator, f"{self.name}: {self.reference_model}"
        )


@functools.lru_cache(maxsize=16)
def _kept_table(most: int, share: float) -> torch.Tensor:
    """Returns how many of 0, 1, ... ``most`` tokens are taken."""
    return torch.from_numpy(kept_tokens(np.arange(most + 1), share))
