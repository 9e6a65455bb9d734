"""Sample texts through the concepts of a checkpoint.

    python scripts/generate.py CHECKPOINT --mode reconstruct --texts "A text." "Another."
    python scripts/generate.py CHECKPOINT --mode infill --texts "A [MASK] text."
    python scripts/generate.py CHECKPOINT --mode continue --texts "Once upon a time" --num_tokens 20
    python scripts/generate.py CHECKPOINT --mode interpolate --texts "One end." "The other." --num_texts 5
    python scripts/generate.py CHECKPOINT --mode swap --texts "One." "The other." --swap_concepts 0 3

Prints one text per line.
"""

import argparse

import torch

from concept_encoder.eval import sampling

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
    try:
        _check(args)
        for text in _sample(args):
            print(text)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", help="run folder or Hub id of a model pretrained by masked diffusion")
    parser.add_argument("--mode", required=True, choices=MODES)
    parser.add_argument("--texts", nargs="+", required=True, metavar="TEXT", help="two for interpolate and swap")
    parser.add_argument("--num_tokens", type=int, help="continue: new tokens per text")
    parser.add_argument(
        "--rest_only", action="store_true", help="continue: canvas begins behind the prefix (corruption prefix)"
    )
    parser.add_argument("--num_texts", type=int, help="interpolate: texts in all, both ends included")
    parser.add_argument("--swap_concepts", type=int, nargs="+", metavar="INDEX", help="swap: concepts to exchange")
    parser.add_argument("--num_steps", type=int, default=16, help="decoder calls (default: 16)")
    parser.add_argument("--order", default="confidence", help="confidence, ancestral or blocks (default: confidence)")
    parser.add_argument("--block_length", type=int, help="positions of a block, for order blocks")
    parser.add_argument("--reencode", action="store_true", help="read the concepts anew as tokens commit")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the most probable token (default: 1)")
    parser.add_argument("--top_k", type=int, default=0, help="keep the k most probable tokens; 0 all (default: 0)")
    parser.add_argument("--top_p", type=float, default=1.0, help="keep tokens of this probability (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    return parser


def _check(args: argparse.Namespace) -> None:
    for mode, option in MODES.items():
        if option is not None and (getattr(args, option) is not None) != (args.mode == mode):
            raise ValueError(f"--{option} belongs to --mode {mode}, which needs it; got --mode {args.mode}")
    if args.rest_only and args.mode != "continue":
        raise ValueError(f"--rest_only belongs to --mode continue; got --mode {args.mode}")
    if args.mode in ("interpolate", "swap") and len(args.texts) != 2:
        raise ValueError(f"--mode {args.mode} needs two --texts, got {len(args.texts)}")


def _sample(args: argparse.Namespace) -> list[str]:
    model, tokenizer = sampling.load_sampler(args.checkpoint)
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
    main()
