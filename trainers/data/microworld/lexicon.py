"""Words of the microworld and what they mean: taxonomy, verbs, attributes, places, moments."""

from __future__ import annotations

from dataclasses import dataclass

NAMES = dict.fromkeys("anna clara emma grace iris julia kate lucy mary nora rosa sara".split(), "she")
NAMES |= dict.fromkeys("ben david felix henry jack leo max noah oscar paul sam tom".split(), "he")

# child: parent. Roots are person, animal and thing; the leaves are what stories talk about.
PARENTS = {
    noun: parent
    for parent, nouns in {
        "person": "adult child farmer teacher baker doctor",
        "adult": "woman man",
        "child": "girl boy",
        "animal": "dog cat horse goat pig rabbit fox mouse bird",
        "bird": "hen duck owl crow",
        "thing": "snack flower toy tool garment container book letter lamp key",
        "snack": "fruit cake pie",
        "fruit": "apple pear plum",
        "flower": "rose tulip daisy",
        "toy": "ball doll kite drum",
        "tool": "hammer spade saw",
        "garment": "hat coat scarf",
        "container": "box basket cup bag",
    }.items()
    for noun in nouns.split()
}
ROOTS = ("person", "animal", "thing")
NOUNS = (*ROOTS, *PARENTS)
PLURALS = {noun: noun + "s" for noun in NOUNS}
PLURALS |= {"person": "people", "child": "children", "woman": "women", "man": "men"}
PLURALS |= {"mouse": "mice", "fox": "foxes", "box": "boxes", "daisy": "daisies"}


def _ancestors(noun: str) -> tuple[str, ...]:
    return (noun, *_ancestors(PARENTS[noun])) if noun in PARENTS else (noun,)


ANCESTORS = {noun: _ancestors(noun) for noun in NOUNS}  # the noun itself first, its root last
ANCESTORS |= {name: (name, "person") for name in NAMES}
LEAVES = {node: tuple(n for n in PARENTS if node in ANCESTORS[n] and n not in PARENTS.values()) for node in NOUNS}
PRONOUNS = {noun: None if ANCESTORS[noun][-1] == "person" else "it" for noun in NOUNS}
PRONOUNS |= {**NAMES, "woman": "she", "girl": "she", "man": "he", "boy": "he"}
OBJECT_PRONOUNS = {"she": "her", "he": "him", "it": "it", "they": "them"}

SIZES = ("small", "big")
COLOURS = {
    "animal": ("white", "black", "brown"),
    "thing": ("red", "blue", "green", "yellow", "white", "black", "brown"),
}
AGES = {"person": ("old", "young"), "animal": ("old", "young"), "thing": ("old", "new")}


def ages_of(noun: str) -> tuple[str, ...]:
    """Ages by which the noun's bearers differ; those of children do not."""
    return () if "child" in ANCESTORS[noun] or noun == "person" else AGES[ANCESTORS[noun][-1]]


MOODS = ("happy", "sad", "angry", "scared", "tired", "calm", "hungry")
# Exactly one of the two holds at any moment.
COMPLEMENTS = {"awake": "asleep", "wet": "dry", "clean": "dirty", "open": "closed"}
COMPLEMENTS |= {b: a for a, b in COMPLEMENTS.items()}
# Of the values of one axis a thing has one at a time; of the lasting ones, one for ever.
LASTING_AXES = (SIZES, COLOURS["thing"], ("old", "new"), ("old", "young"))
AXES = (*LASTING_AXES, MOODS, *((a, b) for a, b in COMPLEMENTS.items() if a < b))
STATES = {
    "person": (*MOODS, "awake", "asleep", "wet", "dry"),
    "animal": (*MOODS, "awake", "asleep", "wet", "dry", "clean", "dirty"),
    "thing": ("wet", "dry", "clean", "dirty"),
    "container": ("wet", "dry", "clean", "dirty", "open", "closed"),
}
SYNONYMS = {
    "small": ("small", "little"),
    "big": ("big", "large"),
    "happy": ("happy", "glad"),
    "sad": ("sad", "unhappy"),
    "scared": ("scared", "afraid"),
    "closed": ("closed", "shut"),
    "quickly": ("quickly", "rapidly"),
    "slowly": ("slowly",),
    "quietly": ("quietly", "silently"),
    "gently": ("gently", "softly"),
}

# Ascending: each says at least what the one before it says. "some" is more than one, how many is left open.
COUNTS = ("one", "some", "two", "three", "four", "five")

# place: (phrase, place that contains it)
PLACES = {
    "house": ("in the house", None),
    "kitchen": ("in the kitchen", "house"),
    "bedroom": ("in the bedroom", "house"),
    "attic": ("in the attic", "house"),
    "cellar": ("in the cellar", "house"),
    "farm": ("on the farm", None),
    "barn": ("in the barn", "farm"),
    "stable": ("in the stable", "farm"),
    "orchard": ("in the orchard", "farm"),
    "field": ("in the field", "farm"),
    "village": ("in the village", None),
    "market": ("at the market", "village"),
    "square": ("on the square", "village"),
    "school": ("at the school", "village"),
    "inn": ("at the inn", "village"),
    "forest": ("in the forest", None),
    "cave": ("in the cave", "forest"),
    "meadow": ("in the meadow", "forest"),
    "lake": ("by the lake", "forest"),
    "garden": ("in the garden", None),
    "park": ("in the park", None),
}
REGIONS = {
    region: tuple(p for p, (_, container) in PLACES.items() if container == region)
    for region in ("house", "farm", "village", "forest")
}
TIMES = {
    "dawn": ("at dawn", "at sunrise"),
    "breakfast": ("at breakfast",),
    "noon": ("at noon", "at midday"),
    "lunch": ("at lunch",),
    "dusk": ("at dusk", "at sunset"),
    "dinner": ("at dinner", "at supper"),
    "midnight": ("at midnight",),
}


@dataclass(frozen=True, slots=True)
class Verb:
    """What an action asks of its roles and the words that name it.

    forms and converse hold (base, past, participle) triples, synonyms side by side; a converse tells the same
    event from the recipient ("Ben bought the hat from Anna" for sell). manners are the adverbs that fit.
    """

    frame: str
    agent: tuple[str, ...]
    patient: tuple[str, ...]
    parent: str | None
    manners: tuple[str, ...]
    forms: tuple[tuple[str, str, str], ...]
    converse: tuple[tuple[str, str, str], ...]


# action | frame | agent | patient | action it implies | manners by initial | forms | converse forms
_VERB_TABLE = """
sleep    | intransitive | person animal | | | q  | sleep/slept |
rest     | intransitive | person animal | | | q  | rest |
wait     | intransitive | person animal | | | q  | wait |
play     | intransitive | person animal | | | q  | play |
jump     | intransitive | person animal | | | q  | jump, leap/leapt |
laugh    | intransitive | person        | | | qg | laugh |
cry      | intransitive | person        | | | qg | cry/cried, weep/wept |
sing     | intransitive | person        | | | qg | sing/sang |
dance    | intransitive | person        | | | rsq | dance |
work     | intransitive | person        | | | rsq | work |
go       | motion | person animal | |    | rsq | go/went |
walk     | motion | person animal | | go | rsq | walk, stroll |
run      | motion | person animal | | go | q   | run/ran |
hurry    | motion | person animal | | go | q   | hurry/hurried, rush |
see      | transitive | person animal | person animal thing |        |     | see/saw/seen, spot/spotted |
watch    | transitive | person animal | person animal thing | see    | q   | watch, observe |
follow   | transitive | person animal | person animal       |        | rsq | follow |
chase    | transitive | person animal | person animal       | follow | rq  | chase, pursue |
touch    | transitive | person animal | person animal thing |        | rqg | touch |
push     | transitive | person animal | person animal       | touch  | rsqg | push, shove |
kick     | transitive | person animal | person animal       | touch  | rqg | kick |
hug      | transitive | person        | person animal       | touch  | rqg | hug/hugged, embrace |
help     | transitive | person        | person animal       |        | rq  | help, assist |
call     | transitive | person        | person animal       |        | rqg | call |
thank    | transitive | person        | person              |        | rqg | thank |
greet    | transitive | person        | person animal       |        | rqg | greet, welcome |
scare    | transitive | person animal | person animal       |        |     | scare, frighten |
meet     | symmetric  | person animal | person animal       |        |     | meet/met |
feed     | transitive | person        | animal              |        | rsqg | feed/fed |
carry    | transitive | person        | animal thing        |        | rsqg | carry/carried |
wash     | transitive | person        | animal thing        |        | rsqg | wash |
find     | transitive | person animal | person animal thing |        | rq  | find/found, discover |
take     | transitive | person        | thing               |        | rsqg | take/took/taken, grab/grabbed |
hide     | transitive | person        | animal thing        |        | rq  | hide/hid/hidden, conceal |
lose     | transitive | person        | thing               |        |     | lose/lost, misplace |
drop     | transitive | person        | thing               |        | qg  | drop/dropped |
break    | transitive | person        | toy container tool  |        | rq  | break/broke/broken, smash |
paint    | transitive | person        | toy container       |        | rsqg | paint |
pick     | transitive | person        | fruit flower        |        | rsqg | pick, gather |
eat      | transitive | person animal | snack               |        | rsq | eat/ate/eaten, devour |
read     | transitive | person        | book letter         |        | rsq | read/read |
have     | possessive | person        | thing               |        |     | have/had |
give     | ditransitive | person | thing |      | rsqg | give/gave/given | get/got, receive
hand     | ditransitive | person | thing | give | rsqg | hand, pass |
bring    | ditransitive | person | thing |      | rsq | bring/brought |
sell     | ditransitive | person | thing |      | rq  | sell/sold | buy/bought, purchase
lend     | ditransitive | person | thing |      | rq  | lend/lent, loan | borrow
send     | ditransitive | person | thing |      | rq  | send/sent |
show     | ditransitive | person | thing |      | rsqg | show/showed/shown |
be       | state | person animal thing | | | | |
"""


def _forms(cell: str) -> tuple[tuple[str, str, str], ...]:
    """Principal parts of each verb of a table cell; a missing past is regular, a missing participle the past."""
    triples = []
    for word in filter(None, cell.replace(",", " ").split()):
        base, *given = word.split("/")
        past = given[0] if given else base + ("d" if base.endswith("e") else "ed")
        triples.append((base, past, given[1] if len(given) > 1 else past))
    return tuple(triples)


def _read_verb(row: str) -> tuple[str, Verb]:
    name, frame, agent, patient, parent, manners, forms, *converse = (cell.strip() for cell in row.split("|"))
    by_initial = {"r": "quickly", "s": "slowly", "q": "quietly", "g": "gently"}
    fitting = tuple(by_initial[letter] for letter in manners)
    return name, Verb(
        frame,
        tuple(agent.split()),
        tuple(patient.split()),
        parent or None,
        fitting,
        _forms(forms),
        _forms(converse[0] if converse else ""),
    )


VERBS = dict(_read_verb(row) for row in _VERB_TABLE.strip().splitlines())

FUNCTION_WORDS = (
    "a an the and it she he they her him them was were not no any did to from by who that there true every all "
    "then later soon so but one some two three four five day"
).split()
PUNCTUATION = (".", ",")


def vocabulary() -> list[str]:
    """All words that a generated text can hold, lower case and sorted, punctuation included."""
    words = {*NAMES, *NOUNS, *PLURALS.values(), *FUNCTION_WORDS, *PUNCTUATION, *STATES["container"]}
    words |= {value for axis in AXES for value in axis} | {word for group in SYNONYMS.values() for word in group}
    words |= {form for verb in VERBS.values() for triple in (*verb.forms, *verb.converse) for form in triple}
    phrases = [phrase for phrase, _ in PLACES.values()] + [phrase for group in TIMES.values() for phrase in group]
    return sorted(words | {word for phrase in phrases for word in phrase.split()})
