"""The names of a model's items and users: what it hands on to its catalogue."""

from __future__ import annotations

from ilm_lib.model.catalogue import Catalogue
from ilm_lib.model.prompts import Item, Prompt, User
from ilm_lib.model.refusals import WrongValue


class Named:
    """Looks up items and users in `catalogue`; WrongValue where there is none."""

    catalogue: Catalogue | None

    def item(self, name: str) -> Item:
        """The item of a title or an original id, e.g. `ilm.item("Toy Story")` (see `Catalogue.item`)."""
        return self.names().item(name)

    def link(self, text: str) -> Prompt:
        """A text with the items in the place of their titles, a prompt for `generate` (see `Catalogue.link`)."""
        return self.names().link(text)

    def user(self, name: str) -> User:
        """The user of an original id, e.g. `ilm.user("alice")`."""
        return self.names().user(name)

    def title(self, item: Item) -> str:
        """The title of an item, or its original id where it has none."""
        return self.names().title(item)

    def id(self, entity: Item | User) -> str:
        """The original id of an item or of a user."""
        return self.names().id(entity)

    def names(self) -> Catalogue:
        if self.catalogue is None:
            raise WrongValue("this model has no catalogue: pass one to ILM(..., catalogue=...)")
        return self.catalogue
