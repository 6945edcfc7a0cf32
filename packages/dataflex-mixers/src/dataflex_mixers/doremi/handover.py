"""``doremi_weights.json``: what the proxy gives to the final model.

The command line imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dataflex.core.errors import ConfigError
from dataflex.core.files import replacing

FILE = "doremi_weights.json"


def write_weights(
    folder: Path,
    mean: Mapping[str, float],
    last: Mapping[str, float],
    steps: int,
    unit: str,
    reference: str | None,
    file: str = FILE,
) -> None:
    """Writes the averaged weights, and for information the last ones; the file is there whole or not at all.

    Args:
        folder: The proxy's ``output_dir``.
        mean: Source -> weight, the mean over the steps.
        last: Source -> weight after the last step.
        steps: How many there were.
        unit: What the proxy drew shares of: rows or tokens.
        reference: The run that made the reference model; None where that is not known, or there is none.
        file: What the file is called.
    """
    content = {"proportions": dict(mean), "unit": unit, "steps": steps, "last": dict(last), "reference": reference}
    with replacing(folder / file) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_weights(folder: Path, names: Sequence[str]) -> list[float]:
    """Returns the averaged weights in the order of ``names``.

    Raises:
        ConfigError: There are none, or they are of other sources.
    """
    path = folder / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["proportions"]
        return [float(found[name]) for name in names]
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist -> train the proxy first") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error} -> train the proxy again") from error
    except KeyError as error:
        raise ConfigError(f"{path} has no weight for {error} -> train the proxy on the same datasets") from error


def reference_of(folder: Path) -> str | None:
    """Returns the run of the reference model that the weights in a proxy's folder come from; None where not known."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))["reference"]
    except (OSError, ValueError, TypeError, LookupError, RecursionError):  # whoever reads the weights says so
        return None
    return found if isinstance(found, str) else None
