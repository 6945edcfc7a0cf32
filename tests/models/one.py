"""One class of the sweep, in a process of its own."""

from __future__ import annotations

import contextlib
import copy
import os
import traceback
import warnings
from typing import Any

import torch
from dataflex.core.errors import DataflexError

from tests.models import cells
from tests.models.build import Collator, tiny
from tests.models.classes import Tried


def try_class(model_type: str, class_name: str, group: str, what: list[str], trace: bool, send: Any) -> None:
    """Sends ``("built", reason)`` where it could not be built, else the outcome of each cell."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if not trace:
        _silent()
    with contextlib.closing(send):
        collate = Collator(model_type)
        try:
            model = tiny(Tried(model_type, class_name, group))
            cells.plain_losses(model, collate)
        except Exception as error:  # noqa: BLE001 - whatever transformers raises is the outcome
            if trace:
                traceback.print_exc()
            send.send(("built", _one_line(error)))
            return
        for place in what:
            send.send((place, _outcome(place, model, collate, trace)))


def _outcome(place: str, model: Any, collate: Collator, trace: bool) -> dict[str, Any]:
    try:
        found = cells.CELLS[place](copy.deepcopy(model), collate)
    except DataflexError as error:
        return {"outcome": "refused", "detail": str(error)}
    except cells.UpstreamError as error:
        return {"outcome": "upstream", "detail": " ".join(str(error).split())[:300]}
    except cells.WrongError as error:
        return {"outcome": "defect", "detail": str(error)}
    except Exception as error:  # noqa: BLE001 - a traceback is an outcome
        if trace:
            traceback.print_exc()
        return {"outcome": "defect", "detail": _one_line(error)}
    return {"outcome": "exact", "detail": found if isinstance(found, str) else "", "apart": found}


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def _silent() -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
