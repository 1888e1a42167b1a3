"""How many faults were injected, and how many did harm."""

from dataclasses import dataclass, field


@dataclass
class Ledger:
    """Counts by kind of fault, in the order of their first mention."""

    injected: dict[str, int] = field(default_factory=dict)
    lost: dict[str, list[str]] = field(default_factory=dict)

    def count(self, kind: str, problem: str | None) -> None:
        """One fault: survived, or what was lost by it."""
        self.injected[kind] = self.injected.get(kind, 0) + 1
        if problem is not None:
            self.lost.setdefault(kind, []).append(problem)

    @property
    def total(self) -> int:
        return sum(self.injected.values())

    @property
    def total_lost(self) -> int:
        return sum(map(len, self.lost.values()))

    def table(self) -> str:
        lines = [f"{'fault':46}{'injected':>10}{'survived':>10}{'lost':>6}"]
        for kind, n in self.injected.items():
            lost = len(self.lost.get(kind, []))
            lines.append(f"{kind:46}{n:10}{n - lost:10}{lost:6}")
        n, lost = self.total, self.total_lost
        lines.append(f"{'all':46}{n:10}{n - lost:10}{lost:6}")
        lines += [f"LOST  {kind}: {why}" for kind, all_ in self.lost.items() for why in all_[:5]]
        return "\n".join(lines)
