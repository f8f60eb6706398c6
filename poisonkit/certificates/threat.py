"""What an attacker's actions come to in partitions hit, the unit of every radius here."""

from __future__ import annotations

from poisonkit.errors import require


def hits(*, insert: int = 0, delete: int = 0, replace: int = 0, flip: int = 0, hash_label: bool = False) -> int:
    """The most partitions (of each hash function) that so many rows changed in each way can hit.

    insert      rows added, each in one partition
    delete      rows removed, each from one partition
    replace     rows changed in any way: a deletion, and an insertion perhaps elsewhere
    flip        rows whose label alone changed: where it is not hashed they stay in their partition
    hash_label  whether the label is hashed with the image

    A prediction of radius r stands against every attack with hits(...) <= r. In Finite Aggregation read bucket for
    partition. Levine and Feizi, ICLR 2021 (arXiv 2006.14768), count the symmetric difference of the training sets:
    that is insert + delete + 2 replace.
    """
    for name, rows in {"insert": insert, "delete": delete, "replace": replace, "flip": flip}.items():
        require(rows >= 0, name, "0 or more rows", rows)
    return insert + delete + 2 * replace + (2 if hash_label else 1) * flip
