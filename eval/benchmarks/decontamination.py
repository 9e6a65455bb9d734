"""Training corpora made of several sources and kept clean of the benchmarks they will be judged on."""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from sklearn.feature_extraction.text import HashingVectorizer

from ...trainers.data.corpora import DataArguments, load_corpus
from ...trainers.recipes import RECIPES, find_recipe
from ...utils.files import check_new, disk_trouble_named, recorded_source, whole_folder
from ...utils.progress import progress
from ...utils.results import ContaminationResult, SourceFacts, SourceRow
from ...utils.untrusted import read_yaml
from .registry import Task, find_benchmark, read_tables

PLANS = RECIPES.parent / "corpora"
TRAIN_FILE, CHECK_FILE = "train.parquet", "contamination.json"
NEAR = 0.5  # resemblance from which two sentences count as the same
CHUNK = 20_000  # sentences compared at a time
RULE = (
    "exact: a sentence of the row has the words of a benchmark sentence, in order, without case and punctuation; "
    f"near: the resemblance of two sentences (Jaccard index of their sets of word bigrams) is at least {NEAR}"
)
SOURCE_FIELDS = (
    "dataset_name",
    "dataset_config_name",
    "dataset_revision",
    "train_split",
    "text_column",
    "partner_column",
    "keep_rows",
    "max_train_documents",
    "corpus_seed",
)


@dataclasses.dataclass(frozen=True)
class CorpusPlan:
    """Which sources make a corpus, and which benchmarks it must not hold a sentence of."""

    sources: tuple[DataArguments, ...]
    keep_clean_of: tuple[Task, ...]


def load_plan(name_or_path: str | os.PathLike) -> CorpusPlan:
    """Plan of a YAML file: `sources`, each a mapping of corpus flags of pretraining, and `keep_clean_of`, task names.

    Args:
        name_or_path: name of a plan of the package, or a path that ends in .yaml.

    Raises:
        ValueError: not such a file, an unknown field or task, a value of the wrong kind, or sources of which some
            are pairs and some are not.
    """
    path = find_recipe(name_or_path, PLANS)
    plan = read_yaml(path)
    if not isinstance(plan, dict) or set(plan) != {"sources", "keep_clean_of"} or not all(plan.values()):
        raise ValueError(f"{path} must hold `sources` and `keep_clean_of`, each with at least one entry")
    for name, kind, what in (("sources", dict, "mappings of fields"), ("keep_clean_of", str, "names of tasks")):
        if not isinstance(plan[name], list) or not all(isinstance(entry, kind) for entry in plan[name]):
            raise ValueError(f"{path}: `{name}` must be a list of {what}, got {plan[name]!r}")
    sources = tuple(_source(path, fields) for fields in plan["sources"])
    if len({source.partner_column is None for source in sources}) > 1:
        raise ValueError(f"{path}: some sources have a partner_column and some have none; make two corpora of them")
    return CorpusPlan(sources, tuple(find_benchmark(name) for name in plan["keep_clean_of"]))


def _source(path: Path, fields: Mapping[str, Any]) -> DataArguments:
    """A source of the plan; as in a recipe, null is the default."""
    for name, value in fields.items():
        if name not in SOURCE_FIELDS:
            raise ValueError(f"{path}: unknown field {name!r} of a source. Available: {', '.join(SOURCE_FIELDS)}")
        kind = int if name in ("max_train_documents", "corpus_seed") else str
        if value is not None and type(value) is not kind:
            raise ValueError(f"{path}: {name} of a source must be {kind.__name__}, got {value!r}")
    given = {name: value for name, value in fields.items() if value is not None}
    # Of a pair each text is an example of its own; nothing is packed here.
    return DataArguments(**given, packing="truncated")


def build_corpus(plan: CorpusPlan | str | os.PathLike, output_dir: str | os.PathLike) -> ContaminationResult:
    """Write the training rows of all sources that share no sentence with a benchmark's other splits.

    Args:
        plan: from `load_plan`, or what that takes.
        output_dir: folder, new or empty, of train.parquet (columns `text` and, of pairs, `partner`) and
            contamination.json. Its name can be given as `dataset_name`.

    Returns:
        What contamination.json holds.

    Raises:
        ValueError: output_dir holds something; nothing is left of a source; anything that `load_corpus` raises.
    """
    plan = plan if isinstance(plan, CorpusPlan) else load_plan(plan)
    output_dir = Path(output_dir)
    check_new(output_dir)
    held_out = {row.name: held_out_sentences(row) for row in plan.keep_clean_of}
    index = SentenceIndex(sentence for sentences in held_out.values() for sentence in sentences)
    kept, rows = [], []
    for source in plan.sources:
        corpus = load_corpus(source, "train")
        exact, near = index.rows_that_match(corpus, source.dataset_name)
        clean = corpus.select(np.flatnonzero(~(exact | near)))
        if len(clean) == 0:
            raise ValueError(f"every row of {source.dataset_name!r} matches a benchmark; leave the source out")
        kept.append(clean)
        named = {name: value for name, value in dataclasses.asdict(source).items() if name in SOURCE_FIELDS}
        named["dataset_name"] = recorded_source(source.dataset_name)
        counts = {"rows": len(corpus), "exact": int(exact.sum()), "near": int((near & ~exact).sum())}
        rows.append(SourceRow(source=SourceFacts(**named), **counts, kept=len(clean)))
    sentences = {name: len(found) for name, found in held_out.items()}
    result = ContaminationResult(rule=RULE, benchmark_sentences=sentences, sources=rows)
    with disk_trouble_named(output_dir), whole_folder(output_dir) as staged:
        concatenate_datasets(kept).to_parquet(staged / TRAIN_FILE)
        result.save(staged / CHECK_FILE)
    result.folder = output_dir
    return result


def held_out_sentences(benchmark: Task) -> list[str]:
    """Every text of a benchmark outside its training split, labelled or not; ValueError as `open_tables`."""
    found: set[str] = set()
    for name, table in read_tables(benchmark, benchmark.config).items():
        for column in benchmark.sentence_columns if name != benchmark.train_split else ():
            table.check_texts(column, f"Task {benchmark.name}: sentence column")
            found.update(text for text in table.rows[column] if text is not None)
    return sorted(found)


def format_contamination(result: ContaminationResult) -> str:
    """A line per source, in Markdown."""
    lines = ["| source | rows | exact | near | kept |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in result.sources:
        source = row.source
        parts = (source.dataset_name, source.dataset_config_name, source.text_column)
        name = " ".join(str(part) for part in (*parts, source.partner_column, source.keep_rows) if part)
        lines.append(f"| {name} | {row.rows:,} | {row.exact:,} | {row.near:,} | {row.kept:,} |")
    return "\n".join(lines)


class SentenceIndex:
    """Sentences that must not be trained on.

    Source: resemblance of word shingles, Broder 1997, On the resemblance and containment of documents.
    Differs: the exact Jaccard index, not its estimate by min-wise hashing; bigrams are hashed to 2^20 values.
    """

    def __init__(self, sentences: Iterable[str]):
        normal = sorted({words(sentence) for sentence in sentences} - {""})
        if not normal:
            raise ValueError("there is no sentence to keep a corpus clean of")
        self.exact = frozenset(normal)
        self._vectorizer = HashingVectorizer(
            preprocessor=None,
            lowercase=False,
            token_pattern=r"\S+",
            ngram_range=(2, 2),
            binary=True,
            norm=None,
            alternate_sign=False,
        )
        self._shingles = self._vectorizer.transform(normal)  # (S, 2^20)
        self._sizes = np.asarray(self._shingles.sum(1)).ravel()

    def matches(self, sentences: Sequence[str], description: str = "comparing") -> tuple[np.ndarray, np.ndarray]:
        """(n,) bool each: exact and near matches of n sentences; an exact one of two words or more is also near."""
        normal = [words(sentence) for sentence in sentences]
        exact = np.array([text in self.exact for text in normal], dtype=bool)
        near = np.zeros(len(normal), dtype=bool)
        for start in progress(range(0, len(normal), CHUNK), desc=description, unit="chunk"):
            shingles = self._vectorizer.transform(normal[start : start + CHUNK])
            shared = (shingles @ self._shingles.T).tocoo()  # (n, S) bigrams in common
            sizes = np.asarray(shingles.sum(1)).ravel()
            union = sizes[shared.row] + self._sizes[shared.col] - shared.data
            near[start + shared.row[shared.data >= NEAR * union]] = True
        return exact, near

    def rows_that_match(self, corpus: Dataset, description: str) -> tuple[np.ndarray, np.ndarray]:
        """(rows,) bool each: rows with a sentence that matches."""
        sentences, owners = [], []
        for row, texts in enumerate(zip(*(corpus[name] for name in corpus.column_names), strict=True)):
            own = [sentence for text in texts for sentence in re.split(r"(?<=[.!?])\s+|\n+", text)]
            sentences += own
            owners += [row] * len(own)
        masks = []
        for found in self.matches(sentences, description):
            mask = np.zeros(len(corpus), dtype=bool)
            mask[np.asarray(owners)[found]] = True
            masks.append(mask)
        return masks[0], masks[1]


def words(text: str) -> str:
    """Its words in lower case with one space between, without punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))
