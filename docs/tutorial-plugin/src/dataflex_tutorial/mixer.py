"""A mixer: random proportions at each update."""

import numpy as np
from dataflex.core.registry import register_mixer
from dataflex.train.mixer.base_mixer import Mixer


@register_mixer("custom_random")
class RandomMixer(Mixer):
    """Draws new proportions at each update; ``seed`` is the run's, unless components.yaml sets another."""

    def __init__(self, mixture_manager, seed):
        super().__init__(mixture_manager)
        self.base_seed = seed

    def mix(self, model, step_id, **kwargs) -> np.ndarray:
        """Returns one share per source, with sum 1. Every rank draws the same, from the seed and the step."""
        generator = np.random.default_rng([self.base_seed, step_id])
        return generator.dirichlet(np.ones(len(self.mixture_manager.names)))
