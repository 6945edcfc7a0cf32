"""A hook: one log line after each update. docs/plugins.md lists the other hooks."""

from dataflex import hookimpl
from dataflex.utils.logging import logger


@hookimpl
def dataflex_after_update(kind, component, context, decision):
    """Called on every rank once the component has answered."""
    logger.info("tutorial: %s has made update %d of %d", kind, context.update + 1, context.updates)
