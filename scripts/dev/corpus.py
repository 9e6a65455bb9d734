"""Measure what encoding and searching a corpus costs, and render docs/CORPUS.md.

    python scripts/dev/corpus.py --models ../shared/data/models --data ../shared/data
    python scripts/dev/corpus.py --render

Documents/s by length, model, library and threads; peak memory of 10,000 and 1,000,000 documents; bytes and quality of
each precision on Cranfield. Medians; less than 20 minutes on two quiet cores. Each part is kept in
docs/results/corpus.json when it is ready, and the same command again measures what is missing. `--render` writes the
page again; `--small` tries every part on a few documents and shows the page, and keeps nothing.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from concept_encoder.eval.loading.checkpoints import BOX_FOLDER
from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.files import write_atomically, write_json

ROOT = Path(__file__).resolve().parents[2]
RESULT, PAGE = ROOT / "docs" / "results" / "corpus.json", ROOT / "docs" / "CORPUS.md"
LENGTHS = (16, 256, 4_096)  # tokens of a text
COUNTS = (32_768, 8_192, 512)  # documents that are timed, of each length, at most
SECONDS = 1.5  # that one timing is to take
TRIED = 32  # times fewer documents tell how many that are
NAMES = ("box", "concepts", "static", "MiniLM")
THREADS = (1, 2)
REPEATS = 3
SIZES = (10_000, 1_000_000)
SMALL = 512  # times fewer documents are tried
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
PRECISIONS = ("float32", "float16", "int8", "2bit", "ubinary")


def texts(tokens: int, count: int, seed: int = 0) -> list[str]:
    """Texts of about so many tokens, of common English words that are one token each."""
    words = "time people way water words day part sound work place years live back give most very after just".split()
    drawn = np.random.default_rng(seed).choice(words, (count, max(1, tokens - 2)))
    return [" ".join(row) for row in drawn]


def models(folder: Path, minilm: Path) -> dict[str, Path]:
    """The models that are timed: the package's own, and others with random weights, since speed needs no training."""
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
    sizes = {"hidden_size": 256, "num_hidden_layers": 2, "intermediate_size": 512, "num_concepts": 32}
    found = {"box": BOX_FOLDER, "concepts": folder / "concepts", "MiniLM": minilm}
    ConceptEncoderModel(ConceptEncoderConfig(**common, **sizes)).save_pretrained(found["concepts"])
    tokenizer.save_pretrained(found["concepts"])
    found["static"] = folder / "static"
    static = StaticEmbedding(tokenizer, embedding_weights=torch.randn(len(tokenizer), 256))
    SentenceTransformer(modules=[static]).save(str(found["static"]))
    return found


# ---------------------------------------------------------------------------------------- each in a process of its own


def rates(model: str, threads: int, share: int) -> list[dict[str, Any]]:
    """Documents/s of one model, by our `encode` and, for those of sentence-transformers, by their own."""
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

    import concept_encoder as ce

    torch.set_num_threads(threads)
    repeats = REPEATS if share == 1 else 1
    rows = []
    theirs: Any = None if _ours(model) else SentenceTransformer(model).float()
    for tokens, most in zip(LENGTHS, COUNTS, strict=True):
        written = texts(tokens, max(2, most // share))
        row: dict[str, Any] = {"tokens": tokens, "threads": threads}
        for precision in ("float32", "int8"):

            def encoded(count: int, precision: Any = precision, written: list[str] = written) -> Any:
                corpus = Dataset.from_dict({"text": written[:count]})
                with tempfile.TemporaryDirectory() as folder:
                    return ce.encode(model, corpus, folder, precision=precision, columns=[])

            tried = encoded(max(2, len(written) // TRIED))
            count = _count(tried.documents_per_second, len(written))
            done = [encoded(count) for _ in range(repeats)]
            row |= {
                precision: count / statistics.median(each.seconds for each in done),
                f"{precision}_bytes": done[0].bytes / count,
                f"{precision}_dtype": done[0].plan.code.dtype,
            }
        for precision in ("float32", "int8") if theirs is not None else ():
            options = {"precision": precision, "normalize_embeddings": True, "show_progress_bar": False}
            some = written[: max(2, len(written) // TRIED)]
            theirs.encode(some, **options)
            some = written[: _count(len(some) / _seconds(partial(theirs.encode, some, **options)), len(written))]
            seconds = [_seconds(partial(theirs.encode, some, **options)) for _ in range(repeats)]
            row[f"theirs_{precision}"] = len(some) / statistics.median(seconds)
        rows.append(row)
    return rows


def _count(documents_per_second: float, most: int) -> int:
    """Documents that take `SECONDS`."""
    return min(most, max(2, int(documents_per_second * SECONDS)))


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
    return statistics.median(_seconds(call) for _ in range(REPEATS))


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


# ------------------------------------------------------------------------------------------------------------ the page


def measure(minilm: Path, data: Path, share: int = 1, kept: Path | None = None) -> dict[str, Any]:
    """The figures of all parts.

    Args:
        minilm: folder of all-MiniLM-L6-v2.
        data: folder that holds local/cranfield.
        share: times fewer documents than are timed in earnest.
        kept: file of the parts that are ready, which is written after each.
    """
    result: dict[str, Any] = {"kind": "corpus", "parts": {}}
    if kept is not None and kept.is_file():
        result = json.loads(kept.read_text())
    with tempfile.TemporaryDirectory() as scratch:
        found = models(Path(scratch), minilm)
        parts: dict[str, Callable[[], Any]] = {
            f"speed {name} {threads}": partial(_apart, threads, "rates", str(found[name]), threads, share)
            for name in NAMES
            for threads in THREADS
        }
        parts |= {f"memory {n}": partial(_apart, 2, "memory", str(found["static"]), n // share) for n in SIZES}
        parts["quality"] = partial(_apart, 2, "quality", str(minilm), str(data))
        for number, (name, part) in enumerate(parts.items(), 1):
            if name in result["parts"]:
                continue
            say(f"{number} of {len(parts)}: {name}")
            rows = part()
            result["parts"][name] = {"rows": rows, "load": os.getloadavg()[0]}
            if kept is not None:
                write_json(kept, result)
    return result


def _apart(threads: int, name: str, *arguments: Any) -> Any:
    """One of the functions above in a process with so many threads."""
    code = f"import json, sys; from concept_encoder.scripts.dev.corpus import {name}; "
    code += f"print(json.dumps({name}(*json.loads(sys.argv[1]))))"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": str(threads > 1).lower()}
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def render_page(result: dict[str, Any] | None = None) -> str:
    """docs/CORPUS.md from the parts that are measured."""
    parts = (json.loads(RESULT.read_text()) if result is None else result)["parts"]
    rows = {name: part["rows"] for name, part in parts.items()}
    speed = [
        {"model": name.split()[1], **row} for name, found in rows.items() if name.startswith("speed") for row in found
    ]
    memory_rows = [found for name, found in rows.items() if name.startswith("memory")]
    billion = [row for row in speed if row["tokens"] == 256 and row["threads"] == 1]
    return _PAGE.format(
        load=statistics.median(part["load"] for part in parts.values()),
        speed=_lines(
            f"| {row['model']} | {row['tokens']:,} | {row['threads']} | {row['float32']:,.0f} | {row['int8']:,.0f} | "
            f"{_number(row.get('theirs_float32'))} | {_number(row.get('theirs_int8'))} | "
            f"{row['float32_bytes']:,.0f} | {row['int8_bytes']:,.0f} |"
            for row in speed
        ),
        bfloat16=", ".join(sorted({row["model"] for row in speed if row["float32_dtype"] == "bfloat16"}))
        or "no model",
        memory=_lines(
            f"| {row['documents']:,} | {row['peak_bytes'] / 2**20:,.0f} | {row['documents_per_second']:,.0f} |"
            for row in memory_rows
        ),
        quality=_lines(
            f"| {row['precision']} | {row['bytes']:,.0f} | {row['ndcg_at_10']:.3f} | "
            f"{row['microseconds_per_document']:.2f} |"
            for row in rows.get("quality", ())
        ),
        billion=_lines(
            f"| {row['model']} | {1e9 / row['float32'] / 3600:,.0f} | {1e9 / row['int8'] / 3600:,.0f} | "
            f"{row['float32_bytes'] / 1000:,.2f} | {row['int8_bytes'] / 1000:,.2f} |"
            for row in billion
        ),
    )


def _lines(rows: Iterable[str]) -> str:
    return "\n".join(rows) or "| not measured yet |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


_PAGE = """# Encoding and searching a corpus: what it costs

Rendered by `scripts/dev/corpus.py` from `docs/results/corpus.json`: medians of 3 on two cores. Their load was
{load:.1f} (the median of all parts), so ratios between rows say more than the figures. How it is done: [encode and
search a corpus](howto/search.md).

## Documents a second

*box*: [the model of the package](BOX.md), 1,024 numbers a document. *concepts*: 2 layers, 32 concepts of width 256.
*static*: a mean of token vectors of width 256. MiniLM reads the first 256 tokens of a text, the others all
of it. `encode` took bfloat16 products for {bfloat16}.

| model | tokens | threads | `encode`, float32 | int8 | their `encode`, float32 | int8 | MB a million, float32 | int8 |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{speed}

In that time `encode` writes shards with ids to the disk, while sentence-transformers' returns an array. The megabytes
are those of the shards.

## Memory

Peak of the process while a stream of texts of 16 tokens is encoded by *static*:

| documents | MiB | documents/s |
| ---: | ---: | ---: |
{memory}

## Precision

MiniLM's 384 numbers on Cranfield; time to unpack and score one document for one query, one process:

| precision | bytes a document, MB a million | nDCG@10 | microseconds |
| --- | ---: | ---: | ---: |
{quality}

## A billion documents

Of 256 tokens, by arithmetic: core hours are 10^9 / documents/s of one thread above / 3,600, terabytes 10^9 times the
bytes of a document. Times what a core hour and a terabyte cost where you are:

| model | core hours, float32 | int8 | TB, float32 | int8 |
| --- | ---: | ---: | ---: | ---: |
{billion}
"""


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("--models", type=Path, help="folder that holds sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--data", type=Path, help="folder that holds local/cranfield")
    parser.add_argument("--render", action="store_true", help="the page alone, from the result that is there")
    parser.add_argument("--small", action="store_true", help="try every part on a few documents")
    args = parser.parse_args(argv)
    with parser.refusing():
        if not args.render and (args.models is None or args.data is None):
            raise ValueError("give --models and --data, or --render")
        if args.small:
            print(render_page(measure(args.models / MINILM, args.data, SMALL)))
            return
        if not args.render:
            measure(args.models / MINILM, args.data, kept=RESULT)
        write_atomically(PAGE, render_page())
    say(f"Written to {PAGE}.")


if __name__ == "__main__":
    run(main)
