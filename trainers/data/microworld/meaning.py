"""Meanings and what follows from them: equality, graded similarity and entailment, never from strings.

Conventions of the microworld, on which every label rests:

- A proposition without negation says that at least one event or state fits it; a negated one that none does.
  Negation has the widest scope: "Anna did not see a dog" is "no dog was seen by Anna".
- "a dog" is at least one dog, "three dogs" at least three, "some dogs" more than one (it licenses no number).
  "every dog" presupposes that there is one, and covers definite dogs too; "every person" covers the named.
- Names and "the ..." refer to one individual throughout a pair of texts, by one description: "the dog" and "the small
  dog" never meet in a pair, for whether they are the same would be open.
- A place holds all that happens in it and anybody who acts there is there; "walked to the barn" ends in the barn. A
  moment ("at noon") is one and the same, and at one moment an individual is in one place and in one mood.
- Role swap, another individual, or another indefinite ("a dog", "a cat") decides nothing: neutral.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, TypeVar

from .lexicon import ANCESTORS, AXES, COMPLEMENTS, COUNTS, LASTING_AXES, NAMES, PARENTS, PLACES, ROOTS, VERBS

ENTAILMENT, NEUTRAL, CONTRADICTION = 0, 1, 2
ROLE_WEIGHTS = {
    "action": 3.0,
    "agent": 3.0,
    "patient": 3.0,
    "recipient": 3.0,
    "state": 3.0,
    "place": 1.5,
    "time": 1.0,
    "manner": 1.0,
    "negated": 1.5,
}
NOUN_SHARE = 0.6  # of an entity's similarity; its count and attributes share the rest


@dataclass(frozen=True, slots=True)
class Entity:
    """A participant: a named person ("name"), a known one ("the"), a count from COUNTS, or "every"."""

    noun: str
    quantity: str = "name"
    size: str | None = None
    age: str | None = None
    colour: str | None = None

    @property
    def attributes(self) -> frozenset[str]:
        return frozenset(value for value in (self.size, self.age, self.colour) if value)

    @property
    def is_individual(self) -> bool:
        return self.quantity in ("name", "the")


@dataclass(frozen=True, slots=True)
class Proposition:
    """One event or state: who did what to whom, where, when and how, or that this did not happen.

    action "be" with a state ("wet") says how the agent was, without one where it was. A motion's place is its goal.
    """

    action: str
    agent: Entity
    patient: Entity | None = None
    recipient: Entity | None = None
    state: str | None = None
    place: str | None = None
    time: str | None = None
    manner: str | None = None
    negated: bool = False

    @property
    def entities(self) -> tuple[Entity, ...]:
        return tuple(entity for entity in (self.agent, self.patient, self.recipient) if entity is not None)


Meaning = tuple[Proposition, ...]
_Part = TypeVar("_Part", Entity, Proposition)


def altered(part: _Part, **fields: Any) -> _Part:
    """The entity or proposition with other fillers of the fields, whose names may be computed."""
    return replace(part, **fields)


def same_meaning(a: Meaning, b: Meaning) -> bool:
    """Whether two meanings say the same, in any order of their propositions or of a symmetric action's roles."""
    return _canonical(a) == _canonical(b)


def _canonical(meaning: Meaning) -> frozenset[Proposition]:
    return frozenset(
        replace(p, agent=p.patient, patient=p.agent)
        if p.patient and VERBS[p.action].frame == "symmetric" and p.patient.noun < p.agent.noun
        else p
        for p in meaning
    )


# --- entailment -----------------------------------------------------------------------------------------------------


def entailment(premise: Meaning, hypothesis: Proposition) -> int:
    """ENTAILMENT, NEUTRAL or CONTRADICTION of a hypothesis, given a premise of one or more propositions.

    The premise entails (contradicts) what any one of its propositions entails (contradicts). With body(P) the
    proposition P without its negation, `implies` and `clash` as defined below:

    | premise | hypothesis | entailment                  | contradiction               |
    | ------- | ---------- | --------------------------- | --------------------------- |
    | P       | H          | P implies H                 | P and H clash               |
    | P       | not H      | P and H clash               | P implies H                 |
    | not P   | H          | never                       | H implies P                 |
    | not P   | not H      | H implies P                 | never                       |

    An individual's state of a pair such as awake / asleep at a moment is also read as the denial of the other one.
    """
    readings = _readings(hypothesis)
    labels = {_decide(p, h) for proposition in premise for p in _readings(proposition) for h in readings}
    assert not {ENTAILMENT, CONTRADICTION} <= labels, f"inconsistent premise {premise} for {hypothesis}"
    return min(labels - {NEUTRAL}, default=NEUTRAL)


def _decide(p: Proposition, h: Proposition) -> int:
    if not p.negated:
        if implies(p, h):
            return CONTRADICTION if h.negated else ENTAILMENT
        if clash(p, h):
            return ENTAILMENT if h.negated else CONTRADICTION
    elif implies(h, p):
        return ENTAILMENT if h.negated else CONTRADICTION
    return NEUTRAL


def _readings(p: Proposition) -> Meaning:
    """p and, where there is one, its equal by complement: "not awake at noon" and "asleep at noon"."""
    if p.state in COMPLEMENTS and p.time and p.agent.is_individual:
        return p, replace(p, negated=not p.negated, state=COMPLEMENTS[p.state])
    return (p,)


def implies(p: Proposition, h: Proposition) -> bool:
    """Whether p, its negation aside, cannot hold without h, its negation aside."""
    if _implies_as_written(p, h):
        return True
    if VERBS[p.action].frame != "symmetric" or p.patient is None:
        return False
    return _implies_as_written(replace(p, agent=p.patient, patient=p.agent), h)


def _implies_as_written(p: Proposition, h: Proposition) -> bool:
    located = h.action == "be" and h.state is None  # anybody who acts somewhere is there
    if not located and (
        not action_is_a(p.action, h.action)
        or p.state != h.state
        or (h.patient and not (p.patient and entity_implies(p.patient, h.patient)))
        or (h.recipient and not (p.recipient and entity_implies(p.recipient, h.recipient)))
    ):
        return False
    return (
        entity_implies(p.agent, h.agent)
        and (h.place is None or (p.place is not None and place_is_in(p.place, h.place)))
        and h.time in (None, p.time)
        and h.manner in (None, p.manner)
    )


def entity_implies(p: Entity, h: Entity) -> bool:
    """Whether what holds of p holds of h: a red dog of a dog, an animal; three of two; every dog of every old dog."""
    wider = h.noun in ANCESTORS[p.noun] and h.attributes <= p.attributes
    if p.quantity == "every":
        narrower = p.noun in ANCESTORS[h.noun] and p.attributes <= h.attributes
        return (h.quantity in ("every", "the", "name") and narrower) or (h.quantity == "one" and wider)
    if h.quantity == "every":
        return False
    if h.is_individual:
        return p == h
    if p.is_individual:
        return h.quantity == "one" and wider
    return COUNTS.index(p.quantity) >= COUNTS.index(h.quantity) and wider


def clash(p: Proposition, h: Proposition) -> bool:
    """Whether p and h, negations aside, cannot both hold: one individual in two places or two states at once."""
    if not p.agent.is_individual or p.agent != h.agent:
        return False
    at_once = p.time is not None and p.time == h.time
    if p.state and h.state:
        lasting = any(p.state in axis and h.state in axis for axis in LASTING_AXES)
        exclusive = p.state != h.state and any(p.state in axis and h.state in axis for axis in AXES)
        return exclusive and (at_once or lasting)
    if p.place is None or h.place is None or not at_once:
        return False
    return not place_is_in(p.place, h.place) and not place_is_in(h.place, p.place)


def action_is_a(action: str, other: str) -> bool:
    """Whether doing the one is doing the other: to chase is to follow."""
    return action == other or VERBS[action].parent == other


def place_is_in(place: str, other: str) -> bool:
    """Whether the one place is the other or is in it: the kitchen in the house."""
    return other in (place, PLACES[place][1])


# --- similarity -----------------------------------------------------------------------------------------------------


def similarity(a: Meaning, b: Meaning) -> float:
    """Graded similarity of two meanings, 0 (nothing in common) to 5 (the same meaning).

    Of two propositions: 5 * sum over roles of weight * match / sum of weights, over the roles of ROLE_WEIGHTS that
    are filled in either of them (a negation that neither has is no role filled). A match is 1 for equal fillers and 0
    for unrelated ones; actions and nouns that are kin (one a kind of the other, or two kinds of one parent below the
    roots) and a place and the one that contains it match by half. An entity's match is 0 if the nouns share nothing,
    otherwise 0.6 * noun + 0.4 * share of its count and attributes that agree.
    Of meanings of several propositions: the mean over the best one-to-one alignment, unaligned ones counting 0.
    """
    short, long = sorted((a, b), key=len)
    return max(sum(map(_proposition_similarity, short, order)) for order in permutations(long, len(short))) / len(long)


def _proposition_similarity(a: Proposition, b: Proposition) -> float:
    if same_meaning((a,), (b,)):
        return 5.0
    total = matched = 0.0
    for role, weight in ROLE_WEIGHTS.items():
        x, y = getattr(a, role), getattr(b, role)
        if x or y:
            total += weight
            matched += weight * (_filler_similarity(role, x, y) if x and y else 0.0)
    return 5.0 * matched / total


def _filler_similarity(role: str, x: Any, y: Any) -> float:
    if x == y:
        return 1.0
    if isinstance(x, Entity) and isinstance(y, Entity):
        return _entity_similarity(x, y)
    if role == "action":
        parents = VERBS[x].parent or x, VERBS[y].parent or y
        return 0.5 if parents[0] == parents[1] else 0.0
    if role == "place":
        return 0.5 if place_is_in(x, y) or place_is_in(y, x) else 0.0
    return 0.0


def _entity_similarity(x: Entity, y: Entity) -> float:
    noun = 1.0 if x.noun == y.noun else 0.5 * _are_kin(x.noun, y.noun)
    if not noun:
        return 0.0
    pairs = [(x.quantity, y.quantity), (x.size, y.size), (x.age, y.age), (x.colour, y.colour)]
    filled = [u == v for u, v in pairs if u or v]
    return NOUN_SHARE * noun + (1 - NOUN_SHARE) * sum(filled) / len(filled)


def _are_kin(x: str, y: str) -> bool:
    if x in NAMES or y in NAMES:
        return False
    if x in ANCESTORS[y] or y in ANCESTORS[x]:
        return True
    return PARENTS.get(x) == PARENTS.get(y) and PARENTS.get(x) not in ROOTS
