"""Prompts for reinforcement learning where 60 % teach nothing: ``reward_spread`` against random prompts.

    python -m benchmarks.prompts_rl

GRPO over a Llama of random weights that answers with one token. 30 % of the prompts are impossible (reward 0 whatever
is answered), 30 % trivial (1 whatever), and 40 % learnable: of four kinds, told by a word, each of which is answered
rightly by a quarter of the vocabulary, another one for each kind. Each arm samples as many answers in a step:
reward_spread samples none of its own. Measured, on learnable prompts that are never trained on: the probability of a
right answer, which is computed and not sampled. Printed: that at some steps, mean and deviation over the seeds; the
answers after which random prompts' last value is reached; the share of prompts whose answers all had one reward; and
the processor's time for a step, with the plain trainer's own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from dataflex import dynamic
from dataflex.run.record import read_trace
from dataflex.testing import tiny_model, tiny_tokenizer
from numpy.typing import NDArray

from benchmarks.common import add_device, at_least

KINDS = ("red", "green", "blue", "seven")
IMPOSSIBLE, TRIVIAL = "eight", "nine"
ANSWERS, PROMPTS = 8, 4  # to each prompt; of a step
ARMS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "random": {"selector": "random"},
    "reward_spread": {"selector": "reward_spread"},
    "optimistic": {"selector": {"name": "reward_spread", "params": {"explore": "optimistic"}}},
}


def prompts(count: int, first: int, learnable: float, seed: int) -> datasets.Dataset:
    """Returns prompts with ``kind``: 0 to 3, -1 for impossible, -2 for trivial."""
    kinds = [n % 4 for n in range(round(count * learnable))]
    kinds += [-1 - n % 2 for n in range(count - len(kinds))]
    order = np.random.default_rng(seed).permutation(count)
    words = {-1: IMPOSSIBLE, -2: TRIVIAL} | dict(enumerate(KINDS))
    rows = [{"prompt": f"{words[kinds[n]]} {first + n} is", "kind": kinds[n]} for n in order]
    return datasets.Dataset.from_list(rows)


def reward(completion_ids: list[list[int]], kind: list[int], **more: Any) -> list[float]:
    """Returns 1 for a right answer."""
    return [_right(ids[0] if ids else -1, k) for ids, k in zip(completion_ids, kind, strict=True)]


def _right(token: int, kind: int) -> float:
    return float(kind == -2 or (kind >= 0 and token % 4 == kind))


class Watch(transformers.TrainerCallback):
    """Computes the probability of a right answer every few steps."""

    def __init__(self, model: Any, tokenizer: Any, rows: datasets.Dataset, every: int) -> None:
        texts = tokenizer(list(rows["prompt"]), return_tensors="pt", padding=True, padding_side="left")
        self.inputs = {key: texts[key] for key in ("input_ids", "attention_mask")}
        self.kinds = torch.tensor(list(rows["kind"]))
        self.every, self.found = every, {0: self.rate(model)}

    @torch.no_grad()
    def rate(self, model: Any) -> float:
        """Returns it, over the held-out prompts."""
        inputs = {key: value.to(model.device) for key, value in self.inputs.items()}
        chances = model(**inputs).logits[:, -1].float().softmax(-1).cpu()
        right = torch.arange(chances.shape[1]) % 4 == self.kinds[:, None]
        return float((chances * right).sum(-1).mean())

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Looks."""
        if state.global_step % self.every == 0:
            model = more["model"]
            model.eval()
            self.found[state.global_step] = self.rate(model)
            model.train()


def run(axes: dict[str, Any] | None, steps: int, every: int, count: int, seed: int) -> tuple[Watch, float, float]:
    """Trains one arm.

    Returns:
        What was seen, the share of prompts whose answers all had one reward (NaN of the plain trainer), and the seconds
        of the processor for a step, in which the plan of its segment is counted.
    """
    import trl  # here: --help needs none of it

    folder = tempfile.mkdtemp()
    settings: dict[str, Any] = {
        "output_dir": folder, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "bf16": False,
        "per_device_train_batch_size": PROMPTS * ANSWERS, "num_generations": ANSWERS, "max_completion_length": 1,
        "max_steps": steps, "logging_steps": every, "learning_rate": 5e-3, "lr_scheduler_type": "constant", "beta": 0.0,
        "use_cpu": not torch.cuda.is_available(), "seed": seed, "data_seed": seed,
    }  # fmt: skip
    tokenizer = tiny_tokenizer()
    model: Any = tiny_model(len(tokenizer), seed=seed)
    model.warnings_issued = {}  # TRL 0.24 writes into it; models of transformers 5 have none
    watch = Watch(model, tokenizer, prompts(64, 10_000, 1.0, seed), every)
    schedule = {"warmup_step": 0, "update_step": 5, "update_times": -1}
    made: Any = trl.GRPOTrainer if axes is None else dynamic(trl.GRPOTrainer, **axes, **schedule)
    trainer = made(
        model=model, args=trl.GRPOConfig(**settings), train_dataset=prompts(count, 0, 0.4, seed), reward_funcs=reward,
        processing_class=tokenizer, callbacks=[watch],
    )  # fmt: skip
    started = time.process_time()
    trainer.train()
    seconds = (time.process_time() - started) / steps
    lines = [] if axes is None else [line for line in read_trace(folder) if line["kind"] == "reward"]
    own = [(each["prompts"], each["alike"]) for line in lines for each in line["sources"].values()]
    alike = sum(n * share for n, share in own) / sum(n for n, _ in own) if own else float("nan")
    return watch, alike, seconds


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=at_least(1), default=5)
    parser.add_argument("--steps", type=at_least(1), default=80)
    parser.add_argument("--prompts", type=at_least(20), default=400)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    add_device(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    every = max(1, options.steps // 8)
    rates: dict[str, list[dict[int, float]]] = {name: [] for name in options.arms}
    for name in options.arms:
        found = [run(ARMS[name], options.steps, every, options.prompts, seed) for seed in range(options.seeds)]
        rates[name] = [watch.found for watch, _, _ in found]
        alike, seconds = np.mean([share for _, share, _ in found]), np.median([each for _, _, each in found])
        print(f"{name:>14}: answers alike {alike:.2f}, {1000 * seconds:.1f} ms a step", flush=True)
        print("               " + "  ".join(_shown(rates[name], step) for step in rates[name][0]), flush=True)
    if "random" in rates:
        for name in rates.keys() - {"random", "plain"}:
            print(f"{name:>14}: {_sooner(rates[name], rates['random'])}")


def _shown(rates: list[dict[int, float]], step: int) -> str:
    values: NDArray[np.float64] = np.array([each[step] for each in rates])
    return f"{step}: {values.mean():.3f} ± {values.std(ddof=min(1, len(values) - 1)):.3f}"


def _sooner(own: list[dict[int, float]], other: list[dict[int, float]]) -> str:
    """Returns after how many answers each seed's other arm is reached, and in how many seeds it ends higher."""
    last = max(other[0])
    steps = [min((step for step, rate in mine.items() if rate >= its[last]), default=last + 1)
             for mine, its in zip(own, other, strict=True)]  # fmt: skip
    wins = sum(mine[last] > its[last] for mine, its in zip(own, other, strict=True))
    gaps: NDArray[np.float64] = np.array([mine[last] - its[last] for mine, its in zip(own, other, strict=True)])
    reached = ", ".join(str(step * PROMPTS * ANSWERS) if step <= last else "never" for step in steps)
    return (
        f"ends {gaps.mean():+.3f} ± {gaps.std(ddof=min(1, len(gaps) - 1)):.3f} beside random, higher in {wins} of "
        f"{len(own)} seeds; random's last value after {last * PROMPTS * ANSWERS} answers is reached after {reached}"
    )


if __name__ == "__main__":
    main()
