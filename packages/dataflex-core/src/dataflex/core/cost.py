"""What a decision costs, as a component declares it: see :meth:`~dataflex.core.component.Component.cost`.

A component says what it does, in rows and tokens that go through the model, and not how long that takes: the model, the
device and how passes are made are none of its business. `dataflex-cli plan` makes FLOPs and a share of the run of it.

    @classmethod
    def cost(cls, params, ahead):
        return Cost(Work(losses=ahead.rows))        # one pass over all rows, shared with other components

Amounts are of all ranks together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Amount:
    """Rows that go through a model. Numbers may be fractions: they are expectations.

    Attributes:
        rows: How many.
        tokens: Their tokens, padding not counted.
        labels: Those of the tokens that have a label to predict.
    """

    rows: float = 0.0
    tokens: float = 0.0
    labels: float = 0.0

    @property
    def length(self) -> float:
        """Mean tokens of a row; 0 where there is none."""
        return self.tokens / self.rows if self.rows else 0.0

    def of(self, rows: float) -> Amount:
        """Returns that many rows of this kind; more than there are is all right: they come again."""
        return self.times(rows / self.rows) if self.rows else Amount()

    def at_most(self, rows: float | None) -> Amount:
        """Returns these rows, or ``rows`` of them where there are more; None for all."""
        return self if rows is None or rows >= self.rows else self.of(rows)

    def times(self, factor: float) -> Amount:
        """Returns the amount ``factor`` times."""
        return Amount(self.rows * factor, self.tokens * factor, self.labels * factor)

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.rows + other.rows, self.tokens + other.tokens, self.labels + other.labels)


NOTHING = Amount()


@dataclass(frozen=True)
class Ahead:
    """What is known of a run before it starts, for one update of one component.

    Attributes:
        update: Number of the run's update, from 0.
        first: Number of the first update that the component takes part in.
        every: It takes part in each update whose number is a multiple of this.
        updates: Updates of the run.
        rows: The rows that it chooses from: of the train dataset, of what filters keep, or of one source.
        asked: The rows that this update asks it for; of a component that chooses none, those that are trained on until
            the next update.
        target: The rows of all evaluation sets together.
        sets: How many evaluation sets there are.
        held_out: The held-out rows of all sources of a mixture together.
        sources: How many sources there are.
        step: The rows of one optimizer step.
        steps: Optimizer steps between two updates; of a weighter, the steps of the run that it weighs.
        micro_batches: Micro-batches of a step on a rank.
        width: Numbers of a hidden state of the model; 0 where the model is not known.
        trainable: Numbers that are trained; 0 where the model is not known.
        model_bytes: Memory of the model's weights; 0 where the model is not known.
    """

    update: int = 0
    first: int = 0
    every: int = 1
    updates: int = 1
    rows: Amount = NOTHING
    asked: Amount = NOTHING
    target: Amount = NOTHING
    sets: int = 1
    held_out: Amount = NOTHING
    sources: int = 1
    step: Amount = NOTHING
    steps: int = 1
    micro_batches: int = 1
    width: int = 0
    trainable: int = 0
    model_bytes: int = 0

    def due(self, refresh: int | None = None) -> bool:
        """Returns whether what was made at the first update is made again at this one.

        Args:
            refresh: Updates of the run after which it is too old; None: it is made once.
        """
        since = self.update - self.first
        if since == 0 or refresh is None:
            return since == 0
        return since % (-(-refresh // self.every) * self.every) == 0

    def unseen(self, max_age: int) -> Amount:
        """Returns the rows whose loss training has not seen in the last ``max_age`` steps, rows being drawn evenly."""
        if not self.rows.rows:
            return NOTHING
        return self.rows.times(max(0.0, 1 - max_age * self.step.rows / self.rows.rows))


@dataclass(frozen=True)
class Work:
    """What is computed.

    Attributes:
        losses: Rows whose loss under the present weights is asked for by ``context.scores``: computed once for all
            components that ask at the same update.
        forward: Rows of forward passes without gradients of the component's own, with losses or logits.
        hidden: Rows of forward passes up to the last hidden states, as for embeddings.
        gradients: Rows whose own gradients are formed, one forward and backward pass over them.
        factor_dim: Of these gradients, the dimensions that are kept of each side of a large matrix; None for all.
        generated: Answers that the model generates; ``tokens`` are the new ones.
        others: Model name or path -> rows of forward passes of that other model.
        ngrams: Rows whose n-grams are counted, on the CPU.
        products: Multiplications of vectors' numbers with each other: search and clustering.
        moved: How many weights are changed in place, or read, one by one.
    """

    losses: Amount = NOTHING
    forward: Amount = NOTHING
    hidden: Amount = NOTHING
    gradients: Amount = NOTHING
    factor_dim: int | None = None
    generated: Amount = NOTHING
    others: Mapping[str, Amount] = field(default_factory=dict)
    ngrams: Amount = NOTHING
    products: float = 0.0
    moved: float = 0.0

    def __add__(self, other: Work) -> Work:
        """Returns both. Of the shared losses the larger amount counts, as the smaller one is part of it."""
        others = {name: self.others.get(name, NOTHING) + amount for name, amount in other.others.items()}
        return Work(
            max(self.losses, other.losses, key=lambda amount: amount.tokens),
            self.forward + other.forward,
            self.hidden + other.hidden,
            self.gradients + other.gradients,
            self.factor_dim or other.factor_dim,
            self.generated + other.generated,
            {**self.others, **others},
            self.ngrams + other.ngrams,
            self.products + other.products,
            self.moved + other.moved,
        )

    def apart(self) -> Work:
        """Returns the same with its losses as passes of its own: to add what rows of other places cost."""
        return replace(self, losses=NOTHING, forward=self.forward + self.losses)

    def times(self, factor: float) -> Work:
        """Returns the work ``factor`` times."""
        return Work(
            self.losses.times(factor), self.forward.times(factor), self.hidden.times(factor),
            self.gradients.times(factor), self.factor_dim, self.generated.times(factor),
            {name: amount.times(factor) for name, amount in self.others.items()},
            self.ngrams.times(factor), self.products * factor, self.moved * factor,
        )  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What a component costs at one update, and at each step.

    Attributes:
        update: What the update computes.
        step: What each optimizer step computes because of the component, beyond training.
        device_bytes: Memory that it takes on the device, beyond that of training and of a pass.
        host_bytes: Memory that it takes on the CPU's side.
        state_bytes: What it adds to each checkpoint.
        cache_bytes: What it may keep on disk.
        notes: What it cannot tell in these numbers, such as the time of a server that it asks.
    """

    update: Work = Work()
    step: Work = Work()
    device_bytes: float = 0.0
    host_bytes: float = 0.0
    state_bytes: float = 0.0
    cache_bytes: float = 0.0
    notes: tuple[str, ...] = ()
