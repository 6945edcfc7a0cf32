"""The command ``dataflex-cli``. Each command is a module with ``SUMMARY``, ``USAGE`` and ``run(argv) -> exit code``."""

import sys

from dataflex.discovery.other_distribution import other_distribution


def main() -> None:
    """Runs the command line, called by the ``dataflex-cli`` of the distribution ``dataflex`` where that came last.

    Its script imports this name. What core imports may be overwritten then, so the check comes before every import.
    """
    if (beside := other_distribution()) is not None:
        sys.stderr.write(f"error: {beside}\n")
        sys.exit(2)
    from dataflex.cli.main import main as command_line

    command_line()
