"""Trains the stages that follow the semantic IDs of a recipe and its variants, and whatever they need.

ray job submit --working-dir . -- python jobs/finetune.py smgr-pictograms training.workers=2
"""

ROLES = ("final-towers",)

if __name__ == "__main__":
    import sys

    sys.path.pop(0)  # this folder: its tokenize.py would hide the standard library's
    from sidray.jobs import compute, main

    main(__doc__, compute(ROLES))
