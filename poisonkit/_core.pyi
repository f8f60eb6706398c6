def build_info() -> dict[str, object]: ...
def isas() -> list[str]: ...
def read_bytes(data: int, size: int) -> int: ...
def weighted_sum_hash(
    x: int,
    rows: int,
    dim: int,
    stride: int,
    weights: int,
    vectors: int,
    hashes: int,
    isa: str,
    threads: int,
) -> None: ...
