"""The first page of the reference."""

from __future__ import annotations

TEXT = """# Reference

These pages are written from the code when the site is built. The [guides](../configuration.md) say how to use what they
list.

* [Keys](keys.md): what dataflex adds to a LLaMA-Factory YAML
* [Commands](commands.md): `dataflex-cli`, with usage and flags
* [Components](components.md): every selector, mixer, order and weighter, with parameters and what an update costs
* [Hooks](hooks.md): where a plugin may look in on a run
* [Errors and exit codes](errors.md)
* [Files of a run](files.md)
* [Environment variables](environment.md)
* Python API: [training](api/training.md), [interfaces](api/interfaces.md), [what a component is given](api/context.md),
  [the registry](api/registry.md), [checks of parameters](api/checks.md), [scoring](api/scoring.md),
  [cost and explanations](api/cost.md), [testing](api/testing.md)
"""


def page() -> str:
    """Returns the page."""
    return TEXT
