"""What the scheduler knows of modules on disk."""

import pytest

from vllm_promptcache.store import DiskTier, disk_tier

A, B = b"a" * 32, b"b" * 32


@pytest.fixture
def tier():
    return DiskTier(is_on=True)


def test_a_module_is_asked_for_once_and_then_staged(tier):
    assert tier.may_have(A)
    assert [tier.ask(A), tier.ask(A)] == [True, False]
    assert tier.staged(A) is None
    assert tier.answered([(A, 40, 2)], []) == []
    assert (tier.staged(A).num_tokens, tier.staged(A).num_blocks) == (40, 2)
    assert not tier.ask(A)
    tier.forget(A)
    assert tier.staged(A) is None


def test_one_that_is_absent_is_encoded_and_then_asked_for_again(tier):
    tier.ask(A)
    tier.answered([], [A])
    assert not tier.may_have(A)
    tier.written(A)
    assert tier.may_have(A)
    assert tier.ask(A)


def test_answers_from_before_a_reset_do_not_count(tier):
    tier.ask(A)
    tier.ask(B)
    tier.clear()
    assert tier.answered([(A, 40, 2)], [B]) == [A]
    assert tier.staged(A) is None
    assert tier.may_have(B)


def test_what_nobody_claims_is_bounded(tier, monkeypatch):
    monkeypatch.setattr(disk_tier, "MAX_NUM_STAGED", 1)
    tier.ask(A)
    tier.ask(B)
    assert tier.answered([(A, 40, 2), (B, 40, 2)], []) == [A]
    assert tier.staged(A) is None
    assert tier.ask(A)


def test_without_a_folder_nothing_is_asked_for():
    assert not DiskTier(is_on=False).may_have(A)


def test_modules_with_an_adapter_are_not_kept(tier):
    assert not tier.may_have(A + b"lora")
