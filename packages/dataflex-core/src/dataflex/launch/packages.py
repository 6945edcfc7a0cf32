"""Refusing, in a sentence, sets of packages that would otherwise fail somewhere inside an import."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from dataflex.core.errors import IncompatiblePackagesError


def require_working_packages() -> None:
    """Checks what is known to break LLaMA-Factory's import.

    Raises:
        IncompatiblePackagesError: torchaudio is missing, or was built for another torch; the message holds the command.
    """
    torch, torchaudio = _release("torch"), _release("torchaudio")
    if torch is None or torch == torchaudio:
        return
    found = "is not installed" if torchaudio is None else f"is {torchaudio}"
    raise IncompatiblePackagesError(
        f"torch is {torch} but torchaudio {found}; LLaMA-Factory imports torchaudio, which works only with the torch "
        "of its own "
        'release -> pip install "torch==2.11.*" "torchaudio==2.11.*"'
    )


def _release(package: str) -> str | None:
    try:
        return ".".join(version(package).split("+")[0].split(".")[:2])
    except PackageNotFoundError:
        return None
