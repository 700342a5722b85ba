"""`python -m genfast`: the command line."""

from genfast.cli.start import main

if __name__ == "__main__":
    main()
