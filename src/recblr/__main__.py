"""``python -m recblr`` is the command ``recblr``; it also runs from a source tree."""

from recblr.cli.main import main

if __name__ == "__main__":  # not in the processes that multiprocessing starts
    main()
