"""The workspace of ``dataflex-cli init``: data, a model and one YAML per kind of run, made without any download."""
