"""Fits the semantic-ID tokenizers of a recipe and its variants and assigns SIDs to the whole catalogue.

ray job submit --working-dir . -- python jobs/tokenize.py smgr-pictograms training.workers=2
"""

ROLES = ("sids",)

if __name__ == "__main__":
    import sys

    sys.path.pop(0)  # this folder: its tokenize.py would hide the standard library's
    from sidray.jobs import compute, main

    main(__doc__, compute(ROLES))
