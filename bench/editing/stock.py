"""A small stock book: items, quantities and prices, kept in memory and written as lines."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Item:
    """One kind of thing on the shelf. Prices are in cents."""

    name: str
    quantity: int = 0
    price: int = 0

    @property
    def value(self) -> int:
        return self.quantity * self.price


@dataclass
class StockBook:
    """All items by name."""

    items: dict[str, Item] = field(default_factory=dict)

    def add(self, name: str, quantity: int, price: int) -> Item:
        """Add things to the shelf; the price is the latest one."""
        if quantity < 0:
            raise ValueError("a quantity is not negative")
        item = self.items.setdefault(name, Item(name))
        item.quantity += quantity
        item.price = price
        return item

    def take(self, name: str, quantity: int) -> Item:
        """Take things from the shelf."""
        item = self.items.get(name)
        if item is None:
            raise KeyError(f"there is no item {name}")
        if quantity > item.quantity:
            raise ValueError(f"there are only {item.quantity} of {name}")
        item.quantity -= quantity
        return item

    def remove(self, name: str) -> None:
        """Remove an item that is no longer sold."""
        if name not in self.items:
            raise KeyError(f"there is no item {name}")
        del self.items[name]

    def total(self) -> int:
        """The value of everything on the shelf, in cents."""
        return sum(item.value for item in self.items.values())

    def empty_items(self) -> list[str]:
        """The names of the items that have run out."""
        return [item.name for item in self.items.values() if item.quantity == 0]

    def lines(self) -> list[str]:
        """One line for each item, by name."""
        out = []
        for name in sorted(self.items):
            item = self.items[name]
            out.append(f"{item.name}: {item.quantity} at {item.price} = {item.value}")
        return out


def read_line(line: str) -> Item:
    """An item from a line that `lines` made."""
    name, rest = line.split(": ", 1)
    quantity, rest = rest.split(" at ", 1)
    price, _ = rest.split(" = ", 1)
    return Item(name, int(quantity), int(price))


def read_lines(lines: list[str]) -> StockBook:
    """A stock book from lines that `lines` made."""
    book = StockBook()
    for line in lines:
        item = read_line(line)
        book.items[item.name] = item
    return book


def main() -> None:
    book = StockBook()
    book.add("apples", 40, 35)
    book.add("pears", 25, 45)
    book.take("apples", 5)
    for line in book.lines():
        print(line)
    print("total", book.total())


if __name__ == "__main__":
    main()
