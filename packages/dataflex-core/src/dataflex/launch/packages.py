"""Refuses package versions that fail at import; warns about broken and untested ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from packaging.version import Version

from dataflex.config.known_keys import enabled
from dataflex.core.errors import IncompatiblePackagesError
from dataflex.core.installed import has_package, version_of
from dataflex.utils.logging import logger

WITH_LLAMAFACTORY = 'pip install "dataflex-core[llamafactory]"'

TESTED: Mapping[str, tuple[str, str]] = {
    "0.9.4": ("4.51.0", "4.57.1"),
    "0.9.5": ("4.55.0", "5.5.4"),
}
"""llamafactory -> the lowest and the highest transformers that it admits and that work; the tests are run on both."""

BROKEN: Mapping[tuple[str, str], tuple[str, str]] = {
    ("transformers", "4.52.0"): ("its makers withdrew it from the index", "4.52.4"),
    ("transformers", "4.57.0"): ("its makers withdrew it from the index: its metadata are wrong", "4.57.1"),
    ("transformers", "5.6.0"): (
        "FlashAttention ends in AttributeError: 'NoneType' object has no attribute 'to' (LLaMA-Factory's issue 10610)",
        "5.5.4",
    ),
}
"""(package, release) -> what is wrong with it, and a release near it that works."""


def require_llamafactory(command: str) -> None:
    """Refuses a command that works through LLaMA-Factory where Python finds none. Imports nothing.

    Args:
        command: What was to run, for the message.

    Raises:
        IncompatiblePackagesError: There is none; the message holds both ways on.
    """
    if not has_package("llamafactory"):
        raise IncompatiblePackagesError(
            f"dataflex-cli {command} works through LLaMA-Factory, which is not installed -> {WITH_LLAMAFACTORY}, or "
            "train from Python: from dataflex import dynamic (docs/plain-transformers.md)"
        )


def require_working_packages() -> None:
    """Checks what is known to break LLaMA-Factory's import, and warns of broken and of untried versions.

    Call :func:`require_llamafactory` first: a torchaudio that is missing says nothing where there is no LLaMA-Factory.

    Raises:
        IncompatiblePackagesError: torchaudio is missing, or was built for another torch; the message holds the command.
    """
    if not enabled("DISABLE_VERSION_CHECK"):
        for warning in (*broken_versions(), *untested_versions()):
            logger.warning(warning)
    torch, torchaudio = _release("torch"), _release("torchaudio")
    if torch is None or torch == torchaudio:
        return
    found = "is not installed" if torchaudio is None else f"is {torchaudio}"
    raise IncompatiblePackagesError(
        f"torch is {torch} but torchaudio {found}; LLaMA-Factory imports torchaudio, which works only with the torch "
        'of its own release -> pip install "torch==2.11.*" "torchaudio==2.11.*"'
    )


def broken_versions() -> Iterator[str]:
    """Yields a sentence for each installed release that :data:`BROKEN` names."""
    for (package, release), (reason, instead) in BROKEN.items():
        if _installed(package) == Version(release):
            yield (
                f'{package} {release} is a broken release: {reason} -> pip install "{package}=={instead}"; going on '
                "(DISABLE_VERSION_CHECK=1 silences this)"
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
    if ("transformers", str(transformers)) in BROKEN:
        return  # which has been said
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
    found = version_of(package)
    return None if found is None else Version(Version(found).public)


def _release(package: str) -> str | None:
    found = version_of(package)
    return None if found is None else ".".join(found.split("+")[0].split(".")[:2])
