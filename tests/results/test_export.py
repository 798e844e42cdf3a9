"""Results as a pandas table and as ArviZ's chains."""

from __future__ import annotations

import json
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastpower
from fastpower.errors import FastpowerError
from fastpower.results import Results
from tests.evaluate.toys import toy_model


def results(method: str = "mh", prompts: tuple[str, ...] = ("1 2",), chains: int = 3, **settings: Any) -> Results:
    sampler = fastpower.make_sampler(method, alpha=2.5, max_new_tokens=11, **settings)
    return fastpower.generate(toy_model(), prompts, sampler, seed=4, chains=chains)


def arviz() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 0.23 announces version 1 on import
        return pytest.importorskip("arviz")


def arviz_1() -> Any:
    """``arviz.from_dict`` with the signature of ArviZ 1, making an xarray DataTree as that version does."""
    xarray = pytest.importorskip("xarray")

    def from_dict(data, *, name=None, sample_dims=None, coords=None, dims=None, attrs=None):
        def dataset(values):
            variables = {k: (("chain", "draw", *dims.get(k, ())), v) for k, v in values.items()}
            draws = next(iter(values.values())).shape[1]
            return xarray.Dataset(variables, coords={**coords, "draw": range(draws)})

        return xarray.DataTree.from_dict({group: dataset(values) for group, values in data.items()})

    return SimpleNamespace(from_dict=from_dict)


def test_pandas_has_one_row_per_answer_and_the_fields_as_columns() -> None:
    pytest.importorskip("pandas")
    answers = results(prompts=("1 2", "3"), moves=2)
    table = answers.to_pandas()
    assert len(table) == len(answers) == 6
    assert list(table.columns) == list(answers[0].to_dict())
    assert table["logp"].tolist() == [r.logp for r in answers]
    assert table["token_ids"].tolist() == [r.token_ids for r in answers]
    assert table.groupby("prompt_id", sort=False)["chain"].apply(list).tolist() == [[0, 1, 2], [0, 1, 2]]
    empty = Results([]).to_pandas()
    assert len(empty) == 0 and "logp" in empty.columns


@pytest.mark.parametrize("version", ["installed", "1"])
def test_arviz_draws_are_the_moves_at_the_full_horizon(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setitem(sys.modules, "arviz", arviz() if version == "installed" else arviz_1())
    answers = results(block=4, moves=5)
    data = answers.to_arviz()
    posterior, statistics = data["posterior"], data["sample_stats"]
    assert dict(posterior.sizes) == {"chain": 3, "draw": 5}
    for i, result in enumerate(answers):
        last = [move for move in result.trace if move["horizon"] == 11]
        assert len(last) == 5
        assert posterior["logp"].values[i].tolist() == [move["logp"] for move in last]
        assert posterior["logp"].values[i, -1] == result.logp
        assert posterior["length"].values[i].tolist() == [move["length"] for move in last]
        assert statistics["accepted"].values[i].tolist() == [move["accepted"] for move in last]
        assert statistics["cut"].values[i].tolist() == [-1 if m["cut"] is None else m["cut"] for m in last]
    np.testing.assert_allclose(statistics["lp"].values, 2.5 * posterior["logp"].values)
    assert any(len(r.trace) > 5 for r in answers), "no chain had warm-up moves that could have been taken for draws"
    assert posterior.attrs["sampler"] == "mh" and posterior.attrs["alpha"] == 2.5


@pytest.mark.parametrize("version", ["installed", "1"])
def test_several_prompts_are_a_dimension_of_their_own(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setitem(sys.modules, "arviz", arviz() if version == "installed" else arviz_1())
    answers = results(prompts=("1 2", "3"), moves=4, chains=2)
    posterior = answers.to_arviz()["posterior"]
    assert dict(posterior.sizes) == {"chain": 2, "draw": 4, "prompt": 2}
    for result in answers:
        chosen = posterior["logp"].sel(chain=result.chain, prompt=result.prompt_id).values
        assert chosen[-1] == result.logp


def test_arviz_computes_its_diagnostics_on_the_chains() -> None:
    summary = arviz().summary(results(prompts=("3",), moves=40, chains=4).to_arviz(), var_names=["logp"])
    assert np.isfinite(summary.loc["logp", "r_hat"]) and summary.loc["logp", "ess_bulk"] > 4


@pytest.mark.parametrize("method", ["pimh", "tempering", "mtm"])
def test_every_kind_of_move_becomes_a_draw(method: str) -> None:
    arviz()
    data = results(method, moves=3, chains=2).to_arviz()
    assert dict(data["posterior"].sizes) == {"chain": 2, "draw": 3}
    assert ("cut" in data["sample_stats"]) == (method != "pimh")


def test_what_is_not_a_set_of_chains_is_refused_by_name() -> None:
    arviz()
    first = results(moves=2, chains=2)
    for wrong, message in (
        (Results([]), "at least one result"),
        (results("plain"), "'plain' makes no moves"),
        (Results([*first, *results("ec_mh", moves=2)]), "one sampler; these have method = mh, ec_mh"),
        (Results([*first, first[0]]), "chain numbers repeat"),
        (Results([*first, *results(prompts=("3",), moves=2)]), "every prompt must have the same chains"),
        (Results([first[0], results(moves=3, chains=2)[1]]), "between 2 and 3 moves"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong.to_arviz()


@pytest.mark.parametrize("package, method", [("pandas", "to_pandas"), ("arviz", "to_arviz")])
def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, package: str, method: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FastpowerError, match=r"pip install '\.\[arviz\]'"):
        getattr(results(moves=1, chains=1), method)()


def test_dictionaries_are_json_and_hold_everything() -> None:
    [answer] = results(moves=2, chains=1)
    assert json.loads(json.dumps(answer.to_dict()))["token_logp"] == answer.token_logp
