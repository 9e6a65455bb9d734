"""Make the model in the box: texts, a teacher's vectors of them, training, judgement, and the page docs/BOX.md.

    python scripts/dev/box.py make --data ../shared/data
    python scripts/dev/box.py judge --data ../shared/data --compare
    python scripts/dev/box.py pack
    python scripts/dev/box.py page
    python scripts/dev/box.py code

The last one is for after a change of the modeling code, which travels with the model.

A step whose output is there is not done again. `--data` holds copies of data sets, each in the folder of its id.
"""

import random
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import load_dataset
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import concept_encoder as ce
from concept_encoder import ConceptEncoderModel
from concept_encoder.eval.benchmarks.decontamination import SentenceIndex, words
from concept_encoder.eval.benchmarks.registry import BENCHMARKS, load_benchmark
from concept_encoder.eval.benchmarks.similarity import cosine
from concept_encoder.eval.corpus.words import WordWeights
from concept_encoder.eval.hub.code_check import CODE
from concept_encoder.eval.hub.publishing import assemble
from concept_encoder.eval.loading.checkpoints import BOX_FOLDER
from concept_encoder.eval.metrics.benchmark_score import benchmark_score
from concept_encoder.eval.report.gates import check_gates, find_in_report, load_gates
from concept_encoder.eval.report.pages import page_environment
from concept_encoder.eval.report.sections import duration
from concept_encoder.trainers.recipes import Recipe
from concept_encoder.trainers.weights.taught import taught
from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.files import write_atomically, write_json
from concept_encoder.utils.results import PretrainResult, Report
from concept_encoder.utils.untrusted import read_object

RECIPE = Path(__file__).with_name("box.yaml")
TEACHER, TOKENIZER = "models/sentence-transformers/all-MiniLM-L6-v2", "tokenizers/google-bert/bert-base-uncased"
VOCABULARY, CHARACTERS = 12_000, 200
TEACHER_LENGTH = 256  # tokens that the teacher was trained for
FORMS: dict[str, dict[str, Any]] = {
    "slots": {},
    "mean": {"num_concepts": 1, "projection_size": None},
}  # the model, and a static embedding
ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "docs" / "results" / "box", ROOT / "docs" / "BOX.md"
TEMPLATES, GATES_FILE = Path(__file__).with_name("templates"), Path(__file__).with_name("gate_2.yaml")
NAME, LICENCE = "concept-encoder/box", "apache-2.0"
GRADED = ("stsb", "sick_relatedness", "sts12", "sts13", "sts14", "sts15")
SEARCHED = ("scifact", "cranfield", "fairytaleqa_section", "squality", "qmsum_summary", "qmsum_question")
HELD_OUT = (  # what is judged on, each with all its texts
    *("mteb/sts1?-sts/*", "nyu-mll/glue/stsb/*", "RobZamp/sick/*", "nyu-mll/glue/mrpc/validation*"),
    *("nyu-mll/glue/mrpc/test*", "mteb/scifact/queries*", "local/cranfield/queries*"),
    *("local/qmsum-retrieval/queries*", "local/squality-retrieval/queries*"),
)
STS_ASKED = 0.70  # Spearman, mean of STS12 to STS15
PROSE = 8_000  # documents that say how rare words are
SHORT = 60  # words; a longer text is no near copy of a sentence


class Texts:
    """Texts of a language as it is written: captions, questions, news, articles, tales; none of what is judged on.

    Args:
        data: folder of the data sets.
    """

    def __init__(self, data: Path):
        self.data = data
        self.draw = random.Random(0)
        held = {words(value) for name in HELD_OUT for row in self.rows(name) for value in row.values() if _text(value)}
        self.held = held - {""}
        self.kept: list[tuple[str, str]] = []
        self.counts: dict[str, dict[str, int]] = {}

    def rows(self, pattern: str) -> list[dict[str, Any]]:
        files = sorted(self.data.glob(f"{pattern}.parquet"))
        return [row for file in files for row in pq.read_table(file).to_pylist()]

    def some(self, texts: list[str], count: int) -> list[str]:
        return self.draw.sample(texts, min(count, len(texts)))

    def passages(self, text: str) -> list[str]:
        """Whole sentences, joined to passages of 60 to 110 words."""
        found: list[str] = []
        kept: list[str] = []
        length, goal = 0, self.draw.randint(60, 110)
        for sentence in re.split(r"(?<=[.!?])\s+|\n+", text):
            count = len(sentence.split())
            if length + count > goal and length:
                found.append(" ".join(kept))
                kept, length, goal = [], 0, self.draw.randint(60, 110)
            kept.append(sentence)
            length += count
        if length > 20:
            found.append(" ".join(kept))
        return found

    def add(self, kind: str, texts: Iterable[str | None], most: int | None = None) -> None:
        """At most so many of them, none with the words of a text that is held out."""
        given = list(dict.fromkeys(text.strip() for text in texts if text and text.strip()))
        clean = [text for text in given if words(text) not in self.held]
        self.draw.shuffle(clean)
        self.kept += [(kind, text) for text in clean[:most]]
        count = self.counts.setdefault(kind, {"texts": 0, "held_out": 0, "near": 0})
        count["held_out"] += len(given) - len(clean)

    def collect(self) -> None:
        captions = self.rows("local/multi30k-captions/train*")
        self.add(
            "captions",
            [row[f"caption{i}"] for row in captions for i in self.draw.sample(range(1, 6), 2)],
            45_000,
        )
        for kind, name, pair, most in (
            ("entailment", "nli-small", ("premise", "hypothesis"), 65_000),
            ("duplicates", "quora-duplicate-pairs", ("anchor", "positive"), 40_000),
            ("questions", "qqp-part", ("question1", "question2"), 12_000),
        ):
            self.add(kind, [row[column] for row in self.rows(f"local/{name}/train*") for column in pair], most)
        news = self.rows("local/english-prose/wikinews/train*")
        self.add("titles", [row["title"] for row in news])
        self.add("news", [" ".join(re.split(r"(?<=[.!?])\s+", row["text"])[:2]) for row in news], 12_000)
        articles = self.rows("local/english-prose/wikipedia/train*") + self.rows("local/wikipedia-long/train*")
        # Twice: what is drawn for a passage is drawn again.
        self.add("leads", [self.passages(row["text"])[0] for row in articles if self.passages(row["text"])])
        self.add("passages", [each for row in articles for each in self.some(self.passages(row["text"]), 4)], 26_000)
        novels = self.rows("local/english-prose/novels/train*")
        self.add("novels", [each for row in novels for each in self.some(self.passages(row["text"]), 3)], 8_000)
        self.add("stories", [each for row in news for each in self.some(self.passages(row["text"]), 1)], 8_000)
        alone = ([s for s in re.split(r"(?<=[.!?])\s+", row["text"]) if 6 < len(s.split()) < 50] for row in articles)
        self.add("sentences", [each for found in alone for each in self.some(found, 3)], 20_000)
        self._tales()

    def _tales(self) -> None:
        """Questions and sections of the training tales, summaries of the training stories and passages of these."""
        tales, stories = "local/fairytaleqa-retrieval", "local/squality-retrieval"
        asked = {row["_id"]: row["text"] for row in self.rows(f"{tales}/queries*")}
        self.add("tale questions", [asked.get(row["query-id"]) for row in self.rows(f"{tales}/train*")])
        self.add("tales", [row["text"] for row in self.rows(f"{tales}/corpus*") if row["split"] == "train"])
        summaries = [row for row in self.rows(f"{stories}/responses*") if row["split"] == "train"]
        read = {row["corpus-id"] for row in summaries}
        self.add("summaries", [each for row in summaries for each in self.passages(row["text"])])
        found = (row["text"] for row in self.rows(f"{stories}/corpus*") if row["_id"] in read)
        self.add("summarised", [each for text in found for each in self.some(self.passages(text), 30)])

    def write(self, work: Path) -> None:
        """`texts.parquet`, shuffled, and `contamination.json`: what was left out of each kind."""
        self.collect()
        short = [place for place, (_, text) in enumerate(self.kept) if len(text.split()) < SHORT]
        exact, near = SentenceIndex(self.held).matches([self.kept[place][1] for place in short], "Texts")
        dropped = {short[place] for place in np.flatnonzero(exact | near)}
        for place, (kind, _) in enumerate(self.kept):
            self.counts[kind]["near" if place in dropped else "texts"] += 1
        kept = [row for place, row in enumerate(self.kept) if place not in dropped]
        self.draw.shuffle(kept)
        kinds, texts = (list(column) for column in zip(*kept, strict=True))
        pq.write_table(pa.table({"kind": kinds, "text": texts}), work / "texts.parquet", compression="zstd")
        write_json(work / "contamination.json", {"texts_held_out": len(self.held), "kinds": self.counts})


def _text(value: Any) -> bool:
    return isinstance(value, str)


def make(data: Path, work: Path, seeds: Iterable[int], forms: Iterable[str] = ("slots",)) -> None:
    """Texts, tokenizer, teacher's vectors, start and runs in `work`, each unless it is there."""
    work.mkdir(parents=True, exist_ok=True)
    texts, tokenizer = work / "texts.parquet", work / "tokenizer"
    if not texts.exists():
        Texts(data).write(work)
    if not tokenizer.exists():
        source = ce.DataArguments(dataset_name=str(texts), tokenizer_name=str(data / TOKENIZER), packing="truncated")
        learned = ce.train_tokenizer(source, VOCABULARY, work / "vocabulary", CHARACTERS)
        whole_texts(learned).save_pretrained(tokenizer)
    ce.encode(data / TEACHER, texts, work / "teacher", precision="float16", max_length=TEACHER_LENGTH)
    for form in forms:
        start = work / f"{form}-start"
        if not start.exists():
            start_form(form, data, work, start)
        for seed in seeds:
            output = work / f"{form}-{seed}"
            if not (output / "pretrain.json").exists():
                sources = {"dataset_name": work / "teacher" / "data", "tokenizer_name": tokenizer, "start_from": start}
                fields: dict[str, Any] = {name: str(path) for name, path in sources.items()} | FORMS[form]
                ce.pretrain(RECIPE, **fields, seed=seed, output_dir=str(output))


def whole_texts(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Without [CLS] and [SEP] around a text: in a sum they are a constant, the larger the shorter the text.

    Of a class that takes the backend as it is: `BertTokenizer` puts its own template back when it is loaded.
    """
    backend = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(single="$A", pair="$A $B:1")
    longest = tokenizer.model_max_length
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=longest, **tokenizer.special_tokens_map)


def start_form(form: str, data: Path, work: Path, folder: Path) -> None:
    """The checkpoint that training starts from, with its tokenizer."""
    from sentence_transformers import SentenceTransformer

    model = Recipe.load(RECIPE, **FORMS[form]).model
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    teacher = SentenceTransformer(str(data / TEACHER), device="cpu").float()
    texts = pq.read_table(work / "texts.parquet", columns=["text"])["text"].to_pylist()
    sizes = model.num_concepts, model.projection_size, model.hidden_size
    started = taught(tokenizer, texts, teacher.encode, *sizes)
    started.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def judge(data: Path, run_dir: Path, compared: bool = False) -> None:
    """Similarity and retrieval of a run, and its report; `compared`: next to the teacher, which takes its time."""
    graded = [replace(BENCHMARKS[name], dataset_id=str(data / BENCHMARKS[name].dataset_id)) for name in GRADED]
    missing = [task for task in graded if not (run_dir / "similarity" / f"{task.name}.json").exists()]
    ce.similarity(run_dir, missing)
    words_file = run_dir.parent / "words.safetensors"
    if not words_file.exists():
        prose = load_dataset(str(data / "local/english-prose"), split="train").shuffle(seed=0)
        WordWeights.fit(prose["text"][:PROSE], AutoTokenizer.from_pretrained(run_dir)).save(words_file)
    beside = [str(data / TEACHER)] if compared else []
    ce.retrieval(run_dir, SEARCHED, words=words_file, compare=beside, data_dir=str(data))
    ce.report(run_dir)


def pack(run_dir: Path, folder: Path) -> None:
    """The model as it is published, in bfloat16: half the bytes, and read in float32 everywhere."""
    model = ConceptEncoderModel.from_pretrained(run_dir, dtype=torch.bfloat16)
    with TemporaryDirectory() as scratch:
        copy = Path(scratch) / "run"
        shutil.copytree(
            run_dir, copy, ignore=shutil.ignore_patterns("checkpoint-*", "random_init", "report.*", "figures")
        )
        model.save_pretrained(copy)
        config = read_object(copy / "config.json")
        write_json(copy / "config.json", {**config, "dtype": "float32"})
        upload = Path(scratch) / "upload"
        upload.mkdir()
        assemble(copy, upload, NAME, license=LICENCE)
        (upload / "README.md").write_text(render_card(Report.load(run_dir / "report.json")), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        shutil.copytree(upload, folder)


def keep(work: Path, runs: Iterable[Path], teacher: Mapping[str, float | None]) -> None:
    """What the page is rendered from, in the tree."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for run_dir in runs:
        shutil.copyfile(run_dir / "report.json", RESULTS / f"{run_dir.name}.report.json")
    shutil.copyfile(work / "contamination.json", RESULTS / "contamination.json")
    write_json(RESULTS / "teacher.json", dict(teacher))


def teacher_scores(data: Path) -> dict[str, float | None]:
    """Spearman of the teacher's cosines on the graded tasks."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(data / TEACHER), device="cpu").float()
    found: dict[str, float | None] = {}
    for name in GRADED:
        task = replace(BENCHMARKS[name], dataset_id=str(data / BENCHMARKS[name].dataset_id))
        pairs = load_benchmark(task, ["validation"])["validation"]
        sides = (model.encode(pairs[column][:], show_progress_bar=False) for column in ("sentence1", "sentence2"))
        found[name] = benchmark_score(name, cosine(*sides), np.asarray(pairs["label"]))["spearman"]
    return found


# ---------------------------------------------------------------------------------------------------------------- page


@dataclass(frozen=True)
class Row:
    """Of a table; None where nothing was measured."""

    name: str
    scores: Sequence[float | None]
    bytes: float | None = None

    @property
    def mean(self) -> float | None:
        """Of STS12 to STS15, which come last."""
        last = [score for score in self.scores[-4:] if score is not None]
        return mean(last) if len(last) == 4 else None


def render_page(folder: Path) -> str:
    """The page as Markdown, of the reports `slots-SEED` and `mean-SEED` in a folder."""
    reports = {path.name.removesuffix(".report.json"): Report.load(path) for path in folder.glob("*.report.json")}
    seeds = {name.partition("-")[2]: reports[name] for name in sorted(reports) if name.startswith("slots-")}
    static = [reports[name] for name in sorted(reports) if name.startswith("mean-")]
    (gates,) = load_gates(GATES_FILE).values()
    first = next(iter(seeds.values()))
    assert first.training is not None
    form: Any = Recipe.load(RECIPE).model
    values = {
        "run": first.training,
        "numbers": form.num_concepts * form.projection_size,
        "megabytes": _megabytes(first.training),
        "time": duration(first.training.train_seconds),
        "texts": _texts(first.training),
        "seeds": list(seeds),
        "static": static,
        "asked": STS_ASKED,
        "means": [_sentences([report], [], {})[0].mean for report in seeds.values()],
        "gates": list(zip(*(check_gates(report, gates.gates) for report in seeds.values()), strict=True)),
        "graded": [name.upper() if name.startswith("sts1") else name for name in GRADED],
        "searched": [name.replace("_", " ") for name in SEARCHED],
        "sentences": _sentences(list(seeds.values()), static, read_object(folder / "teacher.json")),
        "documents": _documents(list(seeds.values()), static),
    }
    return page_environment(TEMPLATES).get_template("box.md.j2").render(values)


def render_card(report: Report) -> str:
    """The model's own card: of the figures those of its seed."""
    run = report.training
    assert run is not None
    form: Any = Recipe.load(RECIPE).model
    names = {"stsb": "STS-B", **{name: name.upper() for name in GRADED if name.startswith("sts1")}}
    paths = {title: f"similarity/{name}/rows/cosine, pooled, spearman" for name, title in names.items()}
    rows = [Row(title, [*_means([report], [path, f"{path}/random_init"])]) for title, path in paths.items()]
    for name in SEARCHED:
        found = [f"retrieval/{name}/rows/{ranker}/scores/ndcg_at_10" for ranker in ("run", "random_init")]
        rows.append(Row(name.replace("_", " "), _means([report], found)))
    (gates,) = load_gates(GATES_FILE).values()
    values = {
        "name": NAME,
        "megabytes": _megabytes(run),
        "parameters": run.parameters.total,
        "concepts": form.num_concepts,
        "size": form.projection_size,
        "texts": _texts(run),
        "rows": rows,
        "reached": all(gate.verdict == "PASS" for gate in check_gates(report, gates.gates)),
        "page": "https://github.com/concept-encoder/concept-encoder/blob/main/docs/BOX.md",
    }
    return page_environment(TEMPLATES).get_template("box_card.md.j2").render(values)


def _texts(run: PretrainResult) -> int:
    """That it was trained on, to thousands: each is read once in an epoch."""
    training: Any = run.training
    return round((run.steps or 0) * training.texts_per_step / training.num_train_epochs, -3)


def _megabytes(run: PretrainResult) -> str:
    """In bfloat16."""
    return f"{2 * (run.parameters.total or 0) / 1e6:.1f}"


def _means(reports: Sequence[Report], paths: Iterable[str]) -> list[float | None]:
    """Of what stands at each path in the reports."""
    found = []
    for path in paths:
        nodes = [find_in_report(report, path)[1] for report in reports]
        values = [getattr(node, "value", node) for node in nodes if node is not None]
        found.append(mean(values) if values and None not in values else None)
    return found


def _of(name: str, reports: Sequence[Report]) -> str:
    return name if len(reports) == 1 else f"{name}, mean of {len(reports)} seeds"


def _sentences(seeds: Sequence[Report], static: Sequence[Report], teacher: Mapping[str, float | None]) -> list[Row]:
    paths = [f"similarity/{task}/rows/cosine, pooled, spearman" for task in GRADED]
    rows = [
        Row(_of("the model", seeds), _means(seeds, paths)),
        Row(_of("static embedding", static), _means(static, paths)),
        Row("random weights", _means(seeds, [f"{path}/random_init" for path in paths])),
        Row("teacher", [teacher.get(task) for task in GRADED]),
    ]
    return _measured(rows)


def _measured(rows: Iterable[Row]) -> list[Row]:
    """Those with a figure."""
    return [row for row in rows if any(score is not None for score in row.scores)]


def _documents(seeds: Sequence[Report], static: Sequence[Report]) -> list[Row]:
    def row(name: str, reports: Sequence[Report], ranker: str) -> Row:
        place = [f"retrieval/{task}/rows/{ranker}" for task in SEARCHED]
        kept = [find_in_report(report, path)[1] for report in reports[:1] for path in place]
        sizes = {node.bytes_per_text for node in kept if node is not None}
        size = sizes.pop() if len(sizes) == 1 else None
        return Row(name, _means(reports, [f"{path}/scores/ndcg_at_10" for path in place]), size)

    rows = [
        row(_of("the model", seeds), seeds, "run"),
        row("the model and words", seeds, "words_run"),
        row("words", seeds[:1], "words_pairs_4096"),
        row("BM25", seeds[:1], "bm25"),
        row("the model and BM25", seeds, "bm25_run_ranks"),
        row(_of("static embedding", static), static, "run"),
        row("random weights", seeds, "random_init"),
        row("teacher, 256 tokens", seeds[:1], "all-MiniLM-L6-v2"),
        row("teacher, best chunk", seeds[:1], "all-MiniLM-L6-v2_maxp"),
    ]
    return _measured(rows)


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("step", choices=("make", "judge", "pack", "code", "page"), help="what to do")
    parser.add_argument("--data", type=Path, help="folder with copies of data sets, each in the folder of its id")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "box", help="folder of all that is made")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44], help="of the runs; pack takes the first")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="what is trained and judged")
    parser.add_argument("--compare", action="store_true", help="judge next to the teacher")
    return parser


def main(argv: list[str] | None = None) -> None:
    arguments = command().parse_args(argv)
    runs = [arguments.work / f"{form}-{seed}" for form in arguments.forms for seed in arguments.seeds]
    if arguments.step == "make":
        make(arguments.data, arguments.work, arguments.seeds, arguments.forms)
    elif arguments.step == "judge":
        for run_dir in runs:
            judge(arguments.data, run_dir, arguments.compare)
        keep(arguments.work, runs, teacher_scores(arguments.data))
    elif arguments.step == "code":
        for path in CODE:
            shutil.copyfile(path, BOX_FOLDER / path.name)
    elif arguments.step == "page":
        write_atomically(PAGE, render_page(RESULTS))
        say(f"Written to {PAGE}.")
    else:
        pack(runs[0], BOX_FOLDER)
        say(f"Written to {BOX_FOLDER}.")


if __name__ == "__main__":
    run(main)
