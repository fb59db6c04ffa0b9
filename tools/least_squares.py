"""Least squares and principal components, for the linear starts of small teachers."""

import torch
from torch import Tensor
from torch.nn import functional


def principal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors (as columns) and eigenvalues of the second moment of (N, C), the largest first."""
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    return vectors.flip(1), values.flip(0)


def rows_of(x: Tensor, step: int = 1) -> Tensor:
    """(B, C, ...) -> (N, C), every `step`-th position."""
    return x.movedim(1, -1).flatten(0, -2)[::step]


class Regression:
    """The least squares map from (N, in) to (N, out), of rows that come in portions."""

    def __init__(self) -> None:
        self.squares, self.products, self.count = torch.zeros(()), torch.zeros(()), 0

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Take further rows in."""
        x = functional.pad(features, (0, 1), value=1.0)
        self.squares = self.squares + x.T @ x
        self.products = self.products + x.T @ targets
        self.count += len(x)

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Weights (out, in) and bias; `ridge` is for features of variance one."""
        size = self.squares.shape[0]
        found = torch.linalg.solve((self.squares + ridge * self.count * torch.eye(size)).double(), self.products.double()).float()
        return found[:-1].T, found[-1]
