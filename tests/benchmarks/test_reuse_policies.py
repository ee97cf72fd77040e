"""Names of the reuse study's policies."""

from __future__ import annotations

import pytest
import torch

from benchmarks.reuse_policies import Base, Policy

MODULES = [range(10, 40), range(40, 60)]


def test_a_base_may_be_a_mean_of_several_primers() -> None:
    policy = Policy.parse("block-last:15@form1|oracle:8+causal+norm")
    assert policy.base == Base(("form1", "oracle:8"), has_norm=True)
    assert policy.repairs == (("block-last", 15),)
    assert policy.is_causal


def test_a_repair_alone_is_over_isolated_modules() -> None:
    assert Policy.parse("head:8|tail:8").base == Base(("isolated",))


@pytest.mark.parametrize(
    "name", ["8@form1|plain", "head:8@oracle:0", "head:8@oracle:x", "form1+last"]
)
def test_what_is_not_known_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="unknown"):
        Policy.parse(name)


@pytest.mark.parametrize(
    ("name", "repaired"),
    [
        ("head:2@form1", [40, 41]),
        ("head:2@anchored", [40, 41]),
        ("head:2@form1+alike", [10, 11, 40, 41]),
        ("head:2@isolated", [10, 11, 40, 41]),
    ],
)
def test_a_first_module_that_is_exact_is_not_repaired(name: str, repaired: list[int]) -> None:
    assert Policy.parse(name).repaired(MODULES, lambda _: torch.zeros(60), "row") == repaired


def test_each_module_has_its_share_of_prepared_blocks() -> None:
    modules = [range(10, 58), range(58, 106), range(106, 154)]
    measures = {"prepared": torch.arange(154.0)}
    policy = Policy.parse("block-prepared:22@form1")
    assert policy.repaired(modules, measures.__getitem__, "row") == [
        *range(90, 106),
        *range(138, 154),
    ]
