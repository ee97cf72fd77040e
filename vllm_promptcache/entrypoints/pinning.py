"""Which modules of a schema are to stay in the KV cache, as the engine is told."""

from __future__ import annotations

from vllm_promptcache.errors import ClientError
from vllm_promptcache.layout import SchemaLayout
from vllm_promptcache.log import module_logger
from vllm_promptcache.pml import DURATION_HINT, Pin, parse_duration, quote

logger = module_logger(__name__)

EnginePins = list[tuple[bytes, int, float | None]]
"""Key, blocks and seconds to live of each module; see `prompt_module_pin`."""


def make_pin(*, wanted: bool, ttl: str | None) -> Pin | None:
    """Reads the options `pin` and `ttl`.

    Raises:
        ClientError: `ttl` is no duration, or stands without `pin`.
    """
    if ttl is None:
        return Pin() if wanted else None
    if not wanted:
        raise ClientError("`ttl` goes with a pin", "set `pin` as well")
    ttl_s = parse_duration(ttl)
    if ttl_s is None:
        raise ClientError(f"`ttl`: {quote(ttl)} is no duration", DURATION_HINT)
    return Pin(ttl_s)


def engine_pins(layout: SchemaLayout, block_size: int, pin: Pin | None = None) -> EnginePins:
    """The modules that a schema pins; none of an exact one, with a warning.

    Their KV is another one in every combination of modules.

    Args:
        layout: The schema.
        block_size: Tokens in a KV cache block.
        pin: Goes for all of its modules, whatever the document says.

    Raises:
        ClientError: It is private: any tenant could fill the KV cache.
    """
    if pin is not None and layout.private:
        raise ClientError("modules of a private schema cannot be pinned", "leave out `pin`")
    pins = [(module, pin or module.pin) for module in layout.modules if module.is_reusable]
    if layout.is_exact and any(wanted for _, wanted in pins):
        logger.warning("Schema %s is exact, so nothing of it is pinned.", layout.name)
        return []
    return [
        (module.key, -(-module.num_kept_tokens // block_size), wanted.ttl_s)
        for module, wanted in pins
        if wanted is not None
    ]
