"""What requests and answers hold, as JSON."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

from trainer.bundle.asked import Ask, AskSimilar, Filters, Recommendations

MOST_K = 1000
MOST_HISTORY = 1000
Id = Annotated[StrictStr | StrictInt, Field(description="Raw id, as in the source.")]
Value = StrictStr | StrictInt | StrictFloat | StrictBool | list[Any] | None


class Filtered(BaseModel):
    """What every question may say."""

    model_config = ConfigDict(extra="forbid")

    k: int = Field(10, ge=1, le=MOST_K, strict=True)
    where: StrictStr | None = Field(
        None, description="A condition on the items' attributes, in SQL: genre = 'Jazz'."
    )
    exclude: list[Id] = Field([], description="Items that are left out.")
    only: list[Id] | None = Field(None, description="Items to choose from.")
    max_per: dict[str, Annotated[int, Field(ge=1, strict=True)]] = Field(
        {}, description="By attribute, at most so many items of each of its values."
    )

    def filters(self) -> Filters:
        return Filters(
            self.where,
            None if self.only is None else tuple(map(str, self.only)),
            tuple(map(str, self.exclude)),
            self.max_per,
        )


class Recommend(Filtered):
    """For a user of the dataset, or somebody described by items, features or both."""

    user: Id | None = None
    items: list[Id] = Field([], max_length=MOST_HISTORY, description="Liked, oldest first.")
    features: dict[str, Value] = Field({}, description="Of the user, by attribute.")
    context: dict[str, Value] = Field({}, description="Of the moment, by attribute.")

    def ask(self) -> Ask:
        return Ask(
            user=None if self.user is None else str(self.user),
            items=tuple((str(each),) for each in self.items),
            features=self.features,
            context=self.context,
            k=self.k,
            filters=self.filters(),
        )


class Similar(Filtered):
    """Items like one."""

    item: Id | None = None
    title: StrictStr | None = Field(
        None, description="Its title, or a part that it alone has, in place of `item`."
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Similar:
        if (self.item is None) == (self.title is None):
            raise ValueError("say which item: its id as item, or its title as title")
        return self

    def ask(self) -> AskSimilar:
        words = self.title if self.item is None else self.item
        return AskSimilar(str(words), self.k, self.filters(), by_title=self.item is None)


class Found(BaseModel):
    """An item of an answer."""

    item: str | int
    title: str | None
    score: float


class Answer(BaseModel):
    """Items, best first."""

    items: list[Found]
    note: str | None = Field(description="What to know of the list.")
    bundle: str = Field(description="Digest of the bundle that answered, its first letters.")

    @staticmethod
    def of(found: Recommendations, digest: str) -> Answer:
        items = [
            Found(item=each.item, title=each.title, score=each.score) for each in found.listed()
        ]
        return Answer(items=items, note=found.note, bundle=digest)


class Problem(BaseModel):
    """Why there is no answer, in one line."""

    error: str
