"""`python -m benchmarks.language_model`."""

from .main import main


if __name__ == "__main__":
    main()
