"""Plots draw what the records say; ``plot`` and ``compare`` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

plt = pytest.importorskip("matplotlib.pyplot")
plt.switch_backend("Agg")

from fastpower.cli import main  # noqa: E402
from fastpower.commands import compare  # noqa: E402
from fastpower.evaluate.engine import local_engine  # noqa: E402
from fastpower.evaluate.evaluation import Evaluation, evaluate  # noqa: E402
from fastpower.evaluate.report import plots as run_plots  # noqa: E402
from fastpower.evaluate.summary import summarise  # noqa: E402
from fastpower.results import plots  # noqa: E402
from fastpower.samplers.methods import parse_methods  # noqa: E402
from tests.evaluate.toys import toy_model, toy_task  # noqa: E402

MOVES = [
    {"stage": s, "cut": c, "accepted": a, "length": 7, "logp": p}
    for s, c, a, p in [(0, 1, True, -4.0), (0, 3, False, -4.0), (1, 0, True, -2.5)]
]
STEPS = [
    {"position": 3, "ess": 1.8, "resampled": True, "ancestors": [1, 1, 0]},
    {"position": 6, "ess": 2.6, "resampled": False},
]


def _record(**extra: Any) -> dict[str, Any]:
    base = {"method": "mh", "entropy": [0.5, 2.0, 0.1, 0.0, 1.0, 0.3, 0.2], "token_ids": list(range(7)), "trace": MOVES}
    return base | extra


def test_logp_and_cuts_show_every_move() -> None:
    ax = plots.plot_logp(_record())
    assert ax.lines[0].get_ydata().tolist() == [-4.0, -4.0, -2.5]
    taken, rejected = (c.get_offsets()[:, 0].tolist() for c in ax.collections)
    assert (taken, rejected) == ([1.0, 3.0], [2.0])
    ax = plots.plot_entropy(_record())
    cuts = [c.get_offsets()[:, 0].tolist() for c in ax.collections]
    assert cuts == [[1.0, 0.0], [3.0]]
    plt.close("all")


def test_particles_show_their_ess_and_descent() -> None:
    record = _record(method="smc", trace=STEPS, diagnostics={"particles": 3, "particle": 2})
    ax = plots.plot_ess(record)
    assert ax.lines[0].get_xydata().tolist() == [[3.0, 1.8], [6.0, 2.6]]
    ax = plots.plot_genealogy(record)
    assert ax.lines[-1].get_ydata().tolist() == [0, 2]
    plt.close("all")


def test_what_a_method_does_not_have_is_refused_by_name() -> None:
    for draw in (plots.plot_ess, plots.plot_genealogy):
        with pytest.raises(ValueError, match="'mh'"):
            draw(_record())
    with pytest.raises(ValueError, match="'plain' has no moves"):
        plots.plot_logp(_record(method="plain", trace=[]))
    with pytest.raises(ValueError, match="cost must be"):
        run_plots.plot_cost([], "money")


def test_plot_draws_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = Evaluation(toy_task(3), parse_methods("plain,mh(moves=2)"), seed=1)
    evaluate(evaluation, local_engine(toy_model), tmp_path / "run")
    assert main(["plot", str(tmp_path / "run"), "--format", "svg"]) == 0
    files = {Path(line).name for line in capsys.readouterr().out.splitlines()}
    assert {"report.html", "accuracy_tokens.svg", "acceptance.svg", "entropy_plain.svg", "logp_mh_moves_2.svg"} <= files
    assert all(p.stat().st_size > 1000 for p in (tmp_path / "run/plots").iterdir())
    assert main(["plot", str(tmp_path / "run"), "--format", "gif"]) == 2
    assert main(["plot", str(tmp_path)]) == 2


def test_accuracy_is_plotted_with_its_error_at_its_cost(tmp_path: Path) -> None:
    path = evaluate(Evaluation(toy_task(4), parse_methods("plain,mh(moves=2)")), local_engine(toy_model), tmp_path)
    from fastpower.evaluate.runs import read_records

    rows = summarise(read_records(path))
    ax = run_plots.plot_cost(rows)
    points = [line.get_xydata()[0].tolist() for line in ax.lines if line.get_marker() == "o"]
    assert points == [[row.decoded_tokens, row.accuracy.mean] for row in rows]
    plt.close("all")


@pytest.mark.parametrize("right", [0, 1, 5, 6])
def test_accuracies_are_plotted_within_0_and_1(right: int) -> None:
    records = [
        {"method": "plain", "problem": f"p{i}", "chain": 0, "correct": i < right, "logp": -1.0, "token_ids": [1]}
        | {"ended": True, "decoded_tokens": 3}
        for i in range(6)
    ]
    ax = run_plots.plot_cost(summarise(records))
    low, high = ax.get_ylim()
    heights = [y for bar in ax.collections for segment in bar.get_segments() for _, y in segment]
    assert 0 <= low < high <= 1 and heights and low <= min(heights) and max(heights) <= high
    plt.close("all")


def test_compare_prints_answers_and_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "load_from", lambda args: toy_model())
    args = ["compare", "--quiet", "1 2", "3", "--methods", "plain,mh(moves=2)", "--max-new-tokens", "9"]
    assert main(args) == 0
    text = capsys.readouterr().out
    assert text.count("log p") >= 5 and "mh(moves=2)" in text and "not p^alpha" in text and "exact" in text
    assert main([*args, "--json", "--chains", "3"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["method"] for r in rows] == ["plain"] * 6 + ["mh(moves=2)"] * 6
    assert main(["compare", "1", "--methods", "smcc"]) == 2
    assert "did you mean 'smc'" in capsys.readouterr().err
