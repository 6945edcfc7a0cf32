"""``python -m dataflex`` is ``dataflex-cli``."""

from dataflex.cli.main import main

if __name__ == "__main__":
    main()
