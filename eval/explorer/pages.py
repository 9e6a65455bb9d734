"""The concept explorer's results as pieces of HTML; every text in them is escaped by the template."""

from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.command_line import NAME
from ..corpus.searching import Hit
from ..report.pages import page_environment
from .explorer import Comparison, Explorer, InfillStep, Reading, Rebuilt

DIRECTIONS = ("concepts read tokens", "positions read concepts")
BEGINNING, LONGEST_SHOWN = 160, 20_000  # characters of a document in the list, and of one that is read
TEMPLATES = Path(__file__).parent / "templates"
PIECES: Any = page_environment(TEMPLATES).get_template("explorer.html.j2").module


def head(explorer: Explorer) -> str:
    """Name and size of the checkpoint, and what it was trained on as far as its run says."""
    config, run = explorer.encoder.config, explorer.run
    facts = [
        f"{config.num_concepts} concepts of width {config.hidden_size}",
        f"{config.num_hidden_layers} encoder layers",
        f"decoder context: {config.decoder_context}" if explorer.model is not None else "no diffusion decoder",
    ]
    if run:
        facts.append(f"trained on {run.data.dataset_name}, {run.steps} steps, {explorer.corruption}")
    return PIECES.head(explorer.name, facts)


def notice(explorer: Explorer, activity: str) -> str:
    """Why the checkpoint cannot do `activity`, or what to know when it can; empty where there is nothing to say."""
    if activity in explorer.missing:
        text, found, command = explorer.missing[activity].partition(f"{NAME} ")
        return PIECES.notice("Not with this checkpoint.", text, found + command)
    if activity in explorer.cautions:
        return PIECES.notice("Mind:", explorer.cautions[activity], "")
    return ""


def reading_map(reading: Reading, direction: str, concept: int) -> str:
    """Concepts x tokens, one of `DIRECTIONS`, concepts in the order of where they attend."""
    if direction == DIRECTIONS[0] or reading.read_by is None:
        shares, caption = reading.read, "Which tokens each concept reads"
        note = "Each row sums to 1: the attention of one concept, mean over layers and heads. Click a row."
    else:
        shares, caption = reading.read_by.T, "Which concepts each position reads when the whole text is rebuilt"
        note = "Each column sums to 1: the attention of one position, all words masked. Click a row."
    centre = shares @ np.arange(len(reading.tokens)) / np.maximum(shares.sum(axis=1), 1e-12)
    order = np.argsort(centre, kind="stable")
    cells = _depths(shares)[order].tolist()
    return PIECES.heat(caption, order.tolist(), reading.tokens, cells, "concept", note, concept)


def reading_of(reading: Reading, concept: int) -> str:
    """What one concept reads, and where it is read."""
    row = reading.concepts[concept]
    note = f"Spread {row.entropy_bits:.2f} bits; even attention would have {reading.uniform.entropy_bits:.2f}."
    html = PIECES.chips(f"What concept {concept} reads", _chips(reading.tokens, reading.read, concept), note)
    if reading.read_by is None:
        return html
    note = ""
    if row.share_read is not None:
        even = 1 / len(reading.concepts)
        note = f"It gets {row.share_read:.1%} of the positions' attention; even would be {even:.1%}."
    return html + PIECES.chips(
        f"Who reads concept {concept}", _chips(reading.tokens, reading.read_by.T, concept), note
    )


def reading_rows(reading: Reading) -> list[list[Any]]:
    """A row per concept: index, the three tokens that it reads most, spread in bits, share of attention it gets."""
    return [
        [
            index,
            ", ".join(f"{token} {share:.0%}" for token, share in row.top_tokens[:3]),
            round(row.entropy_bits, 2),
            None if row.share_read is None else round(row.share_read, 4),
        ]
        for index, row in enumerate(reading.concepts)
    ]


def comparison(result: Comparison) -> str:
    """The similarities next to those of the untrained twin."""
    return PIECES.similarity(list(result.similarity.items()))


def matches(result: Comparison) -> str:
    """The matched concepts, best first."""
    count = len(result.partner)
    values = result.cosines[np.arange(count), result.partner]
    rows = [
        {
            "first": first,
            "first_reads": result.most_read[0][first],
            "second": int(result.partner[first]),
            "second_reads": result.most_read[1][result.partner[first]],
            "cosine": float(values[first]),
            "depth": round(100 * max(float(values[first]), 0)),
        }
        for first in np.argsort(-values, kind="stable").tolist()
    ]
    same = int((result.partner == np.arange(count)).sum())
    others = (result.cosines.sum() - values.sum()) / (count * (count - 1)) if count > 1 else float("nan")
    summary = (
        f"{same} of {count} concepts match their own number. Mean cosine of the matched {values.mean():.3f}, of all "
        f"other pairs {others:.3f}: the closer the two, the less the matching says."
    )
    return PIECES.matches(rows, summary)


def found(hits: Sequence[Hit]) -> str:
    """Documents of a search, best first; the place of each stands in its first cell."""
    if not hits:
        return PIECES.notice("Nothing was found.", "", "")
    most = max(hits[0].score, 1e-12)
    rows = [
        {
            "place": place,
            "id": hit.id,
            "score": hit.score,
            "depth": round(100 * max(hit.score, 0) / most),
            "parts": ", ".join(f"{name} {score:.3f}" for name, score in hit.parts.items()),
            "beginning": hit.text[:BEGINNING],
        }
        for place, hit in enumerate(hits, start=1)
    ]
    return PIECES.hits(rows)


def document(hit: Hit) -> str:
    """One document, to be read."""
    return PIECES.document(hit.id, [(name, str(value)[:LONGEST_SHOWN]) for name, value in hit.document.items()])


def swapped(before: Sequence[str], after: Sequence[str]) -> str:
    """Both texts rebuilt without and with the swap, the words that it changed marked."""
    html = ""
    for name, old, new in zip(("First text", "Second text"), before, after, strict=True):
        words = [{"text": word, "mark": "", "title": ""} for word in old.split()]
        html += PIECES.marked(f"{name}, rebuilt as it is", words)
        html += PIECES.marked(f"{name}, rebuilt after the swap", _changed(old.split(), new.split()))
    return html + ("" if list(before) != list(after) else PIECES.notice("Nothing changed.", "", ""))


def infilling(steps: Sequence[InfillStep], mask_token: str, special_tokens: Sequence[str]) -> str:
    """The canvas after each decoder call that committed something, marked with its probability."""
    rows = []
    hidden = set(special_tokens) - {mask_token}
    for number, step in enumerate(steps):
        if number and not step.committed:
            continue
        words = []
        for place, token in enumerate(step.tokens):
            if token in hidden and place not in step.committed:
                continue
            word = {"text": token, "mark": "", "title": "", "share": ""}
            if place in step.committed:
                share = f"{step.committed[place]:.0%}"
                word |= {"mark": "ce-new", "title": f"committed with probability {share}", "share": share}
            elif token == mask_token:
                word |= {"mark": "ce-gap", "text": "?", "title": "still masked"}
            words.append(word)
        title = f"step {number}: {len(step.committed)} filled in" if number else "the text as given"
        rows.append({"title": title, "words": words})
    return PIECES.steps(rows)


def rebuilding(result: Rebuilt, num_concepts: int) -> str:
    """The original, what came out of the first concepts, and the accuracy by their number."""
    original = [{"text": token, "mark": "", "title": ""} for token in result.original]
    words = [
        {"text": token, "mark": "ce-right" if right else "ce-wrong", "title": "" if right else f"was: {was}"}
        for token, was, right in zip(result.rebuilt, result.original, result.right, strict=True)
    ]
    share = f"{sum(result.right)} of {len(result.right)} tokens right"
    bars = [
        {
            "count": count,
            "label": f"{100 * value:.0f}",
            "depth": round(100 * value),
            "title": f"{count} concepts: {value:.1%}",
            "active": count == num_concepts,
        }
        for count, value in result.accuracy.items()
    ]
    return (
        PIECES.marked("Original", original)
        + PIECES.marked(f"Rebuilt from the first {num_concepts}: {share}", words)
        + PIECES.bars(
            "Percent of tokens right, by number of concepts",
            bars,
            "The most probable token at every place, in one decoder call.",
        )
    )


def _depths(shares: np.ndarray) -> np.ndarray:
    """Percent of full colour; even attention looks as pale as it is."""
    top = max(shares.max(), 4 * shares.mean())
    return np.rint(100 * shares / top).astype(int)


def _chips(tokens: Sequence[str], shares: np.ndarray, concept: int) -> list[dict[str, Any]]:
    depths = _depths(shares)[concept].tolist()
    return [
        {"text": token, "depth": depth, "title": f"{share:.1%}"}
        for token, depth, share in zip(tokens, depths, shares[concept].tolist(), strict=True)
    ]


def _changed(old: list[str], new: list[str]) -> list[dict[str, str]]:
    words = []
    for kind, start, end, first, last in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        was = " ".join(old[start:end])
        mark = {} if kind == "equal" else {"mark": "ce-new", "title": f"was: {was}"}
        words += [{"text": word, "mark": "", "title": "", **mark} for word in new[first:last]]
    return words
