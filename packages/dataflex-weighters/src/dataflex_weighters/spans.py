"""``spans``: tokens between two markers have a weight of their own. No paper.

    z_t = weight of the span that token t stands in, markers included; ``default`` outside of all

Markers are looked for in the text of each tokenised row, so any template and any trainer will do, and no column is
needed: ``<think>`` may be one token or several. A token counts as inside where one of its characters is. Only what is
trained on is looked at, answer by answer, so a marker that a question names does not matter; one that stands right
before an answer, where a template has put it, begins a span. Spans do not nest; a span that is not closed, as in a row
that was cut, goes to the end of its answer. Of several kinds of spans the one that begins first counts.

Cost: every row is decoded once before training, about a second for 10,000 rows of 500 tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from dataflex.core.cost import Ahead, Cost
from dataflex.core.errors import CheckpointError, Problem, listed
from dataflex.core.parameter_checks import FLOAT32_MOST, is_number, one_of, require
from dataflex.core.parameter_checks import between as within
from dataflex.core.registry import register_weighter
from dataflex.rows.columns import IGNORED, columns_chunks
from dataflex.utils.logging import logger
from dataflex.utils.progress import tracked
from numpy.typing import NDArray

from dataflex_weighters.parts.given_token_weights import DENOMINATORS, GivenTokenWeights
from dataflex_weighters.parts.token_texts import TokenTexts

COLUMNS = ("input_ids", "labels", "position_ids")
KEYS = ("start", "end", "weight")
Span = tuple[str, str, float]
Run = tuple[int, int, float]


def span_runs(text: str, spans: Sequence[Span]) -> list[Run]:
    """Returns the stretches of a text that lie in spans, in order: begin, end and weight of each, markers included.

    Args:
        text: The text.
        spans: Start marker, end marker and weight of each kind.
    """
    found, place = list[Run](), 0
    while True:
        starts = [(text.find(start, place), number) for number, (start, _, _) in enumerate(spans)]
        there = [(at, -len(spans[number][0]), number) for at, number in starts if at >= 0]
        if not there:
            return found
        begin, _, number = min(there)  # where two begin at one place, the longer marker
        start, end, weight = spans[number]
        close = text.find(end, begin + len(start))
        place = len(text) if close < 0 else close + len(end)
        found.append((begin, place, weight))


def token_weights_of(runs: Sequence[Run], ends_T: NDArray[np.int64], default: float) -> NDArray[np.float32]:
    """Returns the weight of each token: (T,).

    Args:
        runs: What :func:`span_runs` returned.
        ends_T: (T,) how many characters of the text there are up to the end of each token.
        default: The weight outside of the stretches.
    """
    weights_T = np.full(len(ends_T), default, dtype=np.float32)
    starts_T = np.concatenate([np.zeros(1, dtype=np.int64), ends_T[:-1]])
    for begin, end, weight in runs:
        weights_T[(ends_T > begin) & (starts_T < end)] = weight
    return weights_T


@register_weighter("spans")
class SpansWeighter(GivenTokenWeights):
    """Weighs what stands between markers apart from the rest, as reasoning apart from the answer.

    Args:
        dataset: The train dataset, tokenised.
        tokenizer: What it was tokenised with.
        between: A list of ``{start: TEXT, end: TEXT, weight: NUMBER}``.
        default: The weight of tokens in none of them.
        denominator: ``weights`` or ``tokens``, see :class:`GivenTokenWeights`.

    Raises:
        ConfigError: A parameter has another value, no row holds one of the start markers, or the text of a row cannot
            be told token by token; the message holds every problem of the parameters.
    """

    def __init__(
        self,
        dataset: Any,
        tokenizer: Any = None,
        *,
        between: Any,
        default: float = 1.0,
        denominator: str = "weights",
    ) -> None:
        super().__init__(dataset, denominator)
        require(
            "spans weighter",
            *_span_problems(between),
            within("default", default, 0, FLOAT32_MOST),
            one_of("denominator", denominator, DENOMINATORS),
            None if tokenizer is not None else _no_tokenizer(),
        )
        self.spans: tuple[Span, ...] = tuple((s["start"], s["end"], float(s["weight"])) for s in between)
        self.default = float(default)
        require("spans weighter", _all_zero(self.spans, self.default))
        self._texts = TokenTexts(tokenizer)
        self._require_markers()

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Rows are decoded on the CPU. See the base class."""
        return Cost()

    def weights_of(self, rows_X: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """Returns the weights of some rows. See the base class."""
        values = (row for chunk in columns_chunks(self.dataset, COLUMNS, rows_X) for row in chunk)
        return [self._of_row(row, *own) for row, own in zip(rows_X.tolist(), values, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Returns a digest of the markers and weights, which a resumed run must share."""
        return {"spans": self._digest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compares them with those of :meth:`state_dict`.

        Raises:
            CheckpointError: They are others.
        """
        if state["spans"] != self._digest():
            raise CheckpointError(
                "between, default: they differ from those of the checkpoint -> write them as they were"
            )

    def _digest(self) -> str:
        return repr((self.spans, self.default))

    def _of_row(
        self, row: int, ids_T: NDArray[Any], labels_T: NDArray[Any], positions_T: NDArray[Any]
    ) -> NDArray[np.float32]:
        ends_T, runs = self._runs(row, ids_T, labels_T, positions_T)[1:]
        return token_weights_of(runs, ends_T, self.default)

    def _runs(
        self, row: int, ids_T: NDArray[Any], labels_T: NDArray[Any], positions_T: NDArray[Any]
    ) -> tuple[str, NDArray[np.int64], list[Run]]:
        """Returns the text of a row, how much of it there is up to each token's end, and its spans."""
        text, ends_T = self._texts.of(ids_T.astype(np.int64), row)
        runs, done = list[Run](), 0
        for first, last in trained_stretches(labels_T, positions_T, len(ids_T)):
            begin, end = int(ends_T[first - 1]) if first else 0, int(ends_T[last - 1])
            begin -= marker_before(text[done:begin], self.spans)
            runs += [(begin + a, begin + b, weight) for a, b, weight in span_runs(text[begin:end], self.spans)]
            done = end
        return text, ends_T, runs

    def _begun(self, row: int, *values: NDArray[Any]) -> tuple[set[str], int, int]:
        """Returns the start markers of the spans of a row, and how many tokens it trains on, in spans and in all."""
        text, ends_T, runs = self._runs(row, *values)
        begun = {start for begin, _, _ in runs for start, _, _ in self.spans if text.startswith(start, begin)}
        ids_T, labels_T = values[:2]
        trained_T = labels_T != IGNORED if len(labels_T) == len(ids_T) else np.ones(len(ids_T), dtype=np.bool_)
        inside_T = token_weights_of([(a, b, 1.0) for a, b, _ in runs], ends_T, 0.0) > 0
        return begun, int((inside_T & trained_T).sum()), int(trained_T.sum())

    def _require_markers(self) -> None:
        """Refuses a run in which no span of a kind is trained on, and a row whose text is not known token by token."""
        chunks = columns_chunks(self.dataset, COLUMNS, range(len(self.dataset)))
        row, begun, weighed, trained = 0, set[str](), 0, 0
        for chunk in tracked(chunks, "looking for markers in the text of rows", len(self.dataset), size=len):
            for own in chunk:
                found, inside, every = self._begun(row, *own)
                begun, weighed, trained = begun | found, weighed + inside, trained + every
                row += 1
        missing = [start for start, _, _ in self.spans if start not in begun]
        if missing:
            what = f"in no row of the train dataset {listed(missing)} begins a span of what is trained on"
            require("spans weighter", Problem("between", what, "write the markers as they stand in the tokenised text"))
        share = 100 * weighed / max(1, trained)
        logger.info("spans: weighs %d of the %d tokens that are trained on apart, %.1f %%", weighed, trained, share)


def trained_stretches(labels_T: NDArray[Any], positions_T: NDArray[Any], tokens: int) -> list[tuple[int, int]]:
    """Returns the stretches of tokens that are trained on, as the first token of each and the one after its last.

    Args:
        labels_T: (T,) labels, or none where the collator makes them: all tokens are trained on.
        positions_T: (T,) the ``position_ids`` of a packed row, or none: where they begin anew, a stretch does.
        tokens: T.
    """
    trained_T = labels_T != IGNORED if len(labels_T) == tokens else np.ones(tokens, dtype=np.bool_)
    apart_T = np.zeros(tokens, dtype=np.bool_)
    apart_T[:1] = True
    apart_T[1:] = trained_T[1:] != trained_T[:-1]
    if len(positions_T) == tokens:
        apart_T |= positions_T == 0
    starts = [*np.flatnonzero(apart_T).tolist(), tokens]
    return [(first, last) for first, last in itertools.pairwise(starts) if trained_T[first]]


def marker_before(text: str, spans: Sequence[Span]) -> int:
    """Returns how far before the end of a text the start marker begins that it ends with, blanks aside; 0 for none."""
    bare = text.rstrip()
    lengths = [len(text) - len(bare) + len(start) for start, _, _ in spans if bare.endswith(start.rstrip())]
    return min(max(lengths, default=0), len(text))


def _span_problems(between: Any) -> list[Problem]:
    if not isinstance(between, list) or not between:
        allowed = "a list such as [{start: <think>, end: </think>, weight: 0.5}]"
        return [Problem("between", f"found {between!r}, allowed: {allowed}")]
    problems = []
    for number, span in enumerate(between):
        key = f"between[{number}]"
        if not isinstance(span, Mapping) or set(span) != set(KEYS):
            problems.append(Problem(key, f"found {span!r}, allowed: a mapping with {listed(KEYS)}"))
            continue
        for end in ("start", "end"):
            if not isinstance(span[end], str) or not span[end]:
                problems.append(Problem(f"{key}.{end}", f"found {span[end]!r}, allowed: a text"))
        weight = span["weight"]
        if not is_number(weight) or not 0 <= weight <= FLOAT32_MOST:
            problems.append(
                Problem(f"{key}.weight", f"found {weight!r}, allowed: a number from 0 to {FLOAT32_MOST:.3g}")
            )
    return problems


def _all_zero(spans: Sequence[Span], default: float) -> Problem | None:
    if default or any(weight for _, _, weight in spans):
        return None
    return Problem(
        "between, default", "every weight is 0, so nothing would be learnt", "give some tokens a weight above 0"
    )


def _no_tokenizer() -> Problem:
    return Problem(
        "tokenizer", "the trainer has none, so the text of rows is not known", "give it one: processing_class=tokenizer"
    )
