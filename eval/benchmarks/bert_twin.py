"""The twin without a bottleneck: a BERT of like size under the same data, objectives, trainer and evaluations.

To these it is an encoder of one concept, the mean of its token states. It answers what the bottleneck costs and gains.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AutoConfig, BertConfig, BertModel, PreTrainedConfig
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform
from transformers.utils import can_return_tuple

from ...configuration_concept import ConceptEncoderConfig
from ...modeling_concept import (
    ConceptDecoderOutput,
    ConceptEncoderForMaskedLMPerceiver,
    ConceptEncoderForSentencePairClassification,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderOutput,
    ConceptEncoderPreTrainedModel,
    ConceptMaskedLMModel,
    ConceptMaskedLMOutput,
)
from ...reading_concept import at_positions

# Fields of the configuration that a BERT has too, under the same names.
SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "pad_token_id",
)


class BertTwinConfig(ConceptEncoderConfig):
    """Configuration of a concept encoder whose `SHARED_FIELDS` make a BERT.

    `num_concepts` is always 1, and the other fields mean nothing to a BERT: so one recipe serves both.
    """

    model_type = "bert_twin"
    _auto_class = None  # no code travels with a twin
    save_pretrained = PreTrainedConfig.save_pretrained

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.num_concepts = 1
        self.auto_map = {}

    def bert(self) -> BertConfig:
        return BertConfig(**{name: getattr(self, name) for name in SHARED_FIELDS})


AutoConfig.register(BertTwinConfig.model_type, BertTwinConfig, exist_ok=True)  # its tokenizer is looked up by it


class BertTwinPreTrainedModel(ConceptEncoderPreTrainedModel):
    config: BertTwinConfig
    config_class = BertTwinConfig
    _no_split_modules = ["BertLayer", "BertEmbeddings"]


class BertTwinModel(BertTwinPreTrainedModel):
    """Text to one concept."""

    def __init__(self, config: BertTwinConfig):
        super().__init__(config)
        self.bert = BertModel(config.bert(), add_pooling_layer=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.bert.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs,
    ) -> ConceptEncoderOutput:
        """Arguments as in `ConceptEncoderModel.forward`; the mean token state (B, 1, D) as `last_hidden_state`."""
        inputs = {"position_ids": position_ids, "inputs_embeds": inputs_embeds}
        return self.summary(self.bert(input_ids, attention_mask, **inputs).last_hidden_state, attention_mask)

    def summary(self, states: Tensor, attention_mask: Tensor | None) -> ConceptEncoderOutput:
        real = torch.ones_like(states[:, :, :1]) if attention_mask is None else attention_mask[:, :, None].to(states)
        mean = (states * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1)
        return ConceptEncoderOutput(last_hidden_state=mean, pooler_output=mean[:, 0])


class BertTwinForMaskedLM(BertTwinPreTrainedModel, ConceptMaskedLMModel):
    """Masked language modelling as in BERT; the decoder is its transform, and token states never pass a concept."""

    trained_as = ConceptEncoderForMaskedLMPerceiver.__name__
    _tied_weights_keys = {"lm_head.weight": "encoder.bert.embeddings.word_embeddings.weight"}

    def __init__(self, config: BertTwinConfig):
        super().__init__(config)
        self.encoder = BertTwinModel(config)
        self.decoder = BertPredictionHeadTransform(config.bert())
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        loss_weights: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        row_loss: Callable | None = None,
        **kwargs,
    ) -> ConceptMaskedLMOutput:
        """Arguments and result as in `ConceptEncoderForMaskedLMPerceiver.forward`."""
        states = self.encoder.bert(input_ids, attention_mask).last_hidden_state  # (B, N, D)
        encoded = self.encoder.summary(states, attention_mask)

        def decode(positions: Tensor | None) -> ConceptDecoderOutput:
            return ConceptDecoderOutput(last_hidden_state=self.decoder(at_positions(states, positions)))

        return self._score(encoded, decode, labels, loss_weights, num_items_in_batch, row_loss)


class BertTwinForSequenceClassification(BertTwinPreTrainedModel, ConceptEncoderForSequenceClassificationPerceiver):
    def __init__(self, config: BertTwinConfig):
        super().__init__(config)
        self.encoder = BertTwinModel(config)
        self.post_init()


class BertTwinForSentencePairClassification(BertTwinPreTrainedModel, ConceptEncoderForSentencePairClassification):
    def __init__(self, config: BertTwinConfig):
        super().__init__(config)
        self.encoder = BertTwinModel(config)
        self.post_init()


TWINS = {  # of the heads that evaluations ask for by name
    ConceptEncoderForSequenceClassificationPerceiver.__name__: BertTwinForSequenceClassification,
    ConceptEncoderForSentencePairClassification.__name__: BertTwinForSentencePairClassification,
}
