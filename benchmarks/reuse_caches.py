"""The KV of a prompt's modules in the reuse study, by what stood before them."""

from __future__ import annotations

import torch

from benchmarks.reuse_model import Reader
from benchmarks.reuse_policies import Base
from benchmarks.reuse_prepared import prepared_attention
from benchmarks.reuse_primers import Primers
from benchmarks.reuse_prompt import Prompt

NUM_SINK_TOKENS = 4


class Caches:
    """Caches of root and modules, encoded on first use.

    They are the same for all prompts with these modules, whatever their tails.

    Args:
        reader: The model.
        prompt: One of the prompts.
        primers: What modules may be encoded behind.
    """

    def __init__(self, reader: Reader, prompt: Prompt, primers: Primers) -> None:
        self.reader = reader
        self.prompt = prompt
        self.primers = primers
        self.root = prompt.token_ids[: prompt.num_root]
        self._caches: dict[Base, torch.Tensor] = {}
        self._modules: dict[tuple[str, int], torch.Tensor] = {}
        self._prepared: dict[Base, torch.Tensor] = {}

    def cache(self, base: Base) -> torch.Tensor:
        """The cache of root and modules in the order of the prompt."""
        if base not in self._caches:
            self._caches[base] = self._encode(base)
        return self._caches[base]

    def prepared(self, base: Base) -> torch.Tensor:
        """What is paid to each token by attention that is known before any question."""
        if base not in self._prepared:
            self._prepared[base] = self._prepare(base)
        return self._prepared[base]

    def _encode(self, base: Base) -> torch.Tensor:
        prompt = self.prompt
        if base.names == ("plain",):
            return self.reader.encode(prompt.token_ids[: prompt.num_reused])
        caches = [self.reader.encode_prefix(self.root)]
        for place in range(len(prompt.modules)):
            versions = [self._module(name, place) for name in names_at(base, place)]
            caches.append(average(torch.stack(versions), base.has_norm))
        return torch.cat(caches, dim=-2)

    def _prepare(self, base: Base) -> torch.Tensor:
        total = torch.zeros(len(self.prompt.token_ids))
        for place, module in enumerate(self.prompt.modules):
            token_ids = self.prompt.token_ids[module.start : module.stop]
            for name in names_at(base, place):
                for prefix in self._prefixes(name, place):
                    attention = prepared_attention(self.reader, prefix, token_ids)
                    total[module.start : module.stop] += attention
        return total

    def _module(self, name: str, place: int) -> torch.Tensor:
        """The cache of a module that was encoded behind something and moved to its place."""
        if (name, place) not in self._modules:
            versions = [
                self._encode_behind(prefix, place) for prefix in self._prefixes(name, place)
            ]
            self._modules[name, place] = average(torch.stack(versions))
        return self._modules[name, place]

    def _prefixes(self, name: str, place: int) -> list[list[int]]:
        """What a module at this place is encoded behind, once for each version of it."""
        match name:
            case "isolated":
                return [[]]
            case "sink":
                return [self.root[:NUM_SINK_TOKENS]]
            case "neutral":
                return [self.primers.neutral]
            case "anchored":
                return [self.root]
        return [self.root + primer for primer in self.primers.behind(name, place)]

    def _encode_behind(self, prefix: list[int], place: int) -> torch.Tensor:
        module = self.prompt.modules[place]
        token_ids = self.prompt.token_ids[module.start : module.stop]
        cache = self.reader.encode(token_ids, self.reader.encode_prefix(prefix))
        return self.reader.moved(cache, module.start - len(prefix))


def names_at(base: Base, place: int) -> tuple[str, ...]:
    """What a base has a module at this place encoded behind."""
    return ("anchored",) if place == 0 and base.is_first_exact else base.names


def average(versions: torch.Tensor, has_norm: bool = False) -> torch.Tensor:
    """The mean of versions of a cache, [version, layer, key or value, head, token, dim].

    Args:
        versions: The caches, their keys rotated to the same positions.
        has_norm: Whether each mean key is given the mean norm.
    """
    mean = versions.mean(dim=0)
    if has_norm:
        norms = versions[:, :, 0].norm(dim=-1, keepdim=True).mean(dim=0)
        mean[:, 0] *= norms / mean[:, 0].norm(dim=-1, keepdim=True)
    return mean
