"""What the concept explorer shows of one checkpoint: reading, comparison, swap, infilling and reconstruction.

Arrays and strings only; `explorer_app` draws them. One call at a time: infilling listens to the model while it
generates. Letters: N tokens of a text, C concepts.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...modeling_concept import ConceptEncoderForDiffusionMLM, ConceptEncoderModel
from ...trainers.data.corpora import MICROWORLD
from ...trainers.data.microworld import microworld_corpus, microworld_task
from ...utils import results
from ...utils.tokenizer import longest_text
from ..benchmarks.similarity import cosine, max_sim
from ..concepts import sampling
from ..concepts.attention import ReadingSums, attention_weights
from ..corpus.searching import Hit, open_index, query_embedder, search
from ..loading.checkpoints import BOX, Checkpoint, random_encoder

MAX_TOKENS = 128  # of a text, special tokens included: more do not fit a screen
MAX_CHARACTERS = 10_000  # of a text, looked at before it is tokenised
MAX_STEPS, MAX_TEMPERATURE = 64, 2.0
MAX_COUNTS = 16  # numbers of concepts that a curve has
MASK_EVERY = 5  # words, in the example of infilling
ENGLISH = (
    "The old ship left the harbour before dawn, and nobody on the quay knew where it was going.",
    "The musicians packed their instruments while the last guests were still dancing.",
    "While the last guests were still dancing, the band put its instruments away.",
)
ACTIVITIES = ("swap", "infill", "rebuild")
HOW_TO_INFILL = (
    "concept-encoder pretrain microworld --decoder_context latent --corruption two_view --output_dir runs/infilling"
)


@dataclass(frozen=True)
class Reading:
    """Who reads what in one text.

    Attributes:
        tokens: N strings as they are shown.
        read: (C, N), attention of concepts to tokens, mean over layers and heads; rows sum to 1.
        read_by: (N, C), attention of positions to concepts while the text is rebuilt; None without a decoder.
        concepts, uniform: as in `AttentionResult`, tokens as they are shown.
    """

    tokens: list[str]
    read: np.ndarray
    read_by: np.ndarray | None
    concepts: list[results.Reading]
    uniform: results.Reading


@dataclass(frozen=True)
class Comparison:
    """Two texts, concept by concept.

    Attributes:
        similarity: what is measured -> (this checkpoint, its random-initialised twin), each in [-1, 1].
        cosines: (C, C), concepts of the first text x concepts of the second.
        partner: (C,), for each concept of the first text the one of the second that it is matched with: the one-to-one
            matching of largest total cosine.
        most_read: for each text, the token that each of its C concepts attends to most.
    """

    similarity: dict[str, tuple[float, float]]
    cosines: np.ndarray
    partner: np.ndarray
    most_read: tuple[list[str], list[str]]


@dataclass(frozen=True)
class InfillStep:
    """The canvas after one decoder call.

    Attributes:
        tokens: N strings as they are shown, special tokens included.
        committed: position -> probability that the model gave the token which it has just committed there.
    """

    tokens: list[str]
    committed: dict[int, float]


@dataclass(frozen=True)
class Rebuilt:
    """A text rebuilt from its first k concepts.

    Attributes:
        original, rebuilt: tokens as they are shown, without the special ones at both ends.
        right: per token, whether it is the original one.
        accuracy: k -> share of tokens right when each is the most probable one, in one decoder call.
    """

    original: list[str]
    rebuilt: list[str]
    right: list[bool]
    accuracy: dict[int, float]


@dataclass(frozen=True)
class Explorer:
    """A checkpoint, ready to be looked at.

    Attributes:
        name: of the folder, or the Hub id.
        encoder: with eager attention, in evaluation mode.
        model: the head around that encoder; None where the checkpoint has no diffusion decoder.
        tokenizer: the checkpoint's.
        run: how the checkpoint was pretrained, where it says so.
    """

    name: str
    encoder: ConceptEncoderModel
    model: ConceptEncoderForDiffusionMLM | None
    tokenizer: PreTrainedTokenizerBase
    run: results.PretrainResult | None = None

    @property
    def num_concepts(self) -> int:
        return self.encoder.config.num_concepts

    @cached_property
    def missing(self) -> dict[str, str]:
        """Those of `ACTIVITIES` that this checkpoint cannot do, and why; nothing is pretended."""
        config = self.encoder.config
        if self.model is None:
            saved_by = ", ".join(config.architectures or ["no known class"])
            why = f"This checkpoint was saved by {saved_by}. It has no diffusion decoder, so nothing can be sampled."
            return dict.fromkeys(ACTIVITIES, why)
        if config.decoder_context == "none":
            return {
                "infill": "This checkpoint has decoder_context='none': a masked position sees the concepts and "
                "nothing else, so the words around it cannot inform it, and filling in step by step cannot help. "
                f"A checkpoint that can: {HOW_TO_INFILL}"
            }
        return {}

    @property
    def corruption(self) -> str | None:
        """Name of the corruption it was trained by, None where its run does not say."""
        return None if self.run is None else next(iter(self.run.objective.get("corruption") or {}), None)

    @property
    def cautions(self) -> dict[str, str]:
        """What to know of those of `ACTIVITIES` that this checkpoint can do, as far as its run says."""
        objective = {} if self.run is None else self.run.objective
        cautions = {}
        if self.corruption not in (None, "mlm", "two_view"):
            cautions["infill"] = (
                f"Its encoder has never met {self.tokenizer.mask_token} in training (corruption "
                f"{self.corruption}): what it reads of a text with gaps is guesswork."
            )
        if objective and not objective.get("nested_concepts"):
            cautions["rebuild"] = (
                "Trained without nested_concepts: the order of its concepts means nothing, and with some cut off the "
                "decoder sees what it has never met in training."
            )
        return {name: text for name, text in cautions.items() if name not in self.missing}

    @cached_property
    def examples(self) -> tuple[str, str, str, str]:
        """A text to read, two of the same meaning to compare, one with gaps; in words that the checkpoint has met."""
        text, first, second = ENGLISH
        if self.run is not None and self.run.data.dataset_name == MICROWORLD:
            text = ". ".join(microworld_corpus("validation", 1)["text"][0].split(". ")[:2]) + "."
            pairs = microworld_task("paraphrase", "validation", 2)
            first, second = next((p["sentence1"], p["sentence2"]) for p in pairs if p["label"] == 1)
        mask = self.tokenizer.mask_token
        words = [mask if place % MASK_EVERY == MASK_EVERY - 1 else word for place, word in enumerate(text.split())]
        return text, first, second, " ".join(words)

    @cached_property
    def _twin(self) -> ConceptEncoderModel:
        return random_encoder(self.encoder.config).eval()

    @torch.no_grad()
    def read(self, text: str) -> Reading:
        """Attention between the concepts and the tokens of `text`; ValueError for no text, or too long a one."""
        batch = self._encode(text)
        decoder = None if self.model is None else self.model.decoder
        read, read_by = attention_weights(self.encoder, decoder, self.tokenizer, batch)
        sums = ReadingSums(self.num_concepts, self.encoder.config.vocab_size, self.tokenizer, decoder is not None)
        sums.add(batch["input_ids"][0].cpu(), read[0], None if read_by is None else read_by[0])
        *concepts, uniform = sums.rows()
        for row in concepts:
            row.top_tokens = [(self._shown(token), share) for token, share in row.top_tokens]
        return Reading(
            self._tokens(batch["input_ids"][0]),
            read[0].numpy(),
            None if read_by is None else read_by[0].numpy(),
            concepts,
            uniform,
        )

    @torch.no_grad()
    def compare(self, first: str, second: str) -> Comparison:
        """Similarity of two texts, and their concepts matched one to one; ValueError as from `read`."""
        batches = [self._encode(first), self._encode(second)]
        outputs = [self.encoder(**batch, output_attentions=True) for batch in batches]
        figures = [_similarities(outputs), _similarities([self._twin(**batch) for batch in batches])]
        a, b = (torch.nn.functional.normalize(output.last_hidden_state[0].double(), dim=-1) for output in outputs)
        cosines = (a @ b.T).cpu().numpy()
        most_read = []
        for output, batch in zip(outputs, batches, strict=True):
            read = torch.stack(output.cross_attentions).mean(dim=(0, 2))[0]  # (L, 1, H, C, N) -> (C, N)
            tokens = self._tokens(batch["input_ids"][0])
            most_read.append([tokens[place] for place in read.argmax(-1).tolist()])
        similarity = {name: (figures[0][name], figures[1][name]) for name in figures[0]}
        return Comparison(similarity, cosines, linear_sum_assignment(-cosines)[1], (most_read[0], most_read[1]))

    def swap(self, first: str, second: str, indices: Sequence[int], num_steps: int) -> tuple[list[str], list[str]]:
        """Both texts rebuilt, and rebuilt after the concepts of `indices` have changed places between them.

        The most probable token everywhere, so that what differs is the swap's doing. ValueError as from `read`, for
        an index outside [0, C), for none, and where the checkpoint cannot.
        """
        model = self._sampler("swap", num_steps)
        for index in indices or []:
            check_number("A concept", index, 0, self.num_concepts - 1, whole=True)
        for text in (first, second):
            self._encode(text)
        options = {"num_steps": num_steps, "temperature": 0.0}
        before = [sampling.reconstruct(model, self.tokenizer, [text], **options)[0] for text in (first, second)]
        return before, sampling.swap(model, self.tokenizer, first, second, indices or [], **options)

    def infill(self, text: str, num_steps: int, temperature: float, seed: int) -> list[InfillStep]:
        """The canvas before the first decoder call and after each; ValueError as from `read`, for a text without
        [MASK], and where the checkpoint cannot."""
        model = self._sampler("infill", num_steps, temperature, seed)
        batch = self._encode(text, split_special_tokens=False)
        if self.tokenizer.mask_token not in text:
            raise ValueError(f"There is no {self.tokenizer.mask_token} in the text; put one where a word is missing.")
        canvases, logits = [], []

        def listen(module, args, kwargs, output) -> None:
            canvases.append(kwargs["decoder_input_ids"][0])
            logits.append(output.logits[0])

        handle = model.register_forward_hook(listen, with_kwargs=True)
        try:
            generator = torch.Generator(model.device).manual_seed(seed)
            out = model.generate(**batch, num_steps=num_steps, temperature=temperature, generator=generator)
        finally:
            handle.remove()
        canvases.append(out[0])
        steps = [InfillStep(self._tokens(canvases[0]), {})]
        for before, after, scores in zip(canvases, canvases[1:], logits, strict=False):
            places = (before != after).nonzero().flatten()
            shares = scores[places].softmax(-1).gather(-1, after[places, None]).flatten()
            steps.append(InfillStep(self._tokens(after), dict(zip(places.tolist(), shares.tolist(), strict=True))))
        return steps

    @torch.no_grad()
    def rebuild(self, text: str, num_concepts: int, num_steps: int, temperature: float, seed: int) -> Rebuilt:
        """`text` rebuilt from its first `num_concepts` concepts alone, as if the others did not exist.

        ValueError as from `read`, for a number outside [1, C], and where the checkpoint cannot.
        """
        model = self._sampler("rebuild", num_steps, temperature, seed)
        check_number("The number of concepts", num_concepts, 1, self.num_concepts, whole=True)
        batch = self._encode(text)
        ids = batch["input_ids"][0]
        special = torch.isin(ids, torch.tensor(self.frame, device=ids.device))
        concepts = self.encoder(**batch).last_hidden_state  # (1, C, D)
        generator = torch.Generator(model.device).manual_seed(seed)
        out = model.generate(
            **batch,
            concepts=concepts[:, :num_concepts],
            num_steps=num_steps,
            temperature=temperature,
            generator=generator,
        )[0]
        canvas = torch.where(special, ids, model.config.mask_token_id)[None]
        counts = np.unique(np.linspace(1, self.num_concepts, min(MAX_COUNTS, self.num_concepts)).round().astype(int))
        accuracy = {}
        for count in counts.tolist():
            best = model(decoder_input_ids=canvas, concepts=concepts[:, :count]).logits[0].argmax(-1)
            accuracy[count] = float((best == ids)[~special].double().mean())
        right = (out == ids)[~special].tolist()
        return Rebuilt(self._tokens(ids[~special]), self._tokens(out[~special]), right, accuracy)

    @property
    def frame(self) -> list[int]:
        """Ids of the tokens that stand around texts, and in place of no word, as [UNK] and [MASK] do."""
        return sorted(
            set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id, self.tokenizer.mask_token_id}
        )

    def check_text(self, text: Any) -> None:
        """ValueError unless it is a text that is worth tokenising."""
        if not isinstance(text, str) or not text.strip():
            raise ValueError("There is no text; type one.")
        if len(text) > MAX_CHARACTERS:
            raise ValueError(
                f"The text has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read. Shorten it."
            )

    def beginning(self, text: str) -> str:
        """As much of a text as can be shown."""
        longest = longest_text(self.encoder.config, MAX_TOKENS)
        options = {"truncation": True, "max_length": longest, "return_offsets_mapping": True}
        ends = [end for _, end in self.tokenizer(text[:MAX_CHARACTERS], **options)["offset_mapping"]]
        return text[: max(ends, default=0)]

    def _sampler(
        self, activity: str, num_steps: int, temperature: float = 0.0, seed: int = 0
    ) -> ConceptEncoderForDiffusionMLM:
        """The model, if it can do the activity, and by these settings."""
        if activity in self.missing or self.model is None:
            raise ValueError(self.missing[activity])
        check_number("The number of decoder calls", num_steps, 1, MAX_STEPS, whole=True)
        check_number("The temperature", temperature, 0, MAX_TEMPERATURE)
        check_number("The seed", seed, 0, 2**63 - 1, whole=True)
        return self.model

    def _encode(self, text: str, split_special_tokens: bool = True) -> dict[str, Tensor]:
        """A batch of one text; [MASK] in it is plain characters with `split_special_tokens`."""
        self.check_text(text)
        text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is no character
        batch = sampling.encode_texts(self.encoder, self.tokenizer, [text], split_special_tokens=split_special_tokens)
        ids = batch["input_ids"][0]
        longest = longest_text(self.encoder.config, MAX_TOKENS)
        if len(ids) > longest:
            raise ValueError(f"The text has {len(ids)} tokens; at most {longest} can be shown. Shorten it.")
        if set(ids.tolist()) <= {*self.frame, self.tokenizer.unk_token_id}:
            raise ValueError("This checkpoint knows none of these words; use words like those of the examples.")
        return batch

    def _tokens(self, ids: Tensor) -> list[str]:
        return [self._shown(token) for token in self.tokenizer.convert_ids_to_tokens(ids.tolist())]

    def _shown(self, token: str) -> str:
        return self.tokenizer.convert_tokens_to_string([token]).strip() or token


def check_number(name: str, value: Any, least: float, most: float, whole: bool = False) -> None:
    """ValueError unless a value that came over the network is a number in [least, most], and a whole one if asked."""
    legal = isinstance(value, int if whole else int | float) and not isinstance(value, bool) and least <= value <= most
    if not legal:
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number in [{least}, {most}], got {value!r}.")


def load_explorer(checkpoint: str | os.PathLike, revision: str | None = None) -> Explorer:
    """Explorer of a run folder or Hub id; nothing of a downloaded checkpoint's code is run.

    Args:
        checkpoint: folder or Hub id of any concept encoder, with its tokenizer.
        revision: commit, branch or tag of a Hub id.

    Raises:
        ValueError: not a concept encoder's checkpoint, no tokenizer or one that does not fit, a revision of a folder.
        FileNotFoundError: no such folder.
    """
    opened = Checkpoint.open(checkpoint, revision)
    whole = opened.load()[0].eval()
    whole.set_attn_implementation("eager")  # the other implementations do not return their weights
    model = whole if isinstance(whole, ConceptEncoderForDiffusionMLM) else None
    if model is not None:
        sampling.check_mask_token(opened.name, model, opened.tokenizer)
    path = opened.folder / "pretrain.json"
    run = results.PretrainResult.load(path) if path.exists() else None
    encoder = getattr(whole, whole.base_model_prefix, whole)
    return Explorer(opened.name, encoder, model, opened.tokenizer, run)


def explore(
    checkpoint: str | os.PathLike = BOX,
    revision: str | None = None,
    port: int | None = None,
    open_browser: bool = True,
    corpus: str | os.PathLike | None = None,
) -> None:
    """Serve the explorer of a checkpoint as a page on this machine, until it is interrupted.

    Args:
        checkpoint: folder or Hub id of any concept encoder; left out, the model that the package brings.
        revision: commit, branch or tag of a Hub id.
        corpus: folder of an index or of shards of this checkpoint, to be searched in a tab; `encode` writes them.
        port: of the page; None is the first free one from 7860.
        open_browser: open the page too.

    Raises:
        ValueError: gradio is not installed; as `load_explorer`; a corpus of another model.
        FileNotFoundError: no such folder.
    """
    if find_spec("gradio") is None:
        raise ValueError("the explorer needs gradio: pip install 'concept-encoder[explore]'")
    from .app import build_app, launch_app

    find = None if corpus is None else finder(corpus, os.fspath(checkpoint))
    app = build_app(load_explorer(os.fspath(checkpoint), revision), find)
    launch_app(app, server_port=port, inbrowser=open_browser)


def finder(corpus: str | os.PathLike, checkpoint: str) -> Callable[[str], list[Hit]]:
    """What answers a question from a corpus that was encoded with this checkpoint; ValueError for another's."""
    index = open_index(corpus)
    query_embedder(index, checkpoint)
    return lambda question: search(index, question, checkpoint=checkpoint)[0]


def _similarities(outputs: Sequence[Any]) -> dict[str, float]:
    pooled = [output.pooler_output.double().cpu().numpy() for output in outputs]
    concepts = [output.last_hidden_state.cpu() for output in outputs]
    return {"cosine of the pooled outputs": float(cosine(*pooled)[0]), "MaxSim": float(max_sim(*concepts)[0])}
