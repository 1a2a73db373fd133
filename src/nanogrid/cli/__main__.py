"""`python -m nanogrid.cli`, the same as the command `nanogrid`."""

from nanogrid.cli.main import main

if __name__ == "__main__":
    main()
