"""From rows and tokens to FLOPs, and from FLOPs to time: what each kind of pass costs, and how well it uses a device.

A multiplication and its addition are two FLOPs. With B weights of the body, H of the output layer, T tokens of a row:

    forward                     2 B + 2 width_of_all_layers T a token, and 2 H where there are logits
    backward to the inputs      the same again, from the lowest trained layer on
    backward to the weights     2 of each trained weight a token
    training                    all three; the layers' forward again with gradient checkpointing; the optimizer's step
    gradients of each row       as training without these two, logits at labels alone

Where a stage runs the model more than once over a row (:mod:`dataflex.forecast.stage_passes`), each time is a forward.

FLOPs are not time. What follows is what a FLOP of a kind takes, next to one of training; docs/plan.md tells where the
numbers come from. Work that reads and writes more than it computes (optimizers, gradients of single rows) is counted in
numbers that are touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dataflex.core.cost import Amount, Work
from dataflex.forecast.model_size import ModelSize
from dataflex.forecast.stage_passes import StagePasses


@dataclass(frozen=True)
class Rates:
    """How fast a device does what.

    Attributes:
        speed: FLOPs that a process trains at, a second.
        touched: FLOPs of training in the time of reading or writing one number of 4 bytes.
        device: What it is, in words.
    """

    speed: float
    touched: float
    device: str


CPU_SPEED = 50e9  # one thread, fp32
CPU_TOUCHED = 12.0
GPU_SPEED = 150e12
GPU_TOUCHED = 120.0
ACCELERATED = 5e12
"""A speed from which on it is that of an accelerator, whatever this machine has."""

FORWARD = 1.0
"""Time of a FLOP without gradients, in batches of rows of equal length, next to one of training."""
ROW_GRADIENTS = 1.2
"""That of gradients of single rows: at most 1.2 times a batched forward and backward pass over the same rows."""
GENERATED = 4.0
"""That of generating token by token: all weights are read for each."""
PRODUCTS = 3.0
"""That of distances between vectors, in float64 and sorted."""
OPTIMIZER = 12.0
"""Numbers touched for each trained weight at a step of AdamW, zeroing and clipping among them."""
ROW_NUMBERS = 14.0
"""Numbers touched for each trained weight and row: gradient, Adam's step, norm and product with a target."""
NGRAM_ROW, NGRAM_TOKEN = 40e-6, 80e-9
"""Seconds that a row and a token take, where n-grams are counted on one CPU core."""


@dataclass(frozen=True)
class Pass:
    """What passes of one kind come to.

    Attributes:
        rows: Rows.
        tokens: Tokens.
        flops: FLOPs.
        equivalent: FLOPs that training would do in the same time.
    """

    rows: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    equivalent: float = 0.0

    def __add__(self, other: Pass) -> Pass:
        return Pass(
            self.rows + other.rows, self.tokens + other.tokens, self.flops + other.flops,
            self.equivalent + other.equivalent,
        )  # fmt: skip


TEXTS = StagePasses()


class Prices:
    """What passes of a model cost.

    Args:
        size: The model.
        rates: The device.
        others: Model name or path -> size of other models; those that are missing are taken to be as the model itself.
        recomputes: Whether training computes the layers' forward twice (gradient checkpointing).
        ranks: Processes; what one of them does alone takes that many times as long.
        stage: What a row is; a reference is taken to be as the model itself.
    """

    def __init__(
        self,
        size: ModelSize,
        rates: Rates,
        others: Mapping[str, ModelSize],
        *,
        recomputes: bool,
        ranks: int,
        stage: StagePasses = TEXTS,
    ) -> None:
        self.size, self._rates, self._others = size, rates, others
        self._recomputes, self._ranks, self._stage = recomputes, ranks, stage

    def step(self, rows: Amount) -> Pass:
        """Returns what an optimizer step costs.

        Args:
            rows: Its rows, with padding among the tokens.
        """
        size, layers = self.size, self._layers(self.size, rows)
        logits = 2 * size.head * rows.tokens
        through = size.depth * layers + logits + self._to_weights(rows.tokens, rows.tokens)
        flops = layers + logits + through + (size.depth * layers if self._recomputes else 0)
        flops += 6 * size.adapters * rows.tokens + (self._stage.forward - 1) * (layers + logits)
        touched = OPTIMIZER * size.trainable * self._ranks
        return Pass(rows.rows, rows.tokens, flops + touched, flops + touched * self._rates.touched)

    def of(self, work: Work) -> dict[str, Pass]:
        """Returns kind of pass -> what it comes to, for the kinds that there are."""
        size = self.size
        found = {
            "forward passes": _repeated(self._forward(size, work.forward + work.losses), self._stage.forward),
            "forward passes for embeddings": self._hidden(work.hidden),
            "gradients of rows": self._gradients(work.gradients, work.factor_dim),
            "generated tokens": self._generated(work.generated),
            "n-grams": self._ngrams(work.ngrams),
            "search and clustering": self._alone(2 * work.products, PRODUCTS),
            "weights moved": Pass(0, 0, work.moved, work.moved * self._rates.touched * self._ranks),
        }
        for name, rows in work.others.items():
            found[f"forward passes of {name}"] = self._forward(self._others.get(name, size), rows)
        return {kind: each for kind, each in found.items() if each.equivalent}

    def _layers(self, size: ModelSize, rows: Amount) -> float:
        return (2 * size.body + 2 * size.attended * rows.length / self._stage.answers) * rows.tokens

    def _to_weights(self, tokens: float, labels: float) -> float:
        size = self.size
        return 2 * size.trained * tokens + (2 * size.head * labels if size.head_trained else 0)

    def _forward(self, size: ModelSize, rows: Amount) -> Pass:
        flops = self._layers(size, rows) + 2 * size.head * rows.labels
        return Pass(rows.rows, rows.tokens, flops, flops * FORWARD)

    def _hidden(self, rows: Amount) -> Pass:
        flops = self._layers(self.size, rows)
        return Pass(rows.rows, rows.tokens, flops, flops * FORWARD)

    def _gradients(self, rows: Amount, factor_dim: int | None) -> Pass:
        size, layers = self.size, self._layers(self.size, rows)
        flops = (1 + size.depth) * layers + 4 * size.head * rows.labels
        flops += self._to_weights(rows.tokens, rows.labels) + 6 * size.adapters * rows.tokens
        touched = ROW_NUMBERS * self._formed(factor_dim) * rows.rows
        equivalent = flops * ROW_GRADIENTS + touched * self._rates.touched
        return Pass(rows.rows, rows.tokens, flops + touched, equivalent)

    def _formed(self, factor_dim: int | None) -> float:
        """Returns the numbers of a row's gradient, of which large matrices are projected."""
        if factor_dim is None:
            return self.size.trainable
        large = [(a, b) for a, b in self.size.matrices if a * b > factor_dim**2]
        kept = sum(min(a, factor_dim) * min(b, factor_dim) for a, b in large)
        return self.size.trainable - sum(a * b for a, b in large) + kept

    def _generated(self, rows: Amount) -> Pass:
        flops = self._layers(self.size, rows) + 2 * self.size.head * rows.tokens
        return Pass(rows.rows, rows.tokens, flops, flops * GENERATED)

    def _ngrams(self, rows: Amount) -> Pass:
        seconds = NGRAM_ROW * rows.rows + NGRAM_TOKEN * rows.tokens
        return Pass(rows.rows, rows.tokens, 0, seconds * self._rates.speed * self._ranks)

    def _alone(self, flops: float, factor: float) -> Pass:
        """Returns what rank 0 computes while the others wait."""
        return Pass(0, 0, flops, flops * factor * self._ranks)


def _repeated(each: Pass, times: int) -> Pass:
    """Returns passes over the same rows that are made several times."""
    return replace(each, flops=each.flops * times, equivalent=each.equivalent * times)
