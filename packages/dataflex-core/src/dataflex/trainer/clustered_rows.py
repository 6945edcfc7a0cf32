"""``mixture_by: cluster:K``: sources that are groups of rows which are alike, formed once when a run begins.

    rows -> one vector each (``mixture_embedding``) -> k-means -> K sources, the largest first

Rank 0 groups the rows and tells the others. The groups are kept in the run's folder and in its checkpoints under what
they depend on, so a run that is resumed has the same sources, also where its model has been trained meanwhile.

Cost: one embedding of every row: hashed n-grams in seconds, hidden states one forward pass. Memory on rank 0: 4 bytes
for each number of a vector; of n-grams :data:`DIM` numbers a row.

Letters: N rows, K clusters, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from dataflex.config.checks.parsed_config import named_checkpoint
from dataflex.config.checks.source_keys import cluster_names
from dataflex.config.mixture_sources import MixtureBy
from dataflex.core.component import seeded
from dataflex.core.errors import CheckpointError, ConfigError
from dataflex.core.files import SOURCES, replacing
from dataflex.core.files import STATE as STATE_FILE
from dataflex.core.ranks.agreement import from_rank_0
from dataflex.core.source_labels import SourceLabels
from dataflex.rows.source_words import in_brackets, source_words
from dataflex.rows.split_sources import SplitSources, split
from dataflex.run.state import load_state
from dataflex.scoring.embedder import Embedder
from dataflex.scoring.k_means import k_means
from dataflex.scoring.passes.fingerprint import dataset_digest, digest, model_digest
from dataflex.trainer.given import clustered
from dataflex.trainer.host import Host
from dataflex.utils.logging import logger
from dataflex.utils.progress import Progress

DIM = 1024
"""Buckets of hashed n-grams, as the selector ``near`` has them."""
STATE = "sources"
"""The part of a checkpoint that holds the groups."""


def sources_of(trainer: Host, dataset: Any) -> Any:
    """Returns the train dataset, as groups of rows where its run makes sources of it and none were made yet."""
    if not clustered(trainer.spec.arguments) or isinstance(dataset, SplitSources):
        return dataset
    return clustered_sources(trainer, dataset)


def clustered_sources(trainer: Host, dataset: Any) -> SplitSources:
    """Returns the train dataset as K groups of rows that are alike. Collective.

    Args:
        trainer: A trainer with its model, whose rows are prepared.
        dataset: Its train dataset.

    Raises:
        ConfigError: There are fewer rows than groups, or fewer different rows.
    """
    keys, accelerator = trainer.spec.arguments, trainer.accelerator
    by = MixtureBy.of(keys)
    assert by is not None, "the run is of clusters"
    assert by.clusters is not None, "the run is of clusters"
    count, embedding = by.clusters, keys.mixture_embedding
    if len(dataset) < count:
        raise ConfigError(
            f"mixture_by: cluster:{count}: the train dataset has {len(dataset)} rows -> write fewer groups"
        )
    of_model = model_digest(trainer.model) if embedding == "model" else ""
    about = digest(dataset_digest(dataset), count, embedding, DIM, trainer.seed, of_model)
    codes_N = from_rank_0(accelerator, lambda: kept_codes(_places(trainer), about, len(dataset)))
    if codes_N is None:
        vectors_ND = _vectors(trainer, dataset, embedding)
        codes_N = from_rank_0(accelerator, lambda: _grouped(vectors_ND, count, trainer))
    found = split(dataset, SourceLabels(cluster_names(count), codes_N))
    found.about = about
    found.words = from_rank_0(accelerator, lambda: source_words(found, trainer.processing_class, trainer.seed))
    sizes = zip(found.names, found.sizes.tolist(), strict=True)
    told = ", ".join(f"{name} {size}{in_brackets(found.words.get(name, ()))}" for name, size in sizes)
    logger.info("mixture_by: cluster:%d makes sources of %d rows: %s", count, len(dataset), told)
    return found


def by_size(codes_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the groups numbered anew, the largest first; of those with as many rows, that of the first row first."""
    found, first, counts = np.unique(codes_N, return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))
    places = np.empty(int(found.max()) + 1, dtype=np.int64)
    places[found[order]] = np.arange(len(found))
    renamed_N: NDArray[np.int64] = places[codes_N]
    return renamed_N


def kept_codes(places: Iterable[Path], about: str, rows: int) -> NDArray[np.int64] | None:
    """Returns the group of each row as it was kept: (N,); None where nothing is kept of these rows and this model.

    Args:
        places: Checkpoints and folders of runs, those to look into first.
        about: What the groups depend on.
        rows: N.
    """
    for place in places:
        try:
            kept = _read(place)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, CheckpointError):
            continue  # a checkpoint that cannot be read is refused where it is resumed
        if kept is not None and kept.get("about") == about and len(kept["codes"]) == rows:
            return np.asarray(kept["codes"], dtype=np.int64)
    return None


def save_sources(folder: Path, dataset: SplitSources) -> None:
    """Writes the sources into a run's folder: their names, and the number of each row's in the order as given."""
    with replacing(folder / SOURCES) as temporary, open(temporary, "wb") as file:
        about = {"about": np.array(dataset.about), "names": np.array(dataset.names, dtype=np.str_)}
        np.savez(file, codes=dataset.codes, given=dataset.given, **about)  # type: ignore[arg-type]  # arrays by name


class KeptSources:
    """The sources that ``mixture_by`` made, as a part of a checkpoint.

    Args:
        dataset: The train dataset.
    """

    def __init__(self, dataset: SplitSources) -> None:
        self._dataset = dataset

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of each row's source, and what that depends on."""
        return {"about": self._dataset.about, "codes": self._dataset.codes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Does nothing: the sources are part of the identity of a run, which was compared before."""


def _vectors(trainer: Host, dataset: Any, embedding: str) -> NDArray[np.float32]:
    """Returns (N, D) on rank 0, none elsewhere. Collective."""
    tokenizer, collate = trainer.processing_class, trainer.scoring_collator
    del trainer.scoring_collator  # it is one for rows of one dataset
    embedder = Embedder(embedding, DIM, "mean", None, collate, trainer.accelerator, tokenizer)
    problem = embedder.without_tokenizer()
    if problem is not None:
        raise ConfigError(f"mixture_{problem}")
    rows = np.arange(len(dataset), dtype=np.int64)
    return embedder.embed(trainer.model, dataset, rows, "mixture_by", everywhere=False)


def _grouped(vectors_ND: NDArray[np.float32], count: int, trainer: Host) -> NDArray[np.int64]:
    generator = np.random.Generator(np.random.Philox(key=seeded(trainer.seed, "mixture_by", count)))
    with Progress(f"mixture_by: grouping {len(vectors_ND):,} rows", bar=None):
        nearest_NK = k_means(vectors_ND, count, generator, trainer.accelerator.device)
    codes_N = by_size(nearest_NK[:, 0])
    made = int(codes_N.max()) + 1
    if made < count:
        way_out = f"write cluster:{made}" if made > 1 else "leave mixture_by out"
        raise ConfigError(
            f"mixture_by: cluster:{count}: the rows fall into {made} different groups, as many of them are the same -> "
            f"{way_out}"
        )
    return codes_N


def _places(trainer: Host) -> list[Path]:
    """Returns where the groups of an earlier part of the run may lie."""
    given = named_checkpoint(trainer.args.resume_from_checkpoint)
    checkpoints = [Path(given)] if isinstance(given, str) else []
    return [*checkpoints, Path(trainer.output_dir)]


def _read(place: Path) -> Mapping[str, Any] | None:
    file = place / SOURCES
    if file.is_file():
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as found:
            return {"about": str(found["about"]), "codes": found["codes"]}
    if not (place / STATE_FILE).is_file():
        return None
    state = load_state(place).get(STATE)
    return state if isinstance(state, Mapping) else None
