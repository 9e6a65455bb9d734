"""`python -m concept_encoder` is the command `concept-encoder`."""

from concept_encoder.scripts import main

if __name__ == "__main__":
    main()
