"""How many tokens a step may compute for nobody, so that users hardly feel it on average."""

from __future__ import annotations

# By so much may steps of users take longer: each where the machine allows it, all together anyway.
SHARE = 0.05
# A step with no user takes about so long at most: one who comes meanwhile waits for its end.
ALONE_S = 0.05
_MIN_NUM_ALONE, _FIRST_NUM_ALONE = 16, 64
# Of so many steps with users one is without such tokens, to know how long they take.
_NUM_TURNS = 4
# Steps after which the number of tokens changes, and a share that is too long for even one of them.
_NUM_MEASURED = 4
_MUCH = 4 * SHARE
# A share above which it was something else that made a step long.
_MOST = 16.0
# Weight of the latest step in how long steps usually take.
_WEIGHT = 0.25


class Pace:
    """Learns from the time of steps how many tokens cost users too little to be felt.

    On a CPU each token makes a step longer, so it is a few of them; on a GPU that decodes it is
    many. Where the first of them costs the most, steps that have any are rare instead.

    Args:
        min_num_tokens: Tokens that are computed beside users, if any are.
        max_num_tokens: Tokens of a step.
    """

    def __init__(self, *, min_num_tokens: int, max_num_tokens: int) -> None:
        self._min_num_tokens = min_num_tokens
        self._max_num_tokens = max_num_tokens
        self._num_beside = min_num_tokens
        self._num_alone = max(_FIRST_NUM_ALONE, min_num_tokens)
        self._usual_s: float | None = None
        # How much longer steps with that number beside them took, as shares.
        self._excesses: list[float] = []
        # Time that users have left for such tokens.
        self._left_s = 0.0
        self._turn = 0

    def num_tokens(self, *, is_alone: bool) -> int:
        """Returns how many such tokens the step that begins may have.

        Args:
            is_alone: Whether no user's request is in the step.
        """
        if is_alone:
            return self._num_alone
        self._turn = (self._turn + 1) % _NUM_TURNS
        return self._num_beside if self._turn and self._usual_s and self._left_s >= 0 else 0

    def took(self, seconds: float, num_tokens: int, *, is_alone: bool) -> None:
        """Takes note of a step.

        Args:
            seconds: Its duration.
            num_tokens: Such tokens in it.
            is_alone: As it was; if not, all users in it decoded.
        """
        if is_alone:
            if num_tokens == self._num_alone:
                least = max(_MIN_NUM_ALONE, self._min_num_tokens)
                self._num_alone = self._adapted(num_tokens, seconds / ALONE_S, least)
        elif num_tokens:
            self._took_longer(seconds, num_tokens)
        else:
            usual_s = self._usual_s or seconds
            self._usual_s = usual_s + _WEIGHT * (seconds - usual_s)
            self._left_s = min(self._left_s + SHARE * seconds, seconds)

    def _took_longer(self, seconds: float, num_tokens: int) -> None:
        usual_s = self._usual_s or seconds
        excess = min(seconds / usual_s - 1, _MOST)
        self._left_s += (SHARE - excess) * usual_s
        if num_tokens == self._num_beside:
            self._excesses.append(excess)
        if excess > _MUCH or len(self._excesses) == _NUM_MEASURED:
            load = max(excess * (excess > _MUCH), _mean(self._excesses)) / SHARE
            self._num_beside = self._adapted(self._num_beside, load, self._min_num_tokens)
            self._excesses.clear()

    def _adapted(self, num_tokens: int, load: float, least: int) -> int:
        """Half as many if `load`, as a share of what may be, is above 1; twice if there is room."""
        if load > 1:
            return max(num_tokens // 2, least)
        return min(num_tokens * 2, self._max_num_tokens) if load < 0.5 else num_tokens


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)
