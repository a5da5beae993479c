"""`python -m fourfold`."""

from fourfold.cli import main

if __name__ == "__main__":  # a worker process imports this module again, and must not start the program
    main()
