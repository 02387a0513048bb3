"""Computes every row of a recipe's table, baselines included, and what they need; jobs/pipeline.py writes the report.

ray job submit --working-dir . -- python jobs/evaluate.py smgr-pictograms training.workers=2
"""

if __name__ == "__main__":
    import sys

    sys.path.pop(0)  # this folder: its tokenize.py would hide the standard library's
    from sidray.jobs import evaluate, main

    main(__doc__, evaluate)
