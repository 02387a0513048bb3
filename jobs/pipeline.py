"""Runs a whole recipe: from raw tables to a searchable index and a report, like `sidray run`.

ray job submit --working-dir . -- python jobs/pipeline.py smgr-pictograms training.workers=2
"""

if __name__ == "__main__":
    import sys

    sys.path.pop(0)  # this folder: its tokenize.py would hide the standard library's
    from sidray.jobs import main, pipeline

    main(__doc__, pipeline)
