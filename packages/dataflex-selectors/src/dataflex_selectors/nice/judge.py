"""The reward of an answer: a mark from a chat model.

Rank 0 asks several questions at a time and broadcasts the marks, so every rank has the same rewards and each question
is paid for once. Equal questions are asked once.
"""

from __future__ import annotations

import math
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import numpy as np
from accelerate.utils import broadcast_object_list
from dataflex.core import stopping
from dataflex.core.errors import ComponentError, StoppedError
from dataflex.utils.logging import logger
from dataflex.utils.progress import Progress
from numpy.typing import NDArray

from dataflex_selectors.nice.chat import ChatEndpoint, NoAnswerError
from dataflex_selectors.nice.rewards import Answer

if TYPE_CHECKING:
    from accelerate import Accelerator

BEST_MARK = 10
INSTRUCTION = (
    "You are a strict examiner. You are shown a question and an answer to it. Give the answer a mark from 0 (useless "
    f"or wrong) to {BEST_MARK} (correct, complete and clear). Reply with that one number and nothing else."
)
_LOOKS_EVERY = 0.2  # seconds; for a wish to stop
_LOST_BEFORE_GIVING_UP = 16  # questions, none of them answered: the endpoint is down, and waiting would take hours


class Judge:
    """The mark that a chat model gives an answer, from 0 to 1.

    A question without an answer, after all attempts, has no reward; how many there are is logged.

    Args:
        endpoint: The model.
        accelerator: The run's accelerator; None means a single process.
        instruction: What the model is told to do; None for :data:`INSTRUCTION`. It must ask for a number from 0 to 10.
        shows_reference: Whether the model sees the reference answer as well.
        concurrency: Questions that are asked at a time.
    """

    def __init__(
        self,
        endpoint: ChatEndpoint,
        accelerator: Accelerator | None,
        *,
        instruction: str | None = None,
        shows_reference: bool = False,
        concurrency: int = 8,
    ) -> None:
        self._endpoint, self._accelerator = endpoint, accelerator
        self._instruction = INSTRUCTION if instruction is None else instruction
        self._shows_reference, self._concurrency = shows_reference, concurrency

    def __call__(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        """Returns the marks. Collective.

        Raises:
            ComponentError: The endpoint answers nothing, or refuses every request.
            StoppedError: Rank 0 was asked to stop: on every rank.
        """
        if self._accelerator is None or self._accelerator.num_processes == 1:
            return self._marks(answers)
        told: list[NDArray[np.float64] | ComponentError | StoppedError | None] = [None]
        if self._accelerator.is_main_process:
            try:
                told = [self._marks(answers)]
            except (ComponentError, StoppedError) as error:  # broadcast: the other ranks wait for marks
                told = [type(error)(str(error))]
        broadcast_object_list(told)
        if isinstance(told[0], ComponentError | StoppedError):
            raise told[0]
        assert told[0] is not None
        return told[0]

    def _marks(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        questions = [self._question(answer) for answer in answers]
        marks: dict[str, float] = {}
        lost: Counter[str] = Counter()
        over = threading.Event()
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="nice-judge")
        progress = Progress("nice: asking the judge", len(set(questions)), "questions")
        try:
            asked = {pool.submit(self._ask, question, over): question for question in dict.fromkeys(questions)}
            with progress:
                for done in _completed(asked):
                    try:
                        marks[asked[done]] = done.result()
                    except NoAnswerError as error:
                        lost[str(error)] += 1
                    if not marks and (lost.total() >= min(_LOST_BEFORE_GIVING_UP, len(asked))):
                        raise ComponentError(
                            f"the judge answered none of {lost.total()} questions: {_listed(lost)} -> check endpoint "
                            "and endpoint_model, or raise timeout or attempts"
                        )
                    progress.done()
        finally:
            over.set()  # those under way would take as long as their attempts and pauses
            pool.shutdown(wait=True, cancel_futures=True)
        if lost:
            logger.warning("%d of %d answers have no reward: %s", lost.total(), len(asked), _listed(lost))
        return np.array([marks.get(question, math.nan) for question in questions])

    def _ask(self, question: str, over: threading.Event) -> float:
        return self._endpoint.ask(self._instruction, question, read_mark, over) / BEST_MARK

    def _question(self, answer: Answer) -> str:
        parts = {"Question": answer.prompt}
        if self._shows_reference:
            parts["Reference answer"] = answer.reference
        parts["Answer to mark"] = answer.text
        return "\n\n".join(f"{title}:\n{text}" for title, text in parts.items())


def read_mark(text: str) -> float | None:
    """Returns the one number from 0 to 10 in a judge's answer, None where there is none, or more than one.

    ``8``, ``8/10``, ``Mark: 7.5`` and ``**9**`` are read; ``8 or 9`` is not.
    """
    # Each pattern looks at each character a fixed number of times: an answer may be as long as a server likes.
    found = re.findall(r"-?[0-9]+(?:\.[0-9]+)?", re.sub(rf"/\s*{BEST_MARK}\b", "", text))
    mark = float(found[0]) if len(found) == 1 else math.nan
    return mark if 0 <= mark <= BEST_MARK else None


def _completed(asked: Iterable[Future[float]]) -> Iterator[Future[float]]:
    """Yields what is answered, as it is.

    Raises:
        StoppedError: The run was asked to stop.
    """
    left = set(asked)
    while left:
        done, left = wait(left, _LOOKS_EVERY, FIRST_COMPLETED)
        if stopping.asked():
            raise StoppedError("stopped by SIGTERM while a judge was asked -> the same command goes on")
        yield from done


def _listed(lost: Counter[str]) -> str:
    return ", ".join(f"{count} x {why}" for why, count in lost.most_common())
