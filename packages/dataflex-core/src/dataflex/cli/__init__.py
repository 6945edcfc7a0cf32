"""The command ``dataflex-cli``. Each command is a module with ``SUMMARY``, ``USAGE`` and ``run(argv) -> exit code``."""
