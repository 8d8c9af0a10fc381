"""`python -m robust`."""

from robust.cli import command

if __name__ == "__main__":
    command()
