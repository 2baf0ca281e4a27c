"""What the literature says of numeric heads, seen on data whose truth is known: tables, and a picture with --plot.

    python benchmarks/numeric_heads.py density      # two modes: Wasserstein distance of each head to the truth
    python benchmarks/numeric_heads.py data         # error against the number of rows: decoder, histogram, and others
    python benchmarks/numeric_heads.py tails        # heavy tails: mean, median and mode
    python benchmarks/numeric_heads.py layouts      # P10: where the exponent stands, and the mantissa as one token
    python benchmarks/numeric_heads.py bits         # risk against bits, beside 2^-2k/12 int f'^2 + 2^k/N
    python benchmarks/numeric_heads.py repeat       # outliers of a number written 1, 3 and 5 times
    python benchmarks/numeric_heads.py grids        # RAFT: from 2 tokens to 257, over the same range
    python benchmarks/numeric_heads.py sampled      # the loss that samples err by, against RAFT: entropy and error
    python benchmarks/numeric_heads.py tables       # scikit-learn's data: NLL and its spread over seeds, by head

Every figure is a mean over --seeds (data and weights drawn anew), with its standard deviation. The last line is
one JSON document.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats
import sklearn.datasets
import torch
from over_seeds import as_json, over_seeds

from costmodel.codecs.digits import Normalized
from costmodel.codecs.grids import LinearGrid
from costmodel.codecs.repeated import Repeated
from costmodel.model.digit_head import DigitHead
from costmodel.model.grid_head import GridHead
from costmodel.tabular import TabularRegressor

SMALL = {"hidden_size": 32, "layers": 1}


def two_modes(rng, rows):
    """x in [0, 1]; y is near 0.3 + 0.4 x or near -0.5, with chances 0.7 and 0.3 -> x (rows, 1), y (rows,)."""
    x = rng.uniform(0, 1, (rows, 1))
    upper = rng.random(rows) < 0.7
    return x, np.where(upper, 0.3 + 0.4 * x[:, 0], -0.5) + 0.05 * rng.normal(size=rows)


def density(seed):
    rng = np.random.default_rng(seed)
    x, y = two_modes(rng, 4000)
    rows = []
    for head in (
        "normalized",
        "fixed-point",
        "grid:hl-gauss",
        "grid:hard",
        "riemann",
        "mixture:nll",
        "pointwise:squared",
    ):
        model = regressor(head, steps=800, seed=seed).fit(x, y)
        distances = []
        for place in (0.1, 0.5, 0.9):
            told = model.distribution([[place]])
            at = 0.7, 0.3 + 0.4 * place
            truth = np.where(rng.random(20000) < at[0], at[1], -0.5) + 0.05 * rng.normal(size=20000)
            support, weights = told.support[0].numpy(), told.weights[0].numpy()
            distances.append(scipy.stats.wasserstein_distance(support, truth, weights))
        rows.append({"head": head, "wasserstein": float(np.mean(distances))})
    return rows


def wave(rng, rows, *, noise=0.1, tails=False):
    """Five features, of which three matter; the noise is normal, or e to a Student t -> x, y, truth."""
    x = rng.uniform(-1, 1, (rows, 5))
    truth = np.sin(3 * x[:, 0]) + x[:, 1] ** 2 + 0.5 * x[:, 2]
    if tails:
        truth = np.exp(truth)
        return x, truth * np.exp(0.7 * rng.standard_t(5, size=rows)), truth
    return x, truth + noise * rng.normal(size=rows), truth


def data(seed):
    rows = []
    for count in (50, 200, 800, 3200):
        rng = np.random.default_rng(seed)
        x, y, _ = wave(rng, count)
        test, _, truth = wave(np.random.default_rng(1000 + seed), 500)
        for head in ("normalized", "riemann", "grid", "mixture:nll", "pointwise:squared", "grid:raft"):
            model = regressor(head, steps=400, seed=seed).fit(x, y)
            error = np.sqrt(np.mean((model.predict(test) - truth) ** 2)) / truth.std()
            rows.append({"rows": count, "head": head, "error": float(error)})
    return rows


def tails(seed):
    rng = np.random.default_rng(seed)
    x, y, _ = wave(rng, 1500, tails=True)
    test, _, truth = wave(np.random.default_rng(1000 + seed), 300, tails=True)
    rows = []
    for head in ("p10", "ieee", "fixed-point", "grid"):
        model = regressor(head, steps=500, seed=seed).fit(x, y)
        for readout in ("mean", "median", "mode"):
            off = np.abs(model.predict(test, readout=readout) - truth) / truth
            rows.append(
                {"head": head, "readout": readout, "median_ape": float(np.median(off)), "mape": float(off.mean())}
            )
    return rows


def layouts(seed):
    rows = []
    for count in (100, 400, 1600):
        x, y, _ = wave(np.random.default_rng(seed), count)
        test, _, truth = wave(np.random.default_rng(1000 + seed), 300)
        for head in ("p10", "p10-merged", "p10-exponent-first", "ieee", "normalized"):
            model = regressor(head, steps=400, seed=seed).fit(x, y)
            off = np.abs(model.predict(test, readout="median") - truth) / truth.std()
            rows.append({"rows": count, "head": head, "error": float(off.mean())})
    return rows


def bits(seed):
    """A Beta(2, 4) density on [0, 1], told by the features nothing: the tree of bins alone."""
    shape = scipy.stats.beta(2, 4)
    fine = (np.arange(4096) + 0.5) / 4096
    f = shape.pdf(fine)
    slope = float(np.mean(np.gradient(f, fine) ** 2))
    rows = []
    for count in (300, 3000, 30000):
        y = shape.rvs(count, random_state=np.random.default_rng(seed))
        low, high = (0 - y.mean()) / y.std(), (1 - y.mean()) / y.std()
        for k in range(1, 9):
            make = partial(digits, codec=Normalized(low=low, high=high, base=2, digits=k))
            model = TabularRegressor(make, steps=300, batch=512, seed=seed, **SMALL).fit(np.zeros((count, 1)), y)
            exact = model.distribution([[0.0]])
            told = np.zeros(2**k)
            place = np.clip(((exact.support[0].numpy()) * 2**k).astype(int), 0, 2**k - 1)
            np.add.at(told, place, exact.weights[0].numpy() * 2**k)
            counted = np.histogram(y, bins=2**k, range=(0, 1))[0] * 2**k / count
            off = [float(np.mean((np.repeat(bins, len(f) // 2**k) - f) ** 2)) for bins in (told, counted)]
            formula = 2.0 ** (-2 * k) / 12 * slope + 2**k / count
            rows.append({"rows": count, "bits": k, "decoder": off[0], "counts": off[1], "formula": formula})
    return rows


def digits(width, z, codec):
    return DigitHead(width, codec)


def repeat(seed):
    """Samples of an under-trained decoder, each token with its own chance to be wild: the share that is far off."""
    x, y, _ = wave(np.random.default_rng(seed), 1500, noise=0.02)
    test, _, truth = wave(np.random.default_rng(1000 + seed), 100, noise=0.0)
    rows = []
    for times in (1, 3, 5):
        model = TabularRegressor(partial(repeated, times=times), steps=500, seed=seed, **SMALL).fit(x, y)
        uniforms = torch.rand(len(test), 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            scaled = model._scaled(test)
            z = model.head.sample(model.backbone, model._nothing(), *model._suffixes(scaled), uniforms)
        off = np.abs(model.y_mean + model.y_std * z.numpy() - truth[:, None]) / truth.std()
        rows.append(
            {"times": times, "share_off_by_a_deviation": float((off > 1).mean()), "mean_error": float(off.mean())}
        )
    return rows


def repeated(width, z, times):
    once = Normalized(low=float(z.min()), high=float(z.max()), base=8, digits=3)
    return DigitHead(width, Repeated(once, times=times))


def grids(seed):
    x, y, _ = wave(np.random.default_rng(seed), 1500)
    test, _, truth = wave(np.random.default_rng(1000 + seed), 500)
    rows = []
    for bins in (2, 3, 5, 9, 33, 257):
        for beyond in (0.0, 4.0):
            make = partial(even_grid, bins=bins, beyond=beyond)
            model = TabularRegressor(make, steps=400, seed=seed, **SMALL).fit(x, y)
            error = np.sqrt(np.mean((model.predict(test) - truth) ** 2)) / truth.std()
            rows.append({"tokens": bins, "beyond_the_ends": beyond, "error": float(error)})
    return rows


def even_grid(width, z, bins, beyond):
    """The first and the last token stand for the ends of z, or for what is so far beyond them."""
    half = (z.max() - z.min()) / (2 * bins - 2)
    grid = LinearGrid(low=float(z.min() - beyond - half), high=float(z.max() + beyond + half), bins=bins)
    return GridHead(width, grid, loss="raft")


def sampled(seed):
    x, y, _ = wave(np.random.default_rng(seed), 1500, noise=0.5)
    test, _, truth = wave(np.random.default_rng(1000 + seed), 500)
    rows = []
    for loss in ("raft", "sampled", "hard", "hl-gauss+raft"):
        model = regressor(f"grid:{loss}", steps=600, seed=seed).fit(x, y)
        told = model.distribution(test)
        entropy = -(told.weights * told.weights.clamp_min(1e-300).log()).sum(-1).mean()
        error = np.sqrt(np.mean((told.mean().numpy() - truth) ** 2)) / truth.std()
        rows.append({"loss": loss, "entropy_nats": float(entropy), "error": float(error)})
    return rows


def tables(seed):
    """Test NLL of standardised y (density within 0.05 of a deviation, one part in a hundred uniform over 20) and R2."""
    sets = {"diabetes": sklearn.datasets.load_diabetes(return_X_y=True)}
    for number, make in enumerate(("make_friedman1", "make_friedman2", "make_friedman3"), 1):
        sets[f"friedman{number}"] = getattr(sklearn.datasets, make)(
            1000, noise=0.1 if number == 3 else 1.0, random_state=0
        )
    rows = []
    for name, (x, y) in sets.items():
        order = np.random.default_rng(seed).permutation(len(y))
        train, test = order[: len(y) * 3 // 4], order[len(y) * 3 // 4 :]
        for head in ("normalized", "grid:hl-gauss", "grid", "riemann", "mixture:nll", "pointwise:squared"):
            model = regressor(head, steps=400, seed=seed).fit(x[train], y[train])
            told = model.distribution(x[test])
            z = torch.as_tensor(y[test])[:, None]
            near = ((told.support - z).abs() < 0.05 * model.y_std) * told.weights
            nll = -torch.log(0.99 * near.sum(-1) / 0.1 + 0.01 / 20).mean()
            r2 = 1 - np.mean((told.mean().numpy() - y[test]) ** 2) / np.var(y[test])
            rows.append({"set": name, "head": head, "nll": float(nll), "r2": float(r2)})
    return rows


def regressor(head, **options):
    name, _, loss = head.partition(":")
    return TabularRegressor(name, loss=loss or None, **SMALL, **options)


FIGURES = {f.__name__: f for f in (density, data, tails, layouts, bits, repeat, grids, sampled, tables)}
MEASURED = ("wasserstein", "error", "median_ape", "mape", "decoder", "counts", "formula", "share_off_by_a_deviation",
            "mean_error", "entropy_nats", "nll", "r2")  # fmt: skip


def plot(name, table, keys, measured, path):
    from matplotlib.figure import Figure

    picture = Figure(figsize=(6, 4), layout="constrained")
    axes = picture.subplots()
    across = keys[0] if pd.api.types.is_numeric_dtype(table[keys[0]]) else None
    if name == "bits":
        for count, rows in table.groupby("rows"):
            (line,) = axes.plot(rows["bits"], rows["decoder"], "o-", label=f"decoder, N = {count}")
            axes.plot(rows["bits"], rows["formula"], "--", color=line.get_color(), label="formula")
        axes.set(xlabel="bits", ylabel="integrated squared error", yscale="log")
    elif across and len(keys) > 1:
        for label, rows in table.groupby(keys[1], sort=False):
            axes.errorbar(
                rows[across], rows[measured[0]], yerr=rows[f"{measured[0]}_sd"], fmt="o-", capsize=2, label=label
            )
        axes.set(xlabel=across, ylabel=measured[0], xscale="log", yscale="log")
    else:
        labels = [" ".join(map(str, row)) for row in table[keys].to_numpy()]
        axes.barh(labels, table[measured[0]], xerr=table[f"{measured[0]}_sd"], capsize=2)
        axes.set(xlabel=measured[0])
        if name == "tails":
            axes.set(xscale="log")
        axes.invert_yaxis()
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    picture.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=FIGURES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--plot", type=Path, help="PNG to write")
    options = parser.parse_args()
    table, keys, measured = over_seeds(FIGURES[options.figure], options.seeds, measured=MEASURED, jobs=options.jobs)
    print(table.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    if options.plot:
        plot(options.figure, table, keys, measured, options.plot)
    print(as_json(table, figure=options.figure, seeds=options.seeds))


if __name__ == "__main__":
    main()
