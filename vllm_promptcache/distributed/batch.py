"""Batch jobs over an app: rows of a file go to the replicas that hold their modules.

Each answer is written down as soon as it is there, so a job that was killed goes on where it was.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import ray
from ray import serve

from vllm_promptcache.distributed.batch_rows import Answer, Row, answers, first_twice
from vllm_promptcache.errors import ClientError

DEFAULT_APP = "default"
_SUFFIXES = (".jsonl", ".parquet")
# Rows that an actor has at a time, for each one that it asks at a time.
_ROWS_AHEAD = 4
_NUM_TRIES = 3
_SECONDS_BETWEEN_TRIES = 2.0


@dataclass(frozen=True, slots=True)
class BatchJob:
    """Rows of the form that OpenAI's batch API takes, from a file into a file.

    Attributes:
        source: `.jsonl`, or `.parquet` with the columns `custom_id`, `url` and `body` (JSON).
        target: `.jsonl` or `.parquet`; gets the answers in any order. Until all are there they lie
            in a folder beside it.
        app: Name of the Serve application.
        api_key: Of the server.
        concurrency: Rows that are asked at a time.
    """

    source: Path
    target: Path
    app: str = DEFAULT_APP
    api_key: str = ""
    concurrency: int = 32

    def run(self) -> Counter[str]:
        """Asks all rows that were not answered before, and writes the target.

        Returns:
            How many rows were answered now, refused now, and answered before.

        Raises:
            ClientError: A file cannot be read or written, or two rows have one `custom_id`.
        """
        self._check()
        self.parts.mkdir(parents=True, exist_ok=True)
        before = {name for name, _ in answers(self.parts)}
        counts = Counter({"answered before": len(before)})
        for statuses in self._asked(before).iter_batches(batch_size=None):
            counts.update("answered" if s == 200 else "refused" for s in statuses["status"])
        self._finish()
        return counts

    @property
    def parts(self) -> Path:
        """The folder of the answers that are there."""
        return self.target.with_name(f"{self.target.name}.parts")

    def _check(self) -> None:
        if not self.source.is_file():
            raise ClientError(f"there is no file {str(self.source)!r}")
        for path in (self.source, self.target):
            if path.suffix not in _SUFFIXES:
                raise ClientError(f"{str(path)!r} ends with none of {', '.join(_SUFFIXES)}")

    def _asked(self, before: Collection[str]) -> ray.data.Dataset:
        """The rows, sorted so that those that read the same modules follow each other."""
        is_lines = self.source.suffix == ".jsonl"
        read = ray.data.read_text if is_lines else ray.data.read_parquet
        rows = read(str(self.source.resolve())).map(_parsed).materialize()
        self._check_names(rows)
        left = rows.filter(lambda row: row["custom_id"] not in before).sort("group")
        return left.map_batches(
            _Asker,
            fn_constructor_args=(self.app, str(self.parts.resolve()), self.api_key),
            fn_constructor_kwargs={"concurrency": self.concurrency},
            batch_size=self.concurrency * _ROWS_AHEAD,
            concurrency=1,
            num_cpus=0,
        )

    def _check_names(self, rows: ray.data.Dataset) -> None:
        """Rows that are told to be bad may be alike: telling one of them is enough."""
        named = rows.select_columns(["custom_id", "problem"]).iter_rows()
        if name := first_twice(row["custom_id"] for row in named if not row["problem"]):
            hint = "give each row its own; rows without one are named by what is in them"
            raise ClientError(f"{self.source}: two rows have the custom_id {name!r}", hint)

    def _finish(self) -> None:
        """Puts all answers into the target, and removes the parts."""
        lines = self.parts / "all.lines"
        with lines.open("wb") as out:
            out.writelines(line for _, line in answers(self.parts))
        if self.target.suffix == ".parquet":
            _write_parquet(lines, self.target)
        else:
            lines.replace(self.target)
        shutil.rmtree(self.parts)


def _parsed(fields: dict[str, Any]) -> dict[str, Any]:
    row = Row.of_line(fields["text"]) if "text" in fields else Row.of_fields(fields)
    columns = {name: getattr(row, name) for name in ("custom_id", "url", "body", "problem")}
    return columns | {"group": row.group}


def _write_parquet(lines: Path, target: Path) -> None:
    from pyarrow import json, parquet

    parquet.write_table(json.read_json(lines), target)


class _Asker:
    """Asks rows and writes down what comes back. An actor of Ray Data.

    Args:
        app: Name of the Serve application.
        parts: Where the answers go.
        api_key: Of the server.
        concurrency: Rows that are asked at a time.
    """

    def __init__(self, app: str, parts: str, api_key: str, *, concurrency: int) -> None:
        self._handle = serve.get_app_handle(app)
        self._part = (Path(parts) / f"{uuid4().hex}.jsonl").open("ab", buffering=0)
        self._api_key = api_key
        self._free = asyncio.Semaphore(concurrency)

    async def __call__(self, batch: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        names = ("custom_id", "url", "body", "problem")
        rows = [Row(*values) for values in zip(*(batch[name] for name in names), strict=True)]
        statuses = await asyncio.gather(*map(self._ask, rows))
        yield {"status": np.array(statuses)}

    async def _ask(self, row: Row) -> int:
        if row.problem:
            answer = Answer(row.custom_id, 0, row.problem.encode())
        else:
            async with self._free:
                answer = await self._answer(row)
        self._part.write(answer.line)
        return answer.status

    async def _answer(self, row: Row) -> Answer:
        for _ in range(_NUM_TRIES):
            status, body = await self._handle.ask.remote(row.request(self._api_key))
            if status < 500:
                break
            await asyncio.sleep(_SECONDS_BETWEEN_TRIES)
        return Answer(row.custom_id, status, body)
