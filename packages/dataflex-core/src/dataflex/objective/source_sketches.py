"""Measuring the gradients of the sources while a step is trained on, for a mixer that looks at them.

The backward pass of training gives row i the gradient f_i sum_t d c_it, where f_i is whatever the objective, the loop,
the engine and the loss scale of fp16 have multiplied its token losses by. f_i is measured and divided out:

* where our own formula made the loss (:mod:`dataflex.objective.formula`), it is what the token losses c_it get back.
  The weights of tokens are no part of f_i, as no hook tells the tokens of a row apart: where there are any, c_it stands
  for (z_it / Z) c_it, and a token that is not trained on adds nothing to the gradient of its source;
* where the model computed it, all tokens of the micro-batch weigh the same: loss / sum c_it, times what the loss gets
  back. This needs a loss that is a mean of the cross entropies; others are refused.

Letters: B rows of the micro-batch, T tokens, K sources, D numbers of a sketch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dataflex.core.errors import ConfigError, blaming
from dataflex.core.ranks.by_row import sum_over_ranks
from dataflex.interfaces.source_gradients import ROW, SourceGradients
from dataflex.model.label_logits import IGNORED
from dataflex.model.unwrapped import is_compiled, pretrained_models
from dataflex.objective.parts import MixerPart
from dataflex.rows.batch_rows import BatchRows
from dataflex.scoring.gradients.layer_trial import unlike_autograd
from dataflex.scoring.gradients.projection import Projection
from dataflex.scoring.gradients.routes import Route
from dataflex.scoring.gradients.rows_sketch import RowsSketcher
from dataflex.scoring.gradients.watched_layers import WatchedLayers
from dataflex.scoring.passes.row_pass import Collator
from dataflex.utils.logging import logger

if TYPE_CHECKING:
    from transformers import Trainer


class SourceSketches:
    """The gradients of the sources in the steps for which the mixer wants them.

    Args:
        trainer: The trainer, with its model not yet wrapped.
        mixer: The mixer.
        rows: The rows of the micro-batches.

    Raises:
        ConfigError: The loss of the run is none whose gradients by row are known.
    """

    def __init__(self, trainer: Trainer, mixer: MixerPart, rows: BatchRows) -> None:
        require_plain_loss(trainer, mixer)
        self._trainer, self._mixer, self._rows = trainer, mixer, rows
        with blaming(mixer.at(trainer.state.global_step)):
            self._wanted, self._left_out = mixer.mixer.gradient_sketch, frozenset[str]()
        self._projection: Projection | None = None
        self._projected()  # before an engine cuts the weights into shards: their shapes are those of the layers now
        self._layers: WatchedLayers | None = None
        self._hooks = ExitStack()
        self.measuring = self._begun = False
        self._rate = 0.0
        self._sums: torch.Tensor | None = None  # (K, D + 4): gradients, squares, what is counted, rows, left out
        mixer.mixer.sketcher = RowsSketcher(self._projected, trainer.accelerator)

    def require(self, collator: Collator, rows: Sequence[Mapping[str, Any]]) -> None:
        """Tries which gradients are known, on two rows; leaves the others out, or refuses them. With one log line.

        Args:
            collator: Makes a batch of tensors from a list of rows.
            rows: Rows with labels; nothing is tried without any.

        Raises:
            ConfigError: ``layers: all``, and one of them is not known; or none is.
        """
        projection, model = self._projected(), self._trainer.model
        assert isinstance(model, torch.nn.Module)
        unlike = unlike_autograd(model, projection, collator, rows, self._trainer.accelerator) if rows else []
        without_rule = [r.name for r in projection.routes if any(use.rule is None for use in r.uses)]
        unlike = sorted({*unlike, *without_rule})
        if self._wanted.layers == "all" and unlike:
            others = f" and {len(unlike) - 1} more" if len(unlike) > 1 else ""
            raise ConfigError(
                f"layers: all of the {self._in_words} takes the gradient of every trained parameter, and that of "
                f"{unlike[0]}{others} cannot be told apart by row -> set layers: linear, or freeze it"
            )
        self._left_out, self._projection = frozenset(unlike), None
        projection = self._projected()
        logger.info(
            "%s: gradients of %d layers, %.1f %% of the trained numbers, kept in %d numbers for each source%s",
            self._mixer.name, len(projection.routes), 100 * projection.share, projection.dim,
            f"; left out, as rows cannot be told apart there: {unlike[0]} and {len(unlike) - 1} more" if unlike else "",
        )  # fmt: skip

    def begin_step(self, step: int) -> None:
        """Puts the hooks on the layers where the gradients of the step are wanted.

        Args:
            step: Global optimizer steps done.
        """
        self._close()
        with blaming(self._mixer.at(step)):
            self.measuring = bool(self._mixer.mixer.wants_gradients(step))
        if not self.measuring:
            return
        if self._layers is None:
            self._layers = WatchedLayers(self._projected())
            self._layers.take = self._take
        self._hooks.enter_context(self._layers.watching())
        optimizer = self._trainer.optimizer
        assert optimizer is not None, "there is an optimizer while training"
        self._rate = float(optimizer.param_groups[0]["lr"])
        self._sums = None

    def begin_micro_batch(self, labels_BT: torch.Tensor) -> None:
        """The forward pass of a micro-batch begins."""
        if not self.measuring:
            return
        assert self._layers is not None
        self._layers.begin(*labels_BT.shape)
        device = self._trainer.accelerator.device
        self._features_BD = self._projected().empty(len(labels_BT), device)
        self._tokens_B2 = torch.zeros(len(labels_BT), 2, device=device)
        self._begun = True
        self._own_factors: torch.Tensor | None = None
        self._of_tokens, self._loss, self._back = False, torch.zeros(()), torch.zeros(())

    def of_tokens(self, c_BT: torch.Tensor) -> None:
        """Takes the token losses that our formula makes the loss of, with their graph: what they get back is f."""
        if self.measuring and c_BT.requires_grad:
            self._of_tokens = True
            c_BT.register_hook(self._back_at_tokens)  # type: ignore[no-untyped-call]

    def of_loss(self, loss: torch.Tensor) -> None:
        """Takes the loss of the micro-batch as the trainer underneath goes back from it."""
        if self.measuring and not self._of_tokens and loss.requires_grad:
            self._loss = loss.detach().float()
            loss.register_hook(self._back_at_loss)  # type: ignore[no-untyped-call]

    def losses(self, losses_BT: torch.Tensor, targets_BT: torch.Tensor) -> None:
        """Takes the cross entropies of the micro-batch, without a graph.

        Args:
            losses_BT: (B, T), 0 where nothing is predicted.
            targets_BT: (B, T) the token to predict at each position, -100 for none.
        """
        if self.measuring:
            self._there_BT = targets_BT != IGNORED
            self._tokens_B2 = torch.stack([losses_BT.sum(dim=1).float(), self._there_BT.sum(dim=1).float()], dim=1)

    def end_micro_batch(self) -> None:
        """The backward pass of the micro-batch is done: adds its rows to their sources."""
        if not self._begun:
            return
        assert self._layers is not None
        self._begun = False
        self._layers.end()
        c_B, n_B = self._tokens_B2.unbind(dim=1)
        if self._of_tokens:
            f_B = torch.zeros_like(c_B) if self._own_factors is None else self._own_factors
        else:
            total = c_B.sum()
            f_B = (torch.where(total > 0, self._loss.to(total) / total, 0.0) * self._back.to(total)).expand_as(c_B)
        self._add(f_B, n_B)

    def step_done(self, step: int) -> None:
        """Gives the mixer the gradients of the step. Collective where they were measured.

        Args:
            step: Global optimizer steps done, this one included.
        """
        if not self.measuring:
            return
        self._close()
        dim = self._projected().dim
        own_KX = np.zeros((self._mixer.sources, dim + 4))
        if self._sums is not None:
            own_KX = self._sums.cpu().numpy().astype(np.float64)
        own_KX, self._sums = sum_over_ranks(own_KX, self._trainer.accelerator), None
        squares_K, counts_K, rows_K, wrong_K = own_KX[:, dim:].T.copy()
        found = SourceGradients(
            self._rate, own_KX[:, :dim].copy(), squares_K, counts_K, np.rint(rows_K).astype(np.int64),
            round(float(wrong_K.sum())),
        )  # fmt: skip
        with blaming(self._mixer.at(step)):
            mixer = self._mixer.mixer
            mixer.leave_out(found.left_out, "the gradient of a row")
            mixer.observe_gradients(step, found)

    @torch.no_grad()
    def _add(self, f_B: torch.Tensor, n_B: torch.Tensor) -> None:
        """Adds x_i, the gradient of row i's loss, to its source for each row; in an order that is always the same."""
        scale_B = n_B * f_B if self._wanted.unit == ROW else f_B
        there_B = (f_B != 0) & (n_B > 0)
        x_BD = self._features_BD / torch.where(there_B, scale_B, 1.0)[:, None]
        squares_B = x_BD.square().sum(dim=1)
        right_B = squares_B.isfinite() & f_B.isfinite()  # then x is finite, too
        seen_B = there_B & right_B
        x_BD = torch.where(seen_B[:, None], x_BD, 0.0)
        counts_B = torch.ones_like(n_B) if self._wanted.unit == ROW else n_B
        more_B4 = torch.stack([squares_B, counts_B, torch.ones_like(n_B), torch.zeros_like(n_B)], dim=1)
        more_B4 = torch.where(seen_B[:, None], more_B4, 0.0)
        more_B4[:, 3] = (there_B & ~right_B).float()
        found_KX = sums_by_source(x_BD, more_B4, self._rows.sources_of(self._rows.rows), self._mixer.sources)
        self._sums = found_KX if self._sums is None else self._sums + found_KX

    def _take(self, route: Route, rows: slice, grads_BX: torch.Tensor) -> None:
        self._projected().add(route.index, rows, grads_BX.to(self._features_BD.device), self._features_BD)

    def _back_at_tokens(self, grads_BT: torch.Tensor) -> None:
        """Keeps f of each row: the mean over its labels, which are alike."""
        with torch.no_grad():
            grads_BT = grads_BT.float().masked_fill(~self._there_BT, 0.0)
            self._own_factors = grads_BT.sum(dim=1) / self._there_BT.sum(dim=1).clamp(min=1)

    def _back_at_loss(self, grad: torch.Tensor) -> None:
        self._back = grad.detach().float().reshape(())

    def _projected(self) -> Projection:
        if self._projection is None:
            model, seed = self._trainer.model, self._mixer.mixer.seed
            assert isinstance(model, torch.nn.Module)
            device = self._trainer.accelerator.device
            self._projection = Projection(model, self._wanted, seed, device, self._left_out)
            if not self._projection.routes:
                raise ConfigError(
                    f"the {self._in_words} looks at gradients, and no trained layer of {type(model).__name__} has any "
                    "that can be told apart by row -> train linear layers, or use a mixer that looks at losses"
                )
        return self._projection

    def _close(self) -> None:
        self._hooks.close()
        self._begun = False
        if self._layers is not None:
            self._layers.end()

    @property
    def _in_words(self) -> str:
        return f"mixer '{self._mixer.preset}'"


def sums_by_source(x_BD: torch.Tensor, more_BX: torch.Tensor, sources_B: torch.Tensor, sources: int) -> torch.Tensor:
    """Returns (K, D + X) sums over the rows of each source, which a GPU repeats to the last bit.

    Args:
        x_BD: Vectors; their sums are products with zeros and ones, in the precision that the run has for those.
        more_BX: A few numbers more, such as counts, whose sums are exact also where products are made in TF32.
        sources_B: The source of each row.
        sources: K.
    """
    of_KB = sources_B[None] == torch.arange(sources, device=sources_B.device)[:, None]
    more_KX = torch.where(of_KB[..., None], more_BX, 0.0).sum(dim=1)
    return torch.cat([of_KB.to(x_BD) @ x_BD, more_KX], dim=1)


def require_plain_loss(trainer: Trainer, mixer: MixerPart) -> None:
    """Refuses what makes the loss something else than a mean of cross entropies, and code that hooks do not reach.

    Raises:
        ConfigError: With the way out.
    """
    args, model = trainer.args, trainer.model
    assert isinstance(model, torch.nn.Module)
    routed = any(base.config.to_dict().get("output_router_logits") for base in pretrained_models(model))
    reasons = {
        "label_smoothing_factor: it is no mean of cross entropies -> set it to 0": trainer.label_smoother is not None,
        "compute_loss_func: it may be anything -> leave it out": trainer.compute_loss_func is not None,
        "output_router_logits (moe_aux_loss_coef): the loss of the router is of no row -> switch it off": routed,
        "torch_compile: hooks do not reach what is compiled -> set it to false": args.torch_compile
        or is_compiled(model),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(f"the mixer '{mixer.preset}' takes gradients of rows from the training loss; {reason}")
