"""From propositions to sentences, each in one of several wordings that mean the same."""

from __future__ import annotations

from random import Random
from typing import TypeVar

from .lexicon import (
    ANCESTORS,
    OBJECT_PRONOUNS,
    PLACES,
    PLURALS,
    PRONOUNS,
    SYNONYMS,
    TIMES,
    VERBS,
    Verb,
)
from .meaning import Entity, Meaning, Proposition

_PLACE_PHRASES = {place: phrase for place, (phrase, _) in PLACES.items()}
_SINGULAR = ("name", "the", "one", "every")
_T = TypeVar("_T")
_CLEFT_QUANTITIES = ("name", "the", "one")


class Speaker:
    """Words one text: remembers who was mentioned, so that later mentions are definite or pronouns.

    Args:
        rng: source of every choice of wording.
        variety: probability in [0, 1] of a marked wording (passive, cleft, converse, fronting, synonym).
        kinds: whether a known animal or thing may be called by its kind ("the animal"), where only one fits.

    A pronoun is used only for the one entity of its kind in the previous clause, so that it is never ambiguous. Within
    a text, no two entities may share a noun.
    """

    def __init__(self, rng: Random, variety: float, kinds: bool = False) -> None:
        self._random, self._choice = rng.random, rng.choice
        self._variety, self._kinds = variety, kinds
        self._known: dict[str, Entity] = {}
        self._denied = False
        self._previous: dict[str | None, set[str]] = {}
        self._current: dict[str | None, set[str]] = {}

    def text(self, meaning: Meaning) -> str:
        """The propositions as sentences, or two of them as one sentence of two clauses."""
        clauses = [self.clause(p) for p in meaning]
        joint = len(clauses) == 2 and "," not in clauses[0] and self._random() < 0.25
        return sentence(", and ".join(clauses)) if joint else " ".join(map(sentence, clauses))

    def clause(self, p: Proposition, lead: str = "") -> str:
        """One main clause, opened by the connective lead if there is one."""
        self._turn()
        self._denied = p.negated
        if not lead and not p.negated and self._cleft_roles(p) and self._random() < 0.3 * self._variety:
            return self._cleft(p)
        front, tail = self._adjuncts(p, may_front=not lead)
        if p.negated and not lead and self._random() < 0.25 * self._variety:
            front, negated = f"{front}it was not true that ", False
        else:
            negated = p.negated
        core = self._be(p, negated) if p.action == "be" else self._event(p, negated)
        return f"{lead} {front}{core}{tail}" if lead else f"{front}{core}{tail}"

    def predicate(self, p: Proposition) -> str:
        """What an affirmative p says of its agent, to be added to a clause about that agent."""
        self._denied = False
        _, tail = self._adjuncts(p, may_front=False)
        return self._active(p, negated=False) + tail

    def mention(self, entity: Entity) -> str:
        """The entity as a subject with full description; it counts as known afterwards."""
        return self._noun_phrase(entity, pronoun=False)[0]

    def knows(self, noun: str) -> bool:
        return noun in self._known

    def knows_kind(self, kind: str) -> bool:
        return any(kind in ANCESTORS[noun] for noun in self._known)

    def forget(self, noun: str) -> None:
        """The next mention of the noun is of other individuals than before."""
        self._known.pop(noun, None)

    # --- clause level ---------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._previous, self._current = self._current, {}

    def _marked(self) -> bool:
        return self._random() < self._variety

    def _adjuncts(self, p: Proposition, may_front: bool) -> tuple[str, str]:
        """Fronted adjunct with its comma, and those that end the clause, each with a leading space."""
        time = self._choice(TIMES[p.time]) if p.time else ""
        frame = VERBS[p.action].frame
        place = _PLACE_PHRASES[p.place] if p.place and frame not in ("motion", "state") else ""
        if may_front and (time or place) and self._random() < 0.25 + 0.5 * self._variety:
            if time and (not place or self._random() < 0.5):
                return f"{time}, ", f" {place}" if place else ""
            return f"{place}, ", f" {time}" if time else ""
        both = (place, time) if self._random() < 0.7 else (time, place)
        return "", "".join(f" {phrase}" for phrase in both if phrase)

    def _be(self, p: Proposition, negated: bool) -> str:
        where = self._complement(p)
        fresh = p.agent.noun not in self._known and p.agent.quantity not in ("name", "the", "every")
        if fresh and not p.state and self._random() < 0.5:
            phrase, plural = self._noun_phrase(p.agent, no=negated)
            return f"there {_was(plural)} {phrase} {where}"
        subject, plural, negated = self._subject(p.agent, negated)
        return f"{subject} {_was(plural)} {'not ' if negated else ''}{where}"

    def _complement(self, p: Proposition) -> str:
        if p.state:
            return self._word(p.state)
        assert p.place, "a state is a state or a place"
        return _PLACE_PHRASES[p.place]

    def _event(self, p: Proposition, negated: bool) -> str:
        verb = VERBS[p.action]
        if verb.frame == "ditransitive":
            draw = self._random()
            if verb.converse and draw < 0.4 * self._variety:
                return self._converse(p, verb, negated)
            if draw < 0.8 * self._variety:
                return self._passive(p, verb, negated)
        elif verb.frame == "transitive" and self._random() < 0.55 * self._variety:
            return self._passive(p, verb, negated)
        elif verb.frame == "symmetric" and p.patient and self._marked():
            subject, _, negated = self._subject(p.patient, negated)
            return f"{subject} {self._finite(verb.forms, negated)} {self._object(p.agent, p)}"
        subject, _, negated = self._subject(p.agent, negated)
        return f"{subject} {self._active(p, negated)}"

    def _active(self, p: Proposition, negated: bool, gap: bool = False) -> str:
        """Verb phrase of the active voice, without the patient if that leaves a gap."""
        verb = VERBS[p.action]
        if verb.frame == "state":
            return f"was {self._complement(p)}"
        early, late = self._manner(p)
        parts = [early + self._finite(verb.forms, negated)]
        if p.recipient and not gap and self._random() < 0.5:
            parts.append(self._object(p.recipient, p))
            parts.append(self._object(p.patient, p, pronoun=False))
        else:
            if p.patient and not gap:
                parts.append(self._object(p.patient, p))
            if p.recipient:
                parts.append(f"to {self._object(p.recipient, p)}")
        if verb.frame == "motion" and p.place:
            parts.append(f"to {_PLACE_PHRASES[p.place].split(' ', 1)[1]}")
        return " ".join(parts) + late

    def _finite(self, forms: tuple[tuple[str, str, str], ...], negated: bool) -> str:
        base, past, _ = self._pick(forms)
        return f"did not {base}" if negated else past

    def _manner(self, p: Proposition) -> tuple[str, str]:
        """The adverb before the verb (a negated auxiliary comes first) or after the verb phrase."""
        if not p.manner:
            return "", ""
        word = self._word(p.manner)
        if p.negated or self._random() < 0.5:
            return "", f" {word}"
        return f"{word} ", ""

    def _passive(self, p: Proposition, verb: Verb, negated: bool) -> str:
        to_recipient = p.recipient is not None and self._random() < 0.5
        subject, plural, negated = self._subject(p.recipient if to_recipient else p.patient, negated)
        early, late = self._manner(p)
        parts = [f"{subject} {_was(plural)}{' not' if negated else ''} {early}{self._pick(verb.forms)[2]}"]
        if to_recipient:
            parts.append(self._object(p.patient, p, pronoun=False))
        elif p.recipient:
            parts.append(f"to {self._object(p.recipient, p)}")
        return f"{' '.join(parts)} by {self._object(p.agent, p, pronoun=False)}{late}"

    def _converse(self, p: Proposition, verb: Verb, negated: bool) -> str:
        subject, _, negated = self._subject(p.recipient, negated)
        early, late = self._manner(p)
        finite = early + self._finite(verb.converse, negated)
        given = self._object(p.patient, p)
        return f"{subject} {finite} {given} from {self._object(p.agent, p, pronoun=False)}{late}"

    def _cleft_roles(self, p: Proposition) -> list[str]:
        if p.action == "be":
            return []
        patient = p.patient if VERBS[p.action].frame != "possessive" else None
        roles = (("agent", p.agent), ("patient", patient))
        return [role for role, entity in roles if entity and entity.quantity in _CLEFT_QUANTITIES]

    def _cleft(self, p: Proposition) -> str:
        role = self._choice(self._cleft_roles(p))
        _, tail = self._adjuncts(p, may_front=False)
        if role == "agent":
            focus, _ = self._noun_phrase(p.agent, pronoun=False)
            link = "who" if ANCESTORS[p.agent.noun][-1] == "person" else "that"
            return f"it was {focus} {link} {self._active(p, negated=False)}{tail}"
        focus, _ = self._noun_phrase(p.patient, pronoun=False)
        subject, _ = self._noun_phrase(p.agent)
        return f"it was {focus} that {subject} {self._active(p, negated=False, gap=True)}{tail}"

    # --- phrase level ---------------------------------------------------------------------------------------------

    def _word(self, concept: str) -> str:
        return self._pick(SYNONYMS[concept]) if concept in SYNONYMS else concept

    def _pick(self, synonyms: tuple[_T, ...]) -> _T:
        return synonyms[0] if len(synonyms) == 1 or self._random() > 0.2 + 0.4 * self._variety else synonyms[1]

    def _subject(self, entity: Entity | None, negated: bool) -> tuple[str, bool, bool]:
        """Subject, whether it is plural, and whether the verb is still to be negated ("no dog" has done it)."""
        no = negated and entity is not None and entity.quantity == "one" and entity.noun not in self._known
        phrase, plural = self._noun_phrase(entity, no=no)
        return phrase, plural, negated and not no

    def _object(self, entity: Entity | None, p: Proposition, pronoun: bool = True) -> str:
        phrase, _ = self._noun_phrase(entity, pronoun=pronoun, any_=p.negated and self._random() < 0.5)
        return OBJECT_PRONOUNS.get(phrase, phrase)

    def _noun_phrase(
        self, entity: Entity | None, pronoun: bool = True, no: bool = False, any_: bool = False
    ) -> tuple[str, bool]:
        """Wording of an entity and whether it is plural; no and any_ stand in the place of "a"."""
        assert entity is not None, "the wording asks for a role that is not filled"
        noun, quantity = entity.noun, entity.quantity
        plural = quantity not in _SINGULAR
        pronoun_word = "they" if plural else PRONOUNS[noun] if quantity != "every" else None
        known = noun in self._known
        repeated = noun in self._current.get(pronoun_word, ())
        clear = not repeated and self._previous.get(pronoun_word) == {noun}
        if not (self._denied and quantity == "one"):  # "no dog" brings no dog into the text
            self._known.setdefault(noun, entity)
        self._current.setdefault(pronoun_word, set()).add(noun)
        if known and pronoun and pronoun_word and clear and self._random() < 0.6:
            return pronoun_word, plural
        if quantity == "name":
            return noun.capitalize(), False
        if known and quantity != "every":
            return self._definite(entity, plural), plural
        words = [self._word(a) for a in (entity.size, entity.age) if a]
        words += [entity.colour] if entity.colour else []
        if quantity == "every" and self._random() < 0.4:
            return " ".join(["all the", *words, PLURALS[noun]]), True
        words.append(PLURALS[noun] if plural else noun)
        if quantity == "one":
            determiner = "no" if no else "any" if any_ else "an" if words[0][0] in "aeiou" else "a"
        else:
            determiner = quantity
        return f"{determiner} {' '.join(words)}", plural

    def _definite(self, entity: Entity, plural: bool) -> str:
        noun = entity.noun
        if self._kinds and not plural and self._random() < 0.15:
            kind = self._choice(ANCESTORS[noun])
            if kind not in ("person", "thing") and sum(kind in ANCESTORS[known] for known in self._known) == 1:
                return f"the {kind}"
        words = ["the"]
        if self._random() < 0.25:
            words += [self._word(a) for a in (entity.size, entity.age) if a]
            words += [entity.colour] if entity.colour else []
        words.append(PLURALS[noun] if plural else noun)
        return " ".join(words)


def sentence(clause: str) -> str:
    """A clause with its capital and its full stop."""
    return f"{clause[0].upper()}{clause[1:]}."


def _was(plural: bool) -> str:
    return "were" if plural else "was"
