"""Five training steps in exact numbers; `python training_steps.py THREADS` prints them as JSON."""

import hashlib
import json
import sys

import torch
from helpers import tiny_config, token_batch

from concept_encoder import ConceptEncoderForDiffusionMLM


def steps() -> list[str]:
    """Losses of five training steps with dropout, exactly, and a digest of the weights after them."""
    torch.manual_seed(0)
    config = tiny_config(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, concept_attention="slot")
    model = ConceptEncoderForDiffusionMLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids, mask = token_batch(rows=8, columns=32)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item().hex())
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return [*losses, hashlib.sha256(weights.numpy().tobytes()).hexdigest()]


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps(steps()))
