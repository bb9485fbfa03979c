"""Self-labelling of XLM-Align, one number at a time, from its paper and the released training code."""

ROUNDS, ALPHA, SMALLEST, NONE = 2, 0.9, 1e-6, -100


def partners_by_loop(hidden: list[list[float]], middle: int) -> list[int]:
    """The row that each row of `<s> a </s> b </s>` is aligned to, -100 for none; of several the last."""
    source, target = range(1, middle), range(middle + 1, len(hidden) - 1)
    plan = [
        [max(sum(x * y for x, y in zip(hidden[i], hidden[j], strict=True)), 0.0) or SMALLEST for j in target]
        for i in source
    ]
    for _ in range(ROUNDS):
        columns = [sum(row[j] for row in plan) for j in range(len(target))]
        plan = [[value / columns[j] for j, value in enumerate(row)] for row in plan]
        plan = [[value / sum(row) for value in row] for row in plan]
    aligned = mutual(plan)
    if min(len(source), len(target)) > 2:
        rows, columns_taken = {i for i, _ in aligned}, {j for _, j in aligned}
        if len(rows) < len(source) and len(columns_taken) < len(target):
            weighted = [
                [value * weight(i not in rows, j not in columns_taken) for j, value in enumerate(row)]
                for i, row in enumerate(plan)
            ]
            found = mutual(weighted)
            aligned |= {(i, j) for i, j in found if i not in rows or j not in columns_taken}
    partners = [NONE] * len(hidden)
    for i, j in sorted(aligned):
        partners[source[i]], partners[target[j]] = target[j], source[i]
    return partners


def weight(free_row: bool, free_column: bool) -> float:
    return min(1.0, ALPHA * free_row + ALPHA * free_column)


def mutual(scores: list[list[float]]) -> set[tuple[int, int]]:
    """Places that are the first highest of their row and of their column."""
    places = set()
    for i, row in enumerate(scores):
        j = row.index(max(row))
        column = [other[j] for other in scores]
        if column.index(max(column)) == i:
            places.add((i, j))
    return places
