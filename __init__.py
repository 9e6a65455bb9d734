"""Concept encoders: text compressed into a few learned concept vectors, Hub-native."""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from concept_encoder.configuration_concept import ConceptEncoderConfig
from concept_encoder.modeling_concept import (
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderModel,
    ConceptEncoderPreTrainedModel,
)

AutoConfig.register("concept_encoder", ConceptEncoderConfig, exist_ok=True)
AutoModel.register(ConceptEncoderConfig, ConceptEncoderModel, exist_ok=True)
AutoModelForMaskedLM.register(ConceptEncoderConfig, ConceptEncoderForDiffusionMLM, exist_ok=True)
AutoModelForSequenceClassification.register(
    ConceptEncoderConfig, ConceptEncoderForSequenceClassificationPerceiver, exist_ok=True
)

__version__ = "0.1.0"

__all__ = [
    "ConceptEncoderConfig",
    "ConceptEncoderForDiffusionMLM",
    "ConceptEncoderForSequenceClassificationPerceiver",
    "ConceptEncoderModel",
    "ConceptEncoderPreTrainedModel",
]
