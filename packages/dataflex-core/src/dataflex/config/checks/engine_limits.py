"""What the training engine can and cannot do with a ``train_type``: refused here, with the reason and the way out."""

from __future__ import annotations

from dataflex.config.checks.late import late_problems
from dataflex.config.checks.loader_keys import keys_of, loader_problems
from dataflex.config.checks.model_folders import model_problems
from dataflex.config.checks.parsed_config import Draft
from dataflex.config.checks.stages import ROWS, TEXTS, stage_problems
from dataflex.config.known_keys import enabled
from dataflex.core.errors import Problem, nearest

STAGES = (*TEXTS, *ROWS)

# Other training loops of LLaMA-Factory's, which would train as if there were no train_type.
_OTHER_LOOPS = {
    "use_mca": "Megatron's trainer",
    "use_v1": "LLaMA-Factory's next trainer, a loop of its own",
    "use_hyper_parallel": "HyperParallel's trainer",
}
_BY_ENVIRONMENT = frozenset({"use_mca", "use_v1"})  # switched on by a variable of that name in capitals

# A weighter needs the loss of each sample. These keys make it one number before anyone can weigh it, or replace it.
_REFUSED_BY_WEIGHTERS = {
    "use_asft_loss": (
        "the ASFT loss replaces the loss that {train_type} weighs, and is one number for the batch",
        "set use_asft_loss: false",
    ),
    "use_eaft_loss": (
        "the EAFT loss replaces the loss that {train_type} weighs, and is one number for the batch",
        "set use_eaft_loss: false",
    ),
}


def engine_problems(draft: Draft) -> list[Problem]:
    """Returns what cannot be run, model and folders included."""
    problems = [*model_problems(draft.theirs), *late_problems(draft)]
    if not draft.dynamic:
        return problems
    return [*problems, *_output(draft), *_stage(draft), *_loop(draft), *_data_engine(draft), *_loss(draft)]


def _output(draft: Draft) -> list[Problem]:
    if draft.theirs.get("output_dir"):
        return []
    return [Problem("output_dir", "is missing", "name the folder for checkpoints, trace and selections")]


def _stage(draft: Draft) -> list[Problem]:
    train_type, problems = draft.arguments.train_type, stage_problems(draft)
    if draft.stage not in (*STAGES, "ppo"):
        what = f"found {draft.stage!r}; train_type: {train_type} works with {' | '.join(STAGES)}"
        problems.append(Problem("stage", what, nearest(draft.stage, STAGES) or "use train_type: static for this stage"))
    if not draft.on("do_train"):
        what = f"is {draft.theirs.get('do_train', False)!r}, but train_type: {train_type} trains"
        way_out = "set do_train: true, or use train_type: static to evaluate or predict"
        problems.append(Problem("do_train", what, way_out))
    return problems


def _loop(draft: Draft) -> list[Problem]:
    train_type, problems = draft.arguments.train_type, []
    for key, whose in _OTHER_LOOPS.items():
        wanted_by_environment = key.upper() if key in _BY_ENVIRONMENT and enabled(key.upper()) else ""
        if draft.on(key) or wanted_by_environment:
            where = wanted_by_environment or key
            what = f"hands the training to {whose}, which train_type: {train_type} cannot reach"
            problems.append(Problem(where, what, "switch it off, or use train_type: static"))
    return [*problems, *loader_problems(train_type, keys_of(draft), draft.arguments.plans)]


def _data_engine(draft: Draft) -> list[Problem]:
    train_type, problems = draft.arguments.train_type, []
    strategy = draft.theirs.get("mix_strategy") or "concat"
    if draft.arguments.mixes and strategy != "concat":
        what = (
            f"found {strategy!r}, but with train_type: {train_type} the mixer alone decides how the sources are mixed"
        )
        problems.append(Problem("mix_strategy", what, "remove it; initial shares are init_mixture_proportions"))
    return problems


def _loss(draft: Draft) -> list[Problem]:
    if not draft.arguments.weighs:
        return []
    return [
        Problem(key, f"is {draft.theirs[key]!r}: {reason.format(train_type=draft.arguments.train_type)}", way_out)
        for key, (reason, way_out) in _REFUSED_BY_WEIGHTERS.items()
        if draft.on(key) or draft.number(key, 0) > 0
    ]
