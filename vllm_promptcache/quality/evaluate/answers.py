"""The answers so far, in a folder, so that a run that was stopped can go on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import TypeAdapter, ValidationError

from vllm_promptcache.errors import ClientError
from vllm_promptcache.quality.first_token import FirstToken

Key: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a policy answered to a row.

    Attributes:
        data: Name of the data set.
        row: Id of the row.
        policy: Name of the policy.
        text: The greedy answer.
        divergence: KL(plain || policy) of the first token, in nats.
        first_token_s: Time to the first token with all modules resident, planning included.
        num_module_tokens: Tokens of the modules and of the schema's own text.
        num_recomputed_tokens: How many of these are computed though they lie in a module.
        num_encoded_tokens: How many of these were encoded for the policy's first run of the row.
        first_token: Of a plain prefill; None for other policies.
    """

    data: str
    row: str
    policy: str
    text: str
    divergence: float
    first_token_s: float
    num_module_tokens: int
    num_recomputed_tokens: int
    num_encoded_tokens: int
    first_token: FirstToken | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that could not be run, with the reason; other fields as of `Answer`."""

    data: str
    row: str
    policy: str
    reason: str


_LINE: TypeAdapter[Answer | Refusal] = TypeAdapter(Answer | Refusal)


@dataclass(frozen=True, slots=True)
class AnswerLog:
    """The answers of a folder; `append` writes each as a line of `answers.jsonl`.

    Attributes:
        folder: Holds `answers.jsonl` and `settings.json`.
    """

    folder: Path
    _entries: dict[Key, Answer | Refusal] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, settings: dict[str, Any]) -> AnswerLog:
        """Opens a folder, or makes it; a last line that was not finished is cut off.

        Raises:
            ClientError: It cannot be used, or its answers were made with other settings.
        """
        log = cls(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _check_settings(folder / "settings.json", settings)
            log._read()
        except OSError as error:
            raise ClientError(f"cannot use {folder}: {error}") from error
        return log

    @property
    def path(self) -> Path:
        """The file of answers."""
        return self.folder / "answers.jsonl"

    def _read(self) -> None:
        text = self.path.read_bytes() if self.path.exists() else b""
        num_bytes = text.rfind(b"\n") + 1
        if num_bytes < len(text):
            self.path.write_bytes(text[:num_bytes])
        for number, line in enumerate(text[:num_bytes].splitlines(), start=1):
            try:
                self._add(_LINE.validate_json(line))
            except ValidationError as error:
                raise ClientError(f"{self.path}:{number}: this is no answer") from error

    def _add(self, entry: Answer | Refusal) -> None:
        self._entries[entry.data, entry.row, entry.policy] = entry

    def append(self, entry: Answer | Refusal) -> None:
        """Adds an entry and writes it."""
        self._add(entry)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")

    def get(self, data: str, row: str, policy: str) -> Answer | Refusal | None:
        """What there is for a row and policy."""
        return self._entries.get((data, row, policy))

    def refusal(self, data: str, row: str, policies: Iterable[str]) -> Refusal | None:
        """Why a row cannot be compared: what one of these policies said."""
        found = (self.get(data, row, policy) for policy in policies)
        return next((entry for entry in found if isinstance(entry, Refusal)), None)


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Compares settings with those of the folder, to which new ones are added."""
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ClientError(f"{path} is damaged: {error}") from error
    for name, value in settings.items():
        if known.get(name, value) != value:
            message = f"{path.parent} has answers with {name} {known[name]!r}, not {value!r}"
            raise ClientError(f"{message}; choose another folder with --output")
    path.write_text(json.dumps(known | settings, indent=2) + "\n", encoding="utf-8")
