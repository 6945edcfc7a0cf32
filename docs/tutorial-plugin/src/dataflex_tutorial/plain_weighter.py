"""A weighter that inherits nothing: two methods are enough. Prefer the base class unless the code exists already."""

from dataflex.core.registry import register_weighter


@register_weighter("plain_weighter")
class PlainWeighter:
    """The plain mean, without a base class."""

    def get_weighted_loss(self, losses, *, ctx=None, model=None, inputs=None):
        """Returns one number; its derivative by ``losses``, (B,), weighs the samples of the micro-batch."""
        return losses.mean()

    def training_step(self, ctx, model, inputs, num_items_in_batch=None, use_weighter=False):
        """Runs forward and backward for one micro-batch; ``ctx`` is the trainer, ``use_weighter`` False in warm-up."""
        if not use_weighter:
            return ctx.plain_training_step(model, inputs, num_items_in_batch)
        with ctx.weighted_by(self):
            return ctx.plain_training_step(model, inputs, num_items_in_batch)
