"""What a search may choose from: domains, the default space, lists on the command line, repeatable suggestions."""

import json
import math
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from tokendial.experiments import ConfigError
from tokendial.resolve import resolve
from tokendial.search.domains import Choice, CountPower, Distillation, Integers, LogUniform, Phases, Simplex, Uniform
from tokendial.search.plan import check_request
from tokendial.search.space import (
    candidate,
    check_space,
    coordinates,
    default_space,
    describe,
    from_description,
    lists,
    load_space,
    scalars,
    split,
)
from tokendial.search.suggest import Told, grid, num_combinations, parzen, random

BASE = resolve("digits.tiny", ("evaluation.counts=[1,4,9,16,144]",))


class OfMyOwn(Uniform):
    """A domain that no search could read back."""


def test_scalars_map_units_to_values_and_back() -> None:
    for scalar in (Choice(("a", [1, 2], None)), Uniform(-1, 3), LogUniform(1e-3, 10), Integers(2, 9)):
        for u in (0.0, 0.2, 0.5, 0.999):
            value: Any = scalar.at(u)
            assert scalar.at(scalar.unit(value)) == value


def test_a_simplex_sums_to_one_and_is_spread_evenly() -> None:
    """Dirichlet(1, 1, 1): each mean 1/3, each variance 1/18; 4,000 draws put the mean within 0.011 at 99.7 %."""
    simplex = Simplex(3)
    drawn = [simplex.value("w", random(simplex.scalars("w"), 7, place), (4, 16, 144)) for place in range(4000)]
    assert all(sum(weights) == pytest.approx(1, abs=2e-4) for weights in drawn)
    for index in range(3):
        mean = sum(weights[index] for weights in drawn) / len(drawn)
        assert mean == pytest.approx(1 / 3, abs=0.012)


def test_the_default_space_covers_the_schedule_and_its_draws_are_runs() -> None:
    space = default_space(BASE)
    check_space(space, BASE)
    paths = {"schedule.counts", "schedule.phases", "schedule.mix", "schedule.loss_weights", "schedule.distil"}
    assert paths | {"schedule.temperature", "schedule.temperature_end", "optimizer.projector_lr_factor"} == set(space)
    configs = [
        resolve("digits.tiny", ("evaluation.counts=[1,4,9,16,144]", *found.overrides))
        for found in (candidate(space, random(scalars(space), 0, place), BASE) for place in range(40))
    ]
    assert len({config.schedule.counts for config in configs}) > 3
    assert {config.schedule.mix for config in configs} == {"one", "all", "smallest", "sandwich"}
    assert any(config.schedule.distil for config in configs)
    assert {len(config.schedule.phases) for config in configs} == {1, 2}


def test_a_space_is_recorded_as_json_and_read_back() -> None:
    space = default_space(BASE)
    again = from_description(json.loads(json.dumps(describe(space))))
    assert describe(again) == describe(space)
    drawn = random(scalars(space), 3, 5)
    assert candidate(again, json.loads(json.dumps(drawn)), BASE).overrides == candidate(space, drawn, BASE).overrides
    assert coordinates(again, json.loads(json.dumps(drawn))) == coordinates(space, drawn)


def test_a_space_of_ones_own_is_a_function_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "my_space.py"
    file.write_text(
        "from tokendial.search.domains import LogUniform\n\n"
        "def space():\n    return {'optimizer.lr': LogUniform(1e-4, 1e-2)}\n"
    )
    assert load_space(f"{file}:space") == {"optimizer.lr": LogUniform(1e-4, 1e-2)}
    for reference, message in {
        "my_space": "is not of the form",
        f"{file}:missing": "cannot be read: AttributeError",
        f"{tmp_path}/none.py:space": "cannot be read: FileNotFoundError",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load_space(reference)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"optimizer.rate": Uniform(0, 1)}, "unknown key 'optimizer.rate'"),
        ({"optimizer.lr": 0.1}, "optimizer.lr is a float; it must be one of Choice"),
        ({"optimizer.lr": OfMyOwn(1e-4, 1e-2)}, "optimizer.lr is a OfMyOwn; it must be one of Choice"),
        ({"evaluation.counts": Choice(([1], [4]))}, "is the same for every trial"),
        ({"budget.flops": LogUniform(1e9, 1e10)}, "is the same for every trial"),
        ({"evaluation": Choice(({"counts": [4]}, {"counts": [16]}))}, "space: evaluation is the same for every trial"),
        ({"workers": Choice((1, 2))}, "space: workers is the same for every trial"),
        ({"device": Choice(("cpu", "gpu"))}, "space: device is the same for every trial"),
        (
            {"schedule.weights": Simplex(3), "schedule.phases": Phases(3)},
            "weights has no effect beside schedule.phases",
        ),
        ({3: Uniform(0, 1)}, "3 is a int; a path is text"),
        ({"optimizer.lr": Choice((0.1, {0.2}))}, r"optimizer\.lr has an option that JSON cannot hold"),
        ({"seed": Choice((0, 1, 0))}, "seed lists 0 more than once"),
        (lists(("schedule.counts=4,16,144",))[1], r"may be 4, which is no list .* as schedule\.counts=\[4,16,144\]"),
        ({"schedule.counts": Choice(([4, 16], [4, 0.5]))}, r"schedule\.counts may be \[4, 0\.5\]"),
        ({"schedule.counts": Integers(1, 4)}, r"schedule\.counts may be Integers\(low=1, high=4\)"),
    ],
    ids=[
        "unknown", "no domain", "subclass", "grid", "budget", "section", "workers", "device", "laws", "no text",
        "no JSON", "twice", "count", "half a count", "no counts",
    ],
)  # fmt: skip
def test_a_space_that_cannot_be_searched_is_refused(space: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_space(space, BASE)


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        (("optimizer.lr=0.1",), r"optimizer\.lr has a value and is in the space too"),
        (('optimizer={"lr":0.1}',), r"optimizer\.lr has a value and is in the space too"),
        (('schedule.phases=[{"until": 1, "weights": [1, 1, 1]}]',), r"schedule\.weights has no effect beside"),
    ],
    ids=["value", "object", "law"],
)
def test_what_has_a_value_cannot_be_searched_too(fixed: tuple[str, ...], message: str) -> None:
    space = {"optimizer.lr": LogUniform(1e-4, 1e-2), "schedule.weights": Simplex(3)}
    with pytest.raises(ConfigError, match=message):
        check_space(space, BASE, fixed)


def test_the_default_space_leaves_out_what_has_a_value() -> None:
    whole = set(default_space(BASE))
    assert set(default_space(BASE, ("schedule.mix=one", "workers=1"))) == whole - {"schedule.mix"}
    assert set(default_space(BASE, ("schedule.weights=[2,3,5]",))) == whole - {"schedule.phases"}
    assert set(default_space(BASE, ('schedule={"mix":"one"}',))) == whole - {"schedule.mix"}
    taught = resolve("digits.tiny", ('schedule.distil={"teacher":"max","weight":0.5}',))
    assert set(default_space(taught, ("schedule.distil.weight=0.5",))) == whole - {"schedule.distil"}
    assert set(default_space(BASE, ("schedule=m3",))) == {"optimizer.projector_lr_factor"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Choice("one"), "Choice needs a tuple of options, got 'one'"),  # pyright: ignore[reportArgumentType]
        (lambda: Choice(range(3)), r"got range\(0, 3\)"),  # pyright: ignore[reportArgumentType]
        (lambda: Uniform(0, float("inf")), "Uniform needs low < high, both finite, got 0 and inf"),
        (lambda: Uniform(0, float("nan")), "got 0 and nan"),
        (lambda: Uniform(Fraction(1, 3), 1), r"Uniform needs plain numbers, got Fraction\(1, 3\) and 1"),  # pyright: ignore[reportArgumentType]
        (lambda: Integers(1.5, 8), "Integers needs whole numbers, got 1.5, 8"),  # pyright: ignore[reportArgumentType]
        (lambda: Simplex(2.5), "Simplex needs whole numbers, got 2.5"),  # pyright: ignore[reportArgumentType]
        (lambda: Simplex(0), "Simplex needs positive numbers, got 0"),
        (lambda: Phases(3, 0.5, 1.5), "Phases break between 0 and 1, got 0.5 to 1.5"),
        (lambda: CountPower(1, 1e9), "CountPower needs exponents from -8 to 8"),
        (lambda: Distillation(2, 0.1), "Distillation needs low < high"),
        (lambda: Distillation(0, 1), "Distillation needs positive numbers, got 0"),
    ],
)
def test_a_domain_that_has_no_values_cannot_be_made(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_lists_are_cut_outside_brackets_only() -> None:
    assert split('[2,3,5],[1,1,1],"a,b",x') == ["[2,3,5]", "[1,1,1]", '"a,b"', "x"]
    assert split(r'"{\"a\": 1, \"b\": 2}",c') == [r'"{\"a\": 1, \"b\": 2}"', "c"]
    single, several = lists(("schedule=tokenflex,m3", "seed=0,1", "schedule.weights=[2,3,5]", "workers=1"))
    assert single == ["schedule.weights=[2,3,5]", "workers=1"]
    assert several == {"schedule": Choice(("tokenflex", "m3")), "seed": Choice((0, 1))}
    deep = "[" * 100_000
    assert lists((f"seed=0,{deep}",)) == ([], {"seed": Choice((0, deep))})


def test_a_grid_crosses_lists_with_the_seed_turning_fastest() -> None:
    _, several = lists(("seed=0,1", "schedule=tokenflex,m3"))
    cells = list(grid(scalars(several)))
    assert num_combinations(scalars(several)) == 4
    assert num_combinations({"n": Integers(2, 9), "x": Uniform(0, 1)}) == math.inf
    assert cells == [{"schedule": s, "seed": n} for s in ("tokenflex", "m3") for n in (0, 1)]


@pytest.mark.parametrize(
    ("algorithm", "objectives", "message"),
    [
        ("genetic", ("autc",), "is not one of grid, random, optuna, asha"),
        ("random", ("auc",), "must name some of autc, hypervolume, cost"),
        ("random", ("cost",), "must begin with one of autc, hypervolume"),
        ("asha", ("autc", "cost"), "are several, and asha prunes on one"),
        ("grid", ("autc",), "grid needs lists"),
    ],
)
def test_requests_that_do_not_go_together_are_refused(
    algorithm: str, objectives: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_request(algorithm, objectives, {"optimizer.lr": LogUniform(1e-4, 1e-2)})


def test_optuna_is_asked_for_before_any_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    space = {"optimizer.lr": LogUniform(1e-4, 1e-2)}
    check_request("optuna", ("autc",), space)
    # As where it is not installed.
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"needs the package 'optuna'; pip install 'tokendial\[search\]'"):
        check_request("optuna", ("autc",), space)


def test_suggestions_follow_from_seed_place_and_results_alone() -> None:
    """A search that stops and goes on must suggest what it would have suggested: nothing may be kept between calls."""
    names = scalars(default_space(BASE))

    def search(seed: int) -> list[dict]:
        told: list[Told] = []
        for place in range(14):
            chosen = parzen(names, seed, place, told, ("autc",))
            told.append(Told(json.loads(json.dumps(chosen)), (chosen["schedule.temperature"],), "finished"))
        return [dict(line.chosen) for line in told]

    first = search(0)
    assert first == search(0)
    assert first != search(1)
    half = [Told(line, (line["schedule.temperature"],), "finished") for line in first[:12]]
    assert json.loads(json.dumps(parzen(names, 0, 12, half, ("autc",)))) == first[12]


def test_the_parzen_estimator_finds_what_is_better() -> None:
    """One number in [0, 1], best at 0.8: the median of the last ten of thirty is nearer than that of random draws."""
    names = {"x": Uniform(0, 1), "kind": Choice(("good", "bad"))}
    told: list[Told] = []
    for place in range(30):
        chosen = parzen(names, 3, place, told, ("autc",))
        worth = 1 - abs(chosen["x"] - 0.8) - (0.5 if chosen["kind"] == "bad" else 0)
        told.append(Told(chosen, (worth,), "finished"))
    last = sorted(line.values[0] for line in told[-10:] if line.values)
    first = sorted(line.values[0] for line in told[:8] if line.values)
    assert last[5] > 0.85 > first[4]


def test_running_and_lost_trials_are_no_results() -> None:
    names = {"x": Uniform(0, 1)}
    told = [Told({"x": i / 9}, (i / 9,), "finished") for i in range(10)]
    extra = [Told({"x": 0.5}, None, "lost")]
    assert parzen(names, 0, 20, told, ("autc",)) == parzen(names, 0, 20, [*told, *extra], ("autc",))
    parzen(names, 0, 20, [*told, Told({"x": 0.5}, None, "running")], ("autc", "cost")[:1])


def test_several_objectives_are_sampled_together() -> None:
    names = {"x": Uniform(0, 1), "steps": Integers(1, 5)}
    told = [Told(random(names, 0, i), (i / 10, 10.0 - i), "finished") for i in range(10)]
    assert parzen(names, 0, 10, told, ("autc", "cost")).keys() == {"x", "steps"}


def test_composite_domains_make_what_the_schedule_takes() -> None:
    chosen = random(Phases(3).scalars("p"), 0, 1) | {"p.ease": "constant"}
    assert [phase["until"] for phase in Phases(3).value("p", chosen, (4, 16))] == [1]
    assert Distillation(0.1, 1).value("d", {"d.edge": "none", "d.weight": 0.5}, (4,)) is None
    with pytest.raises(ValueError, match="has 2 weights for 3 counts"):
        Simplex(2).value("w", {}, (1, 4, 16))
