"""The tables of the real-model benchmark, as Markdown."""
from typing import Any, Sequence
def report(results: Sequence[dict[str, Any]]) -> str:
    return "\n".join(str({k:v for k,v in r.items() if k not in ('setting','machine','losses')}) for r in results)
