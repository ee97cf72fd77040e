"""The vocabulary of generated text."""

from __future__ import annotations

from random import Random

# What may follow a word; the repeats make most words stand alone.
MARKS = ("",) * 12 + (".", ",", "?")

# Common words, each one token with a space before it in most tokenizers.
WORD_LIST = """
    the and of to is a in that it for on with as at by from
    about after again air all also always animal answer area around ask away back bank bar base bed
    best better big bird black blue boat body book both bottom box boy bread bring brown build busy
    call car carry case cause center change check child city class clean clear close cold color
    come common cook cool copy corner cost could country course cover cross cut dark day deep door
    down draw dream dress drink drive dry each early earth east easy eat edge eight end engine
    enough even evening every example eye face fact fall family far farm fast father feel few field
    fight fill final find fine fire first fish five floor flow follow food foot force form four
    free friend front full game garden gas girl give glass gold good great green ground group grow
    half hand happen hard head hear heart heat heavy help here high hill hold home horse hot hour
    house hundred idea inch inside island keep key kind king know lake land language large last
    late laugh lead learn leave left less letter level life light line list listen little live long
    look lost love low machine main make man many map mark mean measure men metal middle might mile
    milk mind minute money month moon more morning mother mountain mouth move much music name near
    need never new next night nine north note nothing notice now number object ocean often old once
    open order other over own page paint pair paper part party pass past path people person picture
    piece place plain plan plane plant play point poor power press problem pull quick quiet race
    rain reach read ready real red remember rest rich right river road rock room round rule run
    safe sail salt same sand school science sea season seat second see seven shape ship shop short
    show side sign silver simple sing six size sky sleep slow small snow soft some song soon sound
    south space speak spring square stand star start state stay step still stone stop store story
    street strong study summer sun sure surface table tail take talk tall teach ten test thing
    think three time today top town travel tree true turn two under unit until usual valley very
    visit voice walk wall want warm watch water way weather week west wheel white whole why wide
    wild wind window winter wish wood word work world write year yellow young
"""
WORDS = tuple(WORD_LIST.split())


def random_text(rng: Random, num_words: int) -> str:
    """Returns `num_words` words with some punctuation, without spaces at the ends."""
    words = [rng.choice(WORDS) + rng.choice(MARKS) for _ in range(num_words)]
    return " ".join(words)
