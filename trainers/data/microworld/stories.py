"""Short coherent stories: a simulated world in which things happen, told sentence by sentence.

What is told is true of the simulated world, so that later sentences follow from earlier ones: where somebody is, who
has what, how many are left, who is sad about what and who puts it right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import Any

from .grammar import Speaker, sentence
from .lexicon import ANCESTORS, COLOURS, COUNTS, LEAVES, NAMES, PARENTS, PLACES, REGIONS, SIZES, TIMES, VERBS, ages_of
from .meaning import Entity, Proposition

_VARIETY = 0.3
_NAMES = tuple(NAMES)
_OTHER_PERSONS = ("woman", "man", "girl", "boy", "farmer", "teacher", "baker", "doctor")
_TIMES = tuple(TIMES)
_OPEN_PLACES = tuple(p for p in PLACES if p not in REGIONS)
_NUMBERS = ("", "one", *COUNTS[2:])  # index = number
_ANIMAL_DEEDS = ("play", "jump", "rest", "wait")
_PERSON_DEEDS = (*_ANIMAL_DEEDS, "laugh", "cry", "sing", "dance", "work")
_PERSON_VERBS = tuple(
    action
    for action, verb in VERBS.items()
    if verb.frame in ("transitive", "symmetric", "ditransitive") and action != "eat"
)
_ANIMAL_VERBS = tuple(a for a in _PERSON_VERBS if "animal" in VERBS[a].agent and a != "chase")
_KINDS = tuple(noun for noun in ("animal", "thing", *PARENTS) if noun in PARENTS.values())
_CROWDS = (
    "person",
    "adult",
    "child",
    "animal",
    "bird",
    "woman",
    "man",
    "girl",
    "boy",
    "farmer",
    "teacher",
    "baker",
    "doctor",
)


class _Story:
    """A world and the telling of it. Entities are addressed by their nouns; each noun occurs once."""

    def __init__(self, rng: Random) -> None:
        self.rng, self.choice = rng, rng.choice
        self.speaker = Speaker(rng, _VARIETY, kinds=True)
        self.sentences: list[str] = []
        self.region = self.choice(tuple(REGIONS))
        self.hero, self.friend = self._cast()
        self.animal = _animal(rng)
        self.place = {self.hero: self._place(), self.animal: self._place()}
        self.place[self.friend] = self.place[self.hero] if rng.random() < 0.5 else self._place()
        self.moods: dict[Entity, str] = {}
        self.owner: dict[Entity, Entity] = {}
        self.hour = rng.randrange(4)

    def _cast(self) -> tuple[Entity, Entity]:
        hero, friend = self.rng.sample(_NAMES, 2)
        if self.rng.random() < 0.75:
            return Entity(hero), Entity(friend)
        return Entity(hero), describe(self.rng, self.choice(_OTHER_PERSONS), "one")

    def _place(self) -> str:
        return self.choice(REGIONS[self.region]) if self.rng.random() < 0.85 else self.choice(_OPEN_PLACES)

    def other_place(self, *taken: str) -> str:
        """A place none of the taken ones."""
        while (place := self._place()) in taken:
            pass
        return place

    def new_thing(self, kind: str = "thing") -> Entity:
        """A thing that the story does not have yet; no kind is so small that interludes could use it up."""
        return describe(self.rng, self.choice(self.unused(kind)), "one")

    def unused(self, kind: str) -> list[str]:
        """Nouns of the kind that the story has not used."""
        taken = {thing.noun for thing in self.owner}
        return [noun for noun in LEAVES[kind] if noun not in taken and not self.speaker.knows(noun)]

    # --- telling --------------------------------------------------------------------------------------------------

    def tell(self, action: str, agent: Entity, *roles: Entity, lead: str = "", **details: Any) -> None:
        """One sentence about one event; details are Proposition fields."""
        details |= zip(("patient", "recipient"), roles, strict=False)
        p = Proposition(action, agent, **details)
        self.sentences.append(sentence(self.speaker.clause(p, lead)))

    def lead(self, *connectives: str) -> str:
        """One of the connectives, or none."""
        return self.choice(connectives) if self.rng.random() < 0.6 else ""

    def feel(self, who: Entity, mood: str, lead: str = "") -> None:
        self.moods[who] = mood
        self.tell("be", who, state=mood, lead=lead)

    def go(self, who: Entity, place: str, then: Proposition | None = None, lead: str = "") -> None:
        """who goes to the place, unless there already, and does something (`then`) there."""
        deeds = [then] if then else []
        if self.place[who] != place:
            self.place[who] = place
            action = self.choice(("go", "walk", "walk", "run", "hurry"))
            manner = self.choice(VERBS[action].manners) if self.rng.random() < 0.15 else None
            deeds.insert(0, Proposition(action, who, place=place, manner=manner))
        if deeds:
            clause = self.speaker.clause(deeds[0], lead)
            if then and len(deeds) == 2:
                if self.rng.random() < 0.6:
                    clause = f"{clause} and {self.speaker.predicate(then)}"
                else:
                    self.sentences.append(sentence(clause))
                    clause = self.speaker.clause(then)
            self.sentences.append(sentence(clause))

    def pass_on(self, giver: Entity, thing: Entity, taker: Entity, lead: str = "") -> None:
        """giver goes to taker and hands over the thing."""
        action = self.choice(("give", "give", "hand"))
        self.go(giver, self.place[taker], Proposition(action, giver, thing, taker), lead)
        self.owner[thing] = taker

    def part(self, action: str, who: Entity, noun: str, number: int, *roles: Entity, lead: str = "") -> None:
        """One sentence about some of a number of equal things, "two apples" rather than "the apples"."""
        self.speaker.forget(noun)
        self.tell(action, who, Entity(noun, _NUMBERS[number or 1]), *roles, lead=lead, negated=number == 0)

    # --- beginning and end ----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Who is where; this sentence decides the split, so it may be told again with another cast."""
        time = f"{self.choice(TIMES[_TIMES[self.hour]])}, " if self.rng.random() < 0.6 else "one day "
        where = PLACES[self.place[self.hero]][0]
        hero = self.speaker.mention(self.hero)
        if self.place[self.friend] == self.place[self.hero]:
            self.sentences.append(sentence(f"{time}{hero} and {self.speaker.mention(self.friend)} were {where}"))
            return
        friend = f"{self.speaker.mention(self.friend)} was {PLACES[self.place[self.friend]][0]}"
        self.sentences.append(sentence(f"{time}{hero} was {where} and {friend}"))

    def interlude(self) -> None:
        """Something that changes nothing: the animal, a deed done or left undone, or others who pass by."""
        draw, who = self.rng.random(), self.choice((self.hero, self.friend, self.animal))
        if draw < 0.15:
            self.tell("be", self.animal, place=self.place[self.animal])
        elif draw < 0.3:
            state, other = self.choice((("awake", "asleep"), ("dry", "wet")))
            self.tell("be", who, state=state if self.rng.random() < 0.7 else other)
        elif draw < 0.5:
            deeds = _ANIMAL_DEEDS if who is self.animal else _PERSON_DEEDS
            self.tell(self.choice(deeds), who, place=self.place[who], negated=self.maybe_not(who))
        elif draw < 0.65:
            self.crowd()
        else:
            self.deed(who)

    def maybe_not(self, *participants: Entity) -> bool:
        """Whether to deny a deed: now and then, if all who take part are in the story."""
        return self.rng.random() < 0.35 and all(self.speaker.knows(entity.noun) for entity in participants)

    def crowd(self) -> None:
        """Others, one or more, and what they do."""
        noun = self.choice([noun for noun in _CROWDS if not self.speaker.knows(noun)])
        crowd = replace(describe(self.rng, noun, "one"), quantity=self.choice(COUNTS))
        place = self.choice((self._place(), self.place[self.hero]))
        self.tell("be", crowd, place=place)
        deeds = _PERSON_DEEDS if ANCESTORS[noun][-1] == "person" else _ANIMAL_DEEDS
        if place == self.place[self.hero]:
            self.tell(self.choice(("see", "watch", "greet", "meet", "follow", "help")), self.hero, crowd)
        elif self.rng.random() < 0.3:
            self.tell("go", crowd, place=self.other_place(place))
        else:
            self.tell(self.choice(deeds), crowd)

    def deed(self, who: Entity) -> None:
        """who does something, or does not, to, for or with one who is near, or to some new thing."""
        action = self.choice(_ANIMAL_VERBS if who is self.animal else _PERSON_VERBS)
        verb = VERBS[action]
        near = [e for e in self.place if e is not who and self.place[e] == self.place[who]]
        persons = [e for e in near if ANCESTORS[e.noun][-1] == "person"]
        others = [e for e in near if ANCESTORS[e.noun][-1] in verb.patient]
        manner = self.choice(verb.manners) if verb.manners and self.rng.random() < 0.4 else None
        if verb.frame == "ditransitive":
            if persons:
                self.tell(action, who, self.new_thing(), self.choice(persons), manner=manner)
        elif others:
            other = self.choice(others)
            self.tell(action, who, other, manner=manner, negated=self.maybe_not(who, other))
        elif nouns := self.names_of_things(verb.patient):
            thing = describe(self.rng, self.choice(nouns), self.choice(("one", "one", *COUNTS)))
            self.tell(action, who, thing, place=self.place[who], manner=manner)

    def names_of_things(self, kinds: tuple[str, ...]) -> list[str]:
        """Nouns, wider ones included, for things of the kinds that the story has not had."""
        things = [kind for kind in kinds if ANCESTORS[kind][-1] == "thing"]
        wider = [k for k in _KINDS if any(kind in ANCESTORS[k] for kind in things) and not self.speaker.knows_kind(k)]
        return wider if wider and self.rng.random() < 0.3 else [noun for kind in things for noun in self.unused(kind)]

    def omission(self) -> None:
        """What nobody did: of the things that the story has not had, all may be denied."""
        action = self.choice(_PERSON_VERBS)
        verb, who = VERBS[action], self.choice((self.hero, self.friend))
        if verb.frame == "ditransitive":
            taker = self.friend if who is self.hero else self.hero
            self.tell(action, who, replace(self.new_thing(), size=None), taker, negated=True)
        elif nouns := self.names_of_things(verb.patient):
            self.tell(action, who, describe(self.rng, self.choice(nouns), "one"), negated=True)
        elif self.rng.random() < 0.5:
            self.tell(self.choice((*_PERSON_DEEDS, "sleep")), who, place=self.place[who], negated=True)
        else:
            motion = self.choice(("go", "walk", "run", "hurry"))
            self.tell(motion, who, place=self.choice(_OPEN_PLACES), negated=True)

    def absence(self) -> None:
        """Of some kind there is nothing around the hero, since nothing of the kind has come up."""
        kind = self.choice(_KINDS)
        if self.speaker.knows_kind(kind) or kind == "thing":
            return
        action = self.choice(("be", "see", "find"))
        if action == "be":
            self.tell("be", Entity(kind, "one"), place=self.place[self.hero], negated=True)
        else:
            self.tell(action, self.hero, Entity(kind, "one"), place=self.place[self.hero], negated=True)

    def close(self) -> None:
        """What holds at the end, at a later hour."""
        time = _TIMES[self.rng.randrange(self.hour + 2, len(_TIMES))]
        who = self.choice([entity for entity in self.place if self.speaker.knows(entity.noun)])
        draw = self.rng.random()
        things = [thing for thing in self.owner if thing.quantity == "one"]
        if draw < 0.3 and things:
            thing = self.choice(things)
            self.tell("have", self.owner[thing], thing, time=time)
        elif draw < 0.45 and things:
            thing = self.choice(things)
            loser = self.hero if self.owner[thing] is not self.hero else self.friend
            self.tell("have", loser, thing, time=time, negated=True)
        elif draw < 0.6 and self.moods:
            who = self.choice(list(self.moods))
            self.tell("be", who, state=self.moods[who], time=time)
        elif draw < 0.75:
            self.tell("be", who, place=PLACES[self.place[who]][1] or self.place[who], time=time)
        elif draw < 0.85:
            self.tell("be", who, place=self.other_place(*_around(self.place[who])), time=time, negated=True)
        else:
            self.tell("sleep", who, place=self.place[who], time=time)

    def text(self) -> str:
        return " ".join(self.sentences)


def _around(place: str) -> tuple[str, ...]:
    return (place, PLACES[place][1] or place)


def _animal(rng: Random) -> Entity:
    return describe(rng, rng.choice(LEAVES["animal"]), "one")


def describe(rng: Random, noun: str, quantity: str) -> Entity:
    """An entity of the noun with a few attributes that suit it; persons have no size and no colour."""
    root = ANCESTORS[noun][-1]
    draw = rng.random()
    if draw < 0.25:
        return Entity(noun, quantity)
    size = age = colour = None
    if root == "person" or draw < 0.4:
        age = rng.choice(ages_of(noun) or (None,))
    elif draw < 0.65:
        size = rng.choice(SIZES)
    else:
        colour = rng.choice(COLOURS[root])
        if draw > 0.9:
            size = rng.choice(SIZES)
    return Entity(noun, quantity, size, age, colour)


# --- plots: each adds three to seven sentences ----------------------------------------------------------------------


def _lost_and_found(s: _Story) -> None:
    thing, there = s.new_thing(), s.place[s.hero]
    s.owner[thing] = s.hero
    s.tell("lose", s.hero, thing, place=there)
    s.feel(s.hero, "sad", s.lead("so"))
    if s.rng.random() < 0.5:
        s.go(s.hero, s.other_place(there), lead=s.lead("then"))
    if s.rng.random() < 0.5 and s.place[s.friend] != there:
        s.tell("find", s.friend, thing, place=s.place[s.friend], negated=True)
    s.go(s.friend, there, Proposition("find", s.friend, thing), s.lead("later", "soon"))
    s.pass_on(s.friend, thing, s.hero)
    s.feel(s.hero, "happy", s.lead("so", "then"))


def _present(s: _Story) -> None:
    thing = s.new_thing()
    s.tell(s.choice(("find", "take", "carry")), s.hero, thing, place=s.place[s.hero])
    s.owner[thing] = s.hero
    if "container" in ANCESTORS[thing.noun]:
        s.tell("be", thing, state=s.choice(("open", "closed")))
    s.pass_on(s.hero, thing, s.friend, s.lead("then", "later"))
    s.feel(s.friend, "happy", s.lead("so"))
    if s.rng.random() < 0.6:
        s.tell("thank", s.friend, s.hero)
    if s.rng.random() < 0.5:
        place = s.other_place(s.place[s.friend])
        s.go(s.friend, place, Proposition("hide", s.friend, thing), s.lead("later", "then"))


def _chase(s: _Story) -> None:
    prey = _animal(s.rng)
    while prey.noun == s.animal.noun:
        prey = _animal(s.rng)
    s.place[prey], refuge = s.place[s.animal], s.other_place(s.place[s.animal])
    s.tell("chase", s.animal, prey, place=s.place[s.animal])
    s.feel(prey, "scared", s.lead("so"))
    s.go(prey, refuge, lead=s.lead("so", "then"))
    if s.rng.random() < 0.5:
        s.tell("find", s.animal, prey, negated=True, lead="but")
        s.feel(s.animal, s.choice(("angry", "tired", "sad")))
        s.go(s.hero, refuge, Proposition("help", s.hero, prey), s.lead("later", "soon"))
    else:
        s.go(s.animal, refuge, Proposition("find", s.animal, prey), s.lead("but", "soon"))
        s.tell("call", s.hero, s.animal)
        s.go(s.animal, s.place[s.hero], lead="so")
    s.feel(prey, "calm", s.lead("then", "soon"))


def _sharing(s: _Story) -> None:
    noun = s.new_thing(s.choice(("fruit", "flower"))).noun
    total = s.rng.randrange(2, 6)
    given = s.rng.randrange(1, total)
    s.tell("pick", s.hero, Entity(noun, _NUMBERS[total]), place=s.place[s.hero])
    s.go(s.hero, s.place[s.friend], lead=s.lead("then", "later"))
    s.part("give", s.hero, noun, given, s.friend)
    s.feel(s.friend, "happy", s.lead("so"))
    s.part("have", s.hero, noun, total - given, lead="then")
    if noun in LEAVES["snack"]:
        s.part("eat", s.friend, noun, given)
        s.part("have", s.friend, noun, 0, lead="so")


def _broken(s: _Story) -> None:
    thing, other = s.new_thing("toy"), s.new_thing("thing")
    while other.noun == thing.noun:
        other = s.new_thing("thing")
    s.owner[thing] = s.friend
    s.tell("have", s.friend, thing)
    s.go(s.hero, s.place[s.friend], Proposition("break", s.hero, thing), s.lead("but", "then"))
    s.feel(s.friend, s.choice(("angry", "sad")), s.lead("so"))
    s.feel(s.hero, "sad")
    s.pass_on(s.hero, other, s.friend, s.lead("so", "later"))
    s.feel(s.friend, s.choice(("happy", "calm")), s.lead("then", "soon"))


def _hide_and_seek(s: _Story) -> None:
    start = s.place[s.friend]
    hideout = s.other_place(start, s.place[s.hero])
    wrong = s.other_place(start, hideout, s.place[s.hero])
    s.go(s.friend, hideout, Proposition("wait", s.friend, manner="quietly"))
    s.go(s.hero, wrong, lead=s.lead("then", "so"))
    s.tell("find", s.hero, s.friend, place=wrong, negated=True, lead=s.lead("but"))
    s.go(s.hero, hideout, Proposition("find", s.hero, s.friend), s.lead("then", "later", "soon"))
    s.tell("laugh", s.choice((s.hero, s.friend)))


def _hungry(s: _Story) -> None:
    s.feel(s.animal, "hungry")
    s.go(s.hero, s.place[s.animal], Proposition("feed", s.hero, s.animal), s.lead("so", "soon"))
    s.tell("be", s.animal, state="hungry", negated=True, lead=s.lead("then", "so"))
    s.moods[s.animal] = "happy"
    s.tell(s.choice(("follow", "touch")), s.animal, s.hero, lead=s.lead("later", "then"))
    s.tell("be", s.animal, state="asleep", lead=s.lead("soon"))


def _trade(s: _Story) -> None:
    thing = s.new_thing(s.choice(("tool", "garment", "container", "thing")))
    lending = s.rng.random() < 0.5
    s.owner[thing] = s.hero
    s.tell("have", s.hero, thing)
    s.go(s.friend, s.place[s.hero], lead=s.lead("then", "soon"))
    s.tell("lend" if lending else "sell", s.hero, thing, s.friend)
    s.owner[thing] = s.friend
    s.go(s.friend, s.other_place(s.place[s.friend]), lead=s.lead("then"))
    if lending:
        s.feel(s.hero, "calm")
        s.pass_on(s.friend, thing, s.hero, s.lead("later"))
        s.tell("thank", s.friend, s.hero)
    else:
        s.tell("wash", s.friend, thing, place=s.place[s.friend])
        s.tell("have", s.hero, thing, negated=True, lead="so")


def _washing(s: _Story) -> None:
    thing = s.new_thing(s.choice(("toy", "garment", "tool", "container")))
    s.owner[thing] = s.hero
    s.tell("find", s.hero, thing, place=s.place[s.hero])
    s.tell("be", thing, state="dirty")
    s.tell("wash", s.hero, thing, manner=s.choice((None, "gently", "quickly")), lead=s.lead("so"))
    s.tell("be", thing, state="clean", lead=s.lead("then", "soon"))
    if s.rng.random() < 0.5:
        s.tell("be", thing, state="wet", lead=s.lead("but"))
        if s.rng.random() < 0.5:
            s.tell("be", thing, state="dry", lead=s.lead("later", "soon"))
    s.go(s.hero, s.place[s.friend], Proposition("show", s.hero, thing, s.friend), s.lead("later"))
    s.feel(s.hero, "happy")


def _herd(s: _Story) -> None:
    noun = s.choice(LEAVES["animal"])
    while noun == s.animal.noun:
        noun = s.choice(LEAVES["animal"])
    herd, place = replace(describe(s.rng, noun, "one"), quantity=s.choice(COUNTS[1:])), s.place[s.animal]
    s.tell("be", herd, place=place)
    s.tell("chase", s.animal, Entity(noun, "every"), lead=s.lead("then"))
    s.feel(herd, "scared", s.lead("so"))
    s.moods.pop(herd)
    s.go(s.hero, place, Proposition("feed", s.hero, Entity(noun, "every")), s.lead("later", "soon"))
    s.speaker.forget(noun)
    s.tell("be", Entity(noun, "one"), state="hungry", negated=True)
    s.tell(s.choice(("sleep", "rest")), Entity(noun, "every"), lead=s.lead("soon"))


_PLOTS: tuple[Callable[[_Story], None], ...] = (
    _lost_and_found,
    _present,
    _chase,
    _sharing,
    _broken,
    _hide_and_seek,
    _hungry,
    _trade,
    _washing,
    _herd,
)
_MOST_SENTENCES = 10


def stories(rng: Random, admits: Callable[[str], bool]) -> Iterator[str]:
    """Endless stories of four to ten sentences whose opening sentence is admitted."""
    while True:
        story = _Story(rng)
        story.open()
        if not admits(story.sentences[0]):
            continue
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            story.interlude()
        rng.choice(_PLOTS)(story)
        if rng.random() < 0.45:
            rng.choice((story.absence, story.omission, story.omission))()
        if len(story.sentences) < _MOST_SENTENCES and (len(story.sentences) < 5 or rng.random() < 0.7):
            story.close()
        if 4 <= len(story.sentences) <= _MOST_SENTENCES:
            yield story.text()
