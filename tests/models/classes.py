"""The classes that the sweep tries: every causal one of the installed transformers, and those of vision and text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


@dataclass(frozen=True)
class Tried:
    """A class and the type of model whose configuration it is built from.

    Attributes:
        model_type: As in ``config.json``.
        class_name: The class in transformers.
        group: ``text``, or ``vision`` for a class that takes images too.
    """

    model_type: str
    class_name: str
    group: str

    @property
    def config_class(self) -> type:
        """The class of its configuration; where the class is the text part of a larger model, of that part."""
        found: type = CONFIG_MAPPING[self.model_type]
        own, parts = self.model_class.config_class, found.sub_configs  # type: ignore[attr-defined]
        return own if own is not found and own in parts.values() else found

    @property
    def model_class(self) -> Any:
        """The class itself."""
        return getattr(transformers, self.class_name)


def every_class() -> list[Tried]:
    """Returns all of them by model type, text first; a class that is in both tables once."""
    text = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    vision = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    found = {}
    for group, names in (("text", text), ("vision", vision)):
        for model_type, name in sorted(names.items()):
            for one in (name,) if isinstance(name, str) else name:
                found.setdefault((model_type, one), Tried(model_type, one, group))
    return list(found.values())
