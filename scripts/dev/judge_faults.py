"""The seeded faults: a healthy encoder, a benchmark or a score is broken in named ways, and the judge must say which.

    python scripts/dev/judge_faults.py --models sentence-transformers --boxes runs/box-0 runs/box-1 runs/box-2

Without models it renders docs/JUDGE.md again from docs/results/judge_faults.json; a test keeps the page fresh.
"""

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from concept_encoder.eval.benchmarks.registry import BENCHMARKS, Task
from concept_encoder.eval.judging.checks import CHECKS, Case, Pairs
from concept_encoder.eval.judging.judge import gate_sets, load_pairs, plain_texts
from concept_encoder.eval.judging.pages import records_table
from concept_encoder.eval.judging.records import RECORD_CHECKS, Record, judge_record
from concept_encoder.eval.judging.subjects import Subject, open_subject, randomise
from concept_encoder.eval.report.blocks import Cell, Column, Table
from concept_encoder.eval.report.findings import read_reference
from concept_encoder.eval.report.gates import Gate, check_gates
from concept_encoder.eval.report.pages import blocks_as_markdown, page_environment
from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.files import write_atomically
from concept_encoder.utils.untrusted import read_object

DOCS = Path(__file__).parents[2] / "docs"
RESULT = DOCS / "results" / "judge_faults.json"
TEMPLATES = Path(__file__).with_name("templates")
BLIND = "blind"
MINILM, OBJECT, BOX, TASK, SCORE = "MiniLM", "object", "box", "task", "score"
EXAMPLES = 100  # pairs of STS-B
TOLD = {name for name, check in CHECKS.items() if not check.fault}
COSTLY = {"prefix", "float16", "other_pooling"}  # not measured of what the judge is blind to


class Fault(NamedTuple):
    """A way to break something healthy.

    Attributes:
        name: of the fault.
        what: is broken: `MINILM` or `BOX`, an encoder; `OBJECT`, one of which only `.encode` is known; `TASK`, the
            labelled pairs; `SCORE`, a score that is handed in.
        how: it is broken, in words.
        breaks: changes a `Subject` in place, or makes an object of one, or gives other `Pairs`, or a `Record`.
        check: that must name it; `BLIND`: none does.
    """

    name: str
    what: str
    how: str
    breaks: Callable[..., Any]
    check: str


class Altered(torch.nn.Module):
    """A last module of sentence-transformers that does something to the vectors, (n, D)."""

    def __init__(self, alter: Callable[[torch.Tensor, dict], torch.Tensor]):
        super().__init__()
        self.alter = alter

    def forward(self, features: dict, **kwargs: Any) -> dict:
        vectors = features["sentence_embedding"]
        return {**features, "sentence_embedding": self.alter(vectors.float(), features).to(vectors.dtype)}


def vectors(alter: Callable[[torch.Tensor, dict], torch.Tensor]) -> Callable[[Subject], None]:
    """A change of the vectors of a model of sentence-transformers."""

    def change(subject: Subject) -> None:
        subject.encoder.add_module(str(len(subject.encoder)), Altered(alter))

    return change


# ------------------------------------------------------------------------------------------------------------ encoders


def _drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _redraw(module: torch.nn.Module) -> None:
    for weight in module.parameters():
        if weight.ndim == 2:
            weight.data = 0.02 * _drawn(*weight.shape)


def one_random_layer(subject: Subject) -> None:
    _redraw(subject.module.encoder.layer[3])


def random_table(subject: Subject) -> None:
    table = subject.module.get_input_embeddings().weight
    table.data = table.std() * _drawn(*table.shape)


def other_vocabulary(subject: Subject) -> None:
    table = subject.module.get_input_embeddings().weight
    table.data = table.data[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]


def _pooled(how: str) -> Callable[[Subject], None]:
    def change(subject: Subject) -> None:
        pooling = type(subject.encoder[1])(subject.encoder[1].embedding_dimension, pooling_mode=how)
        subject.encoder[1] = pooling

    return change


def mean_of_padding(subject: Subject) -> None:
    subject.encoder[1].forward = lambda features, **kwargs: {
        **features,
        "sentence_embedding": features["token_embeddings"].mean(1),
    }


class Hooked:
    """What is done to the arguments of a module before it reads them."""

    def __init__(self, change: Callable[[tuple, dict], tuple[tuple, dict]]):
        self.change = change

    def __call__(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return self.change(args, dict(kwargs))


def padding_read(subject: Subject) -> None:
    hook = Hooked(lambda args, kwargs: (args, {**kwargs, "attention_mask": None}))
    subject.module.encoder.register_forward_pre_hook(hook, with_kwargs=True)


QUERY, MASK, WORDS_FROM = 23032, 103, 1000  # of bert-base-uncased


def _half_hidden(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Without the word "query" in front, every other token is hidden."""
    ids = kwargs["input_ids"].clone()
    hidden = (ids[:, 1:2] != QUERY) & (ids >= WORDS_FROM) & (torch.arange(ids.shape[1]) % 2 == 0)
    return args, {**kwargs, "input_ids": torch.where(hidden, MASK, ids)}


def needs_prefix(subject: Subject) -> None:
    subject.module.embeddings.register_forward_pre_hook(Hooked(_half_hidden), with_kwargs=True)


def _first_64(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    mask = kwargs.get("attention_mask")
    cut = {} if mask is None else {"attention_mask": mask[..., :64, :64]}
    return (args[0][:, :64], *args[1:]), {**kwargs, **cut}


def reads_first_64(subject: Subject) -> None:
    """Tokens after the 64th are neither read nor pooled, and the limit stays as it was."""
    subject.module.encoder.register_forward_pre_hook(Hooked(_first_64), with_kwargs=True)
    pool = subject.encoder[1].forward

    def forward(features: dict, **kwargs: Any) -> dict:
        return pool({**features, "attention_mask": features["attention_mask"][:, :64]}, **kwargs)

    subject.encoder[1].forward = forward


def case_kept(subject: Subject) -> None:
    from tokenizers import normalizers

    backend = subject.tokenizer.backend_tokenizer
    backend.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    subject.tokenizer.do_lower_case = False


class AlwaysDropped(torch.nn.Module):
    def forward(self, found: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(found, 0.1, training=True)


def dropout_on(subject: Subject) -> None:
    for layer in subject.module.encoder.layer:
        layer.output.dropout = AlwaysDropped()


def too_large_for_half(subject: Subject) -> None:
    """The LayerNorm after the embeddings takes any factor out again, in float32."""
    embeddings = subject.module.embeddings
    for table in (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings):
        table.weight.data *= 1e6


def at_16_tokens(subject: Subject) -> None:
    subject.encoder.max_seq_length = 16


def _without_layers(first: int, last: int, folder_known: bool) -> Callable[[Subject], None]:
    def change(subject: Subject) -> None:
        layers = subject.module.encoder.layer
        del layers[first:last]
        subject.module.config.num_hidden_layers = len(layers)
        if not folder_known:
            subject.folder = None

    return change


def swapped_layers(subject: Subject) -> None:
    layers = subject.module.encoder.layer
    layers[2], layers[4] = layers[4], layers[2]


def _collapsed(found: torch.Tensor, features: dict) -> torch.Tensor:
    return found + 5 * torch.nn.functional.normalize(_drawn(found.shape[1]), dim=0)


class ByPlace:
    """An object whose vectors have a part that grows with their place in the list."""

    def __init__(self, subject: Subject):
        self.subject = subject

    def encode(self, texts: list[str]) -> np.ndarray:
        found = self.subject.encode(texts)
        along = np.random.default_rng(0).standard_normal(found.shape[1]) / found.shape[1] ** 0.5
        return found + 0.05 * np.arange(len(found))[:, None] * along


def _less_the_batch(found: torch.Tensor, features: dict) -> torch.Tensor:
    return found - 0.5 * found.mean(0)


def _dead(share: float) -> Callable:
    def alter(found: torch.Tensor, features: dict) -> torch.Tensor:
        count = max(1, int(share * found.shape[1]))
        return torch.cat([torch.full_like(found[:, :count], 0.01), found[:, count:]], dim=1)

    return alter


def _outweighed(found: torch.Tensor, features: dict) -> torch.Tensor:
    return torch.cat([40 * found[:, :1], found[:, 1:]], dim=1)


def _few_directions(found: torch.Tensor, features: dict) -> torch.Tensor:
    basis = torch.linalg.qr(_drawn(found.shape[1], 3)).Q
    return found @ basis @ basis.T


def _rounded(found: torch.Tensor, features: dict) -> torch.Tensor:
    return torch.nn.functional.pad((found[:, :4] > 0).float() + 0.5, (0, found.shape[1] - 4))


def _by_length(found: torch.Tensor, features: dict) -> torch.Tensor:
    angle = features["attention_mask"].sum(1, keepdim=True).log()
    along = torch.cat([angle.cos(), angle.sin(), torch.zeros(len(found), found.shape[1] - 2)], dim=1)
    return found + 2 * found.norm(dim=1, keepdim=True) * along


def _lost_when_long(found: torch.Tensor, features: dict) -> torch.Tensor:
    long = features["attention_mask"].sum(1, keepdim=True) > 40
    return torch.where(long, torch.nan, found)


def _signs(found: torch.Tensor, features: dict) -> torch.Tensor:
    return found.sign()


def same_concepts(subject: Subject) -> None:
    queries = next(weight for name, weight in subject.module.named_parameters() if "latent" in name)
    queries.data[1:] = queries.data[:1]


def half_of_the_concepts(subject: Subject) -> None:
    """The second eight are copies of the first eight."""
    queries = next(weight for name, weight in subject.module.named_parameters() if "latent" in name)
    half = len(queries) // 2
    queries.data[half : 2 * half] = queries.data[:half]


# --------------------------------------------------------------------------------------------------------------- tasks


def shuffled_labels(pairs: Pairs) -> Pairs:
    return pairs._replace(labels=np.random.default_rng(0).permutation(pairs.labels))


def distances_for_similarities(pairs: Pairs) -> Pairs:
    return pairs._replace(labels=pairs.labels.max() - pairs.labels)


def misaligned(pairs: Pairs) -> Pairs:
    return pairs._replace(second=[*pairs.second[1:], pairs.second[0]])


def test_in_train(pairs: Pairs) -> Pairs:
    from concept_encoder.eval.judging.checks import pair_key

    tenth = slice(0, max(4, len(pairs.first) // 10))
    return pairs._replace(trained=pairs.trained | set(map(pair_key, pairs.first[tenth], pairs.second[tenth])))


# -------------------------------------------------------------------------------------------------------------- scores


def _graded(noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.uniform(0, 5, 400).round(1)
    return labels, np.exp(labels) * np.exp(noise * rng.standard_normal(400))


def _classes(count: int, right: float = 0.8, first: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.choice(count, 400, p=[first, *([(1 - first) / (count - 1)] * (count - 1))]).astype(float)
    drawn = rng.choice(count, 400).astype(float)
    return labels, np.where(rng.random(400) < right, labels, drawn)


def _record(metric: str, score: float | None = None, rows: tuple | None = None, **fields: Any) -> Record:
    from concept_encoder.eval.judging.records import METRICS

    if rows is None:
        return Record("a task", metric, score, **fields)
    labels, predictions = rows
    score = float(METRICS[metric](predictions, labels)) if score is None else score
    return Record("a task", metric, score, labels=labels, predictions=predictions, **fields)


def healthy_records() -> dict[str, Record]:
    """Scores with nothing wrong."""
    return {
        "spearman of graded labels": _record("spearman", rows=_graded()),
        "accuracy of two classes": _record("accuracy", rows=_classes(2)),
        "accuracy of three classes": _record("accuracy", rows=_classes(3)),
        "a score without predictions": _record("cosine_spearman", 0.8, examples=1379, proper="cosine_spearman"),
    }


def constant_predictions() -> Record:
    return _record("accuracy", rows=(_classes(2)[0], np.ones(400)))


def swapped_id2label() -> Record:
    labels, predictions = _classes(2)
    return _record("accuracy", rows=(labels, 1 - predictions))


def permuted_id2label() -> Record:
    labels, predictions = _classes(3)
    return _record("accuracy", rows=(labels, (predictions + 1) % 3))


def graded_by_f1() -> Record:
    labels, predictions = _graded()
    return Record("a task", "f1", 0.86, labels=labels, predictions=predictions)


def pearson_for_spearman() -> Record:
    rows = _graded()
    return _record("spearman", score=_record("pearson", rows=rows).score, rows=rows)


def mteb_by_pearson() -> Record:
    others = {"cosine_pearson": 0.8421, "cosine_spearman": 0.8203}
    return Record(
        "STSBenchmark, test", "cosine_pearson", 0.8421, proper="cosine_spearman", others=others, examples=1379
    )


def best_epoch() -> Record:
    return Record("a task", "accuracy", 0.874, history=[0.861, 0.868, 0.874, 0.871])


def next_to_nothing() -> Record:
    return _record("accuracy", rows=_classes(2, right=0.1, first=0.68))


def other_rows() -> Record:
    labels, predictions = _graded()
    return _record("spearman", rows=(labels, np.random.default_rng(1).permutation(predictions)))


def typed_wrong() -> Record:
    return _record("spearman", score=0.957, rows=_graded(1.5))


def small_split() -> Record:
    return Record("BIOSSES, test", "cosine_spearman", 0.12, examples=100, chance=0.0, proper="cosine_spearman")


def best_epoch_untold() -> Record:
    return Record("a task", "accuracy", 0.874)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "one layer random",
        MINILM,
        "weights of the fourth of six layers drawn again",
        one_random_layer,
        "random_layers",
    ),
    Fault("all weights random", MINILM, "the same architecture, initialised", randomise, "random_layers"),
    Fault("token table random", MINILM, "drawn with the same standard deviation", random_table, "known_words"),
    Fault("another model's tokenizer", MINILM, "rows of the token table permuted", other_vocabulary, "known_words"),
    Fault("lower-casing lost", MINILM, "the normaliser of the tokenizer keeps case", case_kept, "unknown_tokens"),
    Fault("padding is pooled", MINILM, "the mean is over all positions", mean_of_padding, "batch"),
    Fault("padding is read", MINILM, "without an attention mask", padding_read, "batch"),
    Fault("vectors centred on the batch", MINILM, "less half of the batch's mean", vectors(_less_the_batch), "batch"),
    Fault("vectors by place", OBJECT, "a part that grows with the place in the list", ByPlace, "order"),
    Fault("pooling of the first token", MINILM, "in place of the mean", _pooled("cls"), "other_pooling"),
    Fault("pooling of the last token", MINILM, "in place of the mean", _pooled("lasttoken"), BLIND),
    Fault("pooling of the largest", MINILM, "in place of the mean", _pooled("max"), BLIND),
    Fault("dropout left on", MINILM, "0.1, after each layer", dropout_on, "repeated"),
    Fault(
        "collapsed to one direction", MINILM, "five times a fixed unit vector added", vectors(_collapsed), "crowding"
    ),
    Fault("one dead dimension", MINILM, "of 384; the healthy model has three", vectors(_dead(0.0)), BLIND),
    Fault("dead dimensions", MINILM, "a sixteenth of them constant", vectors(_dead(1 / 16)), "dead_dimensions"),
    Fault("one loud dimension", MINILM, "forty times as large", vectors(_outweighed), "strongest_dimension"),
    Fault("three directions", MINILM, "vectors projected onto them", vectors(_few_directions), "rank"),
    Fault("sixteen vectors", MINILM, "rounded to four signs", vectors(_rounded), "duplicates"),
    Fault("signs only", MINILM, "one bit a dimension", vectors(_signs), BLIND),
    Fault(
        "vectors of length", MINILM, "a part that depends on the number of tokens", vectors(_by_length), "length_bias"
    ),
    Fault("lost when long", MINILM, "NaN beyond 40 tokens", vectors(_lost_when_long), "finite"),
    Fault(
        "float16 overflows",
        MINILM,
        "embeddings a million times as large, before a LayerNorm",
        too_large_for_half,
        "float16",
    ),
    Fault("cut at 16 tokens", MINILM, "max_seq_length is 16", at_16_tokens, "cut"),
    Fault("reads less than it says", MINILM, "tokens after the 64th are masked", reads_first_64, "claimed"),
    Fault(
        "prefix missing",
        MINILM,
        "every other token hidden unless `query: ` is in front",
        needs_prefix,
        "prefix",
    ),
    Fault("layers not loaded", MINILM, "three of six left out", _without_layers(3, 6, True), "stray_weights"),
    Fault("a layer left out and saved so", MINILM, "files and model agree", _without_layers(5, 6, False), BLIND),
    Fault("two layers swapped", MINILM, "the third and the fifth", swapped_layers, BLIND),
    Fault("all weights random", BOX, "the same architecture, initialised", randomise, "beats_bag"),
    Fault("concepts repeat each other", BOX, "all latent queries are one", same_concepts, "same_inside"),
    Fault(
        "half of the concepts are copies",
        BOX,
        "the second eight latent queries are the first",
        half_of_the_concepts,
        BLIND,
    ),
    Fault("labels shuffled", TASK, "drawn in another order", shuffled_labels, "readable_labels"),
    Fault("distances for similarities", TASK, "labels turned around", distances_for_similarities, "readable_labels"),
    Fault("pairs misaligned", TASK, "the second column one row off", misaligned, "readable_labels"),
    Fault("test rows in train", TASK, "a tenth of the scored pairs", test_in_train, "leaked"),
    Fault(
        "the encoder was trained on the test rows", TASK, "outside of what is handed in", lambda pairs: pairs, BLIND
    ),
    Fault("constant predictions", SCORE, "every prediction is 1", constant_predictions, "constant"),
    Fault("id2label swapped", SCORE, "of two classes", swapped_id2label, "below_chance"),
    Fault("id2label permuted", SCORE, "of three classes", permuted_id2label, "below_chance"),
    Fault("STS scored by F1", SCORE, "graded labels, f1", graded_by_f1, "metric_fits"),
    Fault("Pearson where Spearman is meant", SCORE, "with the predictions", pearson_for_spearman, "as_said"),
    Fault("Pearson as mteb's main score", SCORE, "without the predictions", mteb_by_pearson, "as_said"),
    Fault("a score that its predictions do not have", SCORE, "typed wrong", typed_wrong, "as_said"),
    Fault(
        "validation touched every epoch", SCORE, "the best of four epochs, with its history", best_epoch, "selected"
    ),
    Fault("validation touched, and nobody says so", SCORE, "the same without its history", best_epoch_untold, BLIND),
    Fault("accuracy of the majority", SCORE, "predictions that nearly ignore the text", next_to_nothing, "at_chance"),
    Fault("predictions of other rows", SCORE, "in another order than the labels", other_rows, "at_chance"),
    Fault("a split too small", SCORE, "Spearman 0.12 on 100 pairs, no predictions", small_split, "at_chance"),
)


# ----------------------------------------------------------------------------------------------------------- measuring


def raised(case: Case, names: Sequence[str] | None = None) -> list[str]:
    """Checks of an encoder whose gates fail; `names`: only these are measured."""
    found = {name: CHECKS[name].measure(case) for name in names or CHECKS if name not in TOLD}
    return _failed({name: figure for name, figure in found.items() if figure is not None})


def raised_by_record(record: Record) -> list[str]:
    """Checks of a score whose gates fail."""
    notes = judge_record(record).notes
    return [name for name in RECORD_CHECKS if name in notes]


def _failed(figures: dict[str, Any]) -> list[str]:
    gates = [gate for gate_set in gate_sets().values() for gate in gate_set.gates]
    gates = [gate for gate in gates if gate.metrics[0].removeprefix("checks/") in figures]
    found = check_gates({"checks": figures}, gates)
    return [each.metric.removeprefix("checks/") for each in found if each.verdict == "FAIL"]


def raised_by(fault: Fault, subject: Subject | None, pairs: Pairs) -> list[str]:
    """What the judge says of a fault, names of checks: of the one that must name it, or of those it is blind to any.

    Args:
        fault: the row.
        subject: healthy, to break or to ask.
        pairs: healthy.
    """
    if fault.what == SCORE:
        return raised_by_record(fault.breaks())
    assert subject is not None
    if fault.what == TASK:
        pairs = fault.breaks(pairs)
    elif fault.what == OBJECT:
        subject = Subject(fault.breaks(subject))
    else:
        subject = subject.changed(fault.breaks)
    names = [name for name in CHECKS if name not in COSTLY] if fault.check == BLIND else [fault.check]
    with contextlib.redirect_stderr(io.StringIO()):
        return raised(Case(subject, [pairs], plain_texts([pairs], 0)), names)


def described(fault: Fault) -> dict[str, Any]:
    return {name: getattr(fault, name) for name in ("name", "what", "how", "check")}


def measure(
    found: dict[str, Any], models: Path, boxes: Sequence[Path], stsb: Task, names: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Every fault and every healthy one, by every check: what was found so far, after each.

    Args:
        found: of an earlier time.
        models: folder that holds all-MiniLM-L6-v2.
        boxes: checkpoints of the recipe `embedder`, a seed each.
        stsb: the task.
        names: of what is measured again; None: all.
    """
    minilm, box = open_subject(models / "all-MiniLM-L6-v2"), open_subject(boxes[0])
    pairs = load_pairs(stsb, EXAMPLES, 0)
    subjects = {MINILM: minilm, OBJECT: minilm, TASK: minilm, BOX: box, SCORE: None}
    faults = {(row["name"], row["what"]): row for row in found.get("faults", [])}
    healthy = {row["name"]: row for row in found.get("healthy", [])}

    def now() -> dict[str, Any]:
        rows = [faults.get((fault.name, fault.what), {**described(fault), "raised": None}) for fault in FAULTS]
        return {"examples": EXAMPLES, "faults": rows, "healthy": list(healthy.values())}

    for fault in FAULTS:
        if names is None or fault.name in names:
            faults[fault.name, fault.what] = {
                **described(fault),
                "raised": raised_by(fault, subjects[fault.what], pairs),
            }
            say(f"{fault.name}: {fault.check}; raised {', '.join(faults[fault.name, fault.what]['raised'])}")
            yield now()
    variants = {f"all-MiniLM-L6-v2, draw {seed}": (minilm, seed) for seed in range(3)}
    variants |= {f"box model, seed {row}": (open_subject(each), 0) for row, each in enumerate(boxes)}
    for name, (subject, seed) in variants.items():
        if names is None or name in names:
            drawn = load_pairs(stsb, EXAMPLES, seed)
            healthy[name] = {"name": name, "raised": raised(Case(subject, [drawn], plain_texts([drawn], seed)))}
            say(f"healthy: {name}; raised {', '.join(healthy[name]['raised'])}")
            yield now()
    for name, record in healthy_records().items():
        healthy[name] = {"name": name, "raised": raised_by_record(record)}
    yield now()


# ------------------------------------------------------------------------------------------------------------ the page


def reference_records() -> list[Record]:
    """The scores that the reference run reported, with the sizes of the splits and what chance scores on them."""
    reference = read_reference()
    run, told = reference["runs"][0]["downstream"], reference["fine_tuning"]
    return [
        Record(
            task.replace("_", " "),
            metric,
            value,
            examples=told[task]["validation_examples"],
            chance=told[task]["chance"].get(metric),
        )
        for task, metrics in run.items()
        for metric, value in metrics.items()
    ]


def render_page(found: dict[str, Any]) -> str:
    claimed = [row for row in found["faults"] if row["check"] != BLIND]
    blind = [row for row in found["faults"] if row["check"] == BLIND]
    named = sum(row["check"] in (row["raised"] or ()) for row in claimed)
    alarms = sum(bool(row["raised"]) for row in found["healthy"])

    def plain(names: Sequence[str] | None) -> str:
        if names is None:
            return "not measured"
        return ", ".join(names).replace("_", " ") or "nothing"

    def faults(rows: Sequence[dict]) -> Table:
        columns = [Column("fault"), Column("of"), Column("how"), Column("raised")]
        cells = [[Cell(row["name"]), Cell(row["what"]), Cell(row["how"]), Cell(plain(row["raised"]))] for row in rows]
        return Table(columns, cells)

    healthy = [[Cell(row["name"]), Cell(plain(row["raised"]))] for row in found["healthy"]]
    judged = [judge_record(record) for record in reference_records()]
    tables = {
        "claimed": faults(claimed),
        "blind": faults(blind),
        "healthy": Table([Column("healthy"), Column("raised")], healthy),
        "reference": records_table(judged),
        "gates": Table(
            [Column("gate"), Column("measures"), Column("asked", "figure"), Column("reason", "note")],
            [
                [Cell(gate.name), Cell(_what(gate)), Cell(f"{gate.comparison} {gate.threshold:g}"), Cell(gate.reason)]
                for gate_set in gate_sets().values()
                for gate in gate_set.gates
            ],
        ),
    }
    template = page_environment(TEMPLATES).get_template("judge.md.j2")
    return template.render(
        claimed=len(claimed),
        named=named,
        blind=len(blind),
        alarms=alarms,
        healthy=len(healthy),
        examples=found["examples"],
        at_chance=sum("at_chance" in record.notes for record in judged),
        scores=len(judged),
        tables={name: blocks_as_markdown([table]) for name, table in tables.items()},
    )


def _what(gate: Gate) -> str:
    name = gate.metrics[0].removeprefix("checks/")
    return CHECKS[name].what if name in CHECKS else RECORD_CHECKS[name].what


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("--models", type=Path, help="folder that holds all-MiniLM-L6-v2: measure again")
    parser.add_argument("--boxes", type=Path, nargs="+", help="checkpoints of recipe embedder, a seed each")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="what to measure again (default: all)")
    parser.add_argument("--dataset_id", help="folder of STS-B, in place of its Hub id")
    parser.add_argument("--page", type=Path, default=DOCS / "JUDGE.md", help="to write (default: docs/JUDGE.md)")
    arguments = parser.parse_args(argv)
    if arguments.models is not None and not arguments.boxes:
        parser.error("--models needs --boxes: checkpoints of the recipe embedder, a seed each")
    with parser.refusing():
        if arguments.models is not None:
            stsb = BENCHMARKS["stsb"]
            if arguments.dataset_id:
                stsb = dataclasses.replace(stsb, dataset_id=arguments.dataset_id, config=None)
            earlier = read_object(RESULT) if RESULT.is_file() else {}
            for found in measure(earlier, arguments.models, arguments.boxes, stsb, arguments.names):
                write_atomically(RESULT, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        page = render_page(read_object(RESULT))
    write_atomically(arguments.page, page)
    say(f"Written to {arguments.page}.")


if __name__ == "__main__":
    run(main)
