"""Concept encoders: text compressed into a few learned concept vectors, Hub-native."""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from concept_encoder.configuration_concept import ConceptEncoderConfig
from concept_encoder.modeling_concept import (
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForMaskedLMPerceiver,
    ConceptEncoderForSentencePairClassification,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderForSequenceClassificationViaDecoder,
    ConceptEncoderModel,
    ConceptEncoderPreTrainedModel,
)

AutoConfig.register("concept_encoder", ConceptEncoderConfig, exist_ok=True)
AutoModel.register(ConceptEncoderConfig, ConceptEncoderModel, exist_ok=True)
# Of several classes, an Auto class takes the one that wrote the checkpoint (`architectures`), or else the first.
AutoModelForMaskedLM.register(
    ConceptEncoderConfig, (ConceptEncoderForDiffusionMLM, ConceptEncoderForMaskedLMPerceiver), exist_ok=True
)
AutoModelForSequenceClassification.register(
    ConceptEncoderConfig,
    (
        ConceptEncoderForSequenceClassificationPerceiver,
        ConceptEncoderForSequenceClassificationViaDecoder,
        ConceptEncoderForSentencePairClassification,
    ),
    exist_ok=True,
)

__version__ = "0.1.0"

__all__ = [
    "ConceptEncoderConfig",
    "ConceptEncoderForDiffusionMLM",
    "ConceptEncoderForMaskedLMPerceiver",
    "ConceptEncoderForSentencePairClassification",
    "ConceptEncoderForSequenceClassificationPerceiver",
    "ConceptEncoderForSequenceClassificationViaDecoder",
    "ConceptEncoderModel",
    "ConceptEncoderPreTrainedModel",
]
