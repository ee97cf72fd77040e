"""How names of vLLM are replaced."""

from __future__ import annotations

from vllm_promptcache.compat.wrap import wrap


def test_wrap_keeps_kinds_of_methods_and_wraps_once():
    class Owner:
        @staticmethod
        def static(x):
            return x

        @classmethod
        def of_class(cls, x):
            return cls, x

        def plain(self, x):
            return self, x

    def double(original, *args):
        result = original(*args)
        return (result, result)

    for name in ("static", "of_class", "plain"):
        wrap(Owner, name, double)
        wrap(Owner, name, double)
    owner = Owner()
    assert Owner.static(1) == owner.static(1) == (1, 1)
    assert Owner.of_class(1) == ((Owner, 1), (Owner, 1))
    assert owner.plain(1) == ((owner, 1), (owner, 1))
