"""What the tokens of a step see: requests whose new tokens stand between modules take several rows.

vLLM's attention takes a batch of rows: some tokens, a block table, and how many tokens in it the
last of them sees. A layer stores the keys and values of all tokens before any row reads them. So a
request may be several rows of one step, each with the blocks that lie before its tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_promptcache.kernels.transfers import to_device
from vllm_promptcache.sequence.rows import AttentionRow, AttentionRows
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.steps.slots import ranges

Integers = npt.NDArray[np.int64]

# What is not of one row each, and what vLLM works out when it is asked for.
_OTHER = (
    "query_start_loc",
    "query_start_loc_cpu",
    "slot_mapping",
    "positions",
    "_num_computed_tokens_cache",
    "_token_to_req_indices_cache",
)


@dataclass(frozen=True, slots=True)
class RowSplit:
    """How the rows of a batch, one for each request, are split.

    Attributes:
        rows: By the number of a request in the batch, what its tokens see.
    """

    rows: Mapping[int, AttentionRows]

    def apply(self, batch: CommonAttentionMetadata, blocks_each: int) -> CommonAttentionMetadata:
        """The same batch with more rows; does not mutate it.

        Args:
            batch: As vLLM made it.
            blocks_each: Blocks of the attention backend in one of the KV cache.
        """
        old_start = batch.query_start_loc_cpu.numpy().astype(np.int64)
        sources, lengths = self._sources(np.diff(old_start))
        start = np.concatenate(([0], lengths.cumsum())).astype(np.int32)
        per_row = self._per_row(batch, sources)
        self._set_visible(per_row, batch, sources, blocks_each)
        return replace(
            batch,
            **per_row,
            query_start_loc=to_device(start, batch.seq_lens.device),
            query_start_loc_cpu=torch.from_numpy(start),
            num_reqs=len(sources),
            max_query_len=int(lengths.max()),
            _num_computed_tokens_cache=None,
            _token_to_req_indices_cache=None,
        )

    def _sources(self, old_lengths: Integers) -> tuple[Integers, Integers]:
        """For each new row the old one that it is of, and its tokens."""
        sources, lengths = [], []
        for source, length in enumerate(old_lengths.tolist()):
            split = self.rows.get(source)
            parts = [length] if split is None else [row.num_tokens for row in split.rows]
            sources += [source] * len(parts)
            lengths += parts
        return np.array(sources), np.array(lengths)

    def _per_row(
        self, batch: CommonAttentionMetadata, sources: Integers
    ) -> dict[str, torch.Tensor]:
        """All that vLLM gives for each row, as copies with the new number of rows."""
        values = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name not in _OTHER}
        tensors = {
            name: value
            for name, value in values.items()
            if isinstance(value, torch.Tensor) and len(value) == batch.num_reqs
        }
        # Some are on the host: to index them with what is on the device would wait for it.
        index = {device: to_device(sources, device) for device in _devices(tensors.values())}
        return {name: value[index[value.device]] for name, value in tensors.items()}

    def _set_visible(
        self,
        per_row: dict[str, torch.Tensor],
        batch: CommonAttentionMetadata,
        sources: Integers,
        blocks_each: int,
    ) -> None:
        """Gives the rows of requests that are split their block tables and lengths."""
        numbers = np.concatenate([np.flatnonzero(sources == source) for source in self.rows])
        index = {device: to_device(numbers, device) for device in _devices(per_row.values())}
        num_visible = [row.num_visible for split in self.rows.values() for row in split.rows]
        visible = np.array(num_visible, dtype=np.int32)
        for name in ("seq_lens", "seq_lens_cpu_upper_bound"):
            if (lengths := per_row.get(name)) is not None:
                told = to_device(visible, lengths.device).to(lengths.dtype)
                lengths[index[lengths.device]] = told
        table = per_row["block_table_tensor"]
        blocks = _block_indexes(self.rows.values(), blocks_each, table.shape[1])
        rows = index[table.device]
        table[rows] = table[rows].gather(1, to_device(blocks, table.device))


def _devices(tensors: Iterable[torch.Tensor]) -> set[torch.device]:
    return {tensor.device for tensor in tensors}


def _block_indexes(requests: Iterable[AttentionRows], blocks_each: int, width: int) -> Integers:
    """For each place in the block table of each row, where its block is in the request's."""
    parts = np.arange(blocks_each)
    rows = []
    for request in requests:
        shared = ranges((run.start, run.num_tokens) for run in (*request.blocks, Run(0, 0)))
        for row in request.rows:
            blocks = _blocks(row, shared)
            whole = (blocks[:, None] * blocks_each + parts).ravel()[:width]
            rows.append(np.pad(whole, (0, width - len(whole))))
    return np.stack(rows)


def _blocks(row: AttentionRow, shared: Integers) -> Integers:
    """Indexes of the blocks that a row sees, in the order of the request's block table."""
    start, end = row.private.start, row.private.end
    if row.num_shared is None:
        return np.arange(end)
    return np.concatenate((np.sort(shared[: row.num_shared]), np.arange(start, end)))
