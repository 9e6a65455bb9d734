"""Measure what encoding and searching a corpus costs, and render docs/CORPUS.md.

    python scripts/dev/corpus.py --models ../shared/data/models --data ../shared/data
    python scripts/dev/corpus.py --render

Documents/s by length, model, library and threads; peak memory of 10,000 and 1,000,000 documents; bytes and quality of
each precision on Cranfield. One run, medians; half an hour on two quiet cores. `--render` writes the page again.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.files import write_atomically, write_json

ROOT = Path(__file__).resolve().parents[2]
RESULT, PAGE = ROOT / "docs" / "results" / "corpus.json", ROOT / "docs" / "CORPUS.md"
LENGTHS = (16, 256, 4_096)  # tokens of a text
COUNTS = {  # documents that are timed, of each length: some seconds of each model
    "concepts": (4_096, 512, 32),
    "slots": (16_384, 2_048, 128),
    "static": (32_768, 8_192, 512),
    "MiniLM": (512, 64, 32),
}
THREADS = (1, 2)
REPEATS = 3
SIZES = (10_000, 1_000_000)
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
PRECISIONS = ("float32", "float16", "int8", "2bit", "ubinary")


def texts(tokens: int, count: int, seed: int = 0) -> list[str]:
    """Texts of about so many tokens, of common English words that are one token each."""
    words = "time people way water words day part sound work place years live back give most very after just".split()
    drawn = np.random.default_rng(seed).choice(words, (count, max(1, tokens - 2)))
    return [" ".join(row) for row in drawn]


def models(folder: Path, minilm: Path) -> dict[str, Path]:
    """The models that are timed: ours with random weights, since speed needs no training."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers import AutoTokenizer

    from concept_encoder import ConceptEncoderConfig, ConceptEncoderModel

    tokenizer = AutoTokenizer.from_pretrained(minilm)
    tokenizer.model_max_length = 2**30
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "mask_token_id": tokenizer.mask_token_id,
        "position_embedding_type": "sinusoidal",
        "num_attention_heads": 4,
    }
    torch.manual_seed(0)
    configs: dict[str, dict[str, Any]] = {
        "concepts": {"hidden_size": 256, "num_hidden_layers": 2, "intermediate_size": 512, "num_concepts": 32},
        "slots": {
            "hidden_size": 64,
            "num_hidden_layers": 0,
            "intermediate_size": 64,
            "num_concepts": 64,
            "concept_attention": "slot",
            "concept_aggregation": "sum",
            "concepts_per_token": 1,
            "position_embedding_type": "none",
            "pooled_output": "concat",
        },
    }
    found = {}
    for name, config in configs.items():
        found[name] = folder / name
        ConceptEncoderModel(ConceptEncoderConfig(**{**common, **config})).save_pretrained(found[name])
        tokenizer.save_pretrained(found[name])
    found["static"] = folder / "static"
    static = StaticEmbedding(tokenizer, embedding_weights=torch.randn(len(tokenizer), 256))
    SentenceTransformer(modules=[static]).save(str(found["static"]))
    return {**found, "MiniLM": minilm}


# ---------------------------------------------------------------------------------------- each in a process of its own


def rates(model: str, threads: int, counts: list[int]) -> list[dict[str, Any]]:
    """Documents/s of one model, by our `encode` and, for those of sentence-transformers, by their own."""
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

    import concept_encoder as ce

    torch.set_num_threads(threads)
    rows = []
    theirs: Any = None if _ours(model) else SentenceTransformer(model).float()
    for tokens, count in zip(LENGTHS, counts, strict=True):
        written = texts(tokens, count)
        corpus = Dataset.from_dict({"text": written})
        row: dict[str, Any] = {"tokens": tokens, "threads": threads}
        for precision in ("float32", "int8"):
            seconds = []
            for _ in range(REPEATS):
                with tempfile.TemporaryDirectory() as folder:
                    done = ce.encode(model, corpus, folder, precision=precision, columns=[])
                    assert done is not None
                    seconds.append(done.seconds)
            row[precision] = count / statistics.median(seconds)
        for precision in ("float32", "int8") if theirs is not None else ():
            options = {"precision": precision, "normalize_embeddings": True, "show_progress_bar": False}
            row[f"theirs_{precision}"] = count / _median_seconds(partial(theirs.encode, written, **options))
        rows.append(row)
    return rows


def memory(model: str, count: int) -> dict[str, Any]:
    """Peak memory of encoding so many documents of 16 tokens from a stream, in bytes of this process."""
    import resource

    from datasets import IterableDataset

    import concept_encoder as ce

    ready = texts(16, 1_000)

    def stream() -> Iterator[dict[str, str]]:
        for number in range(count):
            yield {"text": ready[number % len(ready)]}

    with tempfile.TemporaryDirectory() as folder:
        done = ce.encode(model, IterableDataset.from_generator(stream), folder, columns=[])
        assert done is not None and done.documents == count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"documents": count, "peak_bytes": peak, "documents_per_second": done.documents_per_second}


def quality(model: str, data: str) -> list[dict[str, Any]]:
    """nDCG@10 on Cranfield and bytes of a document, by precision."""
    import pyarrow.parquet as pq
    from sklearn.metrics import ndcg_score

    from concept_encoder.eval.corpus.embedders import embed_texts, load_embedder
    from concept_encoder.eval.corpus.precision import calibration, quantized, restored

    home = Path(data) / "local" / "cranfield"
    corpus, queries, judged = (
        pq.read_table(home / f"{name}-00000-of-00001.parquet").to_pylist() for name in ("corpus", "queries", "test")
    )
    embedder = load_embedder(model)
    documents = embed_texts(embedder, [f"{row['title']} {row['text']}".strip() for row in corpus])
    asked = embed_texts(embedder, [row["text"] for row in queries], "query")
    place = {row["_id"]: number for number, row in enumerate(corpus)}
    grades = np.zeros((len(queries), len(corpus)))
    numbers = {row["_id"]: number for number, row in enumerate(queries)}
    for row in judged:
        grades[numbers[row["query-id"]], place[row["corpus-id"]]] = max(row["score"], 0)
    kept = grades.any(1)
    ranges = calibration(documents)
    rows = []
    for precision in PRECISIONS:
        codes, scales = quantized(documents, precision, ranges)
        read_back = partial(restored, codes, precision, documents.shape[1], scales, ranges)
        seconds = _median_seconds(partial(_scored, read_back, asked[:1].T))
        rows.append(
            {
                "precision": precision,
                "ndcg_at_10": float(ndcg_score(grades[kept], (asked @ read_back().T)[kept], k=10)),
                "bytes": codes.nbytes / len(codes) + (0 if scales is None else 4),
                "microseconds_per_document": 1e6 * seconds / len(codes),
            }
        )
    return rows


def _scored(read_back: Callable[[], np.ndarray], query: np.ndarray) -> np.ndarray:
    return read_back() @ query


def _ours(model: str) -> bool:
    path = Path(model) / "config.json"
    return path.is_file() and json.loads(path.read_text()).get("model_type") == "concept_encoder"


def _median_seconds(call: Callable[[], Any]) -> float:
    call()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


# ------------------------------------------------------------------------------------------------------------ the page


def measure(minilm: Path, data: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        found = models(Path(scratch), minilm)
        speed = []
        for name, path in found.items():
            for threads in THREADS:
                say(f"{name}, {threads} threads")
                speed += [{"model": name, **row} for row in _apart(threads, "rates", str(path), threads, COUNTS[name])]
        say("memory")
        peaks = [_apart(2, "memory", str(found["static"]), size) for size in SIZES]
        say("quality")
        by_precision = _apart(2, "quality", str(minilm), str(data))
    return {"kind": "corpus", "speed": speed, "memory": peaks, "quality": by_precision, "load": os.getloadavg()[0]}


def _apart(threads: int, name: str, *arguments: Any) -> Any:
    """One of the functions above in a process with so many threads."""
    code = f"import json, sys; from concept_encoder.scripts.dev.corpus import {name}; "
    code += f"print(json.dumps({name}(*json.loads(sys.argv[1]))))"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": str(threads > 1).lower()}
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def render_page(result: dict[str, Any] | None = None) -> str:
    """docs/CORPUS.md from the measurement."""
    result = json.loads(RESULT.read_text()) if result is None else result
    speed = [
        f"| {row['model']} | {row['tokens']:,} | {row['threads']} | {row['float32']:,.0f} | {row['int8']:,.0f} | "
        f"{_number(row.get('theirs_float32'))} | {_number(row.get('theirs_int8'))} |"
        for row in result["speed"]
    ]
    memory_rows = [
        f"| {row['documents']:,} | {row['peak_bytes'] / 2**20:,.0f} | {row['documents_per_second']:,.0f} |"
        for row in result["memory"]
    ]
    quality_rows = [
        f"| {row['precision']} | {row['bytes']:,.0f} | {row['bytes']:,.0f} | {row['ndcg_at_10']:.3f} | "
        f"{row['microseconds_per_document']:.2f} |"
        for row in result["quality"]
    ]
    billion = [
        f"| {row['model']} | {1e9 / row['float32'] / 3600:,.0f} |"
        for row in result["speed"]
        if row["tokens"] == 256 and row["threads"] == 1
    ]
    return _PAGE.format(
        load=result["load"],
        speed="\n".join(speed),
        memory="\n".join(memory_rows),
        quality="\n".join(quality_rows),
        billion="\n".join(billion),
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


_PAGE = """# Encoding and searching a corpus: what it costs

Rendered by `scripts/dev/corpus.py` from `docs/results/corpus.json`: one run, medians of 3. Other work shared the two
cores (load {load:.1f} at its end), so that ratios between rows say more than the figures. How it is done: [encode and
search a corpus](howto/search.md).

## Documents a second

*concepts*: 2 layers, 32 concepts of width 256. *slots*: 64 slots of 64 numbers that keep sums, no layer. *static*: a
mean of token vectors of width 256. MiniLM reads the first 256 tokens of a text, the others all of it.

| model | tokens | threads | `encode`, float32 | `encode`, int8 | their `encode`, float32 | their `encode`, int8 |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
{speed}

`encode` writes shards, ids and metadata to the disk in that time; sentence-transformers' returns an array.

## Memory

Peak of the process while a stream of texts of 16 tokens is encoded by *static*:

| documents | MiB | documents/s |
| ---: | ---: | ---: |
{memory}

## Precision

MiniLM's 384 numbers, Cranfield, nDCG@10; time to unpack and score one document for one query, one process:

| precision | bytes a document | MB per million documents | nDCG@10 | microseconds |
| --- | ---: | ---: | ---: | ---: |
{quality}

## A billion documents

Of 256 tokens, core hours by the rate of one thread above (10^9 / documents/s / 3,600); times the price of a core hour:

| model | core hours |
| --- | ---: |
{billion}
"""


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("--models", type=Path, help="folder that holds sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--data", type=Path, help="folder that holds local/cranfield")
    parser.add_argument("--render", action="store_true", help="the page alone, from the result that is there")
    args = parser.parse_args(argv)
    with parser.refusing():
        if not args.render:
            if args.models is None or args.data is None:
                raise ValueError("give --models and --data, or --render")
            write_json(RESULT, measure(args.models / MINILM, args.data))
        write_atomically(PAGE, render_page())
    say(f"Written to {PAGE}.")


if __name__ == "__main__":
    run(main)
