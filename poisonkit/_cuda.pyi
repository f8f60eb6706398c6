def archs() -> list[int]: ...
def devices() -> list[tuple[str, int]]: ...
def runtime_version() -> int: ...
def facility_location_room(rows: int, dim: int, count: int, largest_group: int) -> int: ...
def facility_location(
    x: int,
    rows: int,
    dim: int,
    stride: int,
    groups: int,
    count: int,
    largest_group: int,
    similarity: str,
    scale: float,
    medoids: int,
    sizes: int,
    nearest: int,
    gains: int,
    room: int,
    stream: int,
) -> None: ...
