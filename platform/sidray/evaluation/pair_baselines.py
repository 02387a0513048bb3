"""What a model is compared with on pairs (NoteLLM-2 table 10). Every scorer takes `Pairs` and returns `PairRanks`: one
row of the report each.

popularity(pairs);  bm25(pairs);  zero_shot(pairs, [text_vectors, image_vectors])
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sidray.data.catalogue import Rows
from sidray.errors import UserError
from sidray.evaluation.baselines import bm25_matrix, count_words, tokens
from sidray.evaluation.pairs import PairRanks, Pairs, Scorer, product_ranks, rank_pairs
from sidray.retrieval.exact import Floats, unit


def popularity(pairs: Pairs) -> PairRanks:
    """Notes by the number of train pairs that they are the target of; those of none tie at 0."""
    targets = np.asarray(pairs.catalogue.pairs("train")["related_row"].to_numpy())
    counts = np.bincount(targets, minlength=pairs.catalogue.n_items).astype(np.float32)  # [N]
    return rank_pairs(pairs, lambda rows: lambda places: np.tile(counts[rows], (len(places), 1)))


def bm25(pairs: Pairs) -> PairRanks:
    """BM25 (Lucene's form, k1 = 1.5, b = 0.75) of the query note's text in the texts of the pool, whose own words and
    lengths are the statistics. Sees no picture."""

    def scorer(rows: Rows) -> Scorer:
        texts = pairs.catalogue.texts(rows)
        matrix, words = bm25_matrix([tokens(text) for text in texts])  # [P, words]
        counts = count_words(texts, words, matrix.shape[1])  # [P, words]
        by_word = matrix.T.tocsr()  # [words, P]
        return lambda places: np.asarray((counts[places] @ by_word).toarray())

    return rank_pairs(pairs, scorer)


def zero_shot(pairs: Pairs, parts: Sequence[npt.NDArray[np.floating]]) -> PairRanks:
    """Encoders that saw no pair (appendix D): the mean of the modalities' cosines. parts: [N, d] of each modality, one
    row for each item, all zero for an item without it, which then adds 0 to every score.

    Each modality is centred by the mean over the train pairs' items, since the vectors of one encoder lie in a narrow
    cone. Raises UserError when no such item has the modality."""
    train = pairs.catalogue.pairs("train")
    rows = np.union1d(train["item_row"].to_numpy(), train["related_row"].to_numpy())
    centred = [_centred(part, rows) for part in parts]
    return product_ranks(pairs, np.concatenate(centred, axis=1) / np.sqrt(np.float32(len(parts))))


def _centred(part: npt.NDArray[np.floating], train: Rows) -> Floats:
    """Unit vectors [N, d] around the mean of the train rows; zero rows count nowhere and stay zero."""
    have = np.asarray(part.any(axis=1))  # [N]
    known = train[have[train]]
    if not len(known):
        remedy = "give data.pairs rows of the split 'train', or leave this modality out"
        raise UserError("a modality cannot be centred: no item of a train pair has a vector of it", remedy)
    mean = part[known].mean(axis=0, dtype=np.float64).astype(np.float32)
    return unit(np.where(have[:, None], part.astype(np.float32) - mean, 0))
