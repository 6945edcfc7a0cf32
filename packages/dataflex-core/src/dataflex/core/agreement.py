"""Checks that all ranks made the same decision, and gives all of them what rank 0 found."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list, gather_object

from dataflex.core.errors import ComponentError, DataflexError

if TYPE_CHECKING:
    from accelerate import Accelerator


def require_agreement(digest: str, accelerator: Accelerator, who: str) -> None:
    """Compares a decision hash over all ranks. Collective: every rank calls it.

    Args:
        digest: This rank's :func:`~dataflex.planning.answers.decision_hash`.
        accelerator: The run's accelerator.
        who: The component, the update and the step, for the message.

    Raises:
        ComponentError: On every rank, naming the ranks that differ from rank 0.
    """
    if accelerator.num_processes == 1:
        return
    halves = [int(digest[:8], 16), int(digest[8:], 16)]  # two int64, as devices without 64-bit unsigned integers gather
    mine = torch.tensor([halves], dtype=torch.int64, device=accelerator.device)
    everyone = accelerator.gather(mine)
    differing = (everyone != everyone[0]).any(dim=1).nonzero().flatten().tolist()
    if differing:
        raise ComponentError(
            f"{who} decided differently on rank {', '.join(map(str, differing))} than on rank 0 -> draw random "
            "numbers from self.generator(update) and reduce over all ranks what was computed from one rank's rows"
        )


def on_every_rank(accelerator: Accelerator | None, act: Callable[[], None]) -> None:
    """Has every rank do something that may be refused on some of them: then all are refused. Collective.

    ``act`` itself is not collective, or only after ``on_every_rank`` over what may be refused before: a rank that has
    raised does not come along. None stands for a single process.

    Raises:
        DataflexError: On a rank that raised it, as it was raised; on the others, with its message and the rank. What
            ``act`` may raise besides must be turned into one (:func:`~dataflex.core.errors.blaming`).
    """
    if accelerator is None or accelerator.num_processes == 1:
        act()
        return
    own: DataflexError | None = None
    try:
        act()
    except DataflexError as error:
        own = error
    told: list[str | None] = gather_object([None if own is None else f"{own}"])
    if own is not None:
        raise own
    failed = [rank for rank, message in enumerate(told) if message is not None]
    if failed:
        raise DataflexError(f"rank {failed[0]} raised: {told[failed[0]]}")


def from_rank_0(accelerator: Accelerator, asked: Callable[[], Any]) -> Any:
    """Returns on every rank what ``asked`` returns on rank 0, the only one to call it. Collective.

    Raises:
        DataflexError: On every rank, as rank 0 raised it. Likewise ``OSError``. Any other error leaves rank 0 as it is,
            and the others with a word of it, so that none waits.
    """
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            found = [asked(), None]
        except (DataflexError, OSError) as error:
            found = [None, error]
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if accelerator.num_processes > 1:
                broadcast_object_list([None, DataflexError(f"rank 0 raised {type(error).__name__}: {error}")])
            raise
    if accelerator.num_processes > 1:
        broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]
