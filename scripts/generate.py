"""Sample texts through the concepts of a checkpoint, one on a line.

    python scripts/generate.py runs/mine --mode reconstruct --texts "A text."
    python scripts/generate.py runs/mine --mode infill --texts "A [MASK] text."
    python scripts/generate.py runs/mine --mode swap --swap_concepts 0 3 \\
        --texts "One." "The other."
"""

from argparse import Namespace

import torch

from concept_encoder.eval.concepts import sampling
from concept_encoder.utils.command_line import Command, run

MODES = {
    "reconstruct": None,
    "infill": None,
    "continue": "num_tokens",
    "interpolate": "num_texts",
    "swap": "swap_concepts",
}


def main(argv: list[str] | None = None) -> None:
    parser = _parser()
    args = parser.parse_args(argv)
    with parser.refusing():
        _check(args)
        texts = _sample(args)
    print(*texts, sep="\n")


def _parser() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("checkpoint", help="run folder or Hub id of a model pretrained by masked diffusion")
    parser.add_argument("--revision", help="commit, branch or tag of a Hub id")
    parser.add_argument("--mode", required=True, choices=MODES, metavar="MODE", help=", ".join(MODES))
    parser.add_argument("--texts", nargs="+", required=True, metavar="TEXT", help="two for interpolate and swap")
    parser.add_argument("--num_tokens", type=int, help="continue: new tokens per text")
    parser.add_argument("--rest_only", action="store_true", help="continue: of a model of corruption prefix")
    parser.add_argument("--num_texts", type=int, help="interpolate: texts in all, both ends included")
    parser.add_argument("--swap_concepts", type=int, nargs="+", metavar="INDEX", help="swap: concepts to exchange")
    parser.add_argument("--num_steps", type=int, default=16, help="decoder calls")
    parser.add_argument("--order", default="confidence", help="confidence, ancestral or blocks")
    parser.add_argument("--block_length", type=int, help="positions of a block, for order blocks")
    parser.add_argument("--reencode", action="store_true", help="read the concepts anew as tokens commit")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the most probable token")
    parser.add_argument("--top_k", type=int, default=0, help="keep the k most probable tokens; 0 all")
    parser.add_argument("--top_p", type=float, default=1.0, help="keep tokens of this probability")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    return parser


def _check(args: Namespace) -> None:
    for mode, option in MODES.items():
        if option is not None and (getattr(args, option) is not None) != (args.mode == mode):
            raise ValueError(f"--{option} belongs to --mode {mode}, which needs it; got --mode {args.mode}")
    if args.rest_only and args.mode != "continue":
        raise ValueError(f"--rest_only belongs to --mode continue; got --mode {args.mode}")
    if args.mode in ("interpolate", "swap") and len(args.texts) != 2:
        raise ValueError(f"--mode {args.mode} needs two --texts, got {len(args.texts)}")


def _sample(args: Namespace) -> list[str]:
    model, tokenizer = sampling.load_sampler(args.checkpoint, args.revision)
    names = ("num_steps", "order", "block_length", "reencode", "temperature", "top_k", "top_p")
    options = {name: getattr(args, name) for name in names}
    options["generator"] = torch.Generator(model.device).manual_seed(args.seed)
    if args.mode == "reconstruct":
        return sampling.reconstruct(model, tokenizer, args.texts, **options)
    if args.mode == "infill":
        return sampling.infill(model, tokenizer, args.texts, **options)
    if args.mode == "continue":
        return sampling.continue_texts(model, tokenizer, args.texts, args.num_tokens, args.rest_only, **options)
    first, second = args.texts
    if args.mode == "interpolate":
        return sampling.interpolate(model, tokenizer, first, second, args.num_texts, **options)
    return sampling.swap(model, tokenizer, first, second, args.swap_concepts, **options)


if __name__ == "__main__":
    run(main)
