"""Search an encoded corpus.

    concept-encoder search encoded "who sailed before dawn?"
    concept-encoder search encoded "a question" --by vectors bm25 --fusion rank
    concept-encoder search encoded --build --bm25 text --approximate
    concept-encoder search encoded --add more --delete doc-17 --compact

FOLDER is what `encode` wrote, or an index. The first search builds an exact index in FOLDER/index. --add and --delete
together are one change: all of it or nothing. Prints a line for each hit: score, id and the beginning of its text.
"""

import concept_encoder as ce
from concept_encoder.utils.command_line import Command, run, say

SOURCES, FUSIONS = ("vectors", "words", "bm25"), ("sum", "rank")
WIDTH = 100  # characters of a text that are shown


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("folder", help="of shards, or of an index")
    parser.add_argument("queries", nargs="*", metavar="QUERY", help="to answer")
    parser.add_argument("--k", type=int, help="documents for each query (default: 10)")
    parser.add_argument("--by", nargs="+", metavar="NAME", names=SOURCES, help=f"{', '.join(SOURCES)}")
    parser.add_argument("--fusion", names=FUSIONS, help="sum of scores, or rank (default: sum)")
    parser.add_argument(
        "--weights",
        nargs="+",
        type=float,
        metavar="X",
        help="of each of --by (default: 1; vectors added to others 0.2)",
    )
    parser.add_argument("--checkpoint", help="that encodes queries (default: the corpus's)")
    parser.add_argument("--approximate", action="store_true", help="build, or ask, the graph of neighbours")
    parser.add_argument("--build", action="store_true", help="build an index")
    parser.add_argument("--index_dir", help="of --build (default: FOLDER/index)")
    parser.add_argument("--bm25", metavar="COLUMN", help="of --build: count its words for BM25")
    parser.add_argument("--add", metavar="SHARDS", help="folder of shards to add")
    parser.add_argument("--delete", nargs="+", metavar="ID", help="documents to delete")
    parser.add_argument("--compact", action="store_true", help="take what was deleted out of the files")
    parser.add_argument("--overwrite", action="store_true", help="of --build: replace the index")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = command()
    arguments = parser.typed(argv)
    folder, queries = arguments.pop("folder"), arguments.pop("queries", [])
    build = {name: arguments.pop(name) for name in ("index_dir", "bm25", "overwrite") if name in arguments}
    with parser.refusing():
        from concept_encoder.eval.corpus.searching import open_index

        changes = [name for name in ("build", "add", "delete", "compact") if name in arguments]
        if not queries and not changes:
            raise ValueError(
                "there is nothing to do: give a QUERY, before an option that takes several words, or --build, --add, "
                "--delete or --compact"
            )
        if build and "build" not in changes:
            raise ValueError(f"--{next(iter(build))} is for --build")
        if "build" in changes and len(changes) > 1:
            raise ValueError(f"--build makes an index of FOLDER alone; --{changes[1]} in a command after it")
        if arguments.pop("build", False):
            home = build.pop("index_dir", None)
            index = ce.Index.build(folder, home, approximate=arguments.get("approximate", False), **build)
        else:
            index = open_index(folder)
        deleted = arguments.pop("delete", [])
        if "add" in arguments:
            index = index.add(arguments.pop("add"), instead_of=deleted)
        elif deleted:
            index = index.delete(deleted)
        if arguments.pop("compact", False):
            index = index.compact()
        found = ce.search(index, queries, **arguments) if queries else []
    if changes:
        say(f"{index.folder}: {index.facts.documents:,} documents, {index.facts.deleted:,} deleted.")
        if index.facts.approximate is not None and index.facts.approximate.recall_at_10 is not None:
            say(f"The graph finds {index.facts.approximate.recall_at_10:.1%} of the 10 nearest.")
    for query, hits in zip(queries, found, strict=True):
        if len(queries) > 1:
            print(query)
        for hit in hits:
            print(f"{hit.score:.4f}\t{hit.id}\t{' '.join(hit.text.split())[:WIDTH]}".rstrip())


if __name__ == "__main__":
    run(main)
