"""Training with a weight on each sample's loss (``train_type: dynamic_weight``).

The model's own loss function is replaced by one that weighs tokens, and so are the loss of a class that asks none, the
label smoother and the DFT loss where the run has one of them; everything around it (auxiliary losses, accumulation, the
average over ranks) stays what ``transformers`` does. Per-token losses come from the log-softmax that the plain loss
computes anyway, so a weighter costs no second pass over the logits; or, for a large vocabulary, from the output layer
without any logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import DistributedType

from dataflex.config.spec import RunSpec
from dataflex.core.errors import ComponentError, ConfigError, blaming, not_exiting
from dataflex.core.kinds import WEIGHTER
from dataflex.interfaces.weighter import Weighter, WeightsSamples
from dataflex.objective.formula import (
    Objective,
    StepCounts,
    counted,
    predicted,
    weighted_loss,
    weighted_loss_of_tokens,
)
from dataflex.objective.fused_head import fused_head, require_weighable
from dataflex.objective.hidden import require_hidden_states
from dataflex.objective.logits_route import output_losses
from dataflex.objective.loop_scale import counts_first, loop_of, undone
from dataflex.objective.loss_function import ReplacedLoss
from dataflex.objective.samples import ROWS, Samples, one_by_one, samples_of_step
from dataflex.objective.step_checks import StepChecks
from dataflex.objective.step_losses import StepLosses, step_losses
from dataflex.objective.token_losses import CROSS_ENTROPY, CrossEntropy, DynamicFineTuning, TokenLoss
from dataflex.objective.weight_log import WeightLog
from dataflex.planning.run_schedule import require_map_style, run_schedule
from dataflex.scoring.label_logits import label_positions
from dataflex.scoring.models import pretrained_models, require_causal
from dataflex.trainer.engine import require_one_model
from dataflex.trainer.given import first_rows, require_rows_apart, require_spec, rows_to_learn
from dataflex.trainer.numbered import NumberedTrainer


class WeightTrainer(NumberedTrainer):
    """Lets the weighter scale the loss of each sample once ``warmup_step`` steps are done.

    Rows come in the order of a static run. A sample is a row, or a document of a packed row. The objective of a step is
    stated in docs/weighters.md and does not depend on how the step's samples are split into micro-batches and over
    ranks.

    Attributes:
        sample_factors: (S,) factors of the losses of the micro-batch's samples in the loss of the step, once that is
            computed: for gradient hooks, which run later.
    """

    kind = WEIGHTER
    component: WeightsSamples

    def __init__(self, *args: Any, dataflex: RunSpec, **kwargs: Any) -> None:
        kwargs = self.named(args, kwargs)
        require_spec(dataflex, self.kind)
        require_map_style(kwargs.get("train_dataset"), self.kind.train_type)
        super().__init__(dataflex=dataflex, **kwargs)
        require_one_model(self.args, "a weighter")
        self.schedule = run_schedule(dataflex, self.args, self.train_dataset)
        if dataflex.steps(self.args.max_steps).total is not None:  # else the loop counts the epochs itself
            self.args.max_steps = self.schedule.total
        self._dataflex_active: WeightsSamples | None = None
        self._dataflex_inputs: Any = None
        self._dataflex_tokens: Any = None
        self._dataflex_counts = StepCounts(0, 0, 0)
        self._dataflex_batches: list[Any] = []
        self._dataflex_samples: list[Samples] = []
        self._dataflex_step_losses: StepLosses | None = None
        self._dataflex_checks, self._dataflex_label_counts = StepChecks(), list[int]()
        self._dataflex_most: torch.Tensor | int = 0
        self._dataflex_loss_scale: float | None = None
        self.sample_factors = torch.empty(0)
        self._dataflex_log, self._dataflex_metrics = WeightLog(), dict[str, float]()
        self._dataflex_weighed = self._dataflex_asked = self._dataflex_without_logits = False
        assert isinstance(self.model, torch.nn.Module)
        if isinstance(self.component, Weighter) and self.component.reads_hidden_states:
            require_hidden_states(self.model, f"the weighter '{self.component.name}'", compiled=self.args.torch_compile)
        self._dataflex_outputs = output_losses(
            self.arguments.weight_logits,
            self.model,
            smoothed=self.label_smoother is not None and self.compute_loss_func is None,
            compiled=self.args.torch_compile,
            fused=self.spec.llamafactory.get("enable_liger_kernel") is True,
            measured=any(base.__module__.partition(".")[0] == "trl" for base in self.bases()),
        )
        require_weighable(self.args, "a weighter")
        self._dataflex_head = fused_head(self.model, self.bases())
        dft = self.spec.llamafactory.get("use_dft_loss") is True
        self._dataflex_loss = ReplacedLoss(self, self._dataflex_own_loss, dft, lambda: self._dataflex_without_logits)
        self.early.of_model = self._dataflex_require_weighable
        self.early.made(most_rows=0)

    def identity(self) -> dict[str, Any]:
        """Adds the steps without weights."""
        return super().identity() | {"warmup_step": self.arguments.warmup_step}

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Hands the micro-batch to the weighter's own ``training_step``."""
        self.next_micro_batch()
        use = self.state.global_step >= self.arguments.warmup_step
        with not_exiting(
            self._dataflex_who()
        ):  # not blaming: what the model raises in there is not the weighter's fault
            loss = self.component.training_step(
                self, model, inputs, num_items_in_batch=num_items_in_batch, use_weighter=use
            )
        if self.is_last_micro_batch:
            self._dataflex_checks.examine()  # the one read from the device, before the optimizer steps
        return loss

    def plain_training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward as the trainer underneath does them; returns the detached loss."""
        self._dataflex_asked = False
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._dataflex_require_seen(
            self._dataflex_asked
        )  # also where nothing is weighed yet: not when the warm-up is over
        return loss

    @contextmanager
    def weighted_by(self, weighter: WeightsSamples) -> Iterator[None]:
        """Inside of it, :meth:`plain_training_step` weighs each sample's loss with ``weighter``."""
        self._dataflex_active, self._dataflex_weighed = weighter, False
        try:
            yield
        finally:
            self._dataflex_active, self._dataflex_inputs = None, None
        self._dataflex_require_seen(self._dataflex_weighed)

    def _dataflex_require_weighable(self) -> None:
        """Has the model compute the loss of two rows: one whose loss cannot be replaced cannot be weighed."""
        assert isinstance(self.model, torch.nn.Module)
        require_causal(pretrained_models(self.model))
        collate = self._get_collator_with_removed_columns(self.data_collator, description="training")
        rows, who = rows_to_learn(self.train_dataset), f"the {self.component_in_words()}"
        self._dataflex_loss.require(collate, rows, who, chunked=self._dataflex_outputs is not None)

    def _dataflex_require_seen(self, seen: bool) -> None:
        if not seen:
            raise ConfigError(
                f"{type(self.model).__name__} computes its loss without model.loss_function, or the trainer has a "
                "compute_loss_func of its own, so samples cannot be weighed -> use a model class of transformers, "
                "without a fused loss, and no compute_loss_func"
            )

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Computes the loss as the trainer underneath does, with the weighter's hand on the model's loss function."""
        self._dataflex_tokens = kwargs.get("num_items_in_batch")
        labels_BT = inputs.get("labels")
        if (
            self._dataflex_active is not None
        ):  # now, as the trainer underneath takes the labels out where it needs them itself
            self._dataflex_inputs = one_by_one(inputs, self.samples)
        other_loss = self._dataflex_active is None and self.compute_loss_func is not None
        if self._dataflex_head is not None and labels_BT is not None and model.training:
            return self._dataflex_loss_of_head(model, inputs, *args, **kwargs)
        if self._dataflex_outputs is None or labels_BT is None or other_loss or not model.training:
            found = super().compute_loss(model, inputs, *args, **kwargs)
        else:
            positions_M, targets_M = label_positions(labels_BT, self._dataflex_label_counts[self._dataflex_micro_batch])
            self._dataflex_without_logits = True
            try:
                with self._dataflex_outputs.at(positions_M, targets_M, labels_BT.numel()):
                    found = super().compute_loss(model, inputs, *args, **kwargs)
            finally:
                self._dataflex_without_logits = False
        if self.is_last_micro_batch and self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            self._dataflex_checks.examine()  # its backward pass makes the step
        return found

    def _dataflex_loss_of_head(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Computes the loss as TRL does, from token losses that are weighed."""
        head, counted_by_loop = self._dataflex_head, kwargs.get("num_items_in_batch") is not None
        assert head is not None
        if counted_by_loop and self._dataflex_active is not None:
            kwargs["num_items_in_batch"] = 1  # the part of the step is exact then: it is divided by nothing

        def own(losses_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor | None:
            if self._dataflex_active is None or not losses_BT.requires_grad:
                self._dataflex_asked |= losses_BT.requires_grad
                return None
            self._dataflex_asked = self._dataflex_weighed = True
            part = weighted_loss_of_tokens(
                losses_BT, labels_BT, self._dataflex_objective(), self._dataflex_weigh, CROSS_ENTROPY,
                self._dataflex_watch, self.samples, lambda: losses_BT[:, :-1].sum(),
            )  # fmt: skip
            return part if counted_by_loop else part * head.divisor(labels_BT, None)

        with head.asking(own):
            return super().compute_loss(model, inputs, *args, **kwargs)

    @property
    def samples(self) -> Samples:
        """What the samples of the present micro-batch are."""
        return self._dataflex_samples[self._dataflex_micro_batch] if self._dataflex_samples else ROWS

    @property
    def batch_rows(self) -> torch.Tensor:
        """The rows of the samples of the present micro-batch: (S,) int64 numbers in the train dataset, on the device.

        Raises:
            ComponentError: The batch holds no row numbers.
        """
        return self.samples.of_rows(super().batch_rows)

    def by_sample(self, values_BT: torch.Tensor) -> torch.Tensor:
        """Returns values of the micro-batch's tokens sample by sample, as the weighter's ``inputs`` are: (S, L, ...).

        Args:
            values_BT: (B, T, ...) such as hidden states or their gradients.
        """
        return self.samples.apart(values_BT)

    @property
    def is_last_micro_batch(self) -> bool:
        """Whether the optimizer step follows the present micro-batch."""
        return self._dataflex_micro_batch == len(self._dataflex_batches) - 1

    @property
    def loss_scale(self) -> float:
        """What a gradient of the step's loss is multiplied by while it goes back through the model.

        The ranks, over which gradients are averaged afterwards, and the scale of fp16.
        """
        if (
            self._dataflex_loss_scale is None
        ):  # it changes when the optimizer steps; to read it is to wait for the device
            scaler = self.accelerator.scaler
            self._dataflex_loss_scale = float(scaler.get_scale()) if scaler is not None else 1.0
        return self._dataflex_loss_scale * int(self.accelerator.num_processes)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of the present step."""
        return len(self._dataflex_batches)

    @property
    def most_samples(self) -> int:
        """The most samples of a micro-batch of the present step, over its micro-batches and all ranks.

        On several ranks it is read from the device when it is first asked for in a step.
        """
        self._dataflex_most = int(self._dataflex_most)
        return self._dataflex_most

    def step_losses(self) -> tuple[StepLosses, slice]:
        """Returns the losses of this rank's samples of the whole step, and where the present micro-batch's stand.

        They are computed when the first micro-batch of a step asks, by a forward pass more over the step; every rank
        must ask then.
        """
        if self._dataflex_step_losses is None:
            assert isinstance(self.model, torch.nn.Module)
            with nullcontext() if self._dataflex_outputs is None else self._dataflex_outputs.suspended():
                parts = zip(self._dataflex_batches, self._dataflex_samples, self._dataflex_step_rows, strict=True)
                self._dataflex_step_losses = step_losses(self.model, list(parts), self.accelerator)
        return self._dataflex_step_losses, self._dataflex_step_losses.part(self._dataflex_micro_batch)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Also counts the samples and labels of the step, over all micro-batches and ranks."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        self._dataflex_batches, self._dataflex_step_losses, self._dataflex_loss_scale = batches, None, None
        self._dataflex_samples = samples_of_step(batches)
        counts, self._dataflex_most = torch.zeros(3, dtype=torch.int64, device=self.args.device), 0
        predicted_labels = []  # of each micro-batch
        for batch, samples in zip(batches, self._dataflex_samples, strict=True):
            found = counts.new_zeros(3)
            if "labels" in batch:
                found = counted(batch["labels"], samples).to(counts.device)
                self._dataflex_most = max(self._dataflex_most, samples.number(len(batch["labels"])))
            counts += found
            predicted_labels.append(found[2])
        counts_needed = self._dataflex_outputs is not None or self.compute_loss_func is not None
        if counts_needed and batches:  # on the host, that is: one read for the whole step
            self._dataflex_label_counts = torch.stack(predicted_labels).tolist()
        if self.accelerator.num_processes > 1:
            own = torch.cat([counts, torch.full_like(counts[:1], self._dataflex_most)])
            everyone = torch.as_tensor(self.accelerator.gather(own)).view(-1, 4)
            counts, self._dataflex_most = everyone[:, :3].sum(dim=0), everyone[:, 3].max()
        self._dataflex_counts = StepCounts(*counts)
        return batches, num_items

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds what the weights were to the line of the training loss."""
        if "loss" in logs:
            left_out = self.component.left_out if isinstance(self.component, Weighter) else 0
            logs, self._dataflex_metrics = (
                logs | self._dataflex_metrics | ({"dataflex/left_out": left_out} if left_out else {}),
                {},
            )
        super().log(logs, *args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_log:  # here, as every rank comes along
            self._dataflex_metrics = self._dataflex_log.metrics(self.accelerator)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _dataflex_require_rows_apart(self) -> None:
        super()._dataflex_require_rows_apart()
        collate = self._get_collator_with_removed_columns(self.data_collator, description="training")
        require_rows_apart(collate, first_rows(self.train_dataset), f"the {self.component_in_words()}", documents=True)

    def _dataflex_own_loss(self, logits: Any, labels: torch.Tensor, token_loss: TokenLoss) -> torch.Tensor | None:
        """Returns the loss of a micro-batch; None where it is the plain one of the logits."""
        self._dataflex_asked = True
        if self._dataflex_active is not None:
            return self._dataflex_weighted(logits, labels, token_loss)
        if self._dataflex_outputs is None:
            return None
        if not self._dataflex_untouched(logits):
            if self._dataflex_without_logits:  # in the warm-up as well: not when it is over
                raise self._dataflex_touched()
            return None
        by_step = self._dataflex_tokens is not None and self._dataflex_loss.takes_count
        return torch.as_tensor(
            logits.sum() / (self._dataflex_tokens if by_step else predicted(labels).sum().clamp(min=1))
        )

    def _dataflex_weighted(self, logits: Any, labels: torch.Tensor, token_loss: TokenLoss) -> torch.Tensor:
        self._dataflex_weighed = True
        if isinstance(token_loss, DynamicFineTuning):
            token_loss = DynamicFineTuning(self._dataflex_label_counts[self._dataflex_micro_batch])
        objective = self._dataflex_objective()
        seen = (self._dataflex_watch, self.samples)
        if self._dataflex_outputs is None:
            return weighted_loss(logits, labels, objective, self._dataflex_weigh, token_loss, *seen)
        if not self._dataflex_untouched(logits):
            raise self._dataflex_touched()
        assert isinstance(token_loss, CrossEntropy), "a smoothed loss needs the logits"
        return weighted_loss_of_tokens(logits.squeeze(-1), labels, objective, self._dataflex_weigh, token_loss, *seen)

    def _dataflex_objective(self) -> Objective:
        """Returns what the present micro-batch is part of."""
        counted_by_loop = self._dataflex_tokens is not None
        scale = undone(loop_of(self, counted_by_loop, len(self._dataflex_batches)))
        by_tokens = self.arguments.weight_objective == "token"
        by_step = counted_by_loop and self._dataflex_loss.takes_count  # what the plain loss is divided by
        return Objective(self._dataflex_counts, by_step and counts_first(self), by_tokens, scale)

    def _dataflex_watch(self, weights_S: torch.Tensor, factors_S: torch.Tensor, labelled_S: torch.Tensor) -> None:
        self._dataflex_log.add(weights_S, labelled_S)
        self.sample_factors = factors_S

    def _dataflex_weigh(self, losses_S: torch.Tensor) -> torch.Tensor:
        assert self._dataflex_active is not None
        with blaming(self._dataflex_who()):
            scalar = self._dataflex_active.get_weighted_loss(
                losses_S, ctx=self, model=self.model, inputs=self._dataflex_inputs
            )
        if not isinstance(scalar, torch.Tensor) or scalar.numel() != 1:
            shape = tuple(scalar.shape) if isinstance(scalar, torch.Tensor) else type(scalar).__name__
            raise ComponentError(f"{self._dataflex_who()} returned {shape}; expected one number, as losses.mean() is")
        if not scalar.requires_grad:
            raise ComponentError(
                f"{self._dataflex_who()} returned a number that does not depend on losses, so nothing can be learnt"
            )
        who, found, given_S = self._dataflex_who(), scalar.detach().reshape(()), losses_S.detach()
        self._dataflex_checks.expect(
            found.isfinite(),
            lambda: ComponentError(f"{who} returned {found.item()}; the losses it was given: {given_S.tolist()}"),
        )
        return scalar.reshape(())

    def _dataflex_untouched(self, logits: torch.Tensor) -> bool:
        """Returns whether these are the losses that the output layer gave; of a copy, that is seen after the step."""
        assert self._dataflex_outputs is not None
        found = self._dataflex_outputs.unchanged(logits)
        if isinstance(found, torch.Tensor):
            self._dataflex_checks.expect(found, self._dataflex_touched)
            return True
        return found

    def _dataflex_touched(self) -> ComponentError:
        return ComponentError(
            f"{type(self.model).__name__} changes its logits behind the output layer, so they cannot be left out "
            "-> set weight_logits: full"
        )

    def _dataflex_who(self) -> str:
        name = self.spec.component.name if self.spec.component is not None else type(self.component).__name__
        return f"weighter '{name}' at step {self.state.global_step}"
