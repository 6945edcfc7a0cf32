"""Sets of packages: those that would fail somewhere inside an import are refused, those nobody has tried are named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

from dataflex.config.known_keys import enabled
from dataflex.core.errors import IncompatiblePackagesError
from dataflex.utils.logging import logger

TESTED: Mapping[str, tuple[str, str]] = {
    "0.9.4": ("4.51.0", "4.57.1"),
    "0.9.5": ("4.55.0", "5.6.0"),
}
"""llamafactory -> the lowest and the highest transformers that it admits; the tests are run on both ends."""


def require_working_packages() -> None:
    """Checks what is known to break LLaMA-Factory's import, and warns of versions that nobody has tried.

    Raises:
        IncompatiblePackagesError: torchaudio is missing, or was built for another torch; the message holds the command.
    """
    if not enabled("DISABLE_VERSION_CHECK"):
        for warning in untested_versions():
            logger.warning(warning)
    torch, torchaudio = _release("torch"), _release("torchaudio")
    if torch is None or torch == torchaudio:
        return
    found = "is not installed" if torchaudio is None else f"is {torchaudio}"
    raise IncompatiblePackagesError(
        f"torch is {torch} but torchaudio {found}; LLaMA-Factory imports torchaudio, which works only with the torch "
        "of its own "
        'release -> pip install "torch==2.11.*" "torchaudio==2.11.*"'
    )


def untested_versions() -> Iterator[str]:
    """Yields a sentence for each package whose installed version dataflex has not been tested with.

    Such a version may well work, so the run goes on. What LLaMA-Factory itself does not admit, it refuses itself.
    ``DISABLE_VERSION_CHECK=1`` silences both.
    """
    llamafactory, transformers = _installed("llamafactory"), _installed("transformers")
    known = [Version(key) for key in TESTED]
    if llamafactory is not None and llamafactory not in known:
        yield _sentence("llamafactory", llamafactory, min(known), max(known))
    ranges = [TESTED[key] for key in TESTED if Version(key) == llamafactory] or list(TESTED.values())
    lowest, highest = min(Version(low) for low, _ in ranges), max(Version(high) for _, high in ranges)
    if transformers is not None and not lowest <= transformers <= highest:
        beside = f" with llamafactory {llamafactory}" if len(ranges) == 1 else ""
        yield _sentence("transformers", transformers, lowest, highest, beside)


def _sentence(package: str, found: Version, lowest: Version, highest: Version, beside: str = "") -> str:
    return (
        f"{package} {found} is not known to work: dataflex is tested with {lowest} to {highest}{beside}; going on "
        "(DISABLE_VERSION_CHECK=1 silences this)"
    )


def _installed(package: str) -> Version | None:
    """Returns the version without a local part such as ``+cu128``."""
    try:
        return Version(Version(version(package)).public)
    except PackageNotFoundError:
        return None


def _release(package: str) -> str | None:
    try:
        return ".".join(version(package).split("+")[0].split(".")[:2])
    except PackageNotFoundError:
        return None
