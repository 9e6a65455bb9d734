"""transformers' own model and configuration tests on our classes; test_transformers_suite.py fetches and runs them.

Not collected by itself: `transformers_tests` is the tests folder of transformers' source distribution. One test class
per model class, so that a test which does not apply to one head is skipped for that head only.
"""

import unittest

import torch
from transformers.models.auto import modeling_auto
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin

from concept_encoder import (
    ConceptEncoderConfig,
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForMaskedLMPerceiver,
    ConceptEncoderForSentencePairClassification,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderForSequenceClassificationViaDecoder,
    ConceptEncoderModel,
)

# By these tables the shared tests choose labels, and whether a class has a loss at all.
modeling_auto.MODEL_MAPPING_NAMES["concept_encoder"] = "ConceptEncoderModel"
modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES["concept_encoder"] = (
    "ConceptEncoderForDiffusionMLM",
    "ConceptEncoderForMaskedLMPerceiver",
)
modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["concept_encoder"] = (
    "ConceptEncoderForSequenceClassificationPerceiver",
    "ConceptEncoderForSequenceClassificationViaDecoder",
    "ConceptEncoderForSentencePairClassification",
)


class ConceptModelTester:
    """What the shared tests ask of a model: its sizes, a tiny configuration, a batch.

    Attributes that transformers reads: `encoder_seq_length`, rows of hidden states; `key_length`, columns of
    self-attentions; `num_hidden_states_types`, outputs that `output_hidden_states=True` adds.
    """

    batch_size, seq_length = 3, 7  # texts, tokens
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads, num_concepts = 99, 32, 2, 4, 5
    encoder_seq_length = key_length = num_concepts
    is_training = True

    def __init__(self, hidden_states_types: int):
        self.num_hidden_states_types = hidden_states_types

    def get_config(self) -> ConceptEncoderConfig:
        return ConceptEncoderConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=37,
            num_concepts=self.num_concepts,
            max_position_embeddings=64,
            decoder_num_hidden_layers=1,
            mask_token_id=1,
            bos_token_id=2,
            eos_token_id=3,
        )

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.random_text()

    def random_text(self) -> dict[str, torch.Tensor]:
        ids = torch.randint(4, self.vocab_size, (self.batch_size, self.seq_length))
        mask = torch.ones_like(ids)
        mask[1, -2:] = 0
        return {"input_ids": ids, "attention_mask": mask}


class ConceptPairTester(ConceptModelTester):
    def prepare_config_and_inputs_for_common(self):
        texts = {side: self.random_text() for side in ("a", "b")}
        return self.get_config(), {f"{name}_{side}": x for side, text in texts.items() for name, x in text.items()}


class SharedModelTests(ModelTesterMixin):
    test_can_init_all_missing_weights_before_2023 = True  # by default only files with a copyright year are tested
    model_tester_class = ConceptModelTester
    hidden_states_types = 1

    def setUp(self):
        self.model_tester = self.model_tester_class(self.hidden_states_types)


class ConfigTest(unittest.TestCase):
    def test_config(self):
        ConfigTester(self, config_class=ConceptEncoderConfig, hidden_size=32).run_common_tests()


class ConceptEncoderModelTest(SharedModelTests, unittest.TestCase):
    all_model_classes = (ConceptEncoderModel,)


class ConceptEncoderForDiffusionMLMTest(SharedModelTests, unittest.TestCase):
    all_model_classes = (ConceptEncoderForDiffusionMLM,)
    hidden_states_types = 2  # the encoder's and the decoder's


class ConceptEncoderForSequenceClassificationPerceiverTest(SharedModelTests, unittest.TestCase):
    all_model_classes = (ConceptEncoderForSequenceClassificationPerceiver,)


class ConceptEncoderForMaskedLMPerceiverTest(SharedModelTests, unittest.TestCase):
    all_model_classes = (ConceptEncoderForMaskedLMPerceiver,)
    hidden_states_types = 2


class ConceptEncoderForSequenceClassificationViaDecoderTest(SharedModelTests, unittest.TestCase):
    all_model_classes = (ConceptEncoderForSequenceClassificationViaDecoder,)


class ConceptEncoderForSentencePairClassificationTest(SharedModelTests, unittest.TestCase):
    all_model_classes = (ConceptEncoderForSentencePairClassification,)
    model_tester_class = ConceptPairTester
    additional_model_inputs = ["input_ids_b"]

    def test_resize_tokens_embeddings(self):
        self.skipTest("writes new ids into `input_ids`; this head reads `input_ids_a` and `input_ids_b`")
