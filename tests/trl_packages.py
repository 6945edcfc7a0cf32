"""Which packages TRL 0.24 takes for installed beside transformers 5."""

from __future__ import annotations

import sys


def mend_trl() -> None:
    """Has TRL take packages that are absent for absent, where it has been imported.

    transformers 5 tells TRL 0.24 of a package by a pair, which is true whatever it holds; TRL then imports `mergekit`
    for its trainers of preferences, and fails. LLaMA-Factory mends what transformers tells, for a TRL that is imported
    after it: without this, whether a test can import these trainers would depend on the tests before it.
    """
    told = sys.modules.get("trl.import_utils")
    for name, value in list(vars(told).items()) if told is not None else ():
        if name.endswith("_available") and isinstance(value, tuple):
            setattr(told, name, bool(value[0]))
