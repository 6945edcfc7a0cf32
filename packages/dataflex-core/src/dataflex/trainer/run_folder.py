"""The run in its output folder: which one it is, what it goes on from, what stood there before, what it leaves."""

from __future__ import annotations

import secrets

from dataflex.config.resolved import RecordedRun, note_results, recorded_run, write_config
from dataflex.core.errors import ConfigError
from dataflex.core.ranks.agreement import from_rank_0
from dataflex.run.checkpoints import require_complete
from dataflex.run.identity import require_same
from dataflex.run.newest import newest_to_resume
from dataflex.run.output_dir import require_unused
from dataflex.run.record import RunRecord
from dataflex.run.replaced import set_aside, set_later_aside
from dataflex.run.results import Results
from dataflex.run.run_length import require_no_shorter, require_unfinished
from dataflex.run.state import load_state, require_step
from dataflex.trainer.host import Host
from dataflex.upstream.cpu_ranks import allow_numbered_cpus
from dataflex.utils.logging import logger


class RunFolder:
    """The trainer's run and its ``output_dir``. Its methods are called on every rank.

    Args:
        trainer: The trainer.
        overwrites: Whether another run there may be replaced; the arguments of the trainer may say so as well.

    Attributes:
        id: The run: made when it begins, kept when it is resumed; None before training.
        record: Its trace and its selections.
        results: The files that it saves in the end.
    """

    def __init__(self, trainer: Host, overwrites: bool) -> None:
        self._trainer = trainer
        self._overwrites = overwrites or bool(vars(trainer.args).get("overwrite_output_dir"))
        self.id: str | None = None
        self._before: RecordedRun | None = None  # what the folder held when training was asked for
        self._resumed: tuple[str, int] | None = None  # the checkpoint, and the steps that its run was to have
        self._begun = self._ended = False  # the training loop, that is
        self._finished = False  # and was noted as finished
        self.results = Results(trainer.output_dir)
        self.record = RunRecord(trainer.output_dir, writes=trainer.is_world_process_zero())

    @property
    def begins_anew(self) -> bool:
        """Whether no checkpoint is resumed."""
        return self._resumed is None

    def enter(self, resume_from_checkpoint: str | bool | None) -> str | bool | None:
        """Finds out which run this is, before the training loop starts, and restores it where it is resumed.

        Args:
            resume_from_checkpoint: As ``train`` got it.

        Returns:
            The checkpoint that is resumed, or what stands for none.

        Raises:
            ConfigError: There is no such checkpoint, or another run would be written over.
            CheckpointError: The checkpoint belongs to another run.
        """
        accelerator, folder = self._trainer.accelerator, self._trainer.output_dir
        needed, own = resume_from_checkpoint is True, self.id
        self._before, self.id = from_rank_0(accelerator, lambda: (self._recorded(needed), secrets.token_hex(8)))
        if resume_from_checkpoint is True:
            resume_from_checkpoint = newest_to_resume(folder, self._before)
        self._resumed, self._begun, self._ended, self._finished = None, False, False, False
        self.results.forget()
        if resume_from_checkpoint:
            self._resume(str(resume_from_checkpoint))
        elif not self._overwrites and (self._before is None or self._before.id != own):
            from_rank_0(accelerator, lambda: require_unused(self._trainer.spec, folder, self._before))
        return resume_from_checkpoint

    def begin(self) -> None:
        """Writes the resolved configuration and opens the trace, when training begins.

        Raises:
            ConfigError: The run is finished.
            CheckpointError: The checkpoint is of a longer run.
        """
        trainer = self._trainer
        done, total = trainer.state.global_step, trainer.state.max_steps
        if self._resumed is not None:
            if not vars(trainer.args).get("overwrite_output_dir"):  # transformers 5 has no such field
                require_unfinished(self._before, trainer.run_id, total, trainer.output_dir)
            folder, before = self._resumed
            require_no_shorter(before, total, done, folder)
        from_rank_0(trainer.accelerator, self._open)
        self._begun = True

    def trained(self) -> None:
        """Notes that the loop has ended. A finished run without checkpoints is known by this note alone."""
        self._ended = True
        if self._trainer.args.save_strategy == "no":
            self._note(finished=True)

    def saved(self) -> None:
        """Notes the files of a model, or of metrics, that were saved into the folder after training."""
        if self._ended:
            self._note(finished=self._finished)

    def end(self) -> None:
        """Notes which files are the run's results, when its state is saved."""
        self._note(finished=True)

    def _note(self, finished: bool) -> None:
        state = self._trainer.state
        if self._trainer.is_world_process_zero() and self._begun and self.id is not None:
            done = finished and state.global_step >= state.max_steps  # else a signal or a callback has stopped it
            self._finished = done
            note_results(self._trainer.output_dir, self.id, state.global_step if done else None, self.results.written())

    def _recorded(self, needed: bool) -> RecordedRun | None:
        """Returns the run that is recorded in the folder; where it is not needed, the record may be damaged."""
        try:
            return recorded_run(self._trainer.output_dir)
        except ConfigError:
            if needed:
                raise
            return None

    def _resume(self, folder: str) -> None:
        require_complete(folder)
        state = load_state(folder)
        require_step(state, folder)
        require_same(state["identity"], self._trainer.own_identity, folder)
        if state.get("save_only_model"):
            logger.warning(
                "%s was saved with save_only_model: true, without optimizer, scheduler and random states: what follows "
                "is not the run that was never stopped",
                folder,
            )
        self.id, self._resumed = state["run"], (folder, int(state["total_steps"]))
        self._trainer.restore(state)
        allow_numbered_cpus()

    def _open(self) -> None:
        trainer = self._trainer
        folder, run, step = trainer.output_dir, trainer.run_id, trainer.state.global_step
        set_aside(folder, self._before, run, anew=self.begins_anew)
        set_later_aside(folder, run, step)
        self.record.begin(step, len(trainer.state.log_history))
        write_config(trainer.spec, folder, run)
        trainer.recording.begin()
        if trainer.args.save_strategy != "no":  # a checkpoint's parts: now, not when hours of training wait to be saved
            trainer.components.state_dict()
            _ = trainer.own_identity
