"""Semantic-ID tokenizers: a vector per item and modality becomes a short row of codes (SMGR, section 4.2).

`settings` and `vocabulary` are light; `fit` (torch, Ray) is the way in: fit_modalities, save_all, load_all.
"""
