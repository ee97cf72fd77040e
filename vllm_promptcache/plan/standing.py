"""Which modules of a prompt stand first, and which of them equal a plain prefill."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter

from vllm_promptcache.layout.module_layout import ModuleLayout
from vllm_promptcache.plan.parts import NewTokens, PlannedModule
from vllm_promptcache.sequence.runs import Run


def standing_first(
    imported: Iterable[ModuleLayout], new: Iterable[NewTokens]
) -> Iterator[ModuleLayout]:
    """Modules of a prompt before which there is nothing but text of those around them.

    Args:
        imported: The modules it imports, the root among them, where they are in it.
        new: Its arguments and its text.
    """
    end = min((tokens.start for tokens in new), default=None)
    around: ModuleLayout | None = None
    for module in sorted((m for m in imported if m.kept_token_ids), key=_first_position):
        is_behind_new = end is not None and end < _first_position(module)
        # What is never cached is as good as new text.
        if is_behind_new or not module.cached or not _is_nested(module, around):
            return
        yield module
        around = module


def _first_position(module: ModuleLayout) -> int:
    return module.kept_position_runs[0].start


def _is_nested(module: ModuleLayout, around: ModuleLayout | None) -> bool:
    return around is None or around.index < module.index <= around.last_descendant


def read_exactly(modules: Iterable[PlannedModule], positions: Sequence[Run]) -> Collection[int]:
    """Indexes of the modules that a prompt reads as a plain prefill would make them.

    Args:
        modules: All cached modules of the prompt, as they are planned.
        positions: Those of all tokens of the prompt, ascending.
    """
    reused = [planned for planned in modules if planned.reused]
    read = {planned.layout.index: planned.layout for planned in reused}
    return {p.layout.index for p in reused if _is_exact(p, read, positions)}


def is_exact(reused: Sequence[PlannedModule], positions: Sequence[Run]) -> bool:
    """Whether a prompt that reads some modules equals a plain prefill.

    Most do not, and it shows at the first module that does not.
    """
    read = {planned.layout.index: planned.layout for planned in reused}
    return all(_is_exact(planned, read, positions) for planned in reused)


def exact_until(reused: Sequence[PlannedModule], positions: Sequence[Run]) -> int:
    """The first position of a module that has not seen all before it; one past the last without.

    Args:
        reused: The modules that a prompt reads.
        positions: Those of all tokens of the prompt, ascending.
    """
    read = {planned.layout.index: planned.layout for planned in reused}
    placed = sorted(((p.first_position, p) for p in reused), key=itemgetter(0))
    for start, planned in placed:
        module, num_own = planned.layout, planned.reused[0].start
        if not _is_behind_the_prompt(module, num_own + 1, read):
            return start
        if _num_seen(module, num_own) != _num_before(start, positions):
            return start
    return positions[-1].end


def _is_exact(
    planned: PlannedModule, read: Mapping[int, ModuleLayout], positions: Sequence[Run]
) -> bool:
    module, num_tokens = planned.layout, planned.reused[-1].end
    if not _is_behind_the_prompt(module, num_tokens, read):
        return False
    return _num_seen(module, num_tokens - 1) == _num_before(planned.last_position, positions)


def _is_behind_the_prompt(
    module: ModuleLayout, num_tokens: int, read: Mapping[int, ModuleLayout]
) -> bool:
    """Whether the first kept tokens of a module have seen nothing that the prompt does not have.

    Args:
        module: A module that the prompt reads.
        num_tokens: How many tokens.
        read: All modules that it reads, by index.
    """
    if module.relocation is not None or not _is_whole(module, num_tokens):
        return False
    for number, span in enumerate(module.context):
        around = read.get(span.index)
        if around is None or around.context != module.context[:number]:
            return False
        if not _is_whole(around, span.num_tokens):
            return False
    return True


def _is_whole(module: ModuleLayout, num_tokens: int) -> bool:
    """Whether no placeholder was before the last of some kept tokens."""
    first = module.kept_runs[0]
    return first.start == 0 and num_tokens <= first.num_tokens


def _num_seen(module: ModuleLayout, num_own: int) -> int:
    """Tokens that one of a module has seen before it, some of them the module's own."""
    return num_own + sum(span.num_tokens for span in module.context)


def _num_before(position: int, positions: Iterable[Run]) -> int:
    """Tokens that a prompt has before a position."""
    return sum(max(0, min(run.end, position) - run.start) for run in positions)
