"""Registry of the retrieval tasks: documents, queries and which documents answer a query, in one normal form."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ...trainers.data.corpora import MICROWORLD
from ...trainers.data.microworld.needles import LENGTHS, NEEDLES, needle_texts
from ...trainers.data.tables import Table, meets_rule, open_tables, resolve_dataset_id
from ...utils.command_line import did_you_mean
from ...utils.untrusted import read_yaml
from .registry import NAME

CUTOFF = 10  # of the primary metric


@dataclass(frozen=True)
class Collection:
    """Texts to search and queries with their answers.

        Collection({"d1": "a text", ...}, {"q1": "a query"}, {"q1": {"d1": 1}})

    Attributes:
        documents, queries: id -> text.
        relevant: id of a query -> id of a document -> grade, a whole number; 0 or less is not relevant. Queries
            without a relevant document do not count.

    Raises:
        ValueError: too few documents for a ranking; no query with a relevant document; a grade for something that is
            not there; a query without text.
    """

    documents: Mapping[str, str] = field(repr=False)
    queries: Mapping[str, str] = field(repr=False)
    relevant: Mapping[str, Mapping[str, int]] = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.documents) <= CUTOFF:
            raise ValueError(
                f"the corpus has {len(self.documents)} documents, and the best {CUTOFF} of them are judged; give more "
                f"than {CUTOFF}"
            )
        judged = {
            query: {d: grade for d, grade in found.items() if grade > 0} for query, found in self.relevant.items()
        }
        judged = {query: found for query, found in judged.items() if found}
        if not judged:
            raise ValueError("no query has a relevant document: the judgements are empty, or none has a score above 0")
        for query, found in judged.items():
            if query not in self.queries:
                raise ValueError(f"the judgements name query {query!r}, which is not among the queries")
            if not self.queries[query].strip():
                raise ValueError(f"query {query!r} has no text; take it out, or its judgements")
            absent = next((document for document in found if document not in self.documents), None)
            if absent is not None:
                raise ValueError(f"query {query!r} is answered by document {absent!r}, which is not in the corpus")
        object.__setattr__(self, "relevant", judged)
        object.__setattr__(self, "queries", {query: self.queries[query] for query in judged})


@dataclass(frozen=True, kw_only=True)
class RetrievalTask:
    """Where a collection is and what its tables mean: the Hub's form of BEIR unless fields say otherwise.

        RetrievalTask(name="mine", data=Collection(...))

    Raises:
        ValueError: a name that cannot be a file's; no data or two sources of them; ways to the answers that
            contradict one another.
    """

    name: str
    dataset_id: str = ""
    """Hub id or local folder: configurations `corpus` (`_id`, `title`, `text`), `queries` (`_id`, `text`), and the
    default one with the judgements (`query-id`, `corpus-id`, `score`); or "microworld"
    """
    data: Collection | None = field(default=None, repr=False, compare=False)
    """the collection itself, in place of `dataset_id`"""
    split: str = "test"
    train_split: str | None = None
    """of judgements over the same corpus, from which the weight of a fusion is chosen"""
    corpus_config: str = "corpus"
    queries_config: str = "queries"
    qrels_config: str | None = None
    query_column: str = "text"
    keep_queries: str | None = None
    """rule such as kind=specific that a query has to meet"""
    answer_column: str | None = None
    """of a query: the document that answers it, in place of that in the judgements"""
    lead_column: str | None = None
    """the split is a table of texts, this column says how many characters of each are its query, and the rest is the
    document"""
    licence: str = "not stated"
    notes: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME, self.name):
            raise ValueError(f"a task's name must be small letters, digits and _, got {self.name!r}")
        if (self.data is None) == (not self.dataset_id):
            raise ValueError(f"Task {self.name} needs either data or a dataset_id, got {self.dataset_id or 'neither'}")
        if self.train_split == self.split:
            raise ValueError(f"Task {self.name}: split and train_split are both {self.split!r}; name another one")
        if self.lead_column and (self.answer_column or self.keep_queries):
            raise ValueError(f"Task {self.name}: with lead_column there are no tables of queries and answers")


def _wikipedia_long() -> RetrievalTask:
    return RetrievalTask(
        name="wikipedia_long",
        dataset_id="local/wikipedia-long",
        lead_column="lead_chars",
        licence="CC BY-SA 3.0",
        notes="lead of an article to the rest of it, which share many words",
    )


def _fairytaleqa(name: str, **given: Any) -> RetrievalTask:
    return RetrievalTask(
        name=f"fairytaleqa_{name}",
        dataset_id="local/fairytaleqa-retrieval",
        train_split="validation",
        licence="Apache-2.0",
        **given,
    )


def _qmsum(name: str, **given: Any) -> RetrievalTask:
    return RetrievalTask(name=f"qmsum_{name}", dataset_id="local/qmsum-retrieval", licence="MIT", **given)


_ROWS = (
    RetrievalTask(
        name="scifact",
        dataset_id="mteb/scifact",
        train_split="train",
        licence="CC BY-NC 2.0",
        notes="claims to abstracts of 215 words",
    ),
    RetrievalTask(
        name="cranfield",
        dataset_id="local/cranfield",
        licence="none stated (SMART)",
        notes="questions on aerodynamics to abstracts of 164 words; two documents are empty",
    ),
    _fairytaleqa("section", notes="question to section of 147 words"),
    _fairytaleqa(
        "tale", corpus_config="stories", answer_column="story", notes="question to fairy tale of 2,162 words"
    ),
    RetrievalTask(
        name="squality",
        dataset_id="local/squality-retrieval",
        train_split="train",
        licence="CC BY 4.0",
        notes="question to story of 4,990 words",
    ),
    _qmsum(
        "summary", notes="LongEmbed's: summary to meeting of 10,058 words; rewards shared words; never train on it"
    ),
    _qmsum("question", query_column="question", keep_queries="kind=specific", notes="specific question to meeting"),
    _wikipedia_long(),
    *(
        RetrievalTask(name=f"{kind}_{length}", dataset_id=MICROWORLD, licence="Apache-2.0", notes=f"{length} words")
        for kind in NEEDLES
        for length in LENGTHS
    ),
)
RETRIEVAL_TASKS: dict[str, RetrievalTask] = {row.name: row for row in _ROWS}


def find_retrieval_task(name: str | RetrievalTask) -> RetrievalTask:
    """Row of the registry, the task that a YAML file describes (named as the file is), or a task as it is.

    Fields of a file: those of `RetrievalTask` other than name and data; only `dataset_id` has to be there.

    Raises:
        ValueError: an unknown name, the message lists them; no such file of fields.
        OSError: the file cannot be read.
    """
    if isinstance(name, RetrievalTask):
        return name
    if not name.endswith(".yaml"):
        if name not in RETRIEVAL_TASKS:
            raise ValueError(
                f"Unknown retrieval task {name!r}{did_you_mean(name, RETRIEVAL_TASKS)}. Available: "
                f"{', '.join(RETRIEVAL_TASKS)}, or a .yaml file of your own"
            )
        return RETRIEVAL_TASKS[name]
    path, given = Path(name), read_yaml(Path(name))
    legal = [each.name for each in fields(RetrievalTask) if each.name not in ("name", "data", "licence", "notes")]
    if not isinstance(given, dict) or not {"dataset_id"} <= set(given) <= set(legal):
        raise ValueError(f"{path} must hold dataset_id, and may hold {', '.join(legal)}; got {given!r}")
    for field_name, value in given.items():
        if not isinstance(value, str):
            raise ValueError(f"{path}: {field_name} must be a text, got {value!r}")
    if path.stem in RETRIEVAL_TASKS or not re.fullmatch(NAME, path.stem):
        raise ValueError(
            f"{path}: its name without .yaml is the task's; take small letters, digits and _, and none of "
            f"{', '.join(RETRIEVAL_TASKS)}"
        )
    try:
        return RetrievalTask(name=path.stem, licence="the user's own data", **given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def load_collection(task: RetrievalTask, split: str | None = None, data_dir: str | None = None) -> Collection:
    """The documents, and the queries of a split with their answers.

    Args:
        task: row of the registry, or one of your own.
        split: of the judgements; None: the one that is scored.
        data_dir: folder with copies of data sets, each in the folder of its id; what is not there is asked of the Hub.

    Raises:
        ValueError: a data set, configuration, split or column that is not there; ids that are there twice; a document
            judged twice with different scores; what `Collection` refuses.
        ConnectionError, FileNotFoundError: as `datasets` raises them when the Hub or the data set cannot be reached.
    """
    try:
        return _loaded(task, split or task.split, data_dir)
    except ValueError as error:
        raise ValueError(f"Task {task.name}: {error}") from error


def _loaded(task: RetrievalTask, split: str, data_dir: str | None) -> Collection:
    if task.data is not None:
        return task.data
    if task.dataset_id == MICROWORLD:
        kind, _, length = task.name.rpartition("_")
        return _of_pairs(needle_texts(kind, int(length)))
    local = Path(data_dir or "", task.dataset_id)
    source = str(local) if data_dir and local.is_dir() else resolve_dataset_id(task.dataset_id)
    if task.lead_column is not None:
        table = _table(source, task.qrels_config, split)
        leads = _column(table, task.lead_column)
        cut = [(text, int(lead)) for text, lead in zip(_texts(table, "text"), leads, strict=True)]
        return _of_pairs((text[lead:].strip(), text[:lead].strip()) for text, lead in cut)
    corpus = _table(source, task.corpus_config, None)
    bodies = _texts(corpus, "text")
    titles = _texts(corpus, "title") if "title" in corpus.columns else [""] * len(bodies)
    texts = [f"{title} {body}".strip() for title, body in zip(titles, bodies, strict=True)]
    asked = _table(source, task.queries_config, None)
    if task.keep_queries is not None:
        rule = asked.rule(task.keep_queries)
        asked = Table(asked.rows.filter(meets_rule, batched=True, with_indices=True, fn_kwargs=rule), asked.origin)
    queries = _by_id(asked, _texts(asked, task.query_column), "query")
    answers = {}
    if task.answer_column is not None:
        answers = _by_id(asked, map(str, _column(asked, task.answer_column)), "query")
    relevant: dict[str, dict[str, int]] = {}
    qrels = _table(source, task.qrels_config, split)
    columns = (_column(qrels, name) for name in ("query-id", "corpus-id", "score"))
    for query, document, grade in zip(*columns, strict=True):
        query, document = str(query), str(document)
        if task.keep_queries is not None and query not in queries:
            continue
        if grade is None or grade != int(grade):
            raise ValueError(f"query {query!r} has score {grade!r} for document {document!r}; give whole numbers")
        document = answers.get(query, document)
        known = relevant.setdefault(query, {})
        if known.setdefault(document, int(grade)) != int(grade) and task.answer_column is None:
            raise ValueError(
                f"query {query!r} has scores {known[document]} and {int(grade)} for document {document!r}; keep one"
            )
    return Collection(_by_id(corpus, texts, "document"), queries, relevant)


def _of_pairs(pairs: Iterable[tuple[str, str]]) -> Collection:
    """A collection of (document, its query)."""
    documents, queries = {}, {}
    for i, (document, query) in enumerate(pairs):
        documents[str(i)], queries[str(i)] = document, query
    return Collection(documents, queries, {i: {i: 1} for i in documents})


def _table(source: str, config: str | None, split: str | None) -> Table:
    """A split of a configuration, None for its only one."""
    tables = open_tables(source, config, field="dataset_id")
    if split is None and len(tables) == 1:
        return next(iter(tables.values()))
    if split not in tables:
        raise ValueError(
            f"{source} (config {config or 'default'}) has no split {split!r}. Splits: {', '.join(tables)}"
        )
    return tables[split]


def _column(table: Table, name: str) -> list[Any]:
    table.check_column(name, "column")
    return table.rows[name][:]


def _texts(table: Table, name: str) -> list[str]:
    """The column, null as an empty text."""
    table.check_texts(name, "column")
    return [text or "" for text in table.rows[name][:]]


def _by_id(table: Table, texts: Iterable[str], what: str) -> dict[str, str]:
    ids = [str(each) for each in _column(table, "_id")]
    twice = [each for each, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(f"{what} id {twice[0]!r} is there twice in {table.origin.name}; ids must differ")
    return dict(zip(ids, texts, strict=True))
