"""`python -m benchmarks.two_teachers`."""

from fire_opd_trl.evaluation.compare.runs import silence_libraries

from .main import main


if __name__ == "__main__":
    silence_libraries()  # one thread, and no word from the libraries
    main()
