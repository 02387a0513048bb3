"""The last of the single jobs: computes the rows of a recipe's table, then writes the run folder and its report.

ray job submit --working-dir . -- python jobs/evaluate.py smgr-pictograms training.workers=2

Whatever the other jobs left undone is computed, too, so alone it is the same as jobs/pipeline.py.
"""

if __name__ == "__main__":
    import sys

    sys.path.pop(0)  # this folder: its tokenize.py would hide the standard library's
    from sidray.jobs import main, pipeline

    main(__doc__, pipeline)
