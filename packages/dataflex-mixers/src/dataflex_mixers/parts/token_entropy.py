"""How unsure a model is of the next token: the entropy of its distribution, as a share of the largest.

Letters: B rows, T tokens, V vocabulary, M positions.
"""

from __future__ import annotations

import math

import torch

PART_NUMBERS = 2**24
"""Numbers of the logits that are in float32 at a time, 64 MB."""


@torch.no_grad()
def token_entropies(logits_BTV: torch.Tensor, there_BT: torch.Tensor) -> torch.Tensor:
    """Returns the entropy at each position over ln V: (B, T) float32 in [0, 1]; 0 where none is wanted.

    Args:
        logits_BTV: Logits of any float type.
        there_BT: (B, T) bool, the positions that predict a label.
    """
    B, T, V = logits_BTV.shape
    wanted_M = there_BT.flatten()
    logits_MV, found_M = logits_BTV.reshape(B * T, V), torch.zeros(B * T, device=logits_BTV.device)
    step = max(1, PART_NUMBERS // V)
    for first in range(0, B * T, step):  # a part of all positions, as their number where there is a label is not known
        logp_MV = logits_MV[first : first + step].float().log_softmax(dim=-1)
        probability_MV = logp_MV.exp()
        # A logit of -inf, a token that is ruled out, has probability 0 and adds nothing.
        found_M[first : first + step] = -(probability_MV * logp_MV.masked_fill(probability_MV == 0, 0.0)).sum(dim=-1)
    return torch.where(wanted_M, found_M / math.log(max(V, 2)), 0.0).view(B, T)
