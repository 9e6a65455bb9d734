"""Make the model in the box: texts, a teacher's vectors of them, training, judgement, and the page docs/BOX.md.

    python scripts/dev/box.py make --data ../shared/data
    python scripts/dev/box.py judge --data ../shared/data --compare
    python scripts/dev/box.py pack

A step whose output is there is not done again. `--data` holds copies of data sets, each in the folder of its id.
"""

import random
import re
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoTokenizer

import concept_encoder as ce
from concept_encoder import ConceptEncoderModel
from concept_encoder.eval.benchmarks.decontamination import SentenceIndex, words
from concept_encoder.eval.benchmarks.registry import BENCHMARKS
from concept_encoder.eval.hub.publishing import assemble
from concept_encoder.eval.loading.checkpoints import BOX
from concept_encoder.trainers.weights.taught import taught
from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.files import write_json
from concept_encoder.utils.untrusted import read_object

RECIPE = Path(__file__).with_name("box.yaml")
TEACHER, TOKENIZER = "models/sentence-transformers/all-MiniLM-L6-v2", "tokenizers/google-bert/bert-base-uncased"
VOCABULARY = 12_000
TEACHER_LENGTH = 256  # tokens that the teacher was trained for
FORMS = {"slots": {}, "mean": {"num_concepts": 1, "projection_size": None}}  # the model, and a static embedding
ROOT = Path(__file__).resolve().parents[2]
NAME, LICENCE = "concept-encoder/box", "apache-2.0"
GRADED = ("stsb", "sick_relatedness", "sts12", "sts13", "sts14", "sts15")
SEARCHED = ("scifact", "cranfield", "fairytaleqa_section", "squality", "qmsum_summary", "qmsum_question")
HELD_OUT = (  # what is judged on, each with all its texts
    *("mteb/sts1?-sts/*", "nyu-mll/glue/stsb/*", "RobZamp/sick/*", "nyu-mll/glue/mrpc/validation*"),
    *("nyu-mll/glue/mrpc/test*", "mteb/scifact/queries*", "local/cranfield/queries*"),
    *("local/qmsum-retrieval/queries*", "local/squality-retrieval/queries*"),
)
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
        ce.train_tokenizer(source, VOCABULARY, tokenizer)
    ce.encode(data / TEACHER, texts, work / "teacher", precision="float16", max_length=TEACHER_LENGTH)
    for form in forms:
        start = work / f"{form}-start"
        if not start.exists():
            start_form(form, data, work, start)
        for seed in seeds:
            output = work / f"{form}-{seed}"
            if not (output / "pretrain.json").exists():
                sources = {"dataset_name": work / "teacher" / "data", "tokenizer_name": tokenizer, "start_from": start}
                named = {name: str(path) for name, path in sources.items()}
                ce.pretrain(RECIPE, **named, **FORMS[form], seed=seed, output_dir=str(output))


def start_form(form: str, data: Path, work: Path, folder: Path) -> None:
    """The checkpoint that training starts from, with its tokenizer."""
    from sentence_transformers import SentenceTransformer

    model = ce.Recipe.load(RECIPE, **FORMS[form]).model
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
    prose = str(data / "local/english-prose")
    beside = [str(data / TEACHER)] if compared else []
    ce.retrieval(run_dir, SEARCHED, words=prose, compare=beside, data_dir=str(data))
    ce.analyze(run_dir)
    ce.report(run_dir)


def pack(run_dir: Path, folder: Path) -> None:
    """The model as it is published, in bfloat16: half the bytes, and read in float32 everywhere."""
    model = ConceptEncoderModel.from_pretrained(run_dir, dtype=torch.bfloat16)
    with TemporaryDirectory() as scratch:
        copy = Path(scratch) / "run"
        shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns("checkpoint-*", "random_init"))
        model.save_pretrained(copy)
        config = read_object(copy / "config.json")
        write_json(copy / "config.json", {**config, "dtype": "float32"})
        upload = Path(scratch) / "upload"
        upload.mkdir()
        assemble(copy, upload, NAME, license=LICENCE)
        if folder.exists():
            shutil.rmtree(folder)
        shutil.copytree(upload, folder)


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("step", choices=("make", "judge", "pack"), help="what to do")
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
    else:
        pack(runs[0], BOX)
        say(f"Written to {BOX}.")


if __name__ == "__main__":
    run(main)
