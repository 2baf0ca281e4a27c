"""The page of what was measured: how good predictions are, and kernel by kernel where the fast configs lie."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from costmodel import evaluate, uncertainty
from costmodel.dataset import kernel_identity, space_key
from costmodel.notebook import format_us
from costmodel.records import Config, Measurement, Prediction, UserError
from costmodel.replay import COSTS, RecordedSpace
from costmodel.replay import spaces as recorded_spaces
from costmodel.report.devices import device_section
from costmodel.report.figures import DEFAULT, PICK, calibration_figure, floor_figure, landscape_figure, predicted_figure
from costmodel.report.landscape import Told, floor_words, times, told_of, value_chips
from costmodel.report.page import (
    Column,
    Html,
    counted,
    details,
    escaped,
    facts,
    heading,
    page,
    paragraph,
    picture,
    side_by_side,
    table,
)
from costmodel.report.style import Look, looks

MIN_SPACE = evaluate.MIN_SPACE
MOST_KERNELS = 40  # that get a part of their own
MOST_CURVES = 6  # in one figure
MIN_DOTS = 4  # problems; fewer are told in words
MOST_ROWS = 12  # of a kernel's table
KERNEL_DOTS = 300  # of a kernel's predictions


def measured_html(
    measurements: Sequence[Measurement],
    *,
    title: str = "Measured kernels",
    defaults: Mapping[str, Config],
    predictions: Sequence[Prediction] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """One page for measurements (one per identity, failures among them).

    defaults: kernel identity -> default config, for those known. predictions: of the successful measurements, in order;
    without them the page says nothing of a model. notes: sentences below the headline figures.
    """
    fine = [m for m in measurements if m.status == "ok"]
    if not fine:
        raise UserError(f"got {len(measurements)} measurements and none that is ok, expected some to show")
    answers = list(predictions) if predictions is not None else []
    asked = {(space_key(m), m.variant): p for m, p in zip(fine, answers, strict=bool(answers))}
    spaces = [told_of(space, asked) for space in recorded_spaces(measurements, defaults, min_size=1)]
    accuracy = _accuracy(fine, answers)
    kernels: dict[str, list[Told]] = {}
    for told in spaces:
        kernels.setdefault(told.space.kernel.name, []).append(told)
    own = {name: members for name, members in kernels.items() if max(t.configs for t in members) >= MIN_SPACE}
    kept = sorted(own, key=lambda name: -sum(t.configs for t in own[name]))[:MOST_KERNELS]
    own = {name: own[name] for name in sorted(kept)}
    return page(
        title,
        facts(_headline(measurements, spaces, accuracy)),
        *map(paragraph, notes),
        _predicted_section(fine, answers, accuracy),
        _kernels_section(own, accuracy, left_out=len(kernels) - len(own)) if spaces else "",
        device_section(spaces),
        _time_section(measurements, spaces),
    )


def _accuracy(fine: Sequence[Measurement], answers: Sequence[Prediction]) -> pd.DataFrame | None:
    """`evaluate`'s table by kernel, its mean last; None where no space is large enough to say anything."""
    if not answers or max(Counter(map(space_key, fine)).values()) < MIN_SPACE:
        return None
    return evaluate.evaluate(fine, answers, by="kernel").set_index("group")


def _headline(
    measurements: Sequence[Measurement], spaces: Sequence[Told], accuracy: pd.DataFrame | None
) -> dict[str, str]:
    failed = sum(m.status != "ok" for m in measurements)
    gains = [told.default_us / told.best.latency_us for told in spaces if told.default_us is not None]
    found = {
        "measurements": f"{len(measurements):,}",
        "failed": f"{failed:,}",
        "kernels": f"{len({kernel_identity(m.variant.kernel) for m in measurements}):,}",
        "problems on a device": f"{len({(space_key(m), m.variant.problem) for m in measurements}):,}",
        "devices": f"{len({m.device.name for m in measurements})}",
    }
    if gains:
        found["default over best, geometric mean"] = times(statistics.geometric_mean(gains))
    if accuracy is not None:
        mean = accuracy.loc["mean"]
        found |= {
            "rank correlation (Spearman)": _correlation(mean["spearman"]),
            "median error": _share(mean["median_ape"]),
            "error at the best scale": _share(mean["mape_scaled"]),
            "optimum over the first pick": _share(mean["top1"]),
            "held by 90 % intervals": _share(mean["coverage90"]),
        }
    return found


def _correlation(value: float) -> str:
    """Nothing has an order where all latencies, or all predictions, are equal."""
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _share(value: float) -> str:
    return f"{value:.1%}" if math.isfinite(value) else "scale unknown"


# ---------------------------------------------------------------------------------------------------------- the model


def _predicted_section(
    fine: Sequence[Measurement], answers: Sequence[Prediction], accuracy: pd.DataFrame | None
) -> str:
    if not answers:
        return ""
    logs = uncertainty.log2_quantiles(answers, [0.5])[0]
    moved = 2.0 ** uncertainty.at_best_scale(
        [math.log2(m.latency_us) for m in fine], logs, answers, [space_key(m) for m in fine]
    )
    true = np.array([m.latency_us for m in fine])
    unknown = sum(not p.scale_known for p in answers)
    scale = f" The scale of {unknown} is unknown to the model; each space was moved to its best." * bool(unknown)
    ranks = uncertainty.claimed_ranks(answers, moved.tolist())
    parts = [
        heading("Predicted against measured"),
        side_by_side(
            picture(
                predicted_figure(true, 2.0**logs * true / moved),
                f"Predicted against measured latency of {len(fine)} configs",
                caption=f"{counted(len(fine), 'config')}; on the dotted line both are equal.{scale}",
            ),
            picture(
                calibration_figure(ranks.tolist()),
                "Share of configs below each claimed quantile",
                caption="On the dotted line claims come true: above it latencies were overestimated, below it "
                "underestimated; flatter than it, intervals are too narrow.",
            ),
        ),
    ]
    if accuracy is not None:
        parts += [
            paragraph(
                f"By kernel, means over its problems with at least {MIN_SPACE} configs. Top-1 and top-10: the optimum "
                "over the best of the 1 and 10 predicted fastest."
            ),
            details("The table", _accuracy_table(accuracy)),
        ]
    return "".join(parts)


def _accuracy_table(accuracy: pd.DataFrame) -> Html:
    names = {
        "spearman": "Spearman", "kendall": "Kendall", "median_ape": "median error", "mape_scaled": "at best scale",
        "top1": "top-1", "top10": "top-10", "coverage90": "90 % held",
    }  # fmt: skip
    rows = [
        [name, f"{row['n']:.0f}", *(f"{row[column]:.3f}" if math.isfinite(row[column]) else "" for column in names)]
        for name, row in accuracy.iterrows()
    ]
    return table(["kernel", "configs", *names.values()], rows)


# -------------------------------------------------------------------------------------------------------- the kernels


def _kernels_section(kernels: Mapping[str, Sequence[Told]], accuracy: pd.DataFrame | None, *, left_out: int) -> str:
    if not kernels:
        return heading("Kernels") + paragraph(
            f"No problem has {MIN_SPACE} measured configs yet, so there is no landscape."
        )
    anchors = {name: f"kernel-{place}" for place, name in enumerate(kernels)}
    others = (
        f" Left out: {counted(left_out, 'kernel')}, of fewer than {MIN_SPACE} configs a problem, or beyond the "
        f"{MOST_KERNELS} with the most."
    ) * bool(left_out)
    headings = ["kernel", "problems", "configs", "failed", "default / best", "best / floor", "pick / best", "Spearman"]
    rows = [
        [
            Html(f'<a href="#{anchors[name]}">{escaped(name)}</a>'),
            len(members),
            sum(told.configs for told in members),
            sum(told.space.failures for told in members) or "",
            _mean(t.default_us / t.best.latency_us for t in members if t.default_us is not None),
            _mean(t.best.latency_us / t.floor_us for t in members if t.floor_us),
            _mean(t.pick.latency_us / t.best.latency_us for t in members if t.pick is not None),
            _spearman(accuracy, name),
        ]
        for name, members in kernels.items()
    ]
    return (
        heading("Kernels")
        + paragraph(
            "Geometric means over problems. The default is the config that the kernel ships with; the model's pick is "
            f"the measured config that it predicts to be the fastest.{others}"
        )
        + table(headings, rows)
        + "\n".join(
            _kernel_part(name, members, anchors[name], alone=len(kernels) == 1) for name, members in kernels.items()
        )
    )


def _mean(factors: Iterable[float]) -> str:
    known = list(factors)
    return times(statistics.geometric_mean(known)) if known else ""


def _spearman(accuracy: pd.DataFrame | None, name: str) -> str:
    return _correlation(accuracy.loc[name, "spearman"]) if accuracy is not None and name in accuracy.index else ""


def _kernel_part(name: str, members: Sequence[Told], anchor: str, *, alone: bool) -> str:
    largest = sorted(members, key=lambda told: -told.configs)
    more = len(largest) - MOST_ROWS
    drawn = [told for told in largest if told.configs >= MIN_SPACE][:MOST_CURVES]
    styles = looks(drawn)
    several = len({told.space.device.name for told in members}) > 1
    labels = [_label(told.space, several=several) for told in drawn]
    key = dict(zip(labels, styles, strict=True))
    key |= {"default": DEFAULT} if any(told.default_us is not None for told in drawn) else {}
    key |= {"model's pick": PICK} if any(told.pick is not None for told in drawn) else {}
    curves = [
        (style, told.space.latencies_us, told.default_us, told.pick.latency_us if told.pick else None)
        for style, told in zip(styles, drawn, strict=True)
    ]
    pairs = [pair for told in drawn for pair in told.pairs]
    pictures = [
        picture(
            landscape_figure(curves),
            f"{name}: latencies of its configs, sorted, as multiples of the best, on {len(drawn)} problems",
            key=key,
        )
    ]
    if pairs and not alone:  # a page of one kernel has shown them
        pictures.append(
            picture(
                predicted_figure(*zip(*pairs, strict=True), most=KERNEL_DOTS),
                f"{name}: predicted against measured latency of {len(pairs)} configs",
                caption="Predicted against measured, of these problems.",
            )
        )
    return details(
        name,
        side_by_side(*pictures),
        "<h3>What each value costs</h3>",
        paragraph("The best config with that value over the best of all, geometric mean over problems."),
        value_chips([told.space for told in drawn]),
        "<h3>Problems</h3>",
        _problems_table(largest[:MOST_ROWS], several=several),
        paragraph(f"{counted(more, 'problem')} more, of fewer configs.") if more > 0 else "",
        note=f"{counted(len(members), 'problem')}, {counted(sum(told.configs for told in members), 'config')}",
        anchor=anchor,
        opened=alone,
    )


def _label(space: RecordedSpace, *, several: bool) -> str:
    return f"{space.problem}, {space.device.name}" if several else str(space.problem) or "no sizes"


def _problems_table(members: Sequence[Told], *, several: bool) -> Html:
    problem, config = Column("problem", text=True), Column("best config", text=True)
    rows = [
        [
            _label(told.space, several=several),
            told.configs,
            format_us(told.best.latency_us),
            str(told.best.variant.config),
            times(told.default_us / told.best.latency_us) if told.default_us is not None else "",
            times(told.pick.latency_us / told.best.latency_us) if told.pick is not None else "",
            f"{format_us(told.floor_us)}, {told.limit}" if told.limit else "",
        ]
        for told in members
    ]
    return table([problem, "configs", "best", config, "default", "model's pick", "floor"], rows)


# ----------------------------------------------------------------------------------------------------------- the time


def _time_section(measurements: Sequence[Measurement], spaces: Sequence[Told]) -> str:
    limited = [told for told in spaces if told.limit]
    costs = {name: sum(dict(m.counters).get(name, 0.0) for m in measurements) for name in COSTS}
    if not limited and not any(costs.values()):
        return ""
    parts = [heading("Where the time goes")]
    if len(limited) >= MIN_DOTS:
        parts.append(_floor_picture(limited))
    else:
        parts += [paragraph(f"{told.space.name} on {told.space.device.name}: {floor_words(told)}.") for told in limited]
    if any(costs.values()):
        words = {"compile_us": "compiling", "verification_us": "checking", "benchmark_us": "running"}
        told_costs = ", ".join(f"{words[name]} {_duration(us)}" for name, us in costs.items() if us)
        parts.append(paragraph(f"Measuring took: {told_costs}."))
    return "".join(parts)


def _floor_picture(limited: Sequence[Told]) -> Html:
    pairs: dict[str, list[tuple[float, float]]] = {}
    for told in limited:
        pairs.setdefault(told.limit, []).append((told.floor_us, told.best.latency_us))
    pairs = dict(sorted(pairs.items()))
    styles = {name: Look(look.colour, dot="full") for name, look in zip(pairs, looks(pairs), strict=True)}
    numbers = ", ".join(f"{name} {len(members)}" for name, members in pairs.items())
    return picture(
        floor_figure(pairs, styles),
        f"Best measured latency against the analytic floor of each problem, by what limits it: {numbers}",
        caption=f"A dot a problem: its best config against the analytic floor, by what limits it ({numbers}). On the "
        "dotted line the floor is reached; below it data came from cache.",
        key=styles,
    )


def _duration(us: float) -> str:
    for seconds, unit in ((3600, "h"), (60, "min")):
        if us >= 1e6 * seconds:
            return f"{us / 1e6 / seconds:.1f} {unit}"
    return f"{us / 1e6:.1f} s"
