"""A study's tables as Markdown. Every number in the documentation's study section comes from here."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.studies.study import Row, Study
from fastpower.evaluate.advice import predict
from fastpower.evaluate.statistics import (
    Difference,
    accuracy,
    by_problem,
    mean_over_problems,
    paired_bootstrap,
    pass_at_k_of,
)

GREEDY = 100.0  #: exponents from here on are called greedy
ALPHAS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0)


def methods_table(study: Study) -> str:
    """Accuracy, paired difference to low temperature, log p, cost, and how well the sampler moved."""
    base = study.rows("low_temperature")
    head = "method|problems × answers|accuracy ± s.e.|− low temperature [95 %]|log p|tokens|decoded|steps"
    lines = [[*head.split("|"), "accepted or ESS", "ended"], ["---"] * 10]
    for method in study.methods:
        rows = study.rows(method)
        groups = by_problem(rows)
        gap = "–" if method == "low_temperature" else interval(paired_bootstrap(rows, base))
        moved = _mean(rows, "acceptance") if _mean(rows, "acceptance") is not None else _mean(rows, "ess")
        steps = _mean(rows, "steps")
        lines.append(
            [
                label(method),
                f"{len(groups)} × {counts(groups)}",
                str(accuracy(rows)),
                gap,
                f"{mean_over_problems(rows, 'logp').mean:.1f}",
                f"{_mean(rows, 'tokens'):.0f}",
                f"{_mean(rows, 'decoded'):.0f}",
                "–" if steps is None else f"{steps:.0f}",
                "–" if moved is None else f"{100 * moved:.0f} %",
                f"{100 * (_mean(rows, 'ended') or 0.0):.0f} %",
            ]
        )
    return markdown(lines)


def pass_table(study: Study) -> str:
    """pass@k on the problems of which every method shown has as many answers; empty where there are none."""
    shown = [m for m in study.methods if min(map(len, by_problem(study.rows(m)).values())) >= 2 or m == "mh(moves=6)"]
    shown = [m for m in shown if max(map(len, by_problem(study.rows(m)).values())) >= 2]
    if len(shown) < 2:
        return ""
    groups = {m: by_problem(study.rows(m)) for m in shown}
    most = min(max(map(len, g.values())) for g in groups.values())
    shared = [p for p in groups[shown[0]] if all(len(g.get(p, [])) >= most for g in groups.values())]
    ks = [k for k in (1, 2, 3, 4, 8) if k <= most]
    lines = [[f"{len(shared)} problems, {most} answers each", *(f"pass@{k}" for k in ks)], ["---"] * (len(ks) + 1)]
    for method in shown:
        rows = [row for p in shared for row in groups[method][p][:most]]
        lines.append([label(method), *(str(pass_at_k_of(rows, k)) for k in ks)])
    return markdown(lines)


def alpha_table(study: Study) -> str:
    """What p^alpha would do at every alpha, from the pools of plain and low-temperature answers by reweighting."""
    pool = pool_of(study)
    lines = [["α", "accuracy", "at equal length", "ESS", "problems with ESS ≥ 3", "tokens", "cut off"], ["---"] * 7]
    for alpha in ALPHAS:
        found = predict(pool, alpha)
        told = found.accuracy is not None
        lines.append(
            [
                f"{alpha:g}",
                f"{found.accuracy:.3f} [{found.low:.3f}, {found.high:.3f}]" if told else f"({_point(pool, alpha):.3f})",
                f"{at_equal_length(pool, alpha):.3f}" if told else f"({at_equal_length(pool, alpha):.3f})",
                f"{found.ess:.1f}",
                f"{found.readable} of {found.problems}",
                f"{found.length:.0f}",
                f"{100 * found.cut:.0f} %",
            ]
        )
    return markdown(lines)


def right_and_wrong_table(study: Study) -> str:
    """Right against wrong answers to the same problem: log p, length, equals signs."""
    sharpened = [m for m in study.methods if m.partition("(")[0] not in ("plain", "best_of_n", "published_mh")]
    pools = {label(m): study.rows(m) for m in ("plain", "low_temperature", "mh(moves=6)") if m in study.methods}
    pools["low temperature and samplers"] = [row for m in sharpened for row in study.rows(m)]
    lines = [
        ["answers of", "problems with both", "log p", "tokens", "log p per token", "equals signs", "right one likelier"]
    ]
    lines.append(["---"] * 7)
    for name, rows in pools.items():
        gaps = []
        for group in by_problem(rows).values():
            right, wrong = ([r for r in group if bool(r["correct"]) is verdict] for verdict in (True, False))
            if right and wrong:
                means = [
                    [statistics.fmean(f(r) for r in rs) for f in (_logp, _tokens, _rate, _equations)]
                    for rs in (right, wrong)
                ]
                gaps.append([a - b for a, b in zip(*means, strict=True)])
        if len(gaps) < 5:
            continue
        logp, tokens, rate, equations = zip(*gaps, strict=True)
        won = statistics.fmean(gap > 0 for gap in logp)
        cells = [spread(logp), spread(tokens), spread(rate, 3), spread(equations), f"{100 * won:.0f} %"]
        lines.append([name, str(len(gaps)), *cells])
    return markdown(lines) if len(lines) > 2 else "Too few problems have right and wrong answers."


def entropy_table(study: Study) -> str:
    """Where Σ logz sits: the fraction of positions that carry nine tenths, and whether they stand together."""
    lines = [
        [
            "answers of",
            "positions that carry 90 % of Σ logz",
            "10th to 90th percentile of answers",
            "a carrying one is followed by another",
            "positions below 0.05 nats",
        ],
        ["---"] * 5,
    ]
    for method in ("plain", "low_temperature", "mh(moves=6)"):
        rows = (
            [row for row in study.rows(method, below=1) if row["carry"] is not None] if method in study.methods else []
        )
        if rows:
            carry, lift = [r["carry"] for r in rows], [r["lift"] for r in rows if r["lift"] is not None]
            low, high = np.quantile(carry, [0.1, 0.9])
            lines.append(
                [
                    label(method),
                    f"{100 * statistics.median(carry):.0f} % (median)",
                    f"{100 * low:.0f} to {100 * high:.0f} %",
                    f"{statistics.median(lift):.2f} times as often as by chance",
                    f"{100 * (_mean(rows, 'decided') or 0.0):.0f} %",
                ]
            )
    return markdown(lines)


def moves_table(study: Study) -> str:
    """Moves at the full horizon by the entropy at their cut."""
    lines = [["method", "entropy at the cut", "share of positions", "share of cuts", "accepted"], ["---"] * 5]
    for method, found in study.extra.get("moves", {}).items():
        if sum(found["tried_by_entropy"]) < 50:
            continue
        low, high = found["entropy_bounds"]
        kinds = (f"below {low:g} nats", f"{low:g} to {high:g}", f"from {high:g} on")
        tried = found["tried_by_entropy"]
        for i, kind in enumerate(kinds):
            won = found["accepted_by_entropy"][i] / tried[i] if tried[i] else 0.0
            cells = [kind, f"{100 * found['positions_by_entropy'][i]:.0f} %", f"{100 * tried[i] / sum(tried):.0f} %"]
            lines.append([label(method) if i == 0 else "", *cells, f"{100 * won:.0f} %" if tried[i] else "–"])
    return markdown(lines) if len(lines) > 2 else ""


def facts_line(study: Study) -> str:
    """What the numbers are of, in one paragraph."""
    facts = study.facts
    when = " to ".join(dict.fromkeys(date[:10] for date in facts["dates"]))
    commands = "\n".join(facts["commands"])
    return (
        f"{facts['model']}, SHA-256 `{facts['sha256']}`, weights {facts['weights_and_kv']}; {facts['task']}, "
        f"T = {facts['max_new_tokens']}, α = {facts['alpha']:g} unless a method says otherwise, seed {facts['seed']}; "
        f"{when}, commit {facts['commit']}, {facts['machine']}.\n\n```\n{commands}\n```"
    )


def short_table(study: Study) -> str:
    """What a newcomer should see: a line per method, on problems that all of them have, forty or more if three do."""
    many = study.common(40)
    study = many if len(many.methods) >= 3 else study.common()
    base = study.rows("low_temperature")
    lines = [
        ["method", "accuracy ± s.e.", "− low temperature [95 %]", "log p", "tokens decoded per answer"],
        ["---"] * 5,
    ]
    for method in study.methods:
        rows = study.rows(method)
        gap = "–" if method == "low_temperature" else interval(paired_bootstrap(rows, base))
        logp = f"{mean_over_problems(rows, 'logp').mean:.1f}"
        lines.append([label(method), str(accuracy(rows)), gap, logp, f"{_mean(rows, 'decoded'):.0f}"])
    return markdown(lines)


def horizon_table(study: Study) -> str:
    """Answers drawn at a long horizon: the share that shorter ones would cut off, and what that would cost at least."""
    horizons = [t for t in (256, 320, 512, 1024) if t <= study.facts["max_new_tokens"]]
    lines = [
        ["answers of", "tokens (median)", *(f"cut off, or right behind, T = {t}" for t in horizons)],
        ["---"] * (2 + len(horizons)),
    ]
    for method in study.methods:
        rows = study.rows(method)
        cells = []
        for t in horizons:
            over = [r for r in rows if r["tokens"] > t or (r["tokens"] == t and not r["ended"])]
            right = sum(bool(r["correct"]) for r in over)
            cells.append(f"{100 * len(over) / len(rows):.0f} %, {100 * right / len(rows):.0f} %")
        lines.append([label(method), f"{statistics.median(r['tokens'] for r in rows):.0f}", *cells])
    return markdown(lines)


def seconds_table(study: Study) -> str:
    """Seconds per answer, one answer at a time and many together, nothing else running."""
    lines = [["method", "seconds alone (median)", "together, per answer", "answers alone, together"], ["---"] * 4]
    for method, found in study.extra["seconds"].items():
        alone, count = found["alone"], found["count"]
        lines.append(
            [
                label(method),
                f"{statistics.median(alone):.1f}",
                f"{found['together'] / count:.2f}",
                f"{len(alone)}, {count}",
            ]
        )
    return markdown(lines)


# -- parts ---------------------------------------------------------------------------------------------------------


def label(method: str) -> str:
    """A method as the tables call it."""
    name, _, inside = method.partition("(")
    settings = dict(part.split("=") for part in inside.rstrip(")").split(",") if part)
    alpha = float(settings.get("alpha", "nan"))
    if name == "low_temperature":
        return "greedy" if alpha >= GREEDY else "low temperature" + (f", α = {alpha:g}" if alpha == alpha else "")
    known = {"moves": "N", "particles": "N", "n": "N", "tries": "K", "alpha": "α"}
    told = [f"{known[key]} = {value}" for key, value in settings.items() if key in known]
    name = {"published_mh": "published procedure", "best_of_n": "best of N"}.get(name, name)
    return ", ".join([name, *told])


def pool_of(study: Study) -> list[dict[str, Any]]:
    """Plain and low-temperature answers as ``advice.predict`` takes them, on problems that have both."""
    alpha, horizon = study.facts["alpha"], study.facts["max_new_tokens"]
    found = []
    both = {p for m in ("plain", "low_temperature") for p in by_problem(study.rows(m))}
    for method in ("plain", "low_temperature"):
        for row in study.rows(method):
            if str(row["problem"]) in both:
                facts = {"method": method, "alpha": alpha, "prompt_id": row["problem"], "max_new_tokens": horizon}
                found.append(row | facts | {"token_logz": [row["logz"]], "token_ids": range(row["tokens"])})
    return found


def _point(pool: Sequence[dict[str, Any]], alpha: float) -> float:
    """The reweighted accuracy that is too uncertain to be stated without brackets."""
    from fastpower.results.pools import reweight

    groups = by_problem(pool).values()
    return statistics.fmean(reweight(group, alpha).mean([float(r["correct"]) for r in group]) for group in groups)


def at_equal_length(pool: Sequence[dict[str, Any]], alpha: float) -> float:
    """The same with every answer's log p and logz scaled to its problem's mean length: a longer answer then pays
    nothing for being longer. No sampler has this law; it separates what length does from what is said."""
    from fastpower.results.pools import reweight

    values = []
    for group in by_problem(pool).values():
        mean = statistics.fmean(r["tokens"] for r in group)
        scaled = [
            r | {"logp": r["logp"] * mean / r["tokens"], "token_logz": [r["logz"] * mean / r["tokens"]]} for r in group
        ]
        values.append(reweight(scaled, alpha).mean([float(r["correct"]) for r in group]))
    return statistics.fmean(values)


def interval(gap: Difference) -> str:
    """+0.050 [−0.010, +0.110]"""
    return f"{signed(gap.mean)} [{signed(gap.low)}, {signed(gap.high)}]"


def signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and standard error."""
    se = statistics.stdev(values) / len(values) ** 0.5
    return f"{signed(statistics.fmean(values), digits)} ± {se:.{digits}f}"


def counts(groups: dict[str, list[Row]]) -> str:
    """Answers per problem: 3, or 1–3."""
    sizes = sorted({len(group) for group in groups.values()})
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]}–{sizes[-1]}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        "|" + "|".join(cells) + "|" if set(cells) == {"---"} else "| " + " | ".join(cells) + " |" for cells in lines
    )


def _mean(rows: Sequence[Row], key: str) -> float | None:
    values = [float(row[key]) for row in rows if row[key] is not None]
    return statistics.fmean(values) if values else None


def _logp(row: Row) -> float:
    return float(row["logp"])


def _tokens(row: Row) -> float:
    return float(row["tokens"])


def _equations(row: Row) -> float:
    return float(row["equations"])


def _rate(row: Row) -> float:
    return float(row["logp"]) / max(1, row["tokens"])
