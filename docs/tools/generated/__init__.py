"""The pages of the reference that are written from the code, each by a function without arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from generated import api, commands, components, environment, errors, hooks, keys, overview, run_files

PAGES: Mapping[str, Callable[[], str]] = {
    "reference/index.md": overview.page,
    "reference/keys.md": keys.page,
    "reference/commands.md": commands.page,
    "reference/components.md": components.page,
    "reference/hooks.md": hooks.page,
    "reference/errors.md": errors.page,
    "reference/files.md": run_files.page,
    "reference/environment.md": environment.page,
    **{f"reference/api/{name}.md": make for name, make in api.PAGES.items()},
}
"""Place of a page, relative to docs/ -> what writes it."""
