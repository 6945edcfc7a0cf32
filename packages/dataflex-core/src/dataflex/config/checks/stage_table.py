"""What a component cannot do where rows are no texts: pairs of answers (rm, dpo), answers with a tag (kto), prompts.

A component class says in ``asks`` what it computes of rows besides their loss. What a stage has not is in one table,
with the reason; ``validate`` and ``train`` read it for the stages of LLaMA-Factory, ``dynamic()`` for TRL's trainers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dataflex.config.checks.conditional_words import holding
from dataflex.config.checks.parsed_config import Draft, KnownPart
from dataflex.config.checks.tokenized import is_kept
from dataflex.core.errors import ConfigError, Problem
from dataflex.core.score_names import LENGTH, LOSS, REWARD, SEEN, SPREAD, ScoreName

TEXTS = ("sft", "pt")
"""The stages of LLaMA-Factory whose rows are texts."""

ROWS: Mapping[str, str] = {"rm": "pairs of answers", "dpo": "pairs of answers", "kto": "answers with a tag"}
"""The other stages that train dynamically -> what their rows are. PPO makes its rows as it trains."""

PROMPTS: Mapping[str, str] = {"grpo": "prompts", "rloo": "prompts"}
"""The stages of TRL's trainers that sample answers -> what their rows are. LLaMA-Factory has none of them."""

GRADIENTS, HIDDEN, TOKENS = "gradients", "hidden states", "losses of tokens"
GENERATED, OTHER_MODEL, GATES, STEP = "generated answers", "losses under another model", "gates", "losses of a step"
ANSWERS = "answers behind prompts"
CURVES, COUNTS, HELD_OUT = "loss curves", "counts of tokens", "losses of held-out rows"

_REASONS: Mapping[str, str] = {
    GRADIENTS: "gradients of rows are formed of the losses of their tokens, by rules for each layer",
    HIDDEN: "the hidden states of two answers are no embedding of a row",
    TOKENS: "it takes the losses of tokens, and a row has one loss as a whole",
    GENERATED: "it has the model answer the prompt of a text, and scores that by gradients",
    OTHER_MODEL: "another model has no loss of this stage: the stage's trainer and reference belong to the run's",
    GATES: "it puts held-out texts through the experts",
    STEP: "the losses of a whole step would need a forward pass of the stage before it",
    ANSWERS: "it takes one answer apart from its prompt",
}
_NO_ANSWER = "a prompt has no answer of its own to compute them of: training samples several, and keeps their rewards"
_OF_PROMPTS = dict.fromkeys((*_REASONS, CURVES, COUNTS, HELD_OUT), _NO_ANSWER)
REFUSED: Mapping[str, Mapping[str, str]] = dict.fromkeys(ROWS, _REASONS) | dict.fromkeys(PROMPTS, _OF_PROMPTS)
"""Stage -> what a component may ask for that it has not -> why."""
ASKS = (*_REASONS, CURVES, COUNTS, HELD_OUT)
"""What a class may name in ``asks``."""


def asked_for(asks: str, params: Mapping[str, Any]) -> str | None:
    """Returns what a component asks for with these parameters; None for nothing but losses.

    Args:
        asks: As its class says it, see :func:`~dataflex.config.checks.conditional_words.holding`; of several the first
            counts that holds.
        params: Its parameters, defaults included.

    Raises:
        ConfigError: It says something else, which no stage would ever refuse.
    """
    return next(iter(holding("asks", asks, ASKS, params)), None)


def unfit_parts(stage: str, parts: Iterable[KnownPart]) -> list[Problem]:
    """Returns a problem for each component that asks for what rows of a stage have not.

    Args:
        stage: One of :data:`ROWS` or :data:`PROMPTS`; for any other only rewards are missing.
        parts: The components, as far as they are known.
    """
    if stage in PROMPTS:
        return [problem for known in parts if (problem := _unfit_for_prompts(stage, known)) is not None]
    found = [_without_rewards(known) or _refused(stage, known, _BY_LOSS) for known in parts]
    return [problem for problem in found if problem is not None]


_BY_LOSS = "take a component that scores rows by their loss, or by none"
_BY_REWARD = "take one that goes by rewards, or by a column, see docs/prompts.md"


def _refused(stage: str, known: KnownPart, way_out: str) -> Problem | None:
    """Returns a problem where a component says that it asks for what a stage has not."""
    try:
        what = asked_for(str(known.declares("asks", "")), known.params)
    except ConfigError as error:
        return Problem(known.where, f"{known.named}: {error}")
    reason = REFUSED.get(stage, {}).get(what or "")
    if reason is None:
        return None
    rows = {**ROWS, **PROMPTS}[stage]
    return Problem(
        known.where, f"{known.named} asks for {what}, and the rows of stage {stage} are {rows}: {reason}", way_out
    )


def _without_rewards(known: KnownPart) -> Problem | None:
    by = known.part.by
    if not known.declares("takes_rewards") and (by is None or ScoreName.of(by).kind != REWARD):
        return None
    what = f"{known.named} goes by the rewards of sampled answers, and this trainer samples none"
    return Problem(
        known.where, what, "use it as dynamic(GRPOTrainer, ...) or dynamic(RLOOTrainer, ...), see docs/prompts.md"
    )


def _unfit_for_prompts(stage: str, known: KnownPart) -> Problem | None:
    """Returns a problem where a component needs of its rows what prompts have not: a loss, tokens, an answer."""
    by, rows = known.part.by, f"the rows of stage {stage} are prompts"
    if known.kind.name == "weighter":
        what = f"{known.named} weighs the loss of rows, and {rows}: the loss is that of sampled answers"
        return Problem(known.where, what, "take a selector or a mixer, which choose the prompts")
    refused = _refused(stage, known, _BY_REWARD)
    if refused is not None:
        return refused
    if by is not None and ScoreName.of(by).kind in (LOSS, SEEN, LENGTH):
        what = f"found '{by}', and {rows}, which have no loss and are tokenised when answers are sampled"
        return Problem(f"{known.where}.by", what, f"write by: {REWARD} | {SPREAD} | column:NAME | file:PATH")
    if _looks(known) or known.declares("reads_tokens"):
        return Problem(
            known.where, f"{known.named} looks at the loss or the tokens of rows, and {rows}: {_NO_ANSWER}", _BY_REWARD
        )
    if known.declares("weighs"):
        what = f"{known.named} gives rows weights in the loss, and {rows}: the loss is that of sampled answers"
        return Problem(known.where, what, _BY_REWARD)
    return None


def stage_problems(draft: Draft) -> list[Problem]:
    """Returns what a dynamic run cannot do at its stage."""
    stage, train_type = draft.stage, draft.arguments.train_type
    if stage == "ppo":
        allowed = " | ".join([*TEXTS, *ROWS])
        what = f"found 'ppo', which makes its rows as it trains; allowed with train_type: {train_type}: {allowed}"
        return [Problem("stage", what, "use train_type: static, or stage: dpo")]
    if stage not in ROWS:
        return [*unfit_parts(stage, draft.known), *_without_prompts(draft)]
    return [*unfit_parts(stage, draft.known), *_settings(draft), *_weights(draft), *_resumes(draft)]


def rows_meet(stage: str, theirs: Mapping[str, Any], *, in_training: bool) -> tuple[str, str] | None:
    """Returns the key with which the rows of a batch have no loss of their own, and why; None where they have.

    Args:
        stage: LLaMA-Factory's ``stage``.
        theirs: Its keys.
        in_training: Whether losses are looked at, or weighed, in the batches that are trained on.
    """
    bco, ftx = theirs.get("pref_bco_weight") or 0, theirs.get("pref_ftx") or 0
    if stage == "dpo" and theirs.get("pref_loss") not in ("orpo", "simpo") and isinstance(bco, int | float) and bco > 0:
        return "pref_bco_weight", "compares a pair with the mean reward of the batches before it"
    if stage == "kto" and in_training and isinstance(ftx, int | float) and ftx > 0:
        return "pref_ftx", "adds a term that depends on how many desirable rows a batch has"
    return None


def _settings(draft: Draft) -> list[Problem]:
    """Refuses settings with which rows have no loss of their own, for components that look at it."""
    for known in filter(_looks, draft.known):
        found = rows_meet(draft.stage, draft.theirs, in_training=_looks_in_training(known))
        if found is not None:
            key, why = found
            way_out = "set it to 0, or take a component that does not look at losses"
            return [Problem(key, f"{why}, and {known.named} needs the loss of each row", way_out)]
    return []


def _without_prompts(draft: Draft) -> list[Problem]:
    """Refuses, for components that take answers apart from their prompts, rows in which nothing stands apart."""
    if is_kept(draft.theirs.get("tokenized_path")):
        return []  # the labels there tell what a prompt is
    if draft.stage == "pt":
        key, what, way_out = "stage", "found 'pt', whose rows are one text each", "use stage: sft, or take perplexity"
    elif draft.on("train_on_prompt"):
        key, what, way_out = "train_on_prompt", "found true: prompts are learnt as answers are", "remove it"
    else:
        return []
    return [
        Problem(key, f"{what}, and {known.named} looks at answers apart from their prompts", way_out)
        for known in draft.known
        if _takes_answers(known)
    ]


def _takes_answers(known: KnownPart) -> bool:
    try:
        return ANSWERS in holding("asks", str(known.declares("asks", "")), ASKS, known.params)
    except ConfigError:  # which the part itself is told
        return False


def _weights(draft: Draft) -> list[Problem]:
    if draft.arguments.weight_objective == "token" and draft.arguments.weighs:
        what = f"found 'token', and a row of stage {draft.stage} has one loss as a whole"
        return [Problem("weight_objective", what, "remove it: the mean is over rows")]
    return []


def _resumes(draft: Draft) -> list[Problem]:
    """LLaMA-Factory begins anew there, with a warning."""
    kind = draft.theirs.get("finetuning_type", "lora")
    if draft.stage != "rm" or kind not in ("full", "freeze") or not draft.theirs.get("resume_from_checkpoint"):
        return []
    what = f"is given, and LLaMA-Factory does not resume stage: rm with finetuning_type: {kind}"
    return [Problem("resume_from_checkpoint", what, "remove it, or train with finetuning_type: lora")]


def _looks(known: KnownPart) -> bool:
    by = known.part.by
    scored = by is not None and (by == LOSS or ScoreName.of(by).kind == SEEN)
    return scored or bool(known.declares("reads_batches")) or _looks_in_training(known)


def _looks_in_training(known: KnownPart) -> bool:
    return known.kind.name == "weighter" or bool(known.declares("takes_seen"))
