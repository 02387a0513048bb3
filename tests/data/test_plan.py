"""The epoch plan: one seed, one order; every row once an epoch; a resumed run continues exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidray.data.plan import EpochPlan, one_click_per_item
from sidray.errors import UserError

plans = st.builds(
    EpochPlan, rows=st.integers(1, 60), batch_size=st.integers(1, 12).map(lambda half: 2 * half),
    epochs=st.integers(1, 4), seed=st.integers(0, 2**32),
)  # fmt: skip


def whole(plan: EpochPlan) -> np.ndarray:
    """The rows in the order of training, one worker, from the start."""
    return plan.slice(0, 0, 1).ravel()


@given(plans)
def test_the_same_seed_gives_the_same_order(plan: EpochPlan) -> None:
    again = EpochPlan(plan.rows, plan.batch_size, plan.epochs, plan.seed)
    assert (whole(plan) == whole(again)).all()


@given(plans)
def test_every_row_comes_once_in_each_epoch(plan: EpochPlan) -> None:
    rows, epochs = whole(plan), plan.epochs_of(0, 0, 1).ravel()
    assert rows.dtype == epochs.dtype == np.int64
    for epoch in range(plan.epochs):
        assert sorted(rows[epochs == epoch]) == list(range(plan.rows))
    top_up = rows[plan.rows * plan.epochs :]
    assert len(top_up) < plan.batch_size
    assert (epochs[plan.rows * plan.epochs :] >= plan.epochs).all()
    first = top_up[: plan.rows]
    assert len(set(first)) == len(first)


@given(plans, st.data())
def test_a_resumed_run_reads_exactly_the_rest_with_any_number_of_workers(plan: EpochPlan, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, plan.steps))
    batches = whole(plan).reshape(plan.steps, plan.batch_size)[step:]
    epochs = plan.epochs_of(0, 0, 1)[step:]
    for world in (1, 2):
        slices = [plan.slice(step, rank, world) for rank in range(world)]
        assert all(part.shape == (plan.steps - step, plan.batch_size // world) for part in slices)
        assert (np.concatenate(slices, axis=1) == batches).all()
        numbers = [plan.epochs_of(step, rank, world) for rank in range(world)]
        assert (np.concatenate(numbers, axis=1) == epochs).all()


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    plan = EpochPlan(rows=100, batch_size=100, epochs=2, seed=0)
    first, second = plan.slice(0, 0, 1)
    other = EpochPlan(rows=100, batch_size=100, epochs=2, seed=1).slice(0, 0, 1)[0]
    identity = np.arange(100)
    for left, right in [(first, second), (first, other), (first, identity), (second, identity)]:
        assert (left == right).sum() < 10


def test_steps_by_hand() -> None:
    assert EpochPlan(rows=10, batch_size=4, epochs=2, seed=0).steps == 5
    assert EpochPlan(rows=10, batch_size=4, epochs=3, seed=0).steps == 8  # 30 rows and 2 more
    assert EpochPlan(rows=3, batch_size=8, epochs=1, seed=0).slice(0, 0, 1).shape == (1, 8)


def test_what_cannot_be_planned_is_the_user_s_to_mend() -> None:
    with pytest.raises(UserError, match="no rows"):
        EpochPlan(rows=0, batch_size=4, epochs=1, seed=0)
    with pytest.raises(UserError, match="divided among 3 workers"):
        EpochPlan(rows=9, batch_size=4, epochs=1, seed=0).slice(0, 0, 3)
    with pytest.raises(ValueError, match="step 4 of 3"):
        EpochPlan(rows=9, batch_size=4, epochs=1, seed=0).slice(4, 0, 1)


OFFSETS = np.array([0, 1, 4, 9], dtype=np.int64)  # items with 1, 3 and 5 clicks
CLICKS = np.array([70, 10, 11, 12, 20, 21, 22, 23, 24], dtype=np.int64)


def test_a_click_is_one_of_the_item_s_own_and_depends_on_seed_epoch_and_item_alone() -> None:
    items = np.array([[0, 1, 2], [2, 1, 0]])
    epochs = np.array([[0, 0, 0], [0, 0, 0]])
    chosen = one_click_per_item(items, epochs, OFFSETS, CLICKS, seed=5)
    assert chosen.shape == items.shape
    assert (chosen[0] == chosen[1][::-1]).all()
    for item, click in zip(items.ravel(), chosen.ravel(), strict=True):
        assert click in CLICKS[OFFSETS[item] : OFFSETS[item + 1]]


def test_clicks_are_chosen_uniformly_over_epochs_items_and_seeds() -> None:
    """Chi-square against the uniform distribution: 5 clicks, 20,000 draws, 99.99 % point of 4 degrees is 23.5."""
    draws = 20_000
    for items, epochs, seeds in [(1, draws, 1), (draws, 1, 1), (1, 1, draws)]:
        offsets = np.arange(items + 1, dtype=np.int64) * 5
        clicks = np.tile(np.arange(5), items)
        item, epoch = np.arange(draws) % items, np.arange(draws) % epochs
        if seeds == 1:
            chosen = one_click_per_item(item, epoch, offsets, clicks, seed=3)
        else:
            chosen = np.concatenate(
                [one_click_per_item(item[:1], epoch[:1], offsets, clicks, seed=seed) for seed in range(draws)]
            )
        counts = np.bincount(chosen, minlength=5)
        assert ((counts - draws / 5) ** 2 / (draws / 5)).sum() < 23.5


def test_neighbouring_items_and_epochs_choose_independently() -> None:
    item, epoch = np.meshgrid(np.arange(100), np.arange(100), indexing="ij")
    offsets, clicks = np.arange(101) * 2, np.tile(np.arange(2), 100)
    chosen = one_click_per_item(item, epoch, offsets, clicks, seed=0) * 2 - 1  # -1 or 1
    for left, right in [(chosen[1:], chosen[:-1]), (chosen[:, 1:], chosen[:, :-1]), (chosen, chosen.T)]:
        off = left is not chosen or ~np.eye(100, dtype=bool)
        assert abs((left * right)[off].mean()) < 0.05  # 5 standard deviations


def test_an_item_without_clicks_is_an_error() -> None:
    with pytest.raises(ValueError, match="no click"):
        one_click_per_item(np.array([0]), np.array([0]), np.array([0, 0]), CLICKS, seed=0)
