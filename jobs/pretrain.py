"""Trains the pretraining stages of a recipe and its variants (NoteLLM-2: all stages), and whatever they need.

ray job submit --working-dir . -- python jobs/pretrain.py smgr-pictograms training.workers=2
"""

ROLES = ("pretrained-towers", "note-model")

if __name__ == "__main__":
    import sys

    sys.path.pop(0)  # this folder: its tokenize.py would hide the standard library's
    from sidray.jobs import compute, main

    main(__doc__, compute(ROLES))
