"""What the model says about rows, computed once for every strategy.

    from dataflex.scoring import per_sample_losses

    losses_N = per_sample_losses(model, dataset, collator=collator, accelerator=accelerator)
    hardest = np.argsort(-losses_N)[:100]          # NaN, a row without labels, sorts last

    with per_sample_gradients(model, accelerator) as gradients:
        rows = RowPass(dataset, collator, accelerator)
        means = target_means(gradients, model, [TargetSet("target", target_rows)], rows)
        influence_NJ = influences(gradients, model, means, rows)

Scores are the same on every rank, whatever the number of ranks, and nothing of the run is disturbed. A strategy that
calls the model in its own way runs inside :func:`undisturbed` anyway, and hands its function
of a batch to :class:`RowPass`.
"""

from dataflex.core.ranks.by_row import gather_by_row
from dataflex.model.cross_entropy import sample_means, token_losses
from dataflex.model.label_logits import label_positions, logits_at_labels
from dataflex.model.undisturbed import undisturbed
from dataflex.rows.lengths import KnowsRowLengths, row_lengths
from dataflex.scoring.embeddings import hidden_state_embeddings
from dataflex.scoring.gradients.adam import AdamDirection, read_moments
from dataflex.scoring.gradients.factors import FactoredAdam
from dataflex.scoring.gradients.influence import (
    TargetSet,
    gradient_features,
    influences,
    step_features,
    target_means,
)
from dataflex.scoring.gradients.kept_targets import KeptTargets
from dataflex.scoring.gradients.optimizer_groups import learning_rates, times_rates
from dataflex.scoring.gradients.per_row import per_sample_gradients
from dataflex.scoring.gradients.sketch import Sketch
from dataflex.scoring.losses import per_sample_losses
from dataflex.scoring.passes.batch_plan import Batch, plan_batches, shard_batches
from dataflex.scoring.passes.budget import agreed_budget, default_token_budget
from dataflex.scoring.passes.row_pass import RowBatch, RowPass, without_replicas
from dataflex.scoring.passes.score_store import ScoreStore
from dataflex.scoring.target_rows import Target, read_target

__all__ = [
    "AdamDirection",
    "Batch",
    "FactoredAdam",
    "KeptTargets",
    "KnowsRowLengths",
    "RowBatch",
    "RowPass",
    "ScoreStore",
    "Sketch",
    "Target",
    "TargetSet",
    "agreed_budget",
    "default_token_budget",
    "gather_by_row",
    "gradient_features",
    "hidden_state_embeddings",
    "influences",
    "label_positions",
    "learning_rates",
    "logits_at_labels",
    "per_sample_gradients",
    "per_sample_losses",
    "plan_batches",
    "read_moments",
    "read_target",
    "row_lengths",
    "sample_means",
    "shard_batches",
    "step_features",
    "target_means",
    "times_rates",
    "token_losses",
    "undisturbed",
    "without_replicas",
]
