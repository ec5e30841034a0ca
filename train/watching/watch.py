"""Charts, histograms and numbers about the data and the positions, at the moments the recipe asks for."""

from __future__ import annotations

from torch import Tensor, nn

from common.models.transform import ModelTransform
from common.surgery import position_groups
from train.watching.displacement import displacements, mean_displacement, positions_of
from train.watching.monitor import Monitor
from train.watching.pictures import batch_grid, displacement_figure, kernels_figure, positions_figure


class Watch:
    """Draws for a monitor; does nothing outside the main process.

    Args:
        monitor: takes the charts.
        transform: says how inputs were normalised.
        initial: positions before the first update.
    """

    def __init__(self, monitor: Monitor, transform: ModelTransform, initial: dict[str, Tensor]) -> None:
        self.monitor, self.transform, self.initial = monitor, transform, initial

    def first_batch(self, images: Tensor) -> None:
        """Show the first augmented batch, normalised (B, 3, H, W)."""
        if self.monitor.active:
            self.monitor.picture("data/first_batch", batch_grid(images, self.transform), 0)

    def displacement(self, model: nn.Module) -> float | None:
        """Mean distance, in pixels, that positions have moved since the start; None without DCLS layers."""
        return mean_displacement(self.initial, positions_of(model))

    def positions(self, update: int, model: nn.Module) -> None:
        """Show positions, kernels, displacements, and histograms of P and SIG."""
        groups = position_groups(model)
        if not self.monitor.active or not groups:
            return
        self.monitor.picture("dcls/positions", positions_figure(groups), update, keep=True)
        self.monitor.picture("dcls/kernels", kernels_figure(groups), update, keep=True)
        moved = displacements(self.initial, positions_of(model))
        if update > 0:
            self.monitor.picture("dcls/displacement", displacement_figure(moved), update, keep=True)
        for group in groups:
            self.monitor.histogram(f"P/{group.name}", group.positions.detach().float().cpu(), update)
            if group.sigma is not None:
                self.monitor.histogram(f"SIG/{group.name}", group.sigma.detach().float().cpu(), update)
