"""What must hold of the planned loader for every schedule, world size, accumulation, batch size and source size.

Each rank's batches are made as accelerate makes them: a DataLoader over the segment's rows in order, whose batch
sampler is accelerate's own ``BatchSamplerShard``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from accelerate.data_loader import BatchSamplerShard
from dataflex.core.component import seeded
from dataflex.core.schedule import Schedule, Steps
from dataflex.planning.loader import PlannedLoader
from dataflex.planning.mixture import MixtureManager
from dataflex.planning.step_rows import StepRows
from dataflex.run.state import load_state, save_state
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler


@st.composite
def schedules(draw):
    """Any schedule a configuration can give."""
    steps = Steps(
        warmup_step=draw(st.integers(0, 4)),
        update_step=draw(st.integers(1, 5)),
        update_times=draw(st.integers(-1, 4)),
        train_step=draw(st.sampled_from([0, 0, 1, 5, 17])),
        epochs=draw(st.sampled_from([0.5, 1.0, 2.0, 2.5])),
        repeat=draw(st.booleans()),
    )
    return steps.plan(draw(st.integers(1, 9)))


@dataclass(frozen=True)
class Shape:
    """How a step's rows are split."""

    world: int
    accumulation: int
    per_device: int

    @property
    def global_batch_size(self):
        return self.world * self.accumulation * self.per_device


shapes = st.builds(Shape, st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))


def planned(segment, shape):
    """The plan of a segment: different for each, the same whenever it is asked for."""
    generator = np.random.default_rng(seeded("plan", segment.start))
    return 1000 * segment.start + generator.permutation(segment.steps * shape.global_batch_size)


def stream(schedule: Schedule, shape: Shape, rank: int, start: int = 0) -> list[list[list[int]]]:
    """Steps -> micro-batches -> rows that a rank trains on, asked for as the training loop does."""
    step, asked = start, []

    def plan(segment):
        assert segment.start <= step < segment.stop, "planned before the last step of the segment before it"
        asked.append(segment.start)
        return planned(segment, shape)

    def batches(rows, served):
        assert served == 0
        sampler = BatchSampler(SequentialSampler(rows), shape.per_device, drop_last=False)
        shard = BatchSamplerShard(sampler, shape.world, rank, split_batches=False, even_batches=True)
        return DataLoader(rows, batch_sampler=shard, collate_fn=lambda rows: [int(row) for row in rows])

    loader = PlannedLoader(
        schedule=schedule,
        dataset=None,
        accumulation=shape.accumulation,
        step_rows=StepRows(shape.global_batch_size, shape.accumulation, shape.accumulation),
        position=lambda: start,
        plan=plan,
        batches=batches,
    )
    assert len(loader) == schedule.total * shape.accumulation
    iterator, steps = iter(loader), []
    while step < schedule.total:
        steps.append([next(iterator) for _ in range(shape.accumulation)])
        step += 1
    assert next(iterator, None) is None, "more batches than steps"
    assert len(asked) == len(set(asked))
    return steps


def segments(schedule):
    step = 0
    while step < schedule.total:
        yield (segment := schedule.segment_at(step))
        step = segment.stop


@given(schedules())
def test_segments_tile_the_run_and_updates_count_up(schedule):
    found = list(segments(schedule))
    assert sum(segment.steps for segment in found) == schedule.total
    assert all(segment.steps > 0 for segment in found)
    assert max(segment.steps for segment in found) == schedule.longest_segment.steps
    assert [s.update for s in found if s.update is not None] == list(range(schedule.updates))
    for segment in found:
        assert all(schedule.segment_at(step) == segment for step in range(segment.start, segment.stop))


@settings(max_examples=60)
@given(schedules(), shapes)
def test_ranks_share_out_the_plan_without_overlap_and_every_step_has_its_rows(schedule, shape):
    ranks = [stream(schedule, shape, rank) for rank in range(shape.world)]
    for segment in segments(schedule):
        rows = planned(segment, shape)
        parts = [np.concatenate([b for step in r[segment.start : segment.stop] for b in step]) for r in ranks]
        together = np.concatenate(parts)
        assert len(together) == segment.steps * shape.global_batch_size
        assert len(set(together)) == len(together)
        assert set(together) == set(rows)
    assert all(len(batch) == shape.per_device for rank in ranks for step in rank for batch in step)


@settings(max_examples=60)
@given(schedules(), shapes)
def test_the_row_stream_of_many_ranks_is_that_of_one_with_more_accumulation(schedule, shape):
    ranks = [stream(schedule, shape, rank) for rank in range(shape.world)]
    one = stream(schedule, Shape(1, shape.world * shape.accumulation, shape.per_device), 0)
    for step in range(schedule.total):
        micro = [rank[step][a] for a in range(shape.accumulation) for rank in ranks]
        assert micro == one[step], step


@settings(max_examples=60)
@given(schedules(), shapes, st.data())
def test_a_run_resumed_at_any_step_continues_the_stream(schedule, shape, data):
    start = data.draw(st.integers(0, schedule.total), "resumed at")
    rank = data.draw(st.integers(0, shape.world - 1), "rank")
    assert stream(schedule, shape, rank, start) == stream(schedule, shape, rank)[start:]


@settings(max_examples=40)
@given(schedules(), shapes, shapes, st.data())
def test_a_run_resumed_with_other_ranks_and_the_same_global_batch_sees_the_same_rows(schedule, shape, other, data):
    start = data.draw(st.integers(0, schedule.total), "resumed at")
    changed = Shape(other.world, shape.world * shape.accumulation, shape.per_device)
    wide = Shape(shape.world, shape.accumulation * other.world, shape.per_device)
    assert changed.global_batch_size == wide.global_batch_size

    def rows_of_steps(s, start):
        ranks = [stream(schedule, s, rank, start) for rank in range(s.world)]
        return [sorted(row for rank in ranks for batch in rank[i] for row in batch) for i in range(len(ranks[0]))]

    assert rows_of_steps(changed, start) == rows_of_steps(wide, 0)[start:]


@st.composite
def mixtures(draw):
    """Sizes, rows per segment, and the shares that hold in each segment."""
    sizes = draw(st.lists(st.integers(1, 50), min_size=2, max_size=5))
    counts = draw(st.lists(st.integers(0, 40), min_size=1, max_size=6))
    share = st.lists(st.integers(0, 9), min_size=len(sizes), max_size=len(sizes)).filter(any)
    return sizes, counts, draw(st.lists(share, min_size=len(counts), max_size=len(counts)))


def manager(sizes):
    return MixtureManager([f"source {i}" for i in range(len(sizes))], sizes, np.ones(len(sizes)), seed=3)


@settings(max_examples=50)
@given(mixtures(), st.data())
def test_a_mixture_resumed_at_any_segment_plans_the_same_rows(tmp_path_factory, mixture, data):
    sizes, counts, shares = mixture
    start = data.draw(st.integers(0, len(counts) - 1), "resumed before segment")
    folder = tmp_path_factory.mktemp("state")
    whole, resumed = manager(sizes), manager(sizes)
    for number, (count, share) in enumerate(zip(counts, shares, strict=True)):
        if number == start:
            save_state(folder, {"identity": {}, "mixture": whole.state_dict()})
            resumed.load_state_dict(load_state(folder)["mixture"])
            assert (resumed.proportions == whole.proportions).all()
        whole.set_proportions(share)
        rows = whole.plan(count)
        if number >= start:
            resumed.set_proportions(share)
            assert (resumed.plan(count) == rows).all(), number


@given(mixtures())
def test_a_mixture_draws_each_source_without_replacement_and_owes_less_than_a_row_each(mixture):
    sizes, counts, shares = mixture
    whole, drawn = manager(sizes), [[] for _ in sizes]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    for count, share in zip(counts, shares, strict=True):
        whole.set_proportions(share)
        rows = whole.plan(count)
        assert len(rows) == count
        domains = np.searchsorted(offsets, rows, side="right") - 1
        exact = np.array(share) / sum(share) * count
        assert (abs(np.bincount(domains, minlength=len(sizes)) - exact) < 1 + 1e-9).all()
        for domain, source in enumerate(drawn):
            source += rows[domains == domain].tolist()
    for size, source in zip(sizes, drawn, strict=True):
        passes = np.unique(source, return_counts=True)[1]
        whole_passes, rest = divmod(len(source), size)
        assert (passes <= whole_passes + (rest > 0)).all()
        assert whole_passes == 0 or (len(passes) == size and (passes >= whole_passes).all())


@given(mixtures(), st.data())
def test_rows_of_a_source_are_trained_on_pass_after_pass_over_segments_and_resumes(mixture, data):
    """No row of a source comes again before all of that source were seen, in the order of training."""
    sizes, counts, shares = mixture
    resumed_at = data.draw(st.integers(0, len(counts) - 1), "resumed before segment")
    whole, trained = manager(sizes), []
    for number, (count, share) in enumerate(zip(counts, shares, strict=True)):
        if number == resumed_at:
            state, whole = whole.state_dict(), manager(sizes)
            whole.load_state_dict(state)
        whole.set_proportions(share)
        trained += whole.plan(count).tolist()
    for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        rows = [row for row in trained if start <= row < start + size]
        for begin in range(0, len(rows), size):
            part = rows[begin : begin + size]
            assert len(set(part)) == len(part)


@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=6),
    segment=st.integers(1, 80),
    weights=st.lists(st.integers(1, 9), min_size=6, max_size=6),
)
def test_at_every_row_each_source_has_had_its_share_to_within_the_number_of_sources(sizes, segment, weights):
    """Evenly, not only by the end of a segment; the bound is that of rounding, whatever the segments."""
    share = np.array(weights[: len(sizes)]) / sum(weights[: len(sizes)])
    whole = manager(sizes)
    whole.set_proportions(share)
    rows = np.concatenate([whole.plan(segment) for _ in range(-(-400 // segment))])
    domains = np.searchsorted(np.cumsum(sizes), rows, side="right")
    had = np.cumsum(domains[:, None] == np.arange(len(sizes)), axis=0)
    wanted = np.arange(1, len(rows) + 1)[:, None] * share
    assert (abs(had - wanted) <= 1 + len(sizes) * share).all()


@given(sizes=st.lists(st.integers(1, 60), min_size=2, max_size=6), segment=st.integers(1, 200))
def test_a_pass_over_a_mixture_by_size_is_a_pass_over_every_source(sizes, segment):
    whole, total = MixtureManager([f"source {i}" for i in range(len(sizes))], sizes, sizes, seed=3), sum(sizes)
    rows = np.concatenate([whole.plan(segment) for _ in range(-(-3 * total // segment))])
    for number in range(3):
        assert sorted(rows[number * total : (number + 1) * total]) == list(range(total))
