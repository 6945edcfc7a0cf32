"""What each rank runs in the tests of ranks and engines: small runs of a plain ``transformers.Trainer``, one after the
other, so that a process group is started once for many of them.

    python -m torch.distributed.run --nproc_per_node 2 rank_run.py JOBS.json

JOBS.json holds a list of :class:`Job` fields, each of a run of one component or of several parts. Each rank leaves
``rank-R.json`` in the job's folder: the rows of each of its micro-batches, the losses, and a digest of the final
weights.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import rank_components  # noqa: F401  # registers them
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, Part, RunSpec
from dataflex.core.kinds import BY_TRAIN_TYPE as KINDS
from dataflex.core.kinds import MIXER, ORDER, SELECTOR, WEIGHTER, Kind
from dataflex.launch.torchrun import settle
from dataflex.rows.streams import Stream
from dataflex.rows.views import MixedSources
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.train.trainer import BY_TRAIN_TYPE, trainer_class
from engines import shard_on_cpu
from transformers import Trainer
from transformers.integrations import is_deepspeed_zero3_enabled

ROWS = 61  # a prime: no number of ranks or batches divides it
LENGTHS = range(8, 25)
WEIGHT = "dataflex/weight/max"


@dataclass
class Job:
    """One run.

    Attributes:
        out: The folder of the run.
        train_type: ``dynamic_select``, ``dynamic_mix``, ``dynamic_weight``, or ``dynamic`` with parts.
        component: Its name; blank with parts.
        params: Its parameters.
        args: Training arguments.
        resume: A checkpoint to resume from.
        shards: Whether to make accelerate shard on the CPU (see :mod:`engines`).
        model: Arguments of the tiny model.
        keys: dataflex's own keys, in place of 2 steps of warm-up and 2 updates of 2 steps.
        streams: Whether the sources of a mixture are streams.
        evaluates: Whether to evaluate at the end.
        parts: The components of ``dynamic``: the fields of each :class:`~dataflex.config.spec.Part`, ``component`` by
            its ``kind``, ``name`` and ``params``.
        refused: Whether the run is to end with the same error on every rank, after which the next one begins.
    """

    out: str
    train_type: str
    component: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)
    resume: str | None = None
    shards: bool = False
    model: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    streams: bool = False
    evaluates: bool = False
    parts: list[dict[str, Any]] = field(default_factory=list)
    refused: bool = False

    def mixes(self) -> bool:
        """Whether it trains on several sources."""
        return self.train_type == "dynamic_mix" or any(each["kind"] == "mixer" for each in self.parts)

    def spec(self) -> RunSpec:
        """Returns the run."""
        keys = {"warmup_step": 2, "update_step": 2, "update_times": 2} | self.keys
        if self.parts:
            named: dict[str, Any] = {}
            for each in self.parts:
                named[each["kind"]] = (*named.get(each["kind"], ()), {"component": each["name"]})
            one = {kind: names if len(names) > 1 else names[0] for kind, names in named.items()}
            arguments = DataflexArguments(train_type="dynamic", **one, **keys)
            return RunSpec(arguments, parts=tuple(part(**each) for each in self.parts))
        kind = KINDS[self.train_type]
        arguments = DataflexArguments(train_type=self.train_type, component_name=self.component, **keys)
        return RunSpec(arguments, ComponentSpec(kind, self.component, self.component, self.params))


BY_NAME: dict[str, Kind] = {kind.name: kind for kind in (SELECTOR, MIXER, ORDER, WEIGHTER)}


def part(kind: str, name: str, params: dict[str, Any], **place: Any) -> Part:
    """Returns a component in its place."""
    return Part(ComponentSpec(BY_NAME[kind], name, name, params), **place)


class Watched(Trainer):
    """Notes which rows each micro-batch holds; a row's tokens tell which one it is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.numbers = {tuple(row["input_ids"]): i for i, row in enumerate(once(self.train_dataset))}
        self.seen: list[list[int]] = []

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        pairs = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        tokens = [ids[mask.bool()].tolist() for ids, mask in pairs]
        self.seen.append([self.numbers[tuple(row)] for row in tokens])
        return super().training_step(model, inputs, *args, **kwargs)


def once(dataset: Any) -> list[Any]:
    """Returns every row once, of streams too."""
    if isinstance(dataset, MixedSources):
        return [row for source in dataset.sources for row in once(source)]
    return dataset.first(ROWS) if isinstance(dataset, Stream) else [dataset[i] for i in range(len(dataset))]


def model(job: Job) -> Any:
    """Returns the tiny model, loaded from a folder where that makes a difference: ZeRO-3 shards what is loaded."""
    made = tiny_model(**job.model)
    if not is_deepspeed_zero3_enabled():
        return made
    with TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        return type(made).from_pretrained(folder)


def rows(job: Job) -> Any:
    """Returns the rows of a job, all different and of uneven length."""
    if job.component == "dynamic_moe":  # the distances of two sources to each other are the same
        return {name: TokenRows(n, lengths=LENGTHS, seed=n) for name, n in {"a": 11, "b": 24, "c": 26}.items()}
    if job.mixes():
        two = {"a": TokenRows(11, lengths=LENGTHS, seed=1), "b": TokenRows(ROWS - 11, lengths=LENGTHS, seed=2)}
        return {name: streamed(source) for name, source in two.items()} if job.streams else two
    if job.component in ("balancer", "dataset"):  # 72 rows, as below
        return {"a": TokenRows(24, lengths=8, seed=1), "b": TokenRows(48, lengths=LENGTHS, seed=2)}
    # A weighted run goes through its rows as a static one does, and there transformers repeats rows on several ranks
    # to fill the last batch: give it whole batches.
    return TokenRows(ROWS if job.spec().plans else 72, lengths=LENGTHS)


def streamed(source: TokenRows) -> datasets.IterableDataset:
    """Returns the rows as a stream."""
    return datasets.Dataset.from_list(once(source)).to_iterable_dataset().skip(0)


def held_out(job: Job) -> Any:
    """Returns what the gradient selectors aim at; for a mixer, rows of each source, which differ in their words."""
    if not job.mixes():
        return TokenRows(9, lengths=LENGTHS, seed=5)
    words = {"a": 40, "b": 80, "c": 128}
    return {name: TokenRows(7, vocab_size=n, lengths=LENGTHS, seed=n) for name, n in words.items()}


def weights_digest(trainer: Trainer) -> str:
    """Returns a digest of this rank's weights (of its shards, where the engine shards)."""
    digest = hashlib.blake2b(digest_size=8)
    for _, value in sorted(trainer.model.state_dict().items()):
        local = value.to_local() if hasattr(value, "to_local") else value
        digest.update(local.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def run(job: Job) -> None:
    """Trains, and leaves ``rank-R.json``."""
    args = {"max_steps": 6, "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 1}
    args |= {"average_tokens_across_devices": True} | job.args  # transformers 4.51 has another default than 5.6
    arguments = tiny_training_args(job.out, **args)
    if job.shards:
        shard_on_cpu()
    trainer = trainer_class(BY_TRAIN_TYPE[job.train_type], Watched)(
        model=model(job),
        args=arguments,
        train_dataset=rows(job),
        eval_dataset=held_out(job),
        data_collator=pad_collate,
        dataflex=job.spec(),
    )
    result: dict[str, Any] = {"rank": trainer.args.process_index}
    failed = False
    Path(job.out).mkdir(parents=True, exist_ok=True)
    try:
        trainer.train(resume_from_checkpoint=job.resume)
    except Exception as error:  # the test reads what each rank was told
        result["error"] = f"{type(error).__name__}: {error}"
        failed = True
        if not job.refused:
            raise
    else:
        result["losses"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        result["weights"] = weights_digest(trainer)
        result["weighed"] = [entry[WEIGHT] for entry in trainer.state.log_history if WEIGHT in entry]
        if job.evaluates:
            result["evaluation"] = trainer.evaluate()
        result["engine"] = type(trainer.model_wrapped).__name__
    finally:
        result["seen"] = trainer.seen
        (Path(job.out) / f"rank-{result['rank']}.json").write_text(json.dumps(result))
        if failed and (job.refused or job.component == "own_opinion"):
            torch.distributed.barrier()  # every rank must have been stopped by the same error, or this never ends


def main(file: str) -> None:
    """Runs the jobs of a file in this process group."""
    torch.set_num_threads(1)
    gc.freeze()  # accelerate collects garbage before each training: not among all that was imported
    for job in json.loads(Path(file).read_text()):
        run(Job(**job))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    settle()


if __name__ == "__main__":
    main(sys.argv[1])
