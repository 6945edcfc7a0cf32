"""What every component has: a name, a seed, a generator per update, and state that goes into checkpoints."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dataflex.utils.logging import logger

if TYPE_CHECKING:
    import torch

    from dataflex.core.context import RunAhead
    from dataflex.core.cost import Ahead, Cost
    from dataflex.core.explain import Explanation


def seeded(*key: object) -> int:
    """Returns a 63-bit seed that depends on every part of ``key`` and on nothing else, on any machine."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Component:
    """Base of selectors, mixers, orders and weighters.

    Attributes:
        draws: Whether it draws from :meth:`generator` or by :attr:`seed`. A class that draws nothing says False, and a
            ``seed`` among its parameters is refused.
        name: The name it was found under; set by :meth:`bind`.
        seed: Its parameter ``seed`` where the user gave one, else the run's; set by :meth:`bind`.
        cache_owner: Says which files in a shared ``cache_dir`` are its own: the run's folder and the name; set by
            :meth:`bind`.
        left_out: How many numbers that are not finite its running estimates were given and did not take. Kept in
            checkpoints, and in the trace or the log where it is not 0.
        reads_batches: Whether it puts batches of the data collator through the model and tells their rows apart. A
            collator that flattens rows into one, or makes pairs, is then refused before training.
        asks: What it computes of rows besides their loss, as ``WHAT``, ``WHAT if PARAMETER`` or ``WHAT if
            PARAMETER=VALUE``, or several of these with commas between them, where WHAT is one of ``gradients``,
            ``hidden states``, ``losses of tokens``, ``generated answers``, ``losses under another model``, ``gates``,
            ``losses of a step``, ``answers behind prompts``, ``loss curves`` and ``counts of tokens`` (these two of a
            mixer that observes them: rewards in their place would not do) and ``losses of held-out rows``. Stages whose
            rows are no texts then refuse it before anything is loaded; ``answers behind prompts`` are refused at stage
            pt and with ``train_on_prompt`` too. Empty for nothing.
        needs_rows: ``eval_dataset if PARAMETER=VALUE`` or ``mixer_eval_dataset if PARAMETER=VALUE``: rows besides
            those of training that its constructor does without with other parameters. A run without them is refused
            before anything is loaded. Those that it always needs are told from the constructor.
        scores_named_in: Its parameter that names scores, one or several in a list. ``validate`` looks in the files of
            the run for each ``column:NAME`` there. Empty for none.
        token_column_in: Its parameter that names the column of :meth:`needs_token_column`, for the same look. Empty for
            none.
        reads_tokens: Whether it looks at the tokens of rows itself. Stages whose rows are prompts then refuse it.
        takes_seen: Whether it asks ``context.scores`` for losses that training has seen. They are kept, in memory and
            in checkpoints (8 bytes per row), where a component of the run says so.
        takes_rewards: Whether it needs the rewards of prompts, ``context.scores.rewards()``, which only trainers that
            sample answers have (TRL's GRPO and RLOO). Any other trainer then refuses it before anything is loaded.
    """

    draws: ClassVar[bool] = True
    name: str = "component"
    seed: int = 0
    cache_owner: str = ""
    left_out: int = 0
    reads_batches: bool = False
    takes_seen: bool = False
    takes_rewards: ClassVar[bool] = False
    asks: ClassVar[str] = ""
    needs_rows: ClassVar[str] = ""
    scores_named_in: ClassVar[str] = ""
    token_column_in: ClassVar[str] = ""
    reads_tokens: ClassVar[bool] = False

    def bind(self, name: str, seed: int, output_dir: str = "") -> None:
        """Sets the name, the seed and the run's folder. Called once by the trainer, after the constructor.

        Args:
            name: The preset that it was asked for by; with a number behind it where another part of the run has the
                same, and with the source where a selector is made for each.
            seed: The run's seed, or the one that the user gave the component.
            output_dir: The run's folder; blank outside of a run.
        """
        self.name, self.seed = name, seed
        self.cache_owner = os.path.join(os.path.abspath(output_dir), name) if output_dir else ""

    @classmethod
    def needs_columns(cls, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns the columns of the raw data that it asks ``context.scores`` for, as ``column:NAME``. Optional.

        LLaMA-Factory drops columns when it tokenises; these are kept aside, for the rows that are left.

        Args:
            params: The constructor parameters that the user gave.
        """
        return ()

    @classmethod
    def needs_token_column(cls, params: Mapping[str, Any]) -> str | None:
        """Returns the column of the raw data that holds weights of its tokens, or messages. Optional.

        LLaMA-Factory drops columns when it tokenises. This one becomes a number for each token of the rows that are
        left, and is given to the constructor as ``token_columns``: name ->
        :class:`~dataflex.rows.token_lists.TokenLists`.

        Args:
            params: The constructor parameters that the user gave.
        """
        return None

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost | None:
        """Returns what an update of the run costs, and each step, for ``dataflex-cli plan``. Optional.

        Called for each update that the component takes part in, before anything is loaded; on one process. It must not
        read files, and the same arguments must give the same answer. See :mod:`dataflex.core.cost`.

        Args:
            params: The constructor parameters: the user's, and the defaults of the others.
            ahead: What is known of the run at that update.

        Returns:
            The cost; None where it is not known, which the plan then says.
        """
        return None

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses what an update would have to refuse, as far as it is known before the first step.

        Optional. Called once, on every rank, when the trainer is made: after the constructor and the mixer's
        ``prepare``, before there is an optimizer, and before a checkpoint is resumed. Under an engine that shards the
        weights (FSDP, DeepSpeed) it is called when training begins, on the wrapped model. The model is in eval mode and
        on its device; a trial batch or two may go through it. Random numbers that are drawn from the global generators
        are put back. Where one rank raises, all are stopped; so whatever is collective in here comes after
        :func:`~dataflex.core.ranks.agreement.on_every_rank` over what may be refused before it.

        Args:
            model: The model to be trained.
            run: What is ahead.

        Raises:
            DataflexError: With what was found, what is needed and the way out.
        """

    def check_optimizer(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Refuses an optimizer that an update could not work with. Optional.

        Called on every rank when training begins, before its first step: the optimizer has no state yet, or that of the
        checkpoint which is resumed. Where one rank raises, all are stopped; what is collective in here comes after
        :func:`~dataflex.core.ranks.agreement.on_every_rank`, as in :meth:`check_run`.

        Args:
            model: The model to be trained, as an update gets it.
            optimizer: What :class:`~dataflex.core.context.UpdateContext` gives an update.

        Raises:
            DataflexError: With what was found, what is needed and the way out.
        """

    def explain(self, model: torch.nn.Module, rows_S: np.ndarray, step_id: int, **kwargs: Any) -> Explanation | None:
        """Returns which target rows pulled the scores of some rows; None: it does not say. Optional.

        For the record of the run (``dataflex_why.jsonl``), of selectors and weighters. Called on every rank with the
        same arguments, every rank returns the same, and it may be collective. A selector is asked right after it has
        decided, before the next step; a weighter between two steps, when its weights are logged. The model is in eval
        mode, and random numbers from the global generators are put back. It must not change what the component
        remembers: the run must be the same without it, so it draws from :meth:`generator` under a name of its own.

        Args:
            model: The model being trained, as an update gets it.
            rows_S: (S,) different row numbers of the component's dataset, of a weighter of the train dataset.
            step_id: Global optimizer steps done.
            **kwargs: ``context``: the :class:`~dataflex.core.context.UpdateContext` that the selector decided with, or
                the weighter's :class:`~dataflex.interfaces.weighter.StepContext`. A weighter gets ``dataset`` too.
        """
        return None

    @classmethod
    def explains(cls) -> bool:
        """Returns whether the class has an :meth:`explain` of its own."""
        return cls.explain is not Component.explain

    def generator(self, update: object) -> np.random.Generator:
        """Returns a generator that is a function of (seed, component, update), the same on every rank.

        A component draws from this and never from the global generators, so that runs repeat and resume exactly.
        """
        return np.random.Generator(np.random.Philox(key=seeded(self.seed, type(self).__name__, self.name, update)))

    def leave_out(self, count: int, what: str) -> None:
        """Counts numbers that are not finite, which a running estimate leaves out; says so the first time.

        One step that overflows must not change what is learnt from all others: an average that takes an infinite
        number, or NaN, never comes back.

        Args:
            count: How many there are; 0 does nothing.
            what: What they are, for the log.
        """
        if count <= 0:
            return
        if not self.left_out:
            logger.warning(
                "%s: %s that is not finite (NaN or infinite) is left out of what it remembers; later ones are counted",
                self.name,
                what,
            )
        self.left_out += count

    def state_dict(self) -> dict[str, Any]:
        """Returns what the component needs to continue: numbers, strings, lists, dicts, arrays and tensors.

        Saved in every checkpoint. Called on rank 0.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned. Called on every rank before the first batch of a resumed run."""
