"""The documentation's studies say what their data say, and their parts measure what they claim."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bench.studies import draw
from bench.studies.answers import concentration
from bench.studies.collect import complete
from bench.studies.published import PublishedProcedure
from bench.studies.study import RESULTS, Study, columns_of
from bench.studies.tables import label
from fastpower import PowerTarget
from fastpower.samplers import METHODS
from fastpower.samplers.methods import parse_methods
from tests.exact.enumeration import Enumeration, g_test, toy_models
from tests.exact.runs import outcomes

STUDIES = sorted(path.stem for path in RESULTS.glob("*.json"))
CONFIGS = sorted(Path(draw.__file__).parent.glob("*.yaml"))


@pytest.fixture(scope="module")
def drawn():
    return draw.drawn()


def test_tables_and_pictures_in_the_documentation_are_those_of_the_data(drawn):
    stale = [str(p) for p, text in drawn.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    assert stale == [], "run `python -m bench.studies.draw`"


def test_every_study_is_shown(drawn):
    shown = {match[1] for text in drawn.values() for match in draw.BLOCK.findall(text)}
    assert set(STUDIES) <= shown


def test_what_stands_in_a_table_by_hand_is_replaced(monkeypatch):
    monkeypatch.setattr(draw.Study, "load", lambda name: name)
    monkeypatch.setitem(draw.TABLES, "methods", lambda study: f"| table of {study} |")
    text = draw.page("before\n<!-- study: some methods -->\n0.9\n<!-- end of study -->\nafter")
    assert "0.9" not in text and "| table of some |" in text and text.startswith("before") and text.endswith("after")
    assert draw.page(text) == text


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_names_its_model_commands_seed_and_date_and_is_small(name):
    study = Study.load(name)
    assert len(study.facts["sha256"]) == 64 and study.facts["commands"] and study.facts["dates"]
    assert isinstance(study.facts["seed"], int) and "/work" not in str(study.facts)
    assert (RESULTS / f"{name}.json").stat().st_size < 400_000


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_studys_configuration_is_what_eval_takes(path, monkeypatch):
    from fastpower.cli import build_parser

    monkeypatch.setitem(METHODS, "published_mh", PublishedProcedure)
    args = build_parser().parse_args(["eval", "--config", str(path), "--data", "x", "--model", "y", "--out", "z"])
    samplers = [m.sampler(args.alpha, args.max_new_tokens, {"block": args.block}) for m in parse_methods(args.methods)]
    assert samplers and all(s.target.horizon == args.max_new_tokens for s in samplers)


def test_saving_and_loading_a_study_changes_nothing(tmp_path):
    rows = [
        {"problem": 0, "chain": 0, "correct": 1, "logp": -1.5},
        {"problem": 1, "chain": 0, "correct": 0, "logp": -2.0},
    ]
    study = Study(
        "s", {"seed": 0}, ["a", "ü"], {"mh(moves=6)": columns_of(rows), "plain": columns_of(rows)}, {"x": [1]}
    )
    study.save(tmp_path)
    again = Study.load("s", tmp_path)
    assert dataclasses.asdict(again) == dataclasses.asdict(study) and again.rows("plain") == rows


def test_methods_are_compared_on_the_problems_that_all_of_them_have():
    def columns(problems):
        return columns_of([{"problem": p, "chain": 0, "correct": 1} for p in problems])

    study = Study("s", {}, [], {"plain": columns(range(50)), "mh": columns(range(30)), "smc": columns(range(3))})
    common = study.common(fewest=20)
    assert {m: len(c["problem"]) for m, c in common.methods.items()} == {"plain": 30, "mh": 30}


@pytest.mark.parametrize(("whole", "kept"), [(25, 25), (19, 0)])
def test_of_an_unfinished_method_only_the_first_whole_problems_are_kept_if_they_are_enough(whole, kept, capsys):
    order = [f"t/{i}" for i in range(50)]
    config = {"methods": [{"label": "plain"}, {"label": "mh"}], "problems": 40, "chains": 2}
    records = [{"method": "plain", "problem": p} for p in order[:40] for _ in range(2)]
    records += [{"method": "mh", "problem": p} for p in order[:whole] for _ in range(2)]
    records += [{"method": "mh", "problem": p} for p in (order[whole], order[35], order[35])]
    found = complete(records, config, order, Path("run"))
    assert [r["problem"] for r in found if r["method"] == "mh"] == [p for p in order[:kept] for _ in range(2)]
    assert sum(r["method"] == "plain" for r in found) == 80 and "mh of run" in capsys.readouterr().out


# -- concentration ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mass", "fraction"),
    [([1.0] * 10, 0.9), ([0, 0, 0, 5, 0, 0, 0, 0, 0, 0], 0.1), ([9, 1, 0, 0], 0.25), ([9, 1.1, 0, 0], 0.5)],
)
def test_the_fraction_is_the_smallest_that_carries_nine_tenths(mass, fraction):
    assert concentration(np.array(mass, float))[0] == pytest.approx(fraction)


def test_positions_that_stand_together_have_a_lift_above_one_and_scattered_ones_have_not():
    together, apart = np.zeros(100), np.zeros(100)
    together[40:50], apart[::10] = 1.0, 1.0
    assert concentration(together)[1] > 5 and concentration(apart)[1] == 0.0
    lifts = [concentration(rng.permutation(together))[1] for rng in map(np.random.default_rng, range(300))]
    assert np.mean([lift for lift in lifts if lift is not None]) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("mass", [[], [0.0, 0.0]])
def test_nothing_carries_where_there_is_no_mass(mass):
    assert concentration(np.array(mass)) == (None, None)


# -- the published procedure -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eos_model():
    return toy_models()["eos"]


def test_the_published_procedure_is_not_exact_and_says_so(eos_model):
    runs = outcomes(eos_model, PublishedProcedure(PowerTarget(2.5, 4), block=2, moves=3), 1500)
    space = Enumeration(eos_model, 2.5, 4)
    assert g_test(Counter(tuple(r.record.tokens) for r in runs), space.answers, space.pi) < 1e-6
    assert not any(run.exact for run in runs)


def test_the_published_procedure_returns_early_and_never_lengthens_within_a_stage(eos_model):
    runs = outcomes(eos_model, PublishedProcedure(PowerTarget(2.5, 6), block=2, moves=3), 300)
    for run in runs:
        by_stage: dict[int, list[int]] = {}
        for line in run.trace:
            by_stage.setdefault(line["stage"], []).append(line["length"])
        assert all(lengths == sorted(lengths, reverse=True) for lengths in by_stage.values())
        assert len(run.record) <= 6
    assert any(len({line["stage"] for line in run.trace}) == 1 for run in runs)


# -- small things --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("low_temperature(alpha=1000)", "greedy"),
        ("low_temperature(alpha=2)", "low temperature, α = 2"),
        ("low_temperature", "low temperature"),
        ("smc(block=16,particles=16,ramp=32)", "smc, N = 16"),
        ("mh(alpha=2,moves=6)", "mh, α = 2, N = 6"),
    ],
)
def test_methods_are_named_in_words(method, name):
    assert label(method) == name
