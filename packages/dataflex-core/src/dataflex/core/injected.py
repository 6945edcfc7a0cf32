"""The constructor parameters that dataflex fills in by name, and who else may."""

from __future__ import annotations

INJECTED = frozenset(
    {
        "dataset",
        "eval_dataset",
        "accelerator",
        "data_collator",
        "mixture_manager",
        "mixer_eval_dataset",
        "output_dir",
        "tokenizer",
        "seed",
        "cache_dir",
    }
)
TARGETS = frozenset({"eval_dataset", "mixer_eval_dataset"})  # evaluation rows that a component aims at
OVERRIDABLE = frozenset({"seed", "cache_dir", "output_dir"})  # plain values: a user may have reasons for another one
