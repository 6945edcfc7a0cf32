"""How many tokens the images of a row become, from their sizes and what the model's processor says of patches.

Processors of the Qwen-VL family cut an image of w by h points, scaled into a range of points, into patches, of which
merge x merge are one token: w h / (patch merge)^2. Others put a number of their own for each image
(``image_seq_length``). Where neither is said, images are not counted, and the page says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflex.config.checks.dataset_entry import Entry
from dataflex.discovery.installed import has_package

_FILES = ("processor_config.json", "preprocessor_config.json")
_MOST, _LEAST = 768 * 768, 32 * 32
"""LLaMA-Factory's ``image_max_pixels`` and ``image_min_pixels`` where none are given."""


class ImageTokens:
    """Counts the tokens of images.

    Args:
        keys: LLaMA-Factory's: the model, ``media_dir`` or ``dataset_dir``, and the range of points.

    Attributes:
        known: Whether the model's processor says how many tokens an image has.
    """

    def __init__(self, keys: Mapping[str, Any]) -> None:
        said = _processor(Path(str(keys.get("model_name_or_path"))))
        patch, merge = said.get("patch_size"), said.get("merge_size")
        self._points = (patch * merge) ** 2 if isinstance(patch, int) and isinstance(merge, int) else 0
        each = said.get("image_seq_length")
        self._each = each if isinstance(each, int) else 0
        self.known = bool(self._points or self._each)
        size = said.get("size")
        size = size if isinstance(size, Mapping) else {}
        self._most = min(int(keys.get("image_max_pixels") or _MOST), int(size.get("longest_edge") or 2**62))
        self._least = max(int(keys.get("image_min_pixels") or _LEAST), int(size.get("shortest_edge") or 0))
        self._folder = Path(str(keys.get("media_dir") or keys.get("dataset_dir") or "data"))

    def of(self, row: Mapping[str, Any], entry: Entry) -> int:
        """Returns the tokens of a row's images.

        Args:
            row: A row of the data file.
            entry: The definition of the dataset.
        """
        column = entry.columns.get("images")
        images = row.get(column) if column else None
        images = images if isinstance(images, list | tuple) else [images] if images else []
        if not self._points:
            return self._each * len(images)
        return sum(max(1, round(self._pixels(image) / self._points)) for image in images)

    def _pixels(self, image: Any) -> float:
        """Returns the points of an image as the model sees it; the most where its file cannot be looked at."""
        path = image.get("path") if isinstance(image, Mapping) else image
        if not isinstance(path, str) or not has_package("PIL"):
            return float(self._most)
        from PIL import Image, UnidentifiedImageError  # here, because dataflex-core does not depend on it

        try:
            with Image.open(self._folder / path) as found:
                width, height = found.size
        except (OSError, UnidentifiedImageError):
            return float(self._most)
        return float(min(max(width * height, self._least), self._most))


def _processor(folder: Path) -> Mapping[str, Any]:
    """Returns what the files of a processor say of images; nothing where there are none on this machine."""
    found: dict[str, Any] = {}
    for name in _FILES:
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, Mapping):
            inner = content.get("image_processor")
            found = {**content, **(inner if isinstance(inner, Mapping) else {}), **found}
    return found
