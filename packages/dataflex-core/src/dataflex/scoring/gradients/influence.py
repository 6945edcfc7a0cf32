"""How much a step on each row would lower the loss on target rows, to first order.

The influence of a row on a target set is the mean, over the set's rows, of the cosine between the row's step and the
target row's gradient (LESS, arXiv 2402.04333, section 3). A cosine is linear in the normalised target gradient, so the
mean may be taken first: one vector per target set, and each row of the dataset is multiplied with it while its
gradients pass by. Nothing is kept per row but the result.

Letters: N rows, J target sets, B rows of a batch, D numbers of a parameter, K dimensions of a sketch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.core.errors import ComponentError
from dataflex.core.ranks.by_row import sum_over_ranks
from dataflex.model.label_logits import IGNORED
from dataflex.scoring.gradients.kept_targets import Keep, KeptTargets
from dataflex.scoring.gradients.per_row import PerSampleGradients
from dataflex.scoring.gradients.sinks import Direction, Dots, Sink, Sketched, Whole
from dataflex.scoring.gradients.sketch import Sketch
from dataflex.scoring.passes.row_pass import RowBatch, RowPass
from dataflex.utils.progress import Progress

_WHOLE_NUMBERS = 2**27
"""Gradients of target rows that are in memory together, 512 MB; their norm is known only when all parameters are."""


@dataclass(frozen=True)
class TargetSet:
    """Rows that the model should get better at.

    Attributes:
        name: What the set is called in messages and traces.
        dataset: Its rows, tokenised, with labels.
        weights: (M,) weight of each row's loss; None for 1.
        groups: (M,) rows of one number make one vector, the sum of their weighted gradients; None: each row its own.
        total: Whether a row's loss is the sum of its token losses; otherwise it is their mean.
        count: Over how many vectors the mean is taken, those of 0 among them; None: those that are not 0.
        evaluated: The evaluation set, where ``dataset`` is not that itself but made from its rows; else None.
        origins: The row of ``evaluated`` that the vector of each group comes from, by the group's number.
        known_as: The evaluation set that it is a part of, which explanations name; blank: ``name`` is one.
    """

    name: str
    dataset: Any
    weights: NDArray[np.float64] | None = None
    groups: NDArray[np.int64] | None = None
    total: bool = False
    count: int | None = None
    evaluated: Any = None
    origins: NDArray[np.int64] | None = None
    known_as: str = ""


def target_means(
    gradients: PerSampleGradients,
    model: torch.nn.Module,
    targets: Sequence[TargetSet],
    rows: RowPass,
    sketch: Sketch | None = None,
    kept: KeptTargets | None = None,
    *,
    normalised: bool = True,
) -> list[torch.Tensor]:
    """Returns, for each target set, the mean of its rows' normalised gradients, the same on every rank. Collective.

    Sums are taken in float64 on the CPU, so that the number of ranks does not show in them: not every device has
    float64, and none holds more of them than the batch's own.

    Args:
        gradients: Forms the gradients.
        model: The model that it belongs to.
        targets: J sets.
        rows: How to batch: collator, accelerator, token budget. Its dataset and indices are not used.
        sketch: Sketches the vectors, to save memory where there are many sets; None keeps them whole.
        kept: Takes each target row's vector as it passes by, for explaining; None for nobody.
        normalised: Whether each vector is divided by its norm; a vector of 0 has no part in the mean either way. A sum
            over a group (``TargetSet.groups``) always is.

    Returns:
        By parameter, (J, D) float32; with a sketch, one (J, K).

    Raises:
        ComponentError: A set has no row with a label; a gradient is NaN or infinite.
    """
    means: list[list[torch.Tensor]] = []
    device = next(model.parameters()).device if rows.accelerator is None else rows.accelerator.device
    for target in targets:
        keep = None if kept is None else kept.of_set(target.name)
        sums, count = _sums(gradients, model, target, replace(rows, gradients=True), sketch, device, keep, normalised)
        sums = [torch.from_numpy(sum_over_ranks(part.numpy(), rows.accelerator)) for part in sums]
        count = float(sum_over_ranks(np.array([count]), rows.accelerator)[0])
        if not count:
            raise ComponentError(
                f"no row of the target set '{target.name}' has a label with a gradient -> check eval_dataset, or use "
                "a larger cutoff_len if it cuts the answers off"
            )
        means.append([(part / (target.count or count)).float().to(device) for part in sums])
    return [torch.stack(parts) for parts in zip(*means, strict=True)]


def influences(
    gradients: PerSampleGradients,
    model: torch.nn.Module,
    means: Sequence[torch.Tensor],
    rows: RowPass,
    direction: Direction | None = None,
    sketch: Sketch | None = None,
    *,
    normalised: bool = True,
) -> NDArray[np.float32]:
    """Returns the influence of each row on each target set: (N, J) in [-1, 1], the same on every rank. Collective.

    Memory does not grow with N but for the result. A row without a label has no gradient and gets NaN.

    Args:
        gradients: Forms the gradients.
        model: The model that it belongs to.
        means: What :func:`target_means` returned.
        rows: The rows to score.
        direction: The step of a row, from its gradient; None for the gradient itself (SGD).
        sketch: The sketch that ``means`` were made with.
        normalised: Whether each row's step is divided by its norm, so that one of length 0 gets NaN; else the products
            are of any size.

    Raises:
        ComponentError: A gradient is NaN or infinite.
    """

    def score(batch: RowBatch) -> torch.Tensor:
        count, device = len(batch.labels()), means[0].device
        sink: Dots | Sketched
        if sketch is None:
            sink = Dots(count, device, direction, list(means))
        else:
            sink = Sketched(count, device, direction, sketch)
        _run(gradients, batch, sink)
        dots_BJ = sink.dots_BJ if isinstance(sink, Dots) else sink.features_BK @ means[0].T
        if normalised:
            return dots_BJ / row_norms(sink, batch).unsqueeze(1)
        return dots_BJ.masked_fill(step_lengths(sink, batch).isnan().unsqueeze(1), torch.nan)

    found = replace(rows, gradients=True).values(model, score)
    return found if found.ndim == 2 else found.reshape(0, len(means[0]))


def gradient_features(
    gradients: PerSampleGradients,
    model: torch.nn.Module,
    rows: RowPass,
    sketch: Sketch,
    direction: Direction | None = None,
) -> NDArray[np.float32]:
    """Returns each row's sketched step, divided by its exact norm: (N, K), the same on every rank. Collective.

    Inner products of these features estimate cosines without bias. They take 4 N K bytes of the CPU's memory.

    Args:
        gradients: From :func:`~dataflex.scoring.per_sample_gradients`.
        model: The model.
        rows: The N rows, and how they are put through the model.
        sketch: Projects a step to K numbers.
        direction: Turns a gradient into the optimizer's step; None compares gradients themselves.
    """

    def score(batch: RowBatch) -> torch.Tensor:
        device = next(model.parameters()).device if rows.accelerator is None else rows.accelerator.device
        sink = Sketched(len(batch.labels()), device, direction, sketch)
        _run(gradients, batch, sink)
        return sink.features_BK / row_norms(sink, batch).unsqueeze(1)

    return replace(rows, gradients=True).values(model, score)


def step_features(
    gradients: PerSampleGradients, model: torch.nn.Module, rows: RowPass, kept: KeptTargets, direction: Direction | None
) -> NDArray[np.float32]:
    """Returns each row's step of length 1 as :class:`KeptTargets` compares it: (S, K). Collective.

    The same on every rank, NaN for a row without a label.

    Args:
        gradients: From :func:`~dataflex.scoring.per_sample_gradients`.
        model: The model.
        rows: The S rows, and how they are put through the model.
        kept: The target rows, which say in which K numbers steps are compared.
        direction: Turns a gradient into the optimizer's step; None compares gradients themselves.
    """

    def score(batch: RowBatch) -> torch.Tensor:
        sink = kept.sink(len(batch.labels()), direction)
        _run(gradients, batch, sink)
        return kept.steps(sink) / row_norms(sink, batch).unsqueeze(1)

    found = replace(rows, gradients=True).values(model, score)
    return found if found.ndim == 2 else found.reshape(0, kept.dim)


def _sums(
    gradients: PerSampleGradients,
    model: torch.nn.Module,
    target: TargetSet,
    rows: RowPass,
    sketch: Sketch | None,
    device: torch.device,
    keep: Keep | None,
    normalised: bool,
) -> tuple[list[torch.Tensor], float]:
    """Returns the sum of this rank's vectors by parameter, float64 on the CPU, and how many there are."""
    sizes = [route.size for route in gradients.routes] if sketch is None else [sketch.dim]
    sums = [torch.zeros(size, dtype=torch.float64) for size in sizes]
    most_rows = max(1, _WHOLE_NUMBERS // sum(sizes))
    weights_M = np.ones(len(target.dataset)) if target.weights is None else target.weights
    rows = replace(
        rows, dataset=target.dataset, indices=None, max_rows=most_rows, store=None, desc=f"{rows.desc}, {target.name}"
    )

    def score(batch: RowBatch) -> Sink:
        count = len(batch.labels())
        sink = Whole(count, device) if sketch is None else Sketched(count, device, None, sketch)
        _run(gradients, batch, sink, total=target.total)
        return sink

    if target.groups is not None:
        return _group_sums(model, target.groups, replace(rows, progress=False), sums, weights_M, score, keep)
    vectors = 0.0
    for batch, sink in rows.results(model, score):
        usable_B = sink.squares_B > 0
        if batch.repeated or not usable_B.any():
            continue
        factors_B = _on(weights_M[batch.rows], sink.squares_B)
        factors_B = torch.where(usable_B, factors_B * sink.squares_B.rsqrt() if normalised else factors_B, 0.0)
        _add(sums, sink, factors_B)
        if keep is not None:
            keep(batch.rows, _parts(sink), factors_B)
        vectors += float(usable_B.sum())
    return sums, vectors


def _group_sums(
    model: torch.nn.Module,
    groups_M: NDArray[np.int64],
    rows: RowPass,
    sums: list[torch.Tensor],
    weights_M: NDArray[np.float64],
    score: Callable[[RowBatch], Sink],
    keep: Keep | None,
) -> tuple[list[torch.Tensor], float]:
    """As :func:`_sums`, where several rows make one vector: whole groups are dealt out to the ranks."""
    rank, ranks = 0, 1
    if rows.accelerator is not None:
        rank, ranks = rows.accelerator.process_index, rows.accelerator.num_processes

    def add(group: int) -> int:
        """Adds the normalised vector of a group's rows; returns how many that is, 0 for a vector of 0."""
        own, members = [torch.zeros_like(part) for part in sums], np.flatnonzero(groups_M == group)
        for batch, sink in replace(rows, indices=members, accelerator=None).results(model, score):
            if not sink.squares_B.any():
                continue
            factors_B = _on(weights_M[members[batch.rows]], sink.squares_B)
            _add(own, sink, factors_B)
        norm = float(torch.stack([(part * part).sum() for part in own]).sum().sqrt())
        if not norm > 0:
            return 0
        for part, vector_D in zip(sums, own, strict=True):
            part += vector_D / norm
        if keep is not None:
            parts = {place: part.float()[None] for place, part in enumerate(own)}
            keep(np.array([group]), parts, torch.tensor([1 / norm]))
        return 1

    vectors = 0.0
    groups = np.unique(groups_M)[rank::ranks]
    with Progress(rows.desc, len(groups), "groups of target rows") as progress:
        for group in groups:
            vectors += add(int(group))
            progress.done()
    return sums, vectors


def _add(sums: list[torch.Tensor], sink: Sink, factors_B: torch.Tensor) -> None:
    """Adds the rows' vectors, each times its factor, to the sums; waits once for the device, not for each parameter."""
    parts = _parts(sink)
    if not parts:
        return
    found = torch.cat([factors_B @ vectors_BD for vectors_BD in parts.values()]).cpu()
    sizes = [vectors_BD.shape[1] for vectors_BD in parts.values()]
    for place, vector_D in zip(parts, torch.split(found, sizes), strict=True):
        sums[place] += vector_D


def _on(weights_B: NDArray[np.float64], like_B: torch.Tensor) -> torch.Tensor:
    """Returns weights in float32 where a tensor is; made that before, as the device may have no float64."""
    return torch.from_numpy(weights_B.astype(np.float32)).to(like_B.device)


def _parts(sink: Sink) -> dict[int, torch.Tensor]:
    """Returns place in the sums -> vectors of the rows; what is not there is 0."""
    if isinstance(sink, Whole):
        return sink.vectors
    assert isinstance(sink, Sketched)
    return {0: sink.features_BK}


def _run(gradients: PerSampleGradients, batch: RowBatch, sink: Sink, total: bool = False) -> None:
    """Runs a batch; refuses what is not finite."""
    gradients.backward(batch, sink, total=total)
    require_finite_gradients(sink)


def require_finite_gradients(sink: Sink) -> None:
    """Refuses a batch with a gradient that is NaN or infinite.

    Raises:
        ComponentError: With the way out.
    """
    if not sink.squares_B.isfinite().all():
        raise ComponentError(
            "the gradient of a row is NaN or infinite -> the weights have probably diverged: lower the learning rate, "
            "or train in bf16 instead of fp16"
        )


def row_norms(sink: Sink, batch: RowBatch) -> torch.Tensor:
    """Returns what steps are divided by to have length 1: (B,), NaN for a row without labels, or a step of length 0."""
    lengths_B = step_lengths(sink, batch)
    return torch.where(lengths_B > 0, lengths_B, torch.nan)


def step_lengths(sink: Sink, batch: RowBatch) -> torch.Tensor:
    """Returns (B,) lengths, NaN for a row without labels: under Adam its direction is that of the moments alone."""
    labelled_B = (batch.labels()[:, 1:] != IGNORED).any(dim=1).to(sink.squares_B.device)
    return torch.where(labelled_B, sink.squares_B.sqrt(), torch.nan)
