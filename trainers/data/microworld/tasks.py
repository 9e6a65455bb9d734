"""Sentence pairs whose labels follow from their meanings: similarity, paraphrase and entailment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, cycle
from random import Random

from .grammar import Speaker
from .lexicon import (
    ANCESTORS,
    AXES,
    COLOURS,
    COMPLEMENTS,
    COUNTS,
    LEAVES,
    MOODS,
    NAMES,
    PLACES,
    REGIONS,
    SIZES,
    STATES,
    TIMES,
    VERBS,
    ages_of,
)
from .meaning import (
    CONTRADICTION,
    ENTAILMENT,
    NEUTRAL,
    Entity,
    Meaning,
    Proposition,
    altered,
    entailment,
    same_meaning,
    similarity,
)

Pair = tuple[str, str, float | int]
Admits = Callable[[str], bool]

_VARIETY = 0.8
_WORDINGS = 20  # attempts at two texts that belong to the split, before the pair is drawn again
_NAMES, _PLACES, _TIMES = tuple(NAMES), tuple(PLACES), tuple(TIMES)
_SPOTS = tuple(place for place in PLACES if place not in REGIONS)
_ACTIONS = {
    frame: tuple(a for a, verb in VERBS.items() if verb.frame == frame)
    for frame in ("intransitive", "motion", "transitive", "ditransitive")
}
_ACTIONS["transitive"] += ("meet",)
_LASTING_STATES = COLOURS["thing"]
_PLURALS = set(COUNTS[1:])


# --- drawing meanings -----------------------------------------------------------------------------------------------


class _Author:
    """Draws propositions about entities with a noun each, all different."""

    def __init__(self, rng: Random, taken: tuple[Entity, ...] = ()) -> None:
        self.rng, self.choice = rng, rng.choice
        self.taken = {entity.noun for entity in taken}

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def entity(self, kinds: tuple[str, ...], quantities: tuple[str, ...] = ("the", "the", "one", "one")) -> Entity:
        """An entity of one of the kinds; persons are named more often than not."""
        for _ in range(20):  # of books and letters there may be none left; `coherent` then turns the meaning down
            kind = self.choice(kinds)
            named = kind == "person" and self.chance(0.65)
            noun = self.choice(_NAMES if named else LEAVES[kind])
            if noun not in self.taken:
                break
        self.taken.add(noun)
        return Entity(noun) if named else self.describe(noun, self.choice(quantities))

    def describe(self, noun: str, quantity: str) -> Entity:
        root = ANCESTORS[noun][-1]
        ages = ages_of(noun)
        age = self.choice(ages) if ages and self.chance(0.6 if root == "person" else 0.25) else None
        if root == "person":
            return Entity(noun, quantity, age=age)
        size = self.choice(SIZES) if not age and self.chance(0.5) else None
        colour = self.choice(COLOURS[root]) if self.chance(0.5) else None
        return Entity(noun, quantity, size, age, colour)

    def event(self, frame: str, modifiers: float = 0.5, quantities: tuple[str, ...] | None = None) -> Proposition:
        """An affirmative proposition of the frame; each modifier is there with the given probability."""
        verb = VERBS[action := self.choice(_ACTIONS[frame])]
        drawn = quantities or ("the", "the", "one", "one", *COUNTS[1:4])
        patient = self.entity(verb.patient, drawn) if verb.patient else None
        # One plural at most: whether three dogs chased two cats each or together is not for us to say.
        plural = patient is not None and patient.quantity not in ("name", "the", "one")
        agent = self.entity(verb.agent, ("the", "one") if plural else drawn)
        recipient = self.entity(("person",), ("the", "one")) if frame == "ditransitive" else None
        place = self.choice(_SPOTS) if frame == "motion" or self.chance(modifiers) else None
        time = self.choice(_TIMES) if self.chance(modifiers) else None
        manner = self.choice(verb.manners) if verb.manners and self.chance(modifiers / 2) else None
        return Proposition(action, agent, patient, recipient, None, place, time, manner)

    def located(self, time: bool) -> Proposition:
        agent = self.entity(("person", "person", "animal", "thing"), ("the", "the", "one", *COUNTS[1:4]))
        return Proposition("be", agent, place=self.choice(_SPOTS), time=self.choice(_TIMES) if time else None)

    def state(self, pool: tuple[str, ...] | None = None) -> Proposition:
        """How an individual is, at a moment unless for ever; pool restricts the states."""
        while True:
            agent = self.entity(("person", "animal", "thing", "container"), ("the",))
            kinds = ANCESTORS[agent.noun]
            states = STATES["container" if "container" in kinds else kinds[-1]]
            if kinds[-1] == "thing" and not agent.colour:
                states += _LASTING_STATES
            fitting = [state for state in states if pool is None or state in pool]
            if fitting:
                state = self.choice(fitting)
                time = None if state in _LASTING_STATES else self.choice(_TIMES)
                return Proposition("be", agent, state=state, time=time)

    def any_event(self) -> Proposition:
        draw = self.rng.random()
        if draw < 0.1:
            return self.located(self.chance(0.5))
        if draw < 0.2:
            return self.state()
        frame = (
            "intransitive"
            if draw < 0.3
            else "motion"
            if draw < 0.4
            else "transitive"
            if draw < 0.75
            else "ditransitive"
        )
        return self.event(frame)

    def meaning(self) -> Meaning:
        """An event or two, some of them negated."""
        return tuple(self.maybe_negated(self.any_event(), 0.15) for _ in range(1 if self.chance(0.7) else 2))

    def maybe_negated(self, p: Proposition, probability: float) -> Proposition:
        negated = self.chance(probability) and can_be_negated(p)
        return replace(p, negated=True) if negated else p


def can_be_negated(p: Proposition) -> bool:
    """Whether English leaves no doubt about the scope: no plurals and no "every" next to the negation."""
    return all(entity.quantity in ("name", "the", "one") for entity in p.entities)


def fits(p: Proposition) -> bool:
    """Whether the roles, and the manner, suit the action."""
    verb = VERBS[p.action]
    return (
        _is_one_of(p.agent, verb.agent)
        and (p.patient is None or _is_one_of(p.patient, verb.patient))
        and (p.manner is None or p.manner in verb.manners)
        and (not p.negated or can_be_negated(p))
        and len({e.noun for e in p.entities}) == len(p.entities)
    )


def _is_one_of(entity: Entity, kinds: tuple[str, ...]) -> bool:
    return any(kind in ANCESTORS[entity.noun] for kind in kinds)


# --- paraphrase -----------------------------------------------------------------------------------------------------


def paraphrase_pairs(rng: Random, admits: Admits) -> Iterator[Pair]:
    """Endless pairs, 1 = same meaning, 0 = a meaning of the same words with two of them exchanged, in turn.

    Either side of an exchange is as likely to be the first text, and both classes word their second text alike, so
    that neither the words nor the constructions of a pair give the label away.
    """
    for label in cycle((0, 1)):
        while True:
            meaning = _swappable(rng)
            other = _exchanged(rng, meaning)
            if other is None:
                continue
            sides = [meaning, other]
            rng.shuffle(sides)
            texts = _word(rng, admits, sides[0], sides[0] if label else sides[1])
            if texts:
                yield (*texts, label)
                break


def _swappable(rng: Random) -> Meaning:
    author = _Author(rng)
    if author.chance(0.6):
        frame = "transitive" if author.chance(0.65) else "ditransitive"
        return (author.maybe_negated(author.event(frame), 0.2),)
    first, second = author.any_event(), author.any_event()
    if first.agent.is_individual and author.chance(0.3):
        second = replace(second, agent=first.agent)
    pair = author.maybe_negated(first, 0.25), author.maybe_negated(second, 0.25)
    return pair if coherent(pair) else _swappable(rng)


def _exchanged(rng: Random, meaning: Meaning) -> Meaning | None:
    """A meaning that makes sense and differs by an exchange of two parts, or None if there is none.

    Exchanges that would change the form of a content word, or "in" to "to", are left out: they would show.
    """
    candidates = [*_role_exchanges(meaning), *_attribute_exchanges(meaning), *_exchanges_between(meaning)]
    rng.shuffle(candidates)
    return next((other for other in candidates if coherent(other) and not same_meaning(meaning, other)), None)


def _exchanges_between(meaning: Meaning) -> Iterator[Meaning]:
    for a, b in combinations(meaning, 2):
        for role in ("agent", "patient", "recipient", "place", "time", "manner", "action", "state", "negated"):
            x, y = getattr(a, role), getattr(b, role)
            same_preposition = role != "place" or (_is_motion(a) == _is_motion(b))
            if x != y and x is not None and y is not None and same_preposition:
                yield altered(a, **{role: y}), altered(b, **{role: x})


def _role_exchanges(meaning: Meaning) -> Iterator[Meaning]:
    for i, p in enumerate(meaning):
        for x, y in combinations([r for r in ("agent", "patient", "recipient") if getattr(p, r)], 2):
            other = altered(p, **{x: getattr(p, y), y: getattr(p, x)})
            yield (*meaning[:i], other, *meaning[i + 1 :])


def _attribute_exchanges(meaning: Meaning) -> Iterator[Meaning]:
    entities = list(dict.fromkeys(entity for p in meaning for entity in p.entities))
    for x, y in combinations(entities, 2):
        if "name" in (x.quantity, y.quantity):
            continue
        for attribute in ("size", "age", "colour", "quantity"):
            u, v = getattr(x, attribute), getattr(y, attribute)
            if u != v and (attribute != "quantity" or {u, v} <= _PLURALS):
                other = {x: altered(x, **{attribute: v}), y: altered(y, **{attribute: u})}
                yield tuple(_with_entities(p, other) for p in meaning)


def _is_motion(p: Proposition) -> bool:
    return VERBS[p.action].frame == "motion"


def _with_entities(p: Proposition, other: dict[Entity, Entity]) -> Proposition:
    roles = {r: other[e] for r in ("agent", "patient", "recipient") if (e := getattr(p, r)) in other}
    return altered(p, **roles)


def coherent(meaning: Meaning) -> bool:
    """Whether each proposition makes sense and each noun names one entity."""
    entities = {entity for p in meaning for entity in p.entities}
    return len({entity.noun for entity in entities}) == len(entities) and all(map(_is_sound, meaning))


def _is_sound(p: Proposition) -> bool:
    """Whether all of p makes sense: roles, manner, place or state as the action asks, attributes that suit."""
    frame = VERBS[p.action].frame
    if not fits(p) or (p.recipient is not None and not _is_one_of(p.recipient, ("person",))):
        return False
    if (frame == "ditransitive") != (p.recipient is not None) or bool(VERBS[p.action].patient) != (
        p.patient is not None
    ):
        return False
    if frame == "state":
        if (p.state is None) == (p.place is None) or p.manner:
            return False
        kinds = ANCESTORS[p.agent.noun]
        states = STATES["container" if "container" in kinds else kinds[-1]]
        if p.state and p.state not in (*states, *(_LASTING_STATES if kinds[-1] == "thing" else ())):
            return False
    if frame == "motion" and p.place is None:
        return False
    if p.state and (not p.agent.is_individual or (p.state in _LASTING_STATES and (p.agent.colour or p.time))):
        return False
    return all(_attributes_suit(entity) for entity in p.entities)


def _attributes_suit(entity: Entity) -> bool:
    root = ANCESTORS[entity.noun][-1]
    return (
        entity.age in (None, *ages_of(entity.noun))
        and (entity.colour is None or entity.colour in COLOURS.get(root, ()))
        and (entity.size is None or root != "person")
    )


# --- similarity -----------------------------------------------------------------------------------------------------


def similarity_pairs(rng: Random, admits: Admits) -> Iterator[Pair]:
    """Endless pairs scored 0 to 5 by `similarity`: a meaning is altered part by part down to a score drawn evenly."""
    while True:
        author = _Author(rng)
        first = author.meaning()
        target = rng.uniform(0.0, 5.2)
        second = _lowered(rng, first, target)
        if second is None or not (coherent(first) and coherent(second)):
            continue
        texts = _word(rng, admits, first, second)
        if texts:
            yield (*texts, round(similarity(first, second), 3))


_TOLERANCE = 0.5  # of a score's distance from its target, in points
_ALTERATIONS = 40  # attempts at a target


def _lowered(rng: Random, meaning: Meaning, target: float) -> Meaning | None:
    """The meaning altered part by part until its similarity to the given one is about the target, or None."""
    if target < _TOLERANCE:
        author = _Author(rng)
        return tuple(author.maybe_negated(author.any_event(), 0.15) for _ in meaning)
    second, score = meaning, 5.0
    for _ in range(_ALTERATIONS):
        if score <= target + _TOLERANCE:
            return second
        i = rng.randrange(len(second))
        author = _Author(rng, tuple(entity for p in second for entity in p.entities))
        other = (*second[:i], _altered(author, second[i]), *second[i + 1 :])
        reached = similarity(meaning, other)
        if target - _TOLERANCE <= reached < score:
            second, score = other, reached
    return None


def _altered(author: _Author, p: Proposition) -> Proposition:
    """p with one part replaced, or all of it; p itself where that makes no sense."""
    if author.chance(0.1):
        return author.any_event()
    roles = [r for r in ("agent", "patient", "recipient", "place", "time", "manner", "state") if getattr(p, r)]
    role = author.choice((*roles, "action", "action", "time", "place", "manner", "negated", "swap", "swap"))
    if role == "negated":
        other = replace(p, negated=not p.negated)
    elif role == "swap":
        other = replace(p, agent=p.patient, patient=p.agent) if p.patient else p
    elif role == "action":
        other = replace(p, action=author.choice(_ACTIONS.get(VERBS[p.action].frame, (p.action,))))
    elif role in ("agent", "patient", "recipient"):
        other = altered(p, **{role: _altered_entity(author, p, role)})
    elif role == "state":
        other = replace(p, state=author.choice(author.choice(AXES)))
    else:
        pool = {"place": _PLACES, "time": _TIMES, "manner": VERBS[p.action].manners}[role]
        other = altered(p, **{role: author.choice((None, *pool))})
    return other if _is_sound(other) else p


def _altered_entity(author: _Author, p: Proposition, role: str) -> Entity:
    entity: Entity = getattr(p, role)
    draw = author.rng.random()
    if entity.quantity != "name" and draw < 0.3:
        return author.describe(entity.noun, entity.quantity)
    if entity.quantity != "name" and draw < 0.5:
        return replace(entity, noun=author.choice(LEAVES[ANCESTORS[entity.noun][1]]), colour=None)
    kinds = ("person",) if role == "recipient" else getattr(VERBS[p.action], role)
    return author.entity(kinds)


# --- entailment -----------------------------------------------------------------------------------------------------

# How premise and hypothesis are related, negations aside, for each (premise negated, hypothesis negated) and label.
# "stronger": the premise says more; "weaker": the hypothesis does; "crossed": either says something of its own;
# "apart": what would clash, were it not of another individual or another moment.
_RELATIONS = {
    (False, False): {
        ENTAILMENT: ("stronger", "stronger", "same"),
        NEUTRAL: ("weaker", "weaker", "crossed", "other", "apart", "apart"),
        CONTRADICTION: ("clash", "clash", "clash", "complement"),
    },
    (False, True): {
        ENTAILMENT: ("clash", "clash", "clash", "complement"),
        NEUTRAL: ("weaker", "weaker", "crossed", "other", "apart", "apart"),
        CONTRADICTION: ("stronger", "stronger", "same"),
    },
    (True, False): {
        ENTAILMENT: ("complement",),
        NEUTRAL: ("stronger", "stronger", "crossed", "other", "apart", "apart"),
        CONTRADICTION: ("weaker", "weaker", "same"),
    },
    (True, True): {
        ENTAILMENT: ("weaker", "weaker", "same"),
        NEUTRAL: ("stronger", "stronger", "crossed", "other", "apart", "apart"),
        CONTRADICTION: ("complement",),
    },
}
# Cells that only states of a pair (awake / asleep) can fill are rarer, so that such states do not mark them.
_POLARITIES = tuple(_RELATIONS)
_POLARITY_WEIGHTS = {ENTAILMENT: (3, 3, 1, 3), NEUTRAL: (3, 3, 2, 2), CONTRADICTION: (3, 3, 3, 1)}


def entailment_pairs(rng: Random, admits: Admits) -> Iterator[Pair]:
    """Endless (premise, hypothesis, label) by `entailment`, the three labels in turn.

    Most premises hold a second proposition that shares words with the hypothesis. Each change of words (added,
    dropped, wider, narrower, negated) occurs under every label.
    """
    for label in cycle((ENTAILMENT, NEUTRAL, CONTRADICTION)):
        while True:
            drawn = _draw_entailment(rng, label)
            texts = drawn and _word(rng, admits, *drawn)
            if texts:
                yield (*texts, label)
                break


def _draw_entailment(rng: Random, label: int) -> tuple[Meaning, Meaning] | None:
    """Premise and hypothesis of the label, or None if the attempt came out otherwise."""
    negated = rng.choices(_POLARITIES, _POLARITY_WEIGHTS[label])[0]
    author = _Author(rng)
    bodies = _related(author, rng.choice(_RELATIONS[negated][label]), plain=any(negated))
    premise, hypothesis = (replace(body, negated=n) for body, n in zip(bodies, negated, strict=True))
    if not (_is_meant(premise) and _is_meant(hypothesis)):
        return None
    meaning: Meaning = (premise,)
    if author.chance(0.7):
        second = _distractor(author, premise, hypothesis)
        if second is None:
            return None
        meaning = (premise, second) if author.chance(0.5) else (second, premise)
    individuals = {e for p in (*meaning, hypothesis) for e in p.entities if e.is_individual}
    if len({e.noun for e in individuals}) < len(individuals) or entailment(meaning, hypothesis) != label:
        return None
    return meaning, (hypothesis,)


def _is_meant(p: Proposition) -> bool:
    return (not p.negated or can_be_negated(p)) and len({e.noun for e in p.entities}) == len(p.entities)


def _related(author: _Author, relation: str, plain: bool) -> tuple[Proposition, Proposition]:
    """Bodies of premise and hypothesis in the given relation; plain ones can be negated."""
    if relation == "complement":
        return _complements(author)
    if relation == "clash":
        return _clashing(author)
    if relation == "apart":
        bodies = _complements(author) if author.chance(0.5) else _clashing(author)
        return bodies[0], _set_apart(author, bodies[1])
    body = _body(author, plain)
    if relation == "same":
        return body, body
    if relation == "other":
        return body, _other(author, body)
    weak = _weakened(author, body)
    if relation == "crossed":
        return weak, _weakened(author, body)
    return (body, weak) if relation == "stronger" else (weak, body)


def _body(author: _Author, plain: bool) -> Proposition:
    draw = author.rng.random()
    if draw < 0.2:
        return author.state()
    if draw < 0.35:
        return author.located(time=True)
    quantities = ("the", "one", "one") if plain else ("the", "one", "one", *COUNTS[1:5], "every", "every")
    frame = author.choice(("intransitive", "motion", "transitive", "transitive", "transitive", "ditransitive"))
    return author.event(frame, 0.6, quantities)


def _complements(author: _Author) -> tuple[Proposition, Proposition]:
    body = author.state(tuple(COMPLEMENTS))
    return body, replace(body, state=COMPLEMENTS[body.state or ""])


def _clashing(author: _Author) -> tuple[Proposition, Proposition]:
    """Another place at the same moment, or another state of the same axis."""
    draw = author.rng.random()
    if draw < 0.3:
        body = author.state((*MOODS, *_LASTING_STATES))
        axis = MOODS if body.state in MOODS else _LASTING_STATES
        return body, replace(body, state=author.choice(axis))
    if draw < 0.6:
        body = author.located(time=True)
    else:
        body = author.event(author.choice(("intransitive", "motion", "transitive")), 0.6)
    time = body.time or author.choice(_TIMES)
    body = replace(body, place=body.place or author.choice(_SPOTS), time=time)
    elsewhere = replace(body, place=author.choice(_SPOTS))
    if author.chance(0.4):
        elsewhere = Proposition("be", body.agent, place=elsewhere.place, time=time)
    return (body, elsewhere) if author.chance(0.5) else (elsewhere, body)


def _set_apart(author: _Author, p: Proposition) -> Proposition:
    """p at another moment or of another individual of the same kind."""
    if p.time and author.chance(0.5):
        return replace(p, time=author.choice([time for time in _TIMES if time != p.time]))
    root = ANCESTORS[p.agent.noun][-1]
    return replace(p, agent=author.entity((root,), ("the",)))


def _other(author: _Author, p: Proposition) -> Proposition:
    """p with the agent and patient exchanged, or one part replaced by another of its kind."""
    swapped = replace(p, agent=p.patient, patient=p.agent) if p.patient else p
    if p.patient and fits(swapped) and author.chance(0.5):
        return swapped
    roles = [r for r in ("agent", "agent", "patient", "recipient", "place", "time") if getattr(p, r)]
    role = author.choice(roles)
    if role in ("place", "time"):
        return altered(p, **{role: author.choice(_SPOTS if role == "place" else _TIMES)})
    entity: Entity = getattr(p, role)
    if entity.quantity == "name":
        return altered(p, **{role: Entity(author.choice(_NAMES))})
    other = altered(p, **{role: replace(entity, noun=author.choice(LEAVES[ANCESTORS[entity.noun][1]]))})
    return other if fits(other) and all(map(_attributes_suit, other.entities)) else p


def _weakened(author: _Author, p: Proposition) -> Proposition:
    """p made to say less in one or two ways."""
    for _ in range(author.choice((1, 1, 2))):
        options = list(_weaker(author, p))
        if options:
            p = author.choice(options)
    return p


def _weaker(author: _Author, p: Proposition) -> Iterator[Proposition]:
    """p without a modifier, in a wider place, with a wider action, or with a weaker entity in a role."""
    if p.state is None:
        if p.place and p.action != "be" and VERBS[p.action].frame != "motion":
            yield replace(p, place=None)
        if p.place and PLACES[p.place][1]:
            yield replace(p, place=PLACES[p.place][1])
        if p.time:
            yield replace(p, time=None)
    if p.manner:
        yield replace(p, manner=None)
    if parent := VERBS[p.action].parent:
        yield replace(p, action=parent)
    for role in ("agent", "patient", "recipient"):
        entity = getattr(p, role)
        if entity is not None:
            for weak in _weaker_entities(author, entity):
                yield altered(p, **{role: weak})


def _weaker_entities(author: _Author, entity: Entity) -> Iterator[Entity]:
    if entity.quantity == "name":
        yield Entity("person", "one")
        return
    if entity.quantity == "every":
        narrower = author.describe(entity.noun, "every")
        yield replace(narrower, size=entity.size or narrower.size, age=entity.age or narrower.age)
        yield replace(entity, quantity="one")
        return
    if entity.quantity == "the":
        yield replace(entity, quantity="one")
        return
    for attribute in ("size", "age", "colour"):
        if getattr(entity, attribute):
            yield altered(entity, **{attribute: None})
    if len(ANCESTORS[entity.noun]) > 1:
        yield replace(entity, noun=author.choice(ANCESTORS[entity.noun][1:]))
    if rank := COUNTS.index(entity.quantity):
        yield replace(entity, quantity=COUNTS[author.rng.randrange(rank)])


def _distractor(author: _Author, premise: Proposition, hypothesis: Proposition) -> Proposition | None:
    """Something else, about another individual, in words of the premise or of the hypothesis."""
    model = author.choice((hypothesis, hypothesis, premise))
    kinds = ("person", "animal") if model.action == "be" and not model.state else VERBS[model.action].agent
    agent = author.entity(tuple(kind for kind in kinds if kind != "thing") or kinds, ("the",))
    second = replace(model, agent=agent)
    if author.chance(0.3):
        second = replace(second, negated=not second.negated)
    if not (_is_meant(second) and _is_sound(second)):
        return None
    for entity in second.entities:
        for known in premise.entities:
            shares_noun = entity.noun == known.noun
            if shares_noun and not (entity == known and entity.is_individual):
                return None
    if entailment((premise,), second) != NEUTRAL or entailment((second,), premise) != NEUTRAL:
        return None
    return second


# --- wording --------------------------------------------------------------------------------------------------------


def rewordings(rng: Random, admits: Admits) -> Iterator[tuple[str, str]]:
    """Endless pairs of texts that say the same in other words, of one sentence or two."""
    while True:
        author = _Author(rng)
        meaning = author.meaning()
        texts = _word(rng, admits, meaning, meaning) if coherent(meaning) else None
        if texts:
            yield texts


def _word(rng: Random, admits: Admits, first: Meaning, second: Meaning) -> tuple[str, str] | None:
    """Two texts, both of the split, or None if none was found in a few attempts.

    The second text's choices of wording would also have reworded the first meaning. So texts of equal meaning differ,
    and texts of different meaning differ in wording no less often.
    """
    choices = Random()
    text = ""
    for _ in range(_WORDINGS):
        seed = rng.getrandbits(32)
        if not text:
            candidate = _in_order(choices, seed, first)
            text = candidate if admits(candidate) else ""
            continue
        other = _in_order(choices, seed, second)
        if admits(other) and text not in (other, _in_order(choices, seed, first)):
            return text, other
    return None


def _in_order(choices: Random, seed: int, meaning: Meaning) -> str:
    choices.seed(seed)
    ordered = meaning if choices.random() < 0.5 else meaning[::-1]
    return Speaker(choices, _VARIETY).text(ordered)


PAIRS = {"similarity": similarity_pairs, "paraphrase": paraphrase_pairs, "entailment": entailment_pairs}
