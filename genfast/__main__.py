"""`python -m genfast`: the command line."""

from genfast.cli import main

if __name__ == "__main__":
    main()
