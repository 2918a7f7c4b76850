"""``python -m ollamalab``: the command line without a script on PATH."""

from ollamalab.cli import main

if __name__ == "__main__":
    main()
