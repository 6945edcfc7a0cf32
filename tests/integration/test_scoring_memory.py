"""The memory of a scoring pass is that of a batch and of the result, not of the number of rows."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = '''
import numpy as np
import torch
from dataflex.scoring import RowPass, TargetSet, influences, per_sample_gradients, per_sample_losses, target_means
from dataflex.testing import TokenRows, pad_collate, tiny_model

torch.set_num_threads(1)


class Many:
    """As many rows as asked for, of which each is made when it is read."""

    def __init__(self, count):
        self.few, self.count = TokenRows(1000, vocab_size=64, lengths=range(4, 9)), count
        self.lengths = np.array([len(self.few[i]["input_ids"]) for i in range(1000)])

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        return self.few[row % 1000]

    def row_lengths(self):
        return np.resize(self.lengths, self.count)


def peak():  # of this program; getrusage gives that of the process it was started from, where that was larger
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024


model = tiny_model(vocab_size=64, hidden=16, layers=1)
target = [TargetSet("target", TokenRows(8, vocab_size=64, lengths=6))]


def score(count):
    rows = RowPass(Many(count), pad_collate, token_budget=8192, progress=False)
    with per_sample_gradients(model) as gradients:
        found = influences(gradients, model, target_means(gradients, model, target, rows), rows)
    losses = per_sample_losses(model, Many(count), collator=pad_collate, token_budget=8192, progress=False)
    assert found.shape == (count, 1) and losses.shape == (count,)


score(3000)
before = peak()
score(100_000)
print(peak() - before)
'''


@pytest.mark.slow
def test_peak_memory_is_flat_from_three_thousand_rows_to_a_hundred_thousand():
    found = []
    while len(found) < 3 and min(found, default=40) >= 40:  # the allocator only ever adds to what the pass needs
        done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(float(done.stdout))
    # Row numbers, lengths and results take some 50 bytes a row; features of all rows would take 1.2 GB.
    assert min(found) < 40, "MB more"
