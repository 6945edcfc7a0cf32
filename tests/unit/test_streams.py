"""Streams: rows by number in reading order, again and again, and entered anywhere without another row coming."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import datasets
import numpy as np
import pytest
from dataflex.core.errors import ConfigError
from dataflex.planning.mixture import MixtureManager
from dataflex.rows.stream_places import StreamPlaces
from dataflex.rows.streams import ENDLESS, BlockOrder, Place, Stream
from dataflex.rows.views import MixedSources
from dataflex.run.identity import identity_of_rows

ROWS, BLOCK = 23, 10


def source(rows=ROWS, start=0):
    plain = datasets.Dataset.from_dict({"text": [str(start + i) for i in range(rows)]})
    return plain.to_iterable_dataset().skip(0)


def tokenised(dataset):
    """Makes two rows of each, as packing would make another number of them, in batches that fit no block."""
    return dataset.map(
        lambda batch: {"input_ids": [[int(text)] for text in batch["text"] for _ in range(2)]},
        batched=True,
        batch_size=7,
        remove_columns=["text"],
    )


def shuffled(seed=1, rows=ROWS):
    order = BlockOrder(BLOCK, seed, "stream", "a")
    return Stream(tokenised(order.apply(source(rows))), order)


def ids(stream, numbers):
    return [stream[int(number)]["input_ids"][0] for number in numbers]


def test_a_stream_without_an_order_comes_as_it_is_again_and_again():
    found = ids(Stream(tokenised(source(3))), range(14))
    assert found == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2, 0, 0]


def test_each_pass_has_every_row_in_another_order_and_blocks_keep_together():
    found = np.array(ids(shuffled(), range(4 * ROWS))).reshape(2, ROWS, 2)
    for one in found:
        assert sorted(one[:, 0]) == list(range(ROWS))
        assert sorted(one[:BLOCK, 0]) == list(range(BLOCK))
        assert list(one[:, 0]) != sorted(one[:, 0])
    assert list(found[0, :, 0]) != list(found[1, :, 0])
    assert ids(shuffled(2), range(2 * ROWS)) != list(found[0].ravel())


def place_at(stream, row):
    """Returns the place before a row, as a checkpoint would bring it back."""
    ids(stream, [row - 1])
    stream.place()
    ids(stream, [row])
    return Place(**json.loads(json.dumps(asdict(stream.place()))))


@pytest.mark.parametrize("entered", [1, 2, 13, 2 * ROWS - 1, 2 * ROWS, 2 * ROWS + 5, 4 * ROWS + 9])
def test_a_stream_that_is_entered_at_a_place_gives_what_the_unbroken_one_gives(entered, caplog):
    unbroken = ids(shuffled(), range(150))
    later = shuffled()
    later.enter(place_at(shuffled(), entered))
    assert later.rows_read == entered
    assert ids(later, range(entered, 150)) == unbroken[entered:]
    assert not caplog.records


def test_rows_of_other_ranks_are_passed_over():
    every = ids(shuffled(), range(60))
    assert ids(shuffled(), range(1, 60, 3)) == every[1::3]


def test_a_place_holds_while_another_reads_from_the_same_dataset():
    dataset = tokenised(source())
    stream, unbroken = Stream(dataset), ids(Stream(tokenised(source())), range(40))
    ids(stream, range(9))
    list(dataset.take(20))  # an evaluation
    place = place_at(stream, 15)
    later = Stream(tokenised(source()))
    later.enter(place)
    assert place.rows == 15
    assert ids(later, range(15, 40)) == unbroken[15:]


def test_where_the_state_of_a_dataset_is_wrong_the_stream_is_read_again(caplog):
    def inexact():
        order = BlockOrder(BLOCK, 1, "stream", "a")
        plain = datasets.Dataset.from_dict({"text": [str(i) for i in range(ROWS)]})
        return Stream(tokenised(order.apply(plain.to_iterable_dataset())), order)

    unbroken = ids(inexact(), range(60))
    place = place_at(inexact(), 25)
    later = inexact()
    later.enter(replace(place, coming="another row"))
    assert ids(later, range(25, 60)) == unbroken[25:]
    assert "a stream could not be restored at row 25; reading again from row 0" in caplog.text
    assert "skip(0)" in caplog.text
    same = inexact()
    same.enter(place)  # this release of datasets may or may not come back by itself
    assert ids(same, range(25, 60)) == unbroken[25:]


def test_a_stream_cannot_go_back_or_be_empty_or_be_what_has_no_place():
    stream = shuffled()
    ids(stream, [4])
    with pytest.raises(RuntimeError, match="row 4 of a stream that has been read up to row 5"):
        stream[4]
    with pytest.raises(ConfigError, match="stream without rows"):
        Stream(source().filter(lambda row: False))[0]
    with pytest.raises(ConfigError, match=r"a list cannot be resumed in its middle -> use a datasets\.IterableDataset"):
        Stream([1, 2])


def test_the_first_rows_do_not_move_the_position():
    stream = shuffled()
    first = stream.first(5)
    assert [row["input_ids"] for row in first] == [stream[i]["input_ids"] for i in range(5)]
    assert len(Stream(source(3)).first(10)) == 3


def mixture(shares=(0.7, 0.3), **kwargs):
    return MixtureManager(["a", "b"], [ENDLESS, ENDLESS], shares, seed=1, streams=True, **kwargs)


def test_a_mixture_of_streams_has_the_shares_and_asks_each_for_its_next_rows():
    manager = mixture()
    segments = [manager.plan(40), manager.plan(40)]
    for k, share in enumerate((0.7, 0.3)):
        asked = np.concatenate([rows[rows // ENDLESS == k] for rows in segments]) - k * ENDLESS
        assert asked.tolist() == list(range(int(80 * share)))
    assert len(set((segments[0] // ENDLESS).tolist()[:10])) == 2, "the sources are mixed, not one after the other"
    assert manager.seen() == {"rows_seen": {"a": 56, "b": 24}}


def test_a_mixture_of_streams_goes_on_from_its_state():
    unbroken = mixture()
    unbroken.plan(30)
    later = mixture()
    later.load_state_dict(unbroken.state_dict())
    assert later.plan(30).tolist() == unbroken.plan(30).tolist()


def test_streams_have_no_sizes():
    with pytest.raises(ConfigError, match="streams have none"):
        _ = mixture().amounts


def test_places_are_those_of_the_batches_that_were_taken():
    mixed = MixedSources({"a": shuffled(), "b": Stream(tokenised(source(5, start=100)))})
    places = StreamPlaces(mixed)
    collate = places.placing(lambda rows: {"input_ids": [row["input_ids"] for row in rows]})
    plan = [0, ENDLESS, 1, 2, ENDLESS + 1, ENDLESS + 2, 3, 4]
    ahead = [collate(mixed.__getitems__(plan[start : start + 2])) for start in range(0, 8, 2)]
    taken = places.follow(iter(ahead))
    assert [sorted(next(taken)) for _ in range(2)] == [["input_ids"]] * 2
    assert {name: place["rows"] for name, place in places.state_dict().items()} == {"a": 1, "b": 0}
    again = MixedSources({"a": shuffled(), "b": Stream(tokenised(source(5, start=100)))})
    later = StreamPlaces(again)
    later.load_state_dict(places.state_dict())
    rest = again.__getitems__(plan[4:])
    assert [row["input_ids"] for row in rest] == [ids for batch in ahead[2:] for ids in batch["input_ids"]]
    assert identity_of_rows("", again) == [["a", None, "a stream in blocks of 10"], ["b", None, "a stream"]]
