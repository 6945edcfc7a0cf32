"""Turns the roles of docstrings (``:class:`~a.b.C```) into links of the site, where it shows what they name."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|meth|func|attr|data|mod|exc):`(~?)([\w.]+)`")


class DocstringRoles(griffe.Extension):
    """Rewrites each docstring once its object has been read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Replaces roles; a name that the site does not show becomes code without a link."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(lambda role: _link(role, obj), obj.docstring.value)


def _link(role: re.Match[str], obj: griffe.Object) -> str:
    short, name = role[1], role[2]
    shown = name.rpartition(".")[2] if short else name
    return f'<autoref optional identifier="{_path(name, obj)}"><code>{shown}</code></autoref>'


def _path(name: str, obj: griffe.Object) -> str:
    """Returns the whole path of a name as the docstring of an object means it: ``select``, ``Selector.select``."""
    if name.startswith("dataflex"):
        return name
    first, _, rest = name.partition(".")
    scope = obj if obj.is_class else obj.parent
    while scope is not None:
        if first in scope.members:
            return ".".join(filter(None, (scope.path, first, rest)))
        scope = scope.parent
    return name
