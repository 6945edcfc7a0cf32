"""How the loss of a training micro-batch comes about: of logits, of an output layer that gives losses, or of TRL's.

Around it stands what is the same on each route: who weighs it is asked, and who looks at losses is shown them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate import DistributedType

from dataflex.core.errors import ConfigError
from dataflex.interfaces.weighter import Weighter
from dataflex.model.label_logits import label_positions
from dataflex.objective.fused_head import FusedHead, fused_head, require_weighable
from dataflex.objective.hidden import require_hidden_states
from dataflex.objective.logits_route import output_losses
from dataflex.objective.measuring import Measuring
from dataflex.objective.micro_batch_loss import MicroBatchLoss
from dataflex.objective.parts import Keys, Parts
from dataflex.objective.present_step import PresentStep
from dataflex.objective.samples import one_by_one
from dataflex.objective.source_sketches import SourceSketches

if TYPE_CHECKING:
    from transformers import Trainer


class LossRoutes:
    """Computes the loss of training micro-batches.

    Args:
        trainer: The trainer, with its model not yet wrapped.
        parts: Who weighs and who looks.
        keys: What the run's keys say of the loss.
        loss: Is asked for the loss; is told its output layer.
        step: The present step.
        measuring: Shows the losses to who looks, if anybody does.
        sketches: Measures the gradients of the sources, if a mixer looks at them.

    Raises:
        ConfigError: There is no route for this run.
    """

    def __init__(
        self,
        trainer: Trainer,
        parts: Parts,
        keys: Keys,
        loss: MicroBatchLoss,
        step: PresentStep,
        measuring: Measuring | None,
        sketches: SourceSketches | None = None,
    ) -> None:
        self._trainer, self._parts, self._loss, self._step, self._measuring = trainer, parts, loss, step, measuring
        self._sketches = sketches
        if parts.weighter is not None:
            assert isinstance(trainer.model, torch.nn.Module)
            weighter = parts.weighter.weighter
            if isinstance(weighter, Weighter) and weighter.reads_hidden_states:
                who = f"the weighter '{parts.weighter.preset}'"
                require_hidden_states(trainer.model, who, compiled=trainer.args.torch_compile)
            loss.outputs = output_losses(
                keys.logits if parts.without_logits is None else "full",
                trainer.model,
                smoothed=trainer.label_smoother is not None and trainer.compute_loss_func is None,
                compiled=trainer.args.torch_compile,
                fused=keys.liger,
                measured=any(base.__module__.partition(".")[0] == "trl" for base in keys.bases),
            )
        if parts.weighs:
            require_weighable(trainer.args, "a weighter" if parts.weighter is not None else f"the {parts.who_weighs}")
            if parts.weighter is None and trainer.compute_loss_func is not None and not keys.dft:
                raise ConfigError(
                    f"the {parts.unweighted}, which use_eaft_loss or a compute_loss_func replaces -> leave it out"
                )
        self._head: FusedHead | None = fused_head(trainer.model, keys.bases)
        if parts.without_logits is not None and (self._head is not None or keys.logits == "chunked"):
            what = "TRL's fused output layer (loss_type: chunked_nll)" if self._head is not None else "weight_logits"
            raise ConfigError(
                f"{what} computes the loss without logits, and the {parts.without_logits} -> switch it off, or use "
                "another mixer"
            )

    def compute(self, compute: Callable[..., Any], model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Computes the loss of the present micro-batch, as ``Objective.compute_loss`` is to.

        Raises:
            ConfigError: The loss was computed without asking who weighs it, or without what is to be looked at.
        """
        loss, weighing = self._loss, self._loss.weighing
        labels_BT = inputs.get("labels")
        # now, as the trainer underneath takes the labels out where it needs them itself
        given = dict(inputs) if self._measuring is not None else {}
        if weighing is not None and weighing.active is not None:
            weighing.inputs, weighing.batch = one_by_one(inputs, loss.context.samples), dict(inputs)
        loss.begin(kwargs.get("num_items_in_batch"))
        if self._sketches is not None and labels_BT is not None:
            self._sketches.begin_micro_batch(labels_BT)
        by_output = loss.outputs is not None and (loss.weighs or self._trainer.compute_loss_func is None)
        if self._head is not None and labels_BT is not None and model.training:
            found, outputs = self._by_head(self._head, compute, model, inputs, *args, **kwargs), None
        elif by_output and labels_BT is not None and model.training:
            found, outputs = self._by_output_layer(compute, model, inputs, labels_BT, *args, **kwargs), None
        else:
            found, outputs = self._by_logits(compute, model, inputs, *args, **kwargs)
        if self._measuring is not None:
            self._measuring.add(loss.losses, outputs, given)
        if self._sketches is not None:
            self._sketches.of_loss(found[0] if isinstance(found, tuple) else found)
        deepspeed = self._trainer.accelerator.distributed_type == DistributedType.DEEPSPEED
        if weighing is not None and deepspeed and loss.context.is_last_micro_batch:
            weighing.checks.examine()  # its backward pass makes the step
        return found

    def _by_logits(
        self, compute: Callable[..., Any], model: Any, inputs: Any, *args: Any, **kwargs: Any
    ) -> tuple[Any, torch.Tensor | None]:
        """Returns the answer of the trainer underneath, and the logits where they are to be looked at."""
        wanted = bool(args[0] if args else kwargs.get("return_outputs", False))
        if self._measuring is not None:
            args, kwargs = (True, *args[1:]), {key: kwargs[key] for key in kwargs if key != "return_outputs"}
        found = compute(model, inputs, *args, **kwargs)
        if self._parts.weighs and self._parts.weighter is None and not self._loss.asked:
            raise ConfigError(  # at the first batch, before anything is learnt
                f"{type(self._trainer.model).__name__} computes its loss without model.loss_function, and the "
                f"{self._parts.unweighted}, which is not possible then -> use a model class of transformers, without "
                "a fused loss"
            )
        if self._measuring is None:
            return found, None
        outputs = found[1] if isinstance(found, tuple) else None
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
        return found if wanted or not isinstance(found, tuple) else found[0], logits

    def _by_output_layer(
        self, compute: Callable[..., Any], model: Any, inputs: Any, labels_BT: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Computes the loss while the output layer gives losses in the place of logits."""
        assert self._loss.outputs is not None
        count = self._step.label_counts[self._loss.context.micro_batch]
        positions_M, targets_M = label_positions(labels_BT, count)
        self._loss.without_logits = True
        try:
            with self._loss.outputs.at(positions_M, targets_M, labels_BT.numel()):
                return compute(model, inputs, *args, **kwargs)
        finally:
            self._loss.without_logits = False

    def _by_head(
        self, head: FusedHead, compute: Callable[..., Any], model: Any, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Computes the loss as TRL does, from token losses that are weighed."""
        loss, counted = self._loss, kwargs.get("num_items_in_batch")
        exact = counted is not None and loss.weighs
        if exact:
            kwargs["num_items_in_batch"] = 1  # the part of the step is exact then: it is divided by nothing

        def own(losses_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor | None:
            loss.note(losses_BT)
            if not losses_BT.requires_grad:
                return None
            part = loss.of_tokens(losses_BT, labels_BT, lambda: losses_BT[:, :-1].sum())
            if part is None or exact:
                return part
            return part * head.divisor(labels_BT, None if loss.weighs else counted)

        with head.asking(own):
            found = compute(model, inputs, *args, **kwargs)
        if not head.asked and self._parts.weighter is None:
            parts = self._parts
            why = f"{parts.who_measures}, which" if parts.measures else f"the {parts.unweighted}, which"
            raise ConfigError(
                f"{type(self._trainer).__name__} computes its loss without the fused output layer of TRL, and {why} "
                "is not possible then -> leave compute_loss to SFTTrainer, or use a component that does not look at "
                "losses"
            )
        return found
