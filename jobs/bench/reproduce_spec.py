"""The tables of the papers as reproduce_smgr.yaml and reproduce_notellm2.yaml hold them, checked.

spec = load_spec();  spec.tables["smgr-1"].rows["TIGER"].ours   # "tiger"
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, model_validator

from sidray.config import Settings, Values, build, merge

HERE = Path(__file__).parent
Numbers = list[list[float | None]]  # of each part, of each metric: %


class System(Settings):
    """`metrics`: heading -> name of our metric; `tested`: those that claims are tested by."""

    metrics: dict[str, str]
    tested: list[str]


class Part(Settings):
    """A group of the table's columns: the paper's words, and the subsets of our clicks or pairs that meet in it."""

    name: str
    ours: list[str]


class Row(Settings):
    """`ours`: the row of the recipe that stands for the paper's; `not_run`: why none does; `paper`: its numbers."""

    ours: str = ""
    not_run: str = ""
    paper: Numbers = Field(default_factory=list)

    @model_validator(mode="after")
    def _one(self) -> Row:
        if bool(self.ours) == bool(self.not_run):
            raise ValueError("a row has either `ours` or `not_run`")
        return self


class Claim(Settings):
    """What the paper says of two rows. `number`: it says nothing; their difference is what is wanted."""

    says: str
    first: str
    second: str
    expect: Literal["above", "below", "equal", "number"]


class Table(Settings):
    """`why`: data set -> what we make of claims that do not hold on it."""

    title: str
    system: str
    parts: list[Part]
    rows: dict[str, Row]
    claims: list[Claim]
    why: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> Table:
        unknown = {name for claim in self.claims for name in (claim.first, claim.second)} - set(self.rows)
        if unknown:
            raise ValueError(f"claims name rows that are not there: {sorted(unknown)}")
        short = [name for name, row in self.rows.items() if row.paper and len(row.paper) != len(self.parts)]
        if short:
            raise ValueError(f"rows need numbers for {len(self.parts)} parts: {short}")
        return self


class Figure(Settings):
    """`why`: as of a table."""

    title: str
    system: str
    says: str
    why: dict[str, str] = Field(default_factory=dict)


class Spec(Settings):
    """`data`: data set -> what is to be known of it."""

    data: dict[str, str]
    systems: dict[str, System]
    tables: dict[str, Table]
    figures: dict[str, Figure]


def load_spec() -> Spec:
    """The papers' tables."""
    values: Values = {}
    for system in ("smgr", "notellm2"):
        values = merge(values, yaml.safe_load((HERE / f"reproduce_{system}.yaml").read_text()))
    return build(Spec, values, "the papers' tables")
