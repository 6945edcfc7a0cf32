"""One vector per row by the key ``embedding``, for whoever compares rows with a target or with each other.

ngrams        hashed n-grams of the tokens; the same at every update, computed in seconds (see ngrams.py)
model         the pooled last hidden states of the model being trained; one forward pass, and it moves with training
anything else a sentence-transformers model by name or path, which reads the decoded text
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.core.cost import Ahead, Amount, Work
from dataflex.core.embedding_names import BUILT_IN, embedding_problem
from dataflex.core.errors import ComponentError, Problem
from dataflex.core.parameter_checks import count, one_of
from dataflex.core.ranks.by_row import gather_by_row
from dataflex.model.autocast import autocast
from dataflex.rows.columns import read_chunks
from dataflex.scoring.embeddings import POOLINGS, hidden_state_embeddings
from dataflex.scoring.ngrams import ngram_embeddings
from dataflex.scoring.passes.row_pass import Collator
from dataflex.scoring.trial import try_embeddings
from dataflex.utils.progress import Progress, tracked

if TYPE_CHECKING:
    from accelerate import Accelerator

SENTENCE_WIDTH = 768
"""Taken for the vectors of a sentence-transformers model, which tells its width when it is loaded."""

_HEAD = 64  # tokens that nearly always show whether a row has text
_TEXTS = 256  # texts that go to a sentence-transformers model at a time


@dataclass(frozen=True)
class Embedder:
    """How rows become vectors. Every rank makes the same one.

    Attributes:
        embedding: ``ngrams``, ``model``, or the name or path of a sentence-transformers model.
        dim: Buckets of ``ngrams``.
        pooling: How the hidden states of ``model`` become one vector: ``mean``, ``last`` or ``weighted``.
        token_budget: Tokens that ``model`` embeds at once; None for a default that suits the device.
        collator: Makes a batch of tensors from a list of rows.
        accelerator: The run's accelerator; None means a single process.
        tokenizer: Turns tokens back into text for a sentence-transformers model.
    """

    embedding: Any
    dim: Any
    pooling: Any
    token_budget: Any
    collator: Collator
    accelerator: Accelerator | None
    tokenizer: Any

    def without_tokenizer(self) -> Problem | None:
        """Returns a problem where text is to be read and the run has no tokenizer."""
        if self.tokenizer is not None or self.embedding in BUILT_IN or embedding_problem(self.embedding) is not None:
            return None
        what = f"{self.embedding!r} reads text, and the run has no tokenizer to turn tokens into text"
        return Problem("embedding", what, "give the trainer a processing_class, or use ngrams or model")

    @property
    def moves(self) -> bool:
        """Whether a row's vector changes as the model is trained."""
        return bool(self.embedding == "model")

    def embed(
        self, model: torch.nn.Module, dataset: Any, rows: NDArray[np.int64], desc: str, *, everywhere: bool = True
    ) -> NDArray[np.float32]:
        """Returns the vectors of the rows: (n, D) float32 of length 1, the same on every rank. Collective.

        Args:
            model: The model being trained.
            dataset: The tokenised dataset.
            rows: (n,) row numbers, at least one.
            desc: What a progress bar says.
            everywhere: Whether every rank gets them; otherwise rank 0 alone does, and the others none.
        """
        if self.embedding == "ngrams" and not (everywhere or self._is_rank_0):
            return np.empty((0, self.dim), dtype=np.float32)
        if self.embedding == "ngrams":  # on every rank: faster than a broadcast
            return self._ngrams(dataset, rows, desc)
        if self.moves:
            return hidden_state_embeddings(
                model,
                dataset,
                collator=self.collator,
                accelerator=self.accelerator,
                indices=rows,
                token_budget=self.token_budget,
                pooling=self.pooling,
                desc=desc,
                everywhere=everywhere,
            )
        return self._sentences(dataset, rows, desc, everywhere)

    @property
    def _is_rank_0(self) -> bool:
        return self.accelerator is None or self.accelerator.process_index == 0

    def try_on(self, model: torch.nn.Module, dataset: Any, rows: NDArray[np.int64]) -> None:
        """Embeds a row or two on this rank alone, and forgets the vectors.

        Args:
            model: The model to be trained.
            dataset: The tokenised dataset.
            rows: Which rows.

        Raises:
            ComponentError: The model gives no hidden states, or gives a row other ones in another batch; a
                sentence-transformers model cannot be loaded.
        """
        if self.moves:
            try_embeddings(model, dataset, rows, self.collator, self.accelerator, self.pooling)
            return
        alone = replace(self, accelerator=None)
        with autocast(self.accelerator):
            alone.embed(model, dataset, rows, "embedding")

    def _ngrams(self, dataset: Any, rows: NDArray[np.int64], desc: str) -> NDArray[np.float32]:
        vectors = []
        with Progress(f"{desc}: counting n-grams", len(rows)) as progress:
            for chunk in read_chunks(dataset, rows):
                vectors.append(ngram_embeddings(chunk, self.dim))
                progress.done(len(chunk))
        return np.concatenate(vectors)

    def _sentences(self, dataset: Any, rows: NDArray[np.int64], desc: str, everywhere: bool) -> NDArray[np.float32]:
        rank, world_size, device = 0, 1, None
        if self.accelerator is not None:
            rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
            device = str(self.accelerator.device)
        encoder = self._encoder(device)
        # The chunks are the same for any number of ranks, so that a text is always padded to the same length.
        mine = [np.arange(s, min(s + _TEXTS, len(rows))) for s in range(0, len(rows), _TEXTS)][rank::world_size]
        vectors = []
        with Progress(desc, sum(map(len, mine))) as progress:
            for places in mine:
                vectors.append(self._encoded(encoder, dataset, rows[places]))
                progress.done(len(places))
        empty = self._encoded(encoder, dataset, rows[:1])[:0]  # a rank without a chunk needs the width too
        places = np.concatenate([np.empty(0, dtype=np.int64), *mine])
        found = torch.cat([empty, *vectors])
        return gather_by_row(places, found, len(rows), self.accelerator, everywhere=everywhere)

    def _encoder(self, device: str | None) -> Any:
        library = importlib.import_module("sentence_transformers")
        try:
            return library.SentenceTransformer(self.embedding, device=device)
        except (OSError, ValueError) as error:
            raise ComponentError(
                f"embedding: {self.embedding} cannot be loaded as a sentence-transformers model: {error} -> give its "
                "folder, or use embedding: ngrams or model"
            ) from error

    def says_something(self, dataset: Any, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns whether each row, which has tokens, has content for the embedding: (n,)."""
        if self.embedding in ("ngrams", "model"):
            return np.ones(len(rows), dtype=np.bool_)
        found = (self._have_text(chunk) for chunk in read_chunks(dataset, rows))
        followed = tracked(found, "looking for rows with text", len(rows), size=len)
        return np.concatenate([np.empty(0, dtype=np.bool_), *followed])

    def _have_text(self, tokens: list[NDArray[np.int64]]) -> NDArray[np.bool_]:
        """Returns which rows have text besides special tokens. A whole row is decoded where its head has none."""
        found = np.array([bool(text.strip()) for text in self._texts([ids[:_HEAD] for ids in tokens])], dtype=np.bool_)
        open_rows = [row for row in np.flatnonzero(~found) if len(tokens[row]) > _HEAD]
        if open_rows:
            found[open_rows] = [bool(text.strip()) for text in self._texts([tokens[row] for row in open_rows])]
        return found

    def _texts(self, tokens: list[NDArray[np.int64]]) -> list[str]:
        found: list[str] = self.tokenizer.batch_decode([ids.tolist() for ids in tokens], skip_special_tokens=True)
        return found

    def _encoded(self, encoder: Any, dataset: Any, rows: NDArray[np.int64]) -> torch.Tensor:
        texts = [text for chunk in read_chunks(dataset, rows) for text in self._texts(chunk)]
        return torch.from_numpy(encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False)).float()


def embedding_work(params: Mapping[str, Any], rows: Amount) -> Work:
    """Returns what it costs to embed rows with these parameters of an :class:`Embedder`."""
    match params["embedding"]:
        case "ngrams":
            return Work(ngrams=rows)
        case "model":
            return Work(hidden=rows)
    return Work(others={str(params["embedding"]): rows})


def vector_width(params: Mapping[str, Any], ahead: Ahead) -> int:
    """Returns the numbers of a vector that :func:`embedding_work` makes."""
    widths = {"ngrams": params["dim"], "model": ahead.width}
    return int(widths.get(params["embedding"], SENTENCE_WIDTH))


def embedding_problems(embedding: Any, dim: Any, pooling: Any) -> list[Problem | None]:
    """Returns what is wrong with these parameters of an :class:`Embedder`."""
    return [embedding_problem(embedding), count("dim", dim), one_of("pooling", pooling, POOLINGS)]
