"""Plans of prompts, as `explain` tells them: those of what the engine has made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from vllm import RequestOutput

from vllm_promptcache.core.request import ModularRequest

_TOKENS = ("token_ids", "position_ids")


def as_repaired(explanation: dict[str, Any], modular: ModularRequest | None) -> dict[str, Any]:
    """The plan of a prompt as the engine has repaired it; as it is if that was not asked for."""
    if modular is None or modular.account.span_numbers is None:
        return explanation
    read = [number for number, m in enumerate(explanation["modules"]) if any(m["reused"])]
    # Links come first; what they hold is never repaired.
    numbers = [number - modular.account.num_links for number in modular.account.span_numbers]
    whole = Counter[int]()
    for part in modular.table.shared:
        whole[numbers[part.span]] += part.kept.num_tokens // modular.table.block_size
    spans = dict(zip(numbers, modular.sequence.spans, strict=True))
    modules, new = list(explanation["modules"]), list(explanation["new"])
    for number, index in enumerate(read):
        module, span = modules[index], spans.get(number)
        runs = span.runs if span else ()
        kept = [i for i, is_kept in enumerate(module["kept"]) if is_kept]
        still = {kept[i] for run in runs for i in range(run.start, run.end)}
        left_out = [i for i, is_read in enumerate(module["reused"]) if is_read and i not in still]
        new.append({name: [module[name][i] for i in left_out] for name in _TOKENS})
        modules[index] = module | {
            "reused": [i in still for i in range(len(module["reused"]))],
            "num_full_blocks": whole[number],
        }
    return _with(explanation, modules, new)


def as_promoted(explanation: dict[str, Any], modular: ModularRequest | None) -> dict[str, Any]:
    """The plan of a prompt as if it computed what it reads of promoted modules."""
    num_links = modular.account.num_links if modular else 0
    if not num_links:
        return explanation
    if modular.account.is_promoted:
        return without_modules(explanation)
    end = modular.prompt.plan.links[num_links - 1].positions[-1].end
    return computing(explanation, lambda module, position: position < end)


def computing(
    explanation: dict[str, Any], which: Callable[[dict[str, Any], int], bool]
) -> dict[str, Any]:
    """The plan of a prompt where some tokens of modules are computed.

    Args:
        explanation: The plan.
        which: Chooses tokens by their module and their position.
    """
    modules, new = [], list(explanation["new"])
    for module in explanation["modules"]:
        places = zip(module["position_ids"], module["reused"], strict=True)
        is_new = [is_read and which(module, position) for position, is_read in places]
        moved = [i for i, is_moved in enumerate(is_new) if is_moved]
        new.append({name: [module[name][i] for i in moved] for name in _TOKENS})
        pairs = zip(module["reused"], is_new, strict=True)
        modules.append(module | {"reused": [read and not moved for read, moved in pairs]})
    return _with(explanation, modules, new)


def _with(
    explanation: dict[str, Any], modules: list[dict[str, Any]], new: list[dict[str, Any]]
) -> dict[str, Any]:
    num_cached = sum(sum(module["reused"]) for module in modules)
    counts = {
        "num_cached_tokens": num_cached,
        "num_new_tokens": explanation["num_tokens"] - num_cached,
    }
    return explanation | {"modules": modules, "new": new} | counts


def without_modules(explanation: dict[str, Any]) -> dict[str, Any]:
    """The plan of the same prompt where nothing is reused: all of its tokens are new."""
    kept = [
        {
            "token_ids": [t for t, k in zip(m["token_ids"], m["reused"], strict=True) if k],
            "position_ids": [p for p, k in zip(m["position_ids"], m["reused"], strict=True) if k],
        }
        for m in explanation["modules"]
    ]
    return explanation | {"modules": [], "new": [*explanation["new"], *kept]}


def check_explanation(explanation: dict[str, Any], block_size: int) -> None:
    """Checks that the numbers of a plan fit each other."""
    num_cached = [sum(module["reused"]) for module in explanation["modules"]]
    num_new = sum(len(part["token_ids"]) for part in explanation["new"])
    assert explanation["num_cached_tokens"] == sum(num_cached)
    assert explanation["num_new_tokens"] == num_new
    assert explanation["num_tokens"] == sum(num_cached) + num_new
    for module, num_kept in zip(explanation["modules"], num_cached, strict=True):
        num_whole = module["num_full_blocks"] * block_size
        assert num_whole + module["num_tail_tokens"] == num_kept, module["path"]


def check_counts(output: RequestOutput, explanation: dict[str, Any]) -> None:
    """Checks what the engine says it computed against the plan.

    Args:
        output: Of a prompt that was sent with `DETAIL` and `modules_only`.
        explanation: The prompt's plan.
    """
    modules = output.kv_transfer_params["prompt_modules"] if output.kv_transfer_params else []
    num_encoded = sum(m["tokens"] for m in modules if m["status"] == "encoded")
    assert output.num_cached_tokens + num_encoded == explanation["num_cached_tokens"]
    num_prefilled = len(output.prompt_token_ids) - output.num_cached_tokens - num_encoded
    assert num_prefilled == explanation["num_new_tokens"]
