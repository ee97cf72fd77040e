"""Finds out how a tokenizer tokenises parts of a document, by trying it on texts cut into parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TypeAlias
from unicodedata import normalize

from vllm_promptcache.errors import UnsupportedError
from vllm_promptcache.layout.piecewise import Encode, Piecewise, PlacedText
from vllm_promptcache.pml.diagnostics import shorten

Decode: TypeAlias = Callable[[list[int]], str]

# A line break is a token of its own in most vocabularies; the others are for texts that begin with
# one. None is part of a composed character.
ANCHORS = ("\n", "|", "0", "\t")

_SPLITS_WORDS = "begins a new word with every text"
_CHANGES_ENDS = "adds or drops blanks at the ends of a text"
_CHANGES_BREAKS = "changes line breaks or tabs at the ends of a text"
_CHANGES_OTHERS = "changes characters at the ends of a text"
_MERGES = "has other tokens for a text that is part of another one, whatever stands before it"

# What a tokenizer does that gets the text wrong, and the parts of the text.
PROBES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (_SPLITS_WORDS, ("net", "to")),
    (_SPLITS_WORDS, ("$", "45", ".00 (net", "to", ").")),
    (_SPLITS_WORDS, ("Un", "IT", "ed", "n", "'", "t.", "A", "-b")),
    (_SPLITS_WORDS, ("1", "2", "34", ",", "5", "%")),
    (_CHANGES_ENDS, ("a ", "b")),
    (_CHANGES_ENDS, ("a", " b")),
    (_CHANGES_ENDS, ("a ", " b")),
    (_CHANGES_ENDS, ("a  ", "b")),
    (_CHANGES_ENDS, ("a", "  b")),
    (_CHANGES_ENDS, ("a", " ", "b")),
    (_CHANGES_ENDS, ("a", "   ", "b")),
    (_CHANGES_ENDS, ("a", "", "b", "")),
    (_CHANGES_ENDS, (" a", " . ", "b .")),
    (_CHANGES_ENDS, ("  a", "b  ")),
    (_CHANGES_BREAKS, ("a", "\n", "b")),
    (_CHANGES_BREAKS, ("a\n", "\n\n", "\nb")),
    (_CHANGES_BREAKS, ("a", "\t", "b\t", "\t c")),
    (_CHANGES_BREAKS, ("\n", " a\n", "  b")),
    (_CHANGES_OTHERS, ("The ", "Un", "IT", "s", " are", "n", "'t", " re", "-us", "ed", ".")),
    (_CHANGES_OTHERS, ("#", "#", "|", "||", "0", "00", "!?")),
    (_CHANGES_OTHERS, ("e", "\u0301", "t\u00e9", " \u00df")),
    (_CHANGES_OTHERS, ("\u4e2d", "\u6587", "\u3002")),
    (_CHANGES_OTHERS, ("a", "\U0001f642", "\U0001f642", "b")),
)


def find_piecewise(
    tokenize: Encode, decode: Decode, *, special: Sequence[str], unknown_id: int | None
) -> Piecewise:
    """Finds the way in which parts of a text, each tokenised alone, read as the text itself.

    As they are, if that is right. If not, behind anchors: special tokens, which merge with nothing,
    before texts.

    Args:
        tokenize: The tokenizer, without the special tokens that it adds.
        decode: Its inverse.
        special: Texts of special tokens that may serve as anchors.
        unknown_id: Token of what the tokenizer does not know: such a text proves nothing.

    Raises:
        UnsupportedError: There is none; the message says what the tokenizer does.
    """
    try:
        prober = _Prober(tokenize, decode, unknown_id)
    # Tokenizers raise whatever they like; this one would do so in the middle of a request.
    except Exception as error:
        raise _refused(f"does not take every text ({shorten(str(error))})") from error
    if not prober.can_tell:
        raise _refused("knows neither letters nor blanks")
    as_it_is = Piecewise(tokenize)
    fault = prober.fault(as_it_is)
    if fault is None:
        return as_it_is
    faults = {anchor: prober.fault_behind(anchor) for anchor in (*special, *ANCHORS)}
    anchors = tuple(anchor for anchor, found in faults.items() if found is None)
    # The way that goes wrong last tells most about the tokenizer.
    fault = max((fault, *filter(None, faults.values())), key=attrgetter("num_right"))
    if anchors:
        behind = Piecewise(tokenize, anchors)
        fault = prober.fault(behind)
        if fault is None:
            return replace(behind, opening=prober.opening(behind))
    raise _refused(fault.text)


def _refused(fault: str) -> UnsupportedError:
    return UnsupportedError(
        f"the model's tokenizer cannot tokenise a prompt part by part: it {fault}",
        "send prompts to this model without prompt modules",
    )


@dataclass(frozen=True, slots=True)
class _Probe:
    """A text in parts.

    Attributes:
        feature: What a tokenizer does that gets it wrong.
        parts: The parts.
        plain: What the tokenizer makes of the whole text.
    """

    feature: str
    parts: tuple[str, ...]
    plain: str

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def placed(self) -> list[PlacedText]:
        return [PlacedText(part, None if number else "") for number, part in enumerate(self.parts)]

    def agrees(self, read: str) -> bool:
        """Whether a text is the one that was written, or the one that plain serving has."""
        # A composed character comes out composed only where it is not cut in two.
        return read == self.text or normalize("NFKC", read) == normalize("NFKC", self.plain)


@dataclass(frozen=True, slots=True)
class _Fault:
    """What is wrong with a way, and how many probes were right before."""

    num_right: int
    text: str


class _Prober:
    """Tries ways to tokenise parts of texts."""

    def __init__(self, tokenize: Encode, decode: Decode, unknown_id: int | None) -> None:
        self._tokenize, self._decode, self._unknown_id = tokenize, decode, unknown_id
        self._probes = tuple(self._known())

    @property
    def can_tell(self) -> bool:
        """Whether the tokenizer knows the characters of the probes that matter most."""
        return {_SPLITS_WORDS, _CHANGES_ENDS} <= {probe.feature for probe in self._probes}

    def fault(self, way: Piecewise) -> _Fault | None:
        """What the tokenizer does that makes a way wrong, None if nothing."""
        for number, probe in enumerate(self._probes):
            try:
                encoded = way.encode(probe.placed)
            except UnsupportedError:
                return _Fault(number, f"{_MERGES} ({' and '.join(map(repr, probe.parts))})")
            if (text := self._wrong(probe, encoded)) is not None:
                return _Fault(number, text)
        return None

    def fault_behind(self, anchor: str) -> _Fault | None:
        """What comes out wrong behind an anchor, None if nothing; it may merge with some texts."""
        (head,) = self._tokenize([anchor])
        if not head or self._unknown_id in head:
            return _Fault(0, f"does not know {anchor!r}")
        way = Piecewise(self._tokenize)
        for number, probe in enumerate(self._probes):
            befores = ("", *(anchor for _ in probe.parts[1:]))
            encoded = way.behind(zip(befores, probe.parts, strict=True))
            known = [token_ids for token_ids in encoded if token_ids is not None]
            text = self._wrong(probe, known) if len(known) == len(encoded) else None
            if text is not None:
                return _Fault(number, text)
        return None

    def _wrong(self, probe: _Probe, encoded: Iterable[list[int]]) -> str | None:
        read = self._decode([token_id for token_ids in encoded for token_id in token_ids])
        if probe.agrees(read):
            return None
        return f"{probe.feature} ({' and '.join(map(repr, probe.parts))} read {read!r})"

    def opening(self, way: Piecewise) -> tuple[int, ...]:
        """Tokens that a document begins with if all its texts are tokenised as inside of it.

        A blank where the decoder drops one, as it does with a dummy prefix.
        """
        texts = [PlacedText(probe.text) for probe in self._probes]
        blank, *encoded = way.encode([PlacedText(" "), *texts])

        def num_right(opening: Iterable[int]) -> int:
            read = [self._decode([*opening, *token_ids]) for token_ids in encoded]
            return sum(one == probe.text for one, probe in zip(read, self._probes, strict=True))

        return max((), tuple(blank), key=num_right)

    def _known(self) -> Iterator[_Probe]:
        for feature, parts in PROBES:
            whole, *encoded = self._tokenize(["".join(parts), *parts])
            # A mark that composes with the letter before it may be known only where it does.
            if not any(self._unknown_id in token_ids for token_ids in (whole, *encoded)):
                yield _Probe(feature, parts, self._decode(whole))
