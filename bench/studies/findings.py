"""What a study's numbers say, in sentences whose numbers and verdicts are computed, so that they cannot drift."""

from __future__ import annotations

import statistics

from bench.studies.study import Study
from bench.studies.tables import interval, label, signed
from fastpower.evaluate.statistics import Difference, accuracy, by_problem, paired_bootstrap

#: samplers of p^alpha; the published procedure is none
SAMPLERS = ("mh", "ec_mh", "egps", "mtm", "tempering", "smc")


def findings(study: Study) -> str:
    """One item on low temperature, one on each sampler, one on the horizon."""
    base, plain = study.rows("low_temperature"), study.rows("plain")
    gap = paired_bootstrap(base, plain)
    items = [
        f"Low temperature against plain sampling, at the price of one answer: {interval(gap)} on {gap.problems} "
        f"problems ({told(gap)})."
    ]
    for method in study.first(*SAMPLERS):
        rows = study.rows(method)
        if len(by_problem(rows)) < 20:
            continue
        right, likely = paired_bootstrap(rows, base), paired_bootstrap(rows, base, key="logp")
        shared = {str(row["problem"]) for row in rows}
        cost = statistics.fmean(row["decoded"] for row in rows) / statistics.fmean(
            row["decoded"] for row in base if str(row["problem"]) in shared
        )
        items.append(
            f"{label(method)} against low temperature: log p {signed(likely.mean, 1)} nats [{signed(likely.low, 1)}, "
            f"{signed(likely.high, 1)}], accuracy {interval(right)} on {right.problems} problems ({told(right)}), "
            f"for {cost:.1f} times the tokens."
        )
    cut = [statistics.fmean(not row["ended"] for row in rows) for rows in (plain, base)]
    lost = [rows for rows in (plain, base) if any(not row["ended"] for row in rows)]
    right = [accuracy([row for row in rows if not row["ended"]]).mean for rows in lost]
    items.append(
        f"The horizon of {study.facts['max_new_tokens']} cuts off {100 * cut[0]:.0f} % of plain and "
        f"{100 * cut[1]:.0f} % of low-temperature answers; of those that are cut off "
        f"{' and '.join(f'{100 * value:.0f} %' for value in right)} are right."
    )
    return "\n".join(f"- {item}" for item in items)


def told(gap: Difference) -> str:
    """What an interval allows to be said."""
    if gap.low > 0:
        return "better"
    if gap.high < 0:
        return "worse"
    return "no difference can be told"
