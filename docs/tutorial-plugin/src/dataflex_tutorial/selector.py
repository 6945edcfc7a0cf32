"""A selector: the first rows of the dataset, in their order."""

from dataflex.core.registry import register_selector
from dataflex.train.selector.base_selector import Selector, logger


@register_selector("custom_first")
class FirstSelector(Selector):
    """Always trains on the first rows."""

    def __init__(self, dataset, accelerator, data_collator, cache_dir):
        super().__init__(dataset, accelerator, data_collator, cache_dir)

    def select(self, model, step_id: int, num_samples: int, **kwargs):
        """Returns row numbers of the train dataset, in the order of training."""
        logger.info("custom_first: the first %d of %d rows", num_samples, len(self.dataset))
        return list(range(num_samples))
