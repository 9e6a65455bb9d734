"""Sample texts through the concepts of a checkpoint, one on a line.

    concept-encoder generate runs/mine --mode reconstruct --texts "A text."
    concept-encoder generate runs/mine --mode infill --texts "A [MASK] text."
    concept-encoder generate runs/mine --mode swap --swap_concepts 0 3 \\
        --texts "One." "The other."

CHECKPOINT is a run folder, or a Hub id, of a model that was pretrained by masked diffusion.
"""

import concept_encoder as ce
from concept_encoder.utils.command_line import Command, run

MODES = ("reconstruct", "infill", "continue", "interpolate", "swap")


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("checkpoint", help="folder of a model, or its Hub id")
    parser.add_argument("--revision", help="commit, branch or tag of a Hub id")
    parser.add_argument("--mode", required=True, choices=MODES, metavar="MODE", help=", ".join(MODES))
    parser.add_argument("--texts", nargs="+", required=True, metavar="TEXT", help="two for interpolate and swap")
    parser.add_argument("--num_tokens", type=int, help="continue: new tokens per text")
    parser.add_argument("--rest_only", action="store_true", help="continue: of a model of corruption prefix")
    parser.add_argument("--num_texts", type=int, help="interpolate: texts in all, both ends included")
    parser.add_argument("--swap_concepts", type=int, nargs="+", metavar="INDEX", help="swap: concepts to exchange")
    parser.add_argument("--num_steps", type=int, help="decoder calls (default: 16)")
    parser.add_argument("--order", help="confidence, ancestral or blocks (default: confidence)")
    parser.add_argument("--block_length", type=int, help="positions of a block, for order blocks")
    parser.add_argument("--temperature", type=float, help="0 takes the most probable token (default: 1)")
    parser.add_argument("--top_k", type=int, help="keep the k most probable tokens, 0 all (default: 0)")
    parser.add_argument("--top_p", type=float, help="keep tokens of this probability (default: 1)")
    parser.add_argument("--seed", type=int, help="of the draws (default: 0)")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = command()
    arguments = parser.typed(argv)
    with parser.refusing():
        texts = ce.generate(**arguments)
    print(*texts, sep="\n")


if __name__ == "__main__":
    run(main)
