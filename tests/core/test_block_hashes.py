"""What a generated token costs the hashes of a request's blocks."""

from .plans import BLOCK_SIZE, module, request, span
from .test_residency import Engine


class NotCopied(list):
    """Hashes that nobody goes through."""

    def __iter__(self):
        raise AssertionError("the list of hashes is copied")


def test_hashes_that_are_known_are_not_gone_through_again():
    spec = module("a", 5 * BLOCK_SIZE)
    user = request("1", [span(spec)], [spec])
    Engine().add(user)
    expected, hasher = user.block_hashes, user._block_hasher
    assert len(expected) == 5  # three tokens follow them
    user.block_hashes = NotCopied(expected)
    assert hasher(user) == []
    user.append_output_token_ids(7)
    sixth = user.block_hashes[5]
    user.block_hashes = []
    assert hasher(user) == [*expected, sixth]
