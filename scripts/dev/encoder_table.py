"""Measure which encoder finds a text again after equal processor time of training, and render docs/ENCODER.md.

    python scripts/dev/encoder_table.py --data local/english-prose
    python scripts/dev/encoder_table.py --render

Pairs of a title or a lead and its article: every encoder is trained on them from random weights, on one core, and then
has to find the articles of held-out ones. What the result file holds already is not measured again.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from datasets import load_dataset
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertTokenizerFast, PreTrainedTokenizerBase

from concept_encoder import reading_concept
from concept_encoder.configuration_concept import ConceptEncoderConfig
from concept_encoder.eval.benchmarks.rankers import bm25
from concept_encoder.eval.metrics.ranking import control_score, mean_figure
from concept_encoder.modeling_concept import ConceptEncoderModel
from concept_encoder.trainers.objectives.codes import contrast
from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.files import recorded_source, write_atomically, write_json
from concept_encoder.utils.untrusted import read_object

DOCS = Path(__file__).resolve().parents[2] / "docs"
SIZE = 256  # D of all rows
BATCH_SIZE = 32
TEMPERATURE = 0.05
WARM_UP_STEPS = 20
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BM25 = "BM25"
TOKEN_MEAN = "mean of token embeddings"  # what the others are compared with
CONCEPTS, SLOTS, BERT = "concepts, softmax, mean", "slots, 64 x 64", "two-layer BERT, first 512 tokens, mean"


# -------------------------------------------------------------------------------------------------------------- texts


@dataclass(frozen=True)
class Pairs:
    """Texts to find, and what to find them by: of training, and those held out."""

    queries: list[str]
    articles: list[str]
    held_queries: list[str]
    held_articles: list[str]


def read_pairs(dataset: str, config: str | None, train: int, held: int) -> Pairs:
    """Of each article its title or, for every second one, its first paragraph, which is taken out of it.

    The order is that of a keyed hash of the text, and the first are held out: no text is on both sides.

    Raises:
        ValueError: fewer articles than asked for.
    """
    found: dict[str, tuple[str, str]] = {}
    for row in load_dataset(dataset, config, split="train"):
        key = hashlib.blake2b(row["text"].encode(), digest_size=8, key=b"encoder table").hexdigest()
        lead, _, rest = row["text"].partition("\n")
        led = int(key, 16) % 2 and len(rest) > len(lead)
        found[key] = (lead, rest) if led else (row["title"], row["text"])
    if len(found) < train + held:
        raise ValueError(f"{dataset} has {len(found)} articles, and {train} + {held} were asked for")
    chosen = [found[key] for key in sorted(found)[: train + held]]
    sides = [list(side) for part in (chosen[held:], chosen[:held]) for side in zip(*part, strict=True)]
    return Pairs(*sides)


def learned_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Word pieces of the texts, as BERT's; [PAD] is 0."""
    empty = BertTokenizerFast(vocab={token: i for i, token in enumerate(SPECIAL)})
    return empty.train_new_from_iterator(iter(texts), vocab_size)


def padded(texts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, N)."""
    width = max(map(len, texts))
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    return ids, mask


# ----------------------------------------------------------------------------------------------------------- encoders


def mean_of(states: Tensor, mask: Tensor) -> Tensor:
    """(B, N, D) -> (B, D), over the real tokens."""
    return (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


class TokenMean(nn.Module):
    """(B, N) -> (B, D): mean of the embeddings of the real tokens."""

    def __init__(self, vocab_size: int, size: int):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, size)
        nn.init.normal_(self.tokens.weight, std=0.1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return mean_of(self.tokens(ids), mask)


class BertMean(nn.Module):
    """(B, N) -> (B, D): mean of the states of the real tokens of a BERT."""

    def __init__(self, vocab_size: int, layers: int, longest: int):
        super().__init__()
        config = BertConfig(
            vocab_size=vocab_size,
            hidden_size=SIZE,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=4 * SIZE,
            max_position_embeddings=longest,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return mean_of(self.bert(ids, mask).last_hidden_state, mask)


class Concepts(nn.Module):
    """(B, N) -> (B, P), the pooled output of a concept encoder, or (B, C, d) for MaxSim.

    Args:
        projected: keys and values of all tokens are projected, whatever it costs.
    """

    def __init__(self, vocab_size: int, maxsim: bool = False, projected: bool = False, **config: Any):
        super().__init__()
        common: dict[str, Any] = {
            "hidden_size": SIZE,
            "num_attention_heads": 4,
            "intermediate_size": 2 * SIZE,
            "position_embedding_type": "none",
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
        self.model = ConceptEncoderModel(ConceptEncoderConfig(vocab_size=vocab_size, **{**common, **config}))
        self.maxsim = maxsim
        self.projected = projected

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        never = patch.object(reading_concept, "absorbing_saves", lambda *sizes: False)
        with never if self.projected else nullcontext():
            pooled = self.model(ids, mask).pooler_output
        return pooled.unflatten(1, (self.model.config.num_concepts, -1)) if self.maxsim else pooled


@dataclass(frozen=True)
class Row:
    """An encoder of the table."""

    name: str
    build: Callable[[int], nn.Module]
    """of a vocabulary's size"""
    learning_rate: float = 2e-3
    longest: int = 1024
    """tokens of a text that it reads"""


def _layer(name: str, **config: Any) -> Row:
    """One layer of 16 concepts. The norm of embeddings keeps keys and values at one scale from the start."""
    fields = {"num_concepts": 16, "num_hidden_layers": 1, "embedding_layer_norm": True, **config}
    return Row(name, lambda vocab_size: Concepts(vocab_size, **fields), learning_rate=1e-3)


def _slots(name: str, slots: int, size: int, **config: Any) -> Row:
    """Sums without a layer, as in the recipe `embedder`."""
    fields = {
        "num_concepts": slots,
        "projection_size": size,
        "concept_aggregation": "sum",
        "num_hidden_layers": 0,
        "pooled_output": "concat",
        "initializer_range": 0.1,
        **config,
    }
    return Row(name, lambda vocab_size: Concepts(vocab_size, **fields))


ROWS = (
    Row(TOKEN_MEAN, lambda vocab_size: TokenMean(vocab_size, SIZE)),
    Row("mean of token embeddings, 1,024 numbers", lambda vocab_size: TokenMean(vocab_size, 4 * SIZE)),
    _layer(f"{CONCEPTS}, tokens projected", projected=True),
    _layer(CONCEPTS),
    _layer("concepts, softmax, MaxSim over 16 x 64", maxsim=True, pooled_output="concat", projection_size=64),
    Row(
        BERT,
        lambda vocab_size: BertMean(vocab_size, layers=2, longest=512),
        learning_rate=5e-4,
        longest=512,
    ),
    _slots("slots, 16 x 64", 16, 64),
    _slots("slots, 64 x 16", 64, 16),
    _slots(SLOTS, 64, 64),
    _slots(f"{SLOTS}, neighbours", 64, 64, neighbours=1),
)
NAMES = (BM25, *(row.name for row in ROWS))


# ---------------------------------------------------------------------------------------------------------- measuring


def train(
    coder: nn.Module, sides: Sequence[Sequence[list[int]]], seconds: float, learning_rate: float, seed: int
) -> int:
    """Steps that fit into so many seconds of the processor; the learning rate falls to 0 over them."""
    optimizer = torch.optim.AdamW(coder.parameters(), lr=learning_rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    start, steps = time.process_time(), 0
    coder.train()
    while True:
        for rows in torch.randperm(len(sides[0]), generator=generator).split(BATCH_SIZE):
            spent = (time.process_time() - start) / seconds
            if spent >= 1:
                return steps
            steps += 1
            optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, steps / WARM_UP_STEPS) * (1 - spent)
            codes = [coder(*padded([side[i] for i in rows.tolist()])) for side in sides]
            loss = contrast(codes, 1, "maxsim" if codes[0].ndim == 3 else "pooled", 1 / TEMPERATURE)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
            optimizer.step()


@torch.no_grad()
def encode(coder: nn.Module, texts: Sequence[list[int]]) -> Tensor:
    """(T, P) or (T, C, d), of unit length, in the order of the texts."""
    coder.eval()
    order = torch.tensor([len(text) for text in texts]).argsort(stable=True)
    codes = torch.cat([coder(*padded([texts[i] for i in rows.tolist()])) for rows in order.split(BATCH_SIZE)])
    return nn.functional.normalize(codes, dim=-1)[order.argsort()]


def similarities(queries: Tensor, articles: Tensor) -> Tensor:
    """(Q, A): cosines, or of codes (T, C, d) the sum over a query's concepts of the best cosine in an article."""
    if queries.ndim == 2:
        return queries @ articles.T
    return torch.stack([(query @ articles.mT).amax(-1).sum(-1) for query in queries])


def ranks_of_own(scores: Tensor) -> list[int]:
    """(Q,) from 1: of the article that is a query's own, behind all that score as much."""
    return (~(scores < scores.diagonal()[:, None])).sum(1).tolist()


def measure(row: Row, tokens: dict[str, list[list[int]]], vocab_size: int, seconds: float, seed: int) -> dict:
    """A run: steps, ranks of the held-out articles, and the processor's seconds of encoding these."""
    texts = {name: [ids[: row.longest] for ids in side] for name, side in tokens.items()}
    torch.manual_seed(seed)
    coder = row.build(vocab_size)
    steps = train(coder, (texts["queries"], texts["articles"]), seconds, row.learning_rate, seed)
    start = time.process_time()
    articles = encode(coder, texts["held_articles"])
    spent = time.process_time() - start
    ranks = ranks_of_own(similarities(encode(coder, texts["held_queries"]), articles))
    return {"steps": steps, "numbers": articles[0].numel(), "encode_seconds": round(spent, 3), "ranks": ranks}


def measure_all(dataset: str, settings: dict, seeds: Sequence[int], names: Sequence[str], result: Path) -> None:
    """Every row with every seed, seed after seed, BM25 once; the file is written after each run.

    Raises:
        ValueError: the file has other settings; what `read_pairs` raises.
    """
    found: dict = {"kind": "encoder_table", "settings": settings, "rows": {}}
    if result.is_file():
        found = read_object(result)
        if found["settings"] != settings:
            raise ValueError(f"{result} was measured with other settings ({found['settings']}); name another --result")
    wanted = [(0, BM25)] if BM25 in names else []
    wanted += [(seed, name) for seed in seeds for name in names if name != BM25]
    wanted = [(seed, name) for seed, name in wanted if str(seed) not in found["rows"].get(name, {})]
    if not wanted:
        return
    torch.set_num_threads(1)
    pairs = read_pairs(dataset, *(settings[name] for name in ("config", "train_pairs", "held_out")))
    tokenizer = learned_tokenizer(pairs.articles + pairs.queries, settings["vocab_size"])
    longest = max(row.longest for row in ROWS)
    tokens = {
        name: tokenizer(side, truncation=True, max_length=longest)["input_ids"] for name, side in vars(pairs).items()
    }
    by_name = {row.name: row for row in ROWS}
    for seed, name in wanted:
        if name == BM25:
            ranker: Any = bm25("bm25", None)  # type: ignore[arg-type]  # its words are no word pieces
            scored = ranker.score(pairs.held_queries, pairs.held_articles)
            measured: dict = {"encode_seconds": scored.seconds, "ranks": ranks_of_own(torch.from_numpy(scored.scores))}
        else:
            measured = measure(by_name[name], tokens, len(tokenizer), settings["seconds"], seed)
        found["rows"].setdefault(name, {})[str(seed)] = measured
        write_json(result, found)
        mrr = fmean(1 / rank for rank in measured["ranks"])
        say(f"{name}, seed {seed}: MRR {mrr:.3f}, {measured.get('steps', 0)} steps")


# --------------------------------------------------------------------------------------------------------------- page


def render_page(result: Path) -> str:
    """The page of a result file; ValueError where it holds no run."""
    found = read_object(result)
    settings, rows = found["settings"], found["rows"]
    if not rows:
        raise ValueError(f"{result} holds no run; measure first")
    scores = {name: np.mean([1 / np.array(run["ranks"]) for run in runs.values()], 0) for name, runs in rows.items()}
    seeds = max(len(runs) for runs in rows.values())
    lines = [
        "| encoder | numbers a text | steps | MRR | seeds | more than the mean of tokens | encoding, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in (name for name in NAMES if name in rows):
        runs = list(rows[name].values())
        mrr = mean_figure(scores[name])
        assert mrr.interval is not None and mrr.value is not None
        each = sorted(float(np.mean(1 / np.array(run["ranks"]))) for run in runs)
        more = "–"
        if TOKEN_MEAN in rows and name != TOKEN_MEAN:
            against = control_score(scores[name], scores[TOKEN_MEAN])
            assert against.difference is not None and against.difference_interval is not None
            low, high = against.difference_interval
            more = f"{against.difference:+.3f} ({low:+.3f} to {high:+.3f})"
        cells = [
            name,
            f"{runs[0]['numbers']:,}" if "numbers" in runs[0] else "–",
            f"{median(run['steps'] for run in runs):,.0f}" if "steps" in runs[0] else "–",
            f"{mrr.value:.3f} ({mrr.interval[0]:.3f} to {mrr.interval[1]:.3f})",
            "–" if name == BM25 else " to ".join(f"{value:.3f}" for value in dict.fromkeys((each[0], each[-1]))),
            more,
            f"{median(run['encode_seconds'] for run in runs):.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    rates = {row.name: row.learning_rate for row in ROWS}
    return f"""# Encoders after equal processor time

Rendered by `python scripts/dev/encoder_table.py --render` from [`{result.name}`](results/{result.name}); a test keeps
it fresh. Data: `{settings["data"]}`, {settings["config"]}.

{settings["train_pairs"]:,} pairs of a title or a first paragraph and its article train each encoder from random
weights, for {settings["seconds"]:g} s of one core. Then each of {settings["held_out"]:,} other titles and paragraphs
has to find its own article among {settings["held_out"]:,}: MRR, mean of 1 / rank.

{chr(10).join(lines)}

- MRR is the mean of {seeds} seeds, with a 95 % interval over queries; *seeds* are the lowest and the highest of them.
- *more than the mean of tokens* is the paired difference from that row, with its interval over queries.
- *encoding* is the processor's time for the {settings["held_out"]:,} articles; BM25's is what it takes to index them.

A vocabulary of {settings["vocab_size"]:,} word pieces learned from the training texts, D = {SIZE}, articles cut at
1,024 tokens, batches of {BATCH_SIZE} pairs, in-batch negatives at temperature {TEMPERATURE}, AdamW. The learning rate
falls to 0 from {rates[SLOTS]:g} for means of tokens and slots, from {rates[CONCEPTS]:g} for concepts, and from
{rates[BERT]:g} for BERT. Slots are sums of tokens without a layer, compared slot by slot; concepts are 16, with one
layer. With *tokens projected* keys and values of every token are computed, which the model leaves out where that is
cheaper.
"""


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("--data", help="dataset with columns text and title")
    parser.add_argument("--config", default="wikinews", help="of the dataset")
    parser.add_argument("--train_pairs", type=int, default=16_000, help="to train on")
    parser.add_argument("--held_out", type=int, default=1_200, help="to find")
    parser.add_argument("--vocab_size", type=int, default=8_192, help="of the tokenizer that is learned")
    parser.add_argument("--seconds", type=float, default=150.0, help="of the processor, to train a row with a seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights and batches")
    parser.add_argument("--rows", nargs="+", default=list(NAMES), choices=NAMES, metavar="ROW", help="which rows")
    parser.add_argument("--result", type=Path, default=DOCS / "results" / "encoder_table.json", help="JSON file")
    parser.add_argument("--page", type=Path, default=DOCS / "ENCODER.md", help="to write")
    parser.add_argument("--render", action="store_true", help="measure nothing, render the page of --result")
    arguments = parser.parse_args(argv)
    if arguments.render == (arguments.data is not None):
        parser.error("give --data, or --render without it")
    with parser.refusing():
        if not arguments.render:
            names = ("config", "train_pairs", "held_out", "vocab_size", "seconds")
            settings = {"data": recorded_source(arguments.data)} | {name: getattr(arguments, name) for name in names}
            measure_all(arguments.data, settings, arguments.seeds, arguments.rows, arguments.result)
        write_atomically(arguments.page, render_page(arguments.result))
    say(f"Written to {arguments.page}.")


if __name__ == "__main__":
    run(main)
