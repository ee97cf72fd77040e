"""The text of primers, see `layout.primer`."""

PRIMER = (
    "The Harlow Bridge is a stone bridge over the river Tann. ",
    (
        "It was built between 1782 and 1791 after plans by the engineer Thomas Ardley, in place "
        "of a wooden bridge that had been carried away by a flood. "
    ),
    "It has five arches and is 118 metres long. ",
    (
        "In 1924 the roadway was made wider, and since 1987 the bridge has been open to walkers "
        "only. "
    ),
    "(Every spring, about 3,000 people take part in the race that begins there.)\n\n",
    "Marta Lindqvist (12 March 1901 - 4 October 1978) was a botanist and teacher. ",
    (
        "She grew up on the coast, went to university in 1919, and was one of the first three "
        "women who taught there. "
    ),
    (
        'Her best known work, "Plants of the Northern Shore", came out in 1936 and has been '
        "printed eleven times. "
    ),
    "From 1949 until 1966 she was head of the botanical garden. ",
    "A street and two species of moss are named after her.\n\n",
    '"The Long Field" is the second album by the band Grey Harbour. ',
    (
        "It was recorded in four weeks in a barn near Oldham and was released on 9 September "
        "1994 by Lantern Records. "
    ),
    'The single "Hold the Door" reached number 17 in the charts. ',
    "Critics liked the songs better than the sound; the drummer left the band in the year after. ",
    "The album was released again in 2011, with six songs more.\n\n",
    "Lake Orrin lies 640 metres above the sea in the south of the Carran hills. ",
    "It is 9 kilometres long, 1.4 kilometres wide at most, and up to 86 metres deep. ",
    "Three streams flow into it, the largest of which is the Vell. ",
    "The lake is frozen from December to March in most years. ",
    "Trout and perch live in it; fishing is allowed from June on. ",
    "The village of Senn, with 412 inhabitants in 2010, is the only one on its shore.\n\n",
)
"""Sentences that are made up, so that they say nothing, of the kind that prompts are full of."""
