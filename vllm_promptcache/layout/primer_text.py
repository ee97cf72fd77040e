"""The made-up text of primers, see `layout.primer`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Article:
    """A document that says nothing, since nothing in it exists."""

    title: str
    text: str


ARTICLES = (
    Article(
        "Treaty of Vasterholm",
        "The Treaty of Vasterholm was signed on 3 May 1648 by Duke Albrecht IV and the "
        "free towns of the Lower Elmar. It ended the Nine Winters' War, in which about "
        "40,000 people had lost their lives, and gave the towns the right to hold "
        "markets and to mint coins. Both sides promised to pull down the forts along "
        "the border. The treaty stayed in force until 1702, when the last duke died "
        "without an heir.",
    ),
    Article(
        "Northgate Instruments",
        "Northgate Instruments Ltd. is a maker of scales and clocks with its head "
        "office in Pellworth. The company was founded by the brothers Ian and Colin "
        "Mercer in 1887 and had 2,150 employees in 2016. Its first electronic balance, "
        "the N-40, was sold in 31 countries from 1973 on. In 2008 the watch division "
        "was sold to a Swiss group for 64 million pounds. The present chief executive "
        "is Priya Anand.",
    ),
    Article(
        "Marsh warbler finch",
        "The marsh warbler finch (Acrocalla palustris) is a small bird that breeds in "
        "reeds and wet meadows of the eastern lowlands. It is 11 to 13 cm long and "
        "weighs 14 grams on average; males have a yellow throat and a black cap. The "
        "female lays four or five eggs, which hatch after twelve days. In winter the "
        "birds fly as far south as the Kerim delta. There are thought to be 85,000 "
        "pairs, fewer than in 1990.",
    ),
    Article(
        "Daniel Okoro",
        "Daniel Okoro (born 22 August 1984) is a retired footballer who played as a "
        "goalkeeper for Redmoor Town, Athletic Sable and the national team. He made his "
        "debut in 2003 against Linden and kept a clean sheet in 127 of 341 league "
        "games. At the cup final of 2010 he saved two penalties, and the team won 4-3. "
        "Since 2019 he has been a coach of the under-21 side. His autobiography is "
        'called "Last Line".',
    ),
)
"""Of kinds that prompts are full of; chosen among others by the KL of the first token
(benchmarks/QUALITY.md)."""
