"""The settings of the data: where they come from, how they enter a prompt, and what is held out of training."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ilm_lib.values import Count, Moment, Name, Place, Section, Seed, Separator, Share


class Data(Section):
    source: Literal["toy", "openp5"] = "toy"
    name: Name = Field("Toy", description="the {dataset} of the prompts and of the tables")
    folder: Place | None = Field(None, description="OpenP5 form, relative to ILM_DATA_DIR")
    num_items: int = Field(300, ge=80, le=10_000, description="toy only")
    num_users: int = Field(1000, ge=50, le=1_000_000, description="toy only")
    world_seed: Seed = Field(0, description="toy only; the world does not change with the run's seed")
    history_max: Count = Field(20, description="items of history in a prompt, the last ones")
    history_separator: Separator = " , "
    templates: Place | None = Field(None, description="file in OpenP5's prompt.txt form; default: ours")
    split: Literal["leave_one_out", "temporal"] = Field(
        "leave_one_out",
        description="held out are a user's last two items, or what comes after a date (data/temporal.py)",
    )
    dev_from: Moment = Field(0.8, description="temporal: training ends here, at a share of all interactions or a date")
    test_from: Moment = Field(0.9, description="temporal: the test period starts here")
    cold_items: Share | None = Field(
        None, description="share of the items, of those with a text, that is in no interaction (data/cold.py)"
    )

    @model_validator(mode="after")
    def _of_one_source(self) -> Self:
        if self.source == "toy":
            if self.folder:
                raise ValueError("data.folder is read with data.source: openp5 alone; add the source or leave it out")
            if self.num_items * self.num_users > 10**8:
                raise ValueError("data.num_items times data.num_users is more than 100,000,000; lower one of them")
            return self
        if not self.folder:
            raise ValueError("data.folder is needed with data.source: openp5, e.g. folder: openp5/ML100K")
        if "name" not in self.model_fields_set:
            raise ValueError("data.name is needed with data.source: openp5; prompts and tables call the data so")
        for key in ("num_items", "num_users", "world_seed"):  # a default is said by files that hold every setting
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"data.{key} is of the toy world alone; leave it out with data.source: openp5")
        return self

    @model_validator(mode="after")
    def _periods_follow(self) -> Self:
        early: Any = self.dev_from
        late: Any = self.test_from
        if self.split == "leave_one_out":
            for key in ("dev_from", "test_from"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"data.{key} is read with data.split: temporal alone; add it or leave {key} out")
        elif self.source == "toy":
            raise ValueError("data.split: temporal needs times, and the toy world has none; leave it out")
        elif type(early) is not type(late) or early >= late:
            raise ValueError(
                f"data.dev_from {early} does not come before data.test_from {late}; give two shares "
                "of the interactions that rise, or two dates"
            )
        return self
