"""
Peaks of memory, measured on the CPU, against what `fire-opd plan` says of them.

    python -m benchmarks.plan                 # settings that are not in results.json yet; then the page
    python -m benchmarks.plan --only NAME     # one of them anew
"""
