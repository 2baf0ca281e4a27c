"""What a benchmark measures over several seeds, as one table: its figures' means and standard deviations.

Not run by itself; benchmarks/numeric_heads.py and benchmarks/transfer.py use it.
"""

import json

import pandas as pd
import torch
from joblib import Parallel, delayed


def over_seeds(figure, seeds, *, measured, jobs=1):
    """figure: seed -> rows, each of what it is a row of and of some figures named in `measured`.

    -> (table, the columns that name a row, the figures in it). Each seed is run on one thread; a figure's standard
    deviation over the seeds stands beside it, as its name with _sd.
    """
    parts = Parallel(n_jobs=jobs)(delayed(_one)(figure, seed) for seed in range(seeds))
    rows = pd.DataFrame([row for part in parts for row in part])
    figures = [name for name in measured if name in rows]
    keys = [name for name in rows.columns if name not in figures]
    grouped = rows.groupby(keys, sort=False)[figures]
    return grouped.mean().join(grouped.std().add_suffix("_sd")).reset_index(), keys, figures


def as_json(table, **settings):
    """One line; a deviation of one seed, which there is none of, is null."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return json.dumps({**settings, "rows": rows})


def _one(figure, seed):
    torch.set_num_threads(1)
    return figure(seed)
