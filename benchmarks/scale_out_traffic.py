"""Requests for a simulated fleet of replicas, see `scale_out`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A prompt that reads 789 resident tokens took 0.17 to 0.21 s to its first token on one slow core,
# and 1.1 to 1.3 s where they had to be encoded.
WARM_S = 0.19
ENCODE_S_PER_TOKEN = (1.2 - WARM_S) / 789

NUM_SCHEMAS_PER_REPLICA = 10
# Of Zipf's law, for schemas and for the modules in them.
EXPONENT = 1.0
# A root, which all prompts of the schema import, and others, of which each imports a few.
NUM_MODULES = 13
NUM_IMPORTED = 4
NUM_ROOT_TOKENS = 40

HOT_SHARE = 0.3
BURST_SHARE = 0.25
BURST_EVERY_S, BURST_S = 60.0, 10.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request of the trace.

    Attributes:
        arrival: When it comes, in seconds.
        schema: Name of its schema.
        tokens: Tokens of each module that it reads, by key, in the order of the prompt.
        num_tokens: The sum of them.
    """

    arrival: float
    schema: str
    tokens: dict[bytes, int]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """All requests of a run.

    Attributes:
        requests: In the order in which they come.
    """

    requests: list[Request]

    @classmethod
    def make(cls, seed: int, num_replicas: int, load: float, seconds: float, kind: str) -> Traffic:
        """Makes the traffic of a seed.

        Args:
            seed: The same one gives the same traffic.
            num_replicas: Both the rate and the number of schemas grow with it.
            load: Share of the replicas' time that the requests take if all modules are resident.
            seconds: How long requests come.
            kind: `hot`: one schema gets 30 % of the requests. `bursts`: once a minute, for 10 s, a
                schema that is rarely asked for gets a quarter of the rate on top.
        """
        rng = np.random.default_rng(seed)
        num_schemas = NUM_SCHEMAS_PER_REPLICA * num_replicas
        rate = load * num_replicas / WARM_S
        arrivals = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
        schemas = rng.choice(num_schemas, len(arrivals), p=_zipf(num_schemas))
        if kind == "hot":
            schemas[rng.random(len(arrivals)) < HOT_SHARE] = num_schemas - 1
        if kind == "bursts":
            for start in np.arange(BURST_EVERY_S / 2, seconds, BURST_EVERY_S):
                extra = start + BURST_S * rng.random(int(BURST_SHARE * rate * BURST_S))
                arrivals = np.append(arrivals, extra)
                burst = rng.integers(num_schemas // 2, num_schemas)
                schemas = np.append(schemas, np.full(len(extra), burst))
        order = np.argsort(arrivals)
        imports, sizes = _imports(rng, len(arrivals)), _sizes(rng, num_schemas)
        return cls(
            [
                _request(arrival, schema, modules, sizes[schema])
                for arrival, schema, modules in zip(
                    arrivals[order].tolist(), schemas[order].tolist(), imports, strict=True
                )
            ]
        )


def _zipf(number: int) -> NDArray[np.float64]:
    weights = 1 / np.arange(1, number + 1) ** EXPONENT
    return weights / weights.sum()


def _imports(rng: np.random.Generator, num_requests: int) -> list[list[int]]:
    """Modules of each request, in the order of the prompt: the root, and others by Zipf's law."""
    # The largest of logarithms plus Gumbel noise are a draw without replacement.
    noise = rng.gumbel(size=(num_requests, NUM_MODULES - 1))
    drawn = np.argsort(-(np.log(_zipf(NUM_MODULES - 1)) + noise), axis=1)[:, :NUM_IMPORTED]
    return np.pad(1 + drawn, ((0, 0), (1, 0))).tolist()


def _sizes(rng: np.random.Generator, num_schemas: int) -> list[list[int]]:
    """Tokens of each module, `[num_schemas, NUM_MODULES]`: log-normal, median 148."""
    found = np.clip(rng.lognormal(5.0, 0.8, (num_schemas, NUM_MODULES)), 16, 2000)
    found[:, 0] = NUM_ROOT_TOKENS
    return found.astype(int).tolist()


def _request(arrival: float, schema: int, modules: list[int], sizes: list[int]) -> Request:
    keys = ((schema * NUM_MODULES + number).to_bytes(32, "little") for number in modules)
    tokens = {key: sizes[number] for key, number in zip(keys, modules, strict=True)}
    return Request(arrival, f"schema-{schema}", tokens, sum(tokens.values()))
