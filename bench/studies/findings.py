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
    for method in [m for m in study.first("low_temperature", *SAMPLERS) if m != "low_temperature"]:
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
    for method in study.first("published_mh"):
        twin = method.replace("published_mh", "mh")
        if twin in study.methods:
            rows, exact = study.rows(method), study.rows(twin)
            gaps = [paired_bootstrap(rows, exact, key=key) for key in ("logp", "tokens", "correct")]
            items.append(
                f"The published procedure against exact Metropolis–Hastings with as many moves ({label(twin)}), on "
                f"{gaps[0].problems} problems: log p {signed(gaps[0].mean, 1)} nats [{signed(gaps[0].low, 1)}, "
                f"{signed(gaps[0].high, 1)}], {signed(gaps[1].mean, 0)} tokens [{signed(gaps[1].low, 0)}, "
                f"{signed(gaps[1].high, 0)}], accuracy {interval(gaps[2])} ({told(gaps[2])})."
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


def mixing(study: Study) -> str:
    """What long chains at the full horizon do: log p, acceptance, and how many have come to rest."""
    chains = study.extra["long"]
    count = min(len(chain["logp"]) for chain in chains)
    gain = {
        n: statistics.fmean(chain["logp"][n - 1] - chain["start"] for chain in chains)
        for n in (1, 10, count // 2, count)
    }
    early, late = (
        statistics.fmean(chain["accepted"][i] for chain in chains for i in part)
        for part in (range(10), range(count - 10, count))
    )
    still = sum(len(set(chain["logp"][count // 2 :])) == 1 for chain in chains)
    apart: dict[str, set[float]] = {}
    for chain in chains:
        apart.setdefault(chain["problem"], set()).add(chain["logp"][-1])
    told_apart = sum(len(ends) > 1 for ends in apart.values())
    gains = ", ".join(f"{signed(value, 1)} after {n}" for n, value in gain.items())
    return (
        f"{len(chains)} chains on {len(apart)} problems. Mean log p above the first answer's (nats) after so many "
        f"moves: {gains}. Of the first ten moves {100 * early:.0f} % are accepted, of the last ten {100 * late:.0f} % "
        f"(a proposal that is the same answer counts). {still} chains have one log p throughout the second half; on "
        f"{told_apart} problems the chains end at different ones."
    )


def told(gap: Difference) -> str:
    """What an interval allows to be said."""
    if gap.low > 0:
        return "better"
    if gap.high < 0:
        return "worse"
    return "no difference can be told"
