"""What every component has: a name, a seed, a generator per update, and state that goes into checkpoints."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np


def seeded(*key: object) -> int:
    """Returns a 63-bit seed that depends on every part of ``key`` and on nothing else, on any machine."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Component:
    """Base of selectors, mixers and weighters.

    Attributes:
        name: The name it was found under; set by :meth:`bind`.
        seed: The run's seed; set by :meth:`bind`.
        cache_owner: Says which files in a shared ``cache_dir`` are its own: the run's folder and the name; set by
            :meth:`bind`.
    """

    name: str = "component"
    seed: int = 0
    cache_owner: str = ""

    def bind(self, name: str, seed: int, output_dir: str = "") -> None:
        """Tells the component its name, and the run's seed and folder. Called once by the trainer, after construction.

        Args:
            name: The preset that it was asked for by.
            seed: The run's seed.
            output_dir: The run's folder; blank outside of a run.
        """
        self.name, self.seed = name, seed
        self.cache_owner = os.path.join(os.path.abspath(output_dir), name) if output_dir else ""

    def generator(self, update: object) -> np.random.Generator:
        """Returns a generator that is a function of (run seed, component, update), the same on every rank.

        A component draws from this and never from the global generators, so that runs repeat and resume exactly.
        """
        return np.random.Generator(np.random.Philox(key=seeded(self.seed, type(self).__name__, self.name, update)))

    def state_dict(self) -> dict[str, Any]:
        """Returns what the component needs to continue: numbers, strings, lists, dicts, arrays and tensors.

        Saved in every checkpoint. Called on rank 0.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned. Called on every rank before the first batch of a resumed run."""
