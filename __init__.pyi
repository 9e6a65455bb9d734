from concept_encoder.configuration_concept import ConceptEncoderConfig as ConceptEncoderConfig
from concept_encoder.eval.benchmarks.comparison import compare as compare
from concept_encoder.eval.benchmarks.decontamination import build_corpus as build_corpus
from concept_encoder.eval.benchmarks.finetuning import finetune as finetune
from concept_encoder.eval.benchmarks.protocols import Protocol as Protocol
from concept_encoder.eval.benchmarks.registry import Task as Task
from concept_encoder.eval.benchmarks.retrieval import retrieval as retrieval
from concept_encoder.eval.benchmarks.retrieval_tasks import RetrievalTask as RetrievalTask
from concept_encoder.eval.benchmarks.similarity import similarity as similarity
from concept_encoder.eval.concepts.analysis import analyze as analyze
from concept_encoder.eval.concepts.sampling import generate as generate
from concept_encoder.eval.concepts.whitening import whiten as whiten
from concept_encoder.eval.corpus.encoding import encode as encode
from concept_encoder.eval.corpus.index import Index as Index
from concept_encoder.eval.corpus.searching import search as search
from concept_encoder.eval.explorer.explorer import explore as explore
from concept_encoder.eval.hub.code_check import check_code as check_code
from concept_encoder.eval.hub.export import export as export
from concept_encoder.eval.hub.pushing import push as push
from concept_encoder.eval.judging.judge import judge as judge
from concept_encoder.eval.loading.checkpoints import Checkpoint as Checkpoint
from concept_encoder.eval.loading.checkpoints import load as load
from concept_encoder.eval.pretraining import pretrain as pretrain
from concept_encoder.eval.report.report import report as report
from concept_encoder.modeling_concept import ConceptEncoderForDiffusionMLM as ConceptEncoderForDiffusionMLM
from concept_encoder.modeling_concept import ConceptEncoderForMaskedLMPerceiver as ConceptEncoderForMaskedLMPerceiver
from concept_encoder.modeling_concept import (
    ConceptEncoderForSentencePairClassification as ConceptEncoderForSentencePairClassification,
)
from concept_encoder.modeling_concept import (
    ConceptEncoderForSequenceClassificationPerceiver as ConceptEncoderForSequenceClassificationPerceiver,
)
from concept_encoder.modeling_concept import (
    ConceptEncoderForSequenceClassificationViaDecoder as ConceptEncoderForSequenceClassificationViaDecoder,
)
from concept_encoder.modeling_concept import ConceptEncoderModel as ConceptEncoderModel
from concept_encoder.modeling_concept import ConceptEncoderPreTrainedModel as ConceptEncoderPreTrainedModel
from concept_encoder.trainers.data.corpora import DataArguments as DataArguments
from concept_encoder.trainers.data.corpora import train_tokenizer as train_tokenizer
from concept_encoder.trainers.objectives.objective import ObjectiveArguments as ObjectiveArguments
from concept_encoder.trainers.recipes import Recipe as Recipe
from concept_encoder.trainers.training.arguments import ConceptTrainingArguments as ConceptTrainingArguments
from concept_encoder.trainers.training.trainer import ConceptTrainer as ConceptTrainer
from concept_encoder.trainers.weights.importing import import_checkpoint as import_checkpoint

__version__: str
