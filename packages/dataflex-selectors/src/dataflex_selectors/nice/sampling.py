"""Draws answers from the model that is being trained, with its present weights.

The answers come from the policy whose gradient is taken, apart from ``top_k``, ``top_p`` and ``temperature``, for which
the estimate is not corrected. Batches are planned once and shared out to the ranks, and each batch has a seed of its
own, so answers do not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from dataflex.core.component import seeded
from dataflex.core.errors import ComponentError, Problem
from dataflex.core.parameter_checks import count, count_or_null, positive, share
from dataflex.scoring import RowBatch, RowPass, undisturbed, without_replicas
from dataflex.scoring.autocast import autocast
from dataflex.scoring.models import pretrained_models
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import GenerationConfig, PreTrainedModel

from dataflex_selectors.nice.prompts import Prompt

if TYPE_CHECKING:
    from accelerate import Accelerator

_NONE = -1  # in place of a token, behind the end of an answer


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        samples: Answers per prompt, S.
        max_new_tokens: Most tokens of an answer, its end token included.
        temperature: Above 0.
        top_k: Most tokens to draw from; 0 for all.
        top_p: Share of the probability to draw from, in (0, 1].
        token_budget: Most tokens of a batch, answers included; None for a default that suits the device.
    """

    samples: int
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    token_budget: int | None = None

    def config(self, padding: int, ends: list[int]) -> GenerationConfig:
        """Returns the settings for ``generate``, given the padding token and the tokens that end an answer."""
        return GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=True,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            pad_token_id=padding,
            eos_token_id=ends,
            use_cache=True,
        )

    def problems(self) -> list[Problem | None]:
        """Returns what is wrong with it; ``token_budget`` is the user's ``sampling_tokens``."""
        return [
            count("samples", self.samples),
            count("max_new_tokens", self.max_new_tokens),
            positive("temperature", self.temperature),
            count("top_k", self.top_k, least=0),
            share("top_p", self.top_p),
            count_or_null("sampling_tokens", self.token_budget),
        ]


def sample_answers(
    model: torch.nn.Module,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    tokenizer: Any,
    seed: int,
    accelerator: Accelerator | None = None,
    desc: str = "sampling",
    progress: bool = True,
) -> list[list[tuple[int, ...]]]:
    """Returns S answers to each prompt as token ids, the same on every rank. Collective.

    An answer ends with an end token, or has ``max_new_tokens`` tokens. The model runs in eval mode and nothing of the
    run is disturbed.

    Args:
        model: The model being trained, with whole weights on every rank.
        prompts: M prompts.
        sampling: How to draw.
        tokenizer: For its padding and end tokens.
        seed: What the answers depend on, the same on every rank.
        accelerator: The run's accelerator; None means a single process.
        desc: What a progress bar or a log line begins with.
        progress: Whether rank 0 shows how far it is.

    Raises:
        ComponentError: The model is none of ``transformers``, so it has no ``generate``.
    """
    base = _generating(model)
    ends = _end_tokens(base, tokenizer)
    padding = ends[0] if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    config = sampling.config(padding, ends)

    generate: Any = base.generate

    def draw(batch: RowBatch) -> torch.Tensor:
        inputs = dict(batch.inputs)
        torch.manual_seed(seeded(seed, int(inputs.pop("number")[0])))
        with autocast(accelerator):
            tokens_BT = generate(**inputs, generation_config=config)
        return _until_end(tokens_BT[:, inputs["input_ids"].shape[1] :], ends, sampling.max_new_tokens)

    rows = RowPass(
        _Repeated(prompts, sampling),
        _LeftPadding(padding),
        accelerator,
        token_budget=sampling.token_budget,
        desc=desc,
        progress=progress,
    )
    with undisturbed(base), torch.no_grad(), _only(base, config):
        answers = rows.values(base, draw).astype(np.int64)  # exact: float32 holds whole numbers up to 2^24
    cut = [tuple(int(token) for token in row[row != _NONE]) for row in answers]
    return [cut[start : start + sampling.samples] for start in range(0, len(cut), sampling.samples)]


def _until_end(drawn_BA: torch.Tensor, ends: list[int], width: int) -> torch.Tensor:
    """Returns (B, width) tokens of which those behind the first end token are taken out."""
    answers_BA = torch.nn.functional.pad(drawn_BA, (0, width - drawn_BA.shape[1]), value=_NONE)
    ended_BA = torch.isin(answers_BA, torch.tensor(ends, device=drawn_BA.device)).cumsum(dim=1)
    behind_BA = torch.nn.functional.pad(ended_BA[:, :-1], (1, 0))  # the end token itself belongs to the answer
    return answers_BA.masked_fill(behind_BA > 0, _NONE)


@contextmanager
def _only(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Takes away the model's own generation settings for the block: a penalty there would change what is drawn."""
    before = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = before


def end_tokens(model: torch.nn.Module, tokenizer: Any) -> list[int]:
    """Returns the tokens that end an answer of the model.

    Raises:
        ComponentError: There are none, or the model is none of ``transformers``, so it has no ``generate``.
    """
    return _end_tokens(_generating(model), tokenizer)


def _generating(model: torch.nn.Module) -> PreTrainedModel:
    base = next(iter(pretrained_models(without_replicas(model))), None)
    if base is None:
        raise ComponentError(
            f"{type(model).__name__} holds no model of transformers, so it cannot generate answers -> use a selector "
            "that needs none, such as less"
        )
    return base


def _end_tokens(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """Returns the tokens that end an answer: the tokenizer's first, then those that the model was released with."""
    released = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = released if isinstance(released, list) else [released]
    found = [int(token) for token in (tokenizer.eos_token_id, *listed) if token is not None]
    if not found:
        raise ComponentError("neither the tokenizer nor the model has an end token -> give the tokenizer one")
    return list(dict.fromkeys(found))


class _Repeated(Dataset[Mapping[str, Any]]):
    """Each prompt as many times as answers are wanted."""

    def __init__(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        self._prompts, self._samples, self._room = prompts, sampling.samples, sampling.max_new_tokens

    def __len__(self) -> int:
        return len(self._prompts) * self._samples

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        return {"input_ids": self._prompts[number // self._samples].tokens, "number": number}

    def row_lengths(self) -> NDArray[np.int64]:
        """Returns the tokens that each answer may need, its prompt included."""
        lengths = [len(prompt.tokens) + self._room for prompt in self._prompts]
        return np.repeat(np.array(lengths, dtype=np.int64), self._samples)


class _LeftPadding:
    """Pads prompts on the left, so that every answer begins in the same column."""

    def __init__(self, padding: int) -> None:
        self._padding = padding

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        tokens_BT = torch.full((len(rows), longest), self._padding)
        mask_BT = torch.zeros((len(rows), longest), dtype=torch.long)
        for place, row in enumerate(rows):
            tokens_BT[place, longest - len(row["input_ids"]) :] = torch.tensor(row["input_ids"])
            mask_BT[place, longest - len(row["input_ids"]) :] = 1
        return {
            "input_ids": tokens_BT,
            "attention_mask": mask_BT,
            "number": torch.tensor([row["number"] for row in rows]),
        }
