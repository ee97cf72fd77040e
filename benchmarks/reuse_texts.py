"""Sets of made-up articles for primers, see `reuse_primers`."""

from __future__ import annotations

from vllm_promptcache.layout.primer_text import ARTICLES, Article

_FIRST = """
Harlow Bridge
The Harlow Bridge is a stone bridge over the river Tann. It was built between 1782 and 1791 after
plans by the engineer Thomas Ardley, in place of a wooden bridge that had been carried away by a
flood. It has five arches and is 118 metres long. In 1924 the roadway was made wider, and since
1987 the bridge has been open to walkers only. (Every spring, about 3,000 people take part in the
race that begins there.)

Marta Lindqvist
Marta Lindqvist (12 March 1901 - 4 October 1978) was a botanist and teacher. She grew up on the
coast, went to university in 1919, and was one of the first three women who taught there. Her best
known work, "Plants of the Northern Shore", came out in 1936 and has been printed eleven times.
From 1949 until 1966 she was head of the botanical garden. A street and two species of moss are
named after her.

The Long Field (album)
"The Long Field" is the second album by the band Grey Harbour. It was recorded in four weeks in a
barn near Oldham and was released on 9 September 1994 by Lantern Records. The single "Hold the
Door" reached number 17 in the charts. Critics liked the songs better than the sound; the drummer
left the band in the year after. The album was released again in 2011, with six songs more.

Lake Orrin
Lake Orrin lies 640 metres above the sea in the south of the Carran hills. It is 9 kilometres
long, 1.4 kilometres wide at most, and up to 86 metres deep. Three streams flow into it, the
largest of which is the Vell. The lake is frozen from December to March in most years. Trout and
perch live in it; fishing is allowed from June on. The village of Senn, with 412 inhabitants in
2010, is the only one on its shore.
"""

_THIRD = """
The Glass Orchard
The Glass Orchard is a 1998 mystery film directed by Helen Marsh and written by Owen Tate, after
the novel of the same name by R. J. Colley. It stars Victor Lane as a gardener who finds a letter
in a greenhouse, and Nora Whitfield as the owner of the estate. The film was shot in eight weeks,
cost 6.5 million dollars and took in 41 million. It was nominated for three awards and won the one
for best music.

Kingdom of Tavria
Tavria was a kingdom on the southern coast from about 1120 until 1486. Its capital was Osmar,
where the kings were crowned in the church of Saint Brida. Under Queen Ilona II (1304-1339) it
reached its greatest extent and traded salt, wool and amber with eleven ports. After the plague of
1419 the northern provinces broke away. The last king, Stefan, gave up the throne in favour of his
cousin.

Halvorsen's theorem
In graph theory, Halvorsen's theorem says how many edges a graph may have if it has no cycle of
even length below a bound. It was proved by Erik Halvorsen in 1957, when he was a student of 23; a
shorter proof was given by Mei Tanaka in 1981. The theorem is used in the design of networks and
codes. Whether the bound can be reached for cycles of length 12 is not known.

Route 9 (Ellis County)
Route 9 is a road of 73 miles in Ellis County. It begins at the junction with Route 22 in Barton,
crosses the Little Ash River on a steel bridge, and ends at the harbour of Port Amity. The road
was opened in 1931 and paved in 1946. About 5,400 vehicles use it on an ordinary day. Between
Dunmore and Hollis it is closed to trucks, and in 2015 a lane for bicycles was added.
"""


def _read(blocks: str) -> tuple[Article, ...]:
    """Articles whose titles are lines of their own."""
    lines = [block.split("\n") for block in blocks.strip().split("\n\n")]
    return tuple(Article(title, " ".join(text)) for title, *text in lines)


SETS = {"1": _read(_FIRST), "2": ARTICLES, "3": _read(_THIRD)}
"""Made-up articles by number. The second set is the engine's."""
