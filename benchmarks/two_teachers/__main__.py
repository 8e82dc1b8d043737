"""`python -m benchmarks.two_teachers`."""

from fire_opd_trl.evaluation.compare.runs import quiet

from .main import main


if __name__ == "__main__":
    quiet()  # one thread, and no word from the libraries
    main()
