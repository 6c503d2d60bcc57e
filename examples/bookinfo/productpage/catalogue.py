"""The books there are, as the page knows them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Book:
    id: int
    title: str
    author: str
    line: str
    blurb: str


BOOKS = {
    book.id: book
    for book in (
        Book(
            1,
            "A Field Guide to Forgotten Harbours",
            "Ines Calder",
            "Forty small ports, in the order of the tide",
            "Every coast has a harbour that trade left behind. Ines Calder spent six summers "
            "sailing from one to the next, with a notebook, a lead line and a weakness for "
            "talking to lighthouse keepers. The result is part pilot book, part portrait of "
            "people who stayed.",
        ),
        Book(
            2,
            "The Winter Stove",
            "Anselm Ruiz-Holt",
            "Seven winters in a hut that was meant for one",
            "In the hut above the tree line there is one stove, and whoever comes through the "
            "door feeds it. A quiet memoir of snow, soup and strangers, told log by log.",
        ),
        Book(
            3,
            "Clockwork for Night Owls",
            "Petra Lindqvist",
            "A novel in twelve hours",
            "An observatory loses four minutes and two people set out to find them: the woman "
            "who winds the great clock, and the man who is paid to doubt it.",
        ),
    )
}
