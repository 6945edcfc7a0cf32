"""Instruction tasks whose right answers are known, in families of different difficulty, some answered wrongly.

A wrong answer is the right answer of another task of the same family: it looks as a right one does, so only a model
that has begun to learn the family can tell them apart. That is what a selector or a weighter should notice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

NOISE = 0.3
"""Share of wrong answers in each family of the training rows."""

_TRIES = 50  # draws per wanted task before a family counts as exhausted; the smallest needs about 3
_OPPOSITES = (
    """
hot cold|big small|up down|left right|day night|open closed|fast slow|old new|early late|hard soft|light dark|rich poor
full empty|strong weak|near far|high low|long short|wide narrow|deep shallow|clean dirty|dry wet|happy sad|loud quiet
first last|front back|inside outside|above below|before after|begin end|buy sell|give take|win lose|push pull|true false
thick thin|sharp blunt|safe dangerous|simple complex|smooth rough|public private|sweet bitter|brave afraid|love hate
""".replace("\n", "|")
    .strip("|")
    .split("|")
)


@dataclass(frozen=True)
class Task:
    """One row of the instruction set, in LLaMA-Factory's alpaca format plus what is known about it."""

    instruction: str
    input: str
    output: str
    family: str = ""
    noisy: bool = False

    def to_row(self) -> dict[str, Any]:
        """Returns the row as it is written."""
        return asdict(self)


@dataclass(frozen=True)
class Material:
    """What tasks are made from.

    Attributes:
        words: Common lower-case words.
        summaries: Qualified name of a function or class -> what it does.
    """

    words: Sequence[str]
    summaries: Mapping[str, str]


def _sum(rng: random.Random, _: Material) -> Task:
    left, right = rng.randrange(100), rng.randrange(100)
    return Task("Add the two numbers.", f"{left} and {right}", str(left + right))


def _difference(rng: random.Random, _: Material) -> Task:
    left, right = rng.randrange(100), rng.randrange(100)
    return Task("Subtract the smaller number from the larger.", f"{left} and {right}", str(abs(left - right)))


def _largest(rng: random.Random, _: Material) -> Task:
    numbers = rng.sample(range(1000), 4)
    return Task("Name the largest number.", ", ".join(map(str, numbers)), str(max(numbers)))


def _sort(rng: random.Random, _: Material) -> Task:
    numbers = rng.sample(range(100), 5)
    return Task("Sort the numbers.", ", ".join(map(str, numbers)), ", ".join(map(str, sorted(numbers))))


def _copy(rng: random.Random, material: Material) -> Task:
    text = " ".join(rng.sample(material.words, 4))
    return Task("Repeat the words.", text, text)


def _reverse(rng: random.Random, material: Material) -> Task:
    word = rng.choice(material.words)
    return Task("Write the word backwards.", word, word[::-1])


def _uppercase(rng: random.Random, material: Material) -> Task:
    text = " ".join(rng.sample(material.words, 2))
    return Task("Write the words in capital letters.", text, text.upper())


def _count(rng: random.Random, material: Material) -> Task:
    word = rng.choice(material.words)
    letter = rng.choice(word)
    return Task(f"How often does the letter {letter} occur in the word?", word, str(word.count(letter)))


def _opposite(rng: random.Random, _: Material) -> Task:
    one, other = rng.sample(rng.choice(_OPPOSITES).split(), 2)
    asked = rng.choice(("Give the opposite of the word.", "Which word means the contrary?"))
    return Task(asked, one, other)


def _library(rng: random.Random, material: Material) -> Task:
    name = rng.choice(list(material.summaries))
    return Task(f"What does {name} do?", "", material.summaries[name])


FAMILIES: Mapping[str, Callable[[random.Random, Material], Task]] = {
    "sum": _sum,
    "difference": _difference,
    "largest": _largest,
    "sort": _sort,
    "copy": _copy,
    "reverse": _reverse,
    "uppercase": _uppercase,
    "count": _count,
    "opposite": _opposite,
    "library": _library,
}


def make_tasks(material: Material, train: int, held_out: int, seed: int) -> tuple[list[Task], list[Task]]:
    """Returns (training tasks, held-out tasks), shuffled; no task is in both and every held-out answer is right.

    Args:
        material: What the tasks are made from.
        train: Training tasks per family; ``NOISE`` of them, rounded, are answered wrongly and say so.
        held_out: Held-out tasks per family.
        seed: The same seed and material give the same tasks.
    """
    rows: list[Task] = []
    clean: list[Task] = []
    for family in FAMILIES:
        rng = random.Random(f"{seed}/{family}")
        tasks = _draw(rng, family, material, train + held_out)
        clean += tasks[:held_out]
        rows += _corrupt(rng, tasks[held_out:])
    rng = random.Random(seed)
    rng.shuffle(rows)
    rng.shuffle(clean)
    return rows, clean


def make_target(material: Material, family: str, count: int, known: Sequence[Task], seed: int) -> list[Task]:
    """Returns ``count`` more tasks of a family, every answer right; fewer where the family runs dry.

    Args:
        material: What the tasks are made from.
        family: A key of :data:`FAMILIES`.
        count: Tasks wanted.
        known: Tasks that must not come again.
        seed: The same seed, material and known tasks give the same tasks.
    """
    taken = {(task.instruction, task.input) for task in known}
    tasks = _draw(random.Random(f"{seed}/{family}/target"), family, material, count + len(taken))
    return [task for task in tasks if (task.instruction, task.input) not in taken][:count]


def _draw(rng: random.Random, family: str, material: Material, count: int) -> list[Task]:
    found: dict[tuple[str, str], Task] = {}
    for _ in range(count * _TRIES):
        if len(found) == count:
            break
        task = FAMILIES[family](rng, material)
        found.setdefault((task.instruction, task.input), replace(task, family=family))
    return list(found.values())


def _corrupt(rng: random.Random, tasks: list[Task]) -> list[Task]:
    tasks = list(tasks)
    answers = [task.output for task in tasks]
    for number in rng.sample(range(len(tasks)), round(NOISE * len(tasks))):
        wrong = [answer for answer in answers if answer != tasks[number].output]
        if wrong:
            tasks[number] = replace(tasks[number], output=rng.choice(wrong), noisy=True)
    return tasks
