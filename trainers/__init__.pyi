from .data.corpora import DataArguments as DataArguments
from .data.corpora import train_tokenizer as train_tokenizer
from .objectives.objective import ObjectiveArguments as ObjectiveArguments
from .recipes import Recipe as Recipe
from .training.arguments import ConceptTrainingArguments as ConceptTrainingArguments
from .training.trainer import ConceptTrainer as ConceptTrainer
from .weights.importing import import_checkpoint as import_checkpoint
