"""COCO's categories -> classes: all of them, some, or several as one."""

from collections.abc import Sequence
from dataclasses import dataclass

from batchseg.classes import IGNORE_ID
from batchseg.config import suggest_name
from batchseg.datasets.coco_json import CocoJson
from batchseg.datasets.page import ClassEntry
from batchseg.errors import UserError

BACKGROUND = "background"


@dataclass(frozen=True)
class CategoryMap:
    """classes: in id order, the categories of each by name or id; none for the one that takes the rest. rest: its class
    id, 255 where there is none.
    """

    location: str
    classes: tuple[tuple[str, tuple[str | int, ...]], ...]
    rest: int

    def resolve(self, page: CocoJson) -> dict[int, int | None]:
        """Class id by category id, None for categories that were not chosen.

        Raises UserError for a category that the JSON does not have.
        """
        class_of: dict[int, int | None] = dict.fromkeys(page.categories)
        id_of = {name: category_id for category_id, name in page.categories.items()}
        for class_id, (name, categories) in enumerate(self.classes):
            for category in categories:
                category_id = category if isinstance(category, int) else id_of.get(category)
                if category_id not in class_of:
                    raise UserError(
                        f"data {self.location}: class {name!r} is to take the category {category!r}, which "
                        f"{page.location} does not have; {suggest_name(str(category), list(id_of))}"
                    )
                if class_of[category_id] is not None:
                    raise UserError(
                        f"data {self.location}: the category {page.categories[category_id]!r} belongs to two classes"
                    )
                class_of[category_id] = class_id
        return class_of


def choose_categories(
    location: str, entries: Sequence[str | ClassEntry] | None, pages: Sequence[CocoJson], *, has_rest: bool
) -> tuple[list[ClassEntry], CategoryMap]:
    """The classes of a page, or all categories of its JSONs; has_rest: then with `background` before them.

    A class without `categories` is the category of its name. `background`, unless a category is called so, and a class
    with `categories: []` take what no chosen category covers.
    """
    known = {name for page in pages for name in page.categories.values()}
    if entries is None:
        entries = _list_all(location, pages, has_rest=has_rest and BACKGROUND not in known)
    classes = []
    for entry in entries:
        given = ClassEntry(name=entry) if isinstance(entry, str) else entry
        if given.values is not None:
            raise UserError(
                f"data {location}: class {given.name!r} has `values`, but annotations have `categories` instead"
            )
        categories = given.categories
        if categories is None:
            categories = [] if given.name == BACKGROUND and BACKGROUND not in known else [given.name]
        classes.append(given.model_copy(update={"categories": categories}))
    rests = [class_id for class_id, entry in enumerate(classes) if not entry.categories]
    if len(rests) > 1:
        names = [classes[class_id].name for class_id in rests]
        raise UserError(f"data {location}: {names[0]!r} and {names[1]!r} both are to take what no category covers")
    chosen = tuple((entry.name, tuple(entry.categories or ())) for entry in classes)
    return classes, CategoryMap(location, chosen, rests[0] if rests else IGNORE_ID)


def _list_all(location: str, pages: Sequence[CocoJson], *, has_rest: bool) -> list[str | ClassEntry]:
    names = list(pages[0].categories.values())
    for page in pages[1:]:
        if list(page.categories.values()) != names:
            raise UserError(
                f"data {location}: {pages[0].location} and {page.location} have different categories; "
                f"name those that are meant under `classes`"
            )
    entries: list[str | ClassEntry] = [BACKGROUND] if has_rest else []
    return [*entries, *names]
