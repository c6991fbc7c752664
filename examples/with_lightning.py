"""`gradient.backward` under Lightning's manual optimisation: a network says how hard to push a pendulum.

pip install 'blackbox-coupling[lightning]'
python examples/with_lightning.py                     # 20 epochs, a checkpoint after each
python examples/with_lightning.py pendulum/last.ckpt  # 20 epochs more
"""

from __future__ import annotations

import sys

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import zo
from blackbox import ArraySpec, BlackBoxFunction


class Pendulum(BlackBoxFunction):
    """Where a damped pendulum is half a second after a push."""

    inputs = (ArraySpec("push", shape=(1,)),)  # rad/s
    outputs = (ArraySpec("angle", shape=(1,)),)  # rad

    def evaluate_rows(self, push):
        angle, speed = np.zeros_like(push), push
        for _ in range(50):
            speed = speed - 0.01 * (9.81 * np.sin(angle) + 0.1 * speed)
            angle = angle + 0.01 * speed
        return angle


class Pushing(lightning.LightningModule):
    """A network through a black box: what Lightning does not know of is the gradient's own state."""

    automatic_optimization = False  # `.grad` is filled by the gradient, not by loss.backward()

    def __init__(self):
        super().__init__()
        self.box = Pendulum(failures="keep")
        self.network = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        self.gradient = zo.TangentGradient(self.network, self.objective, boxes=[self.box], seed=0)

    def objective(self, network, wanted):
        return (self.box(network(wanted)) - wanted).square().mean(dim=1)

    def training_step(self, wanted, number):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = self.gradient.backward(wanted)
        optimizer.step()
        self.log("loss", loss, prog_bar=True)
        self.log("rows", float(self.box.ledger.rows_run))

    def validation_step(self, wanted, number):
        self.log("validation", self.objective(self.network, wanted).mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.network.parameters(), lr=0.03)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["gradient"] = self.gradient.state_dict()

    def on_load_checkpoint(self, checkpoint):
        self.gradient.load_state_dict(checkpoint["gradient"])


def train(epochs, folder="pendulum", resume=None):
    """The module after so many epochs; a checkpoint in `folder` after each, from which `resume` goes on."""
    lightning.seed_everything(0)
    wanted = 2 * torch.rand(320 + 100, 1, generator=torch.Generator().manual_seed(0)) - 1
    module = Pushing()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[ModelCheckpoint(folder, save_last=True, every_n_epochs=1)],
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    training = torch.utils.data.DataLoader(wanted[:320], batch_size=32)
    trainer.fit(module, training, torch.utils.data.DataLoader(wanted[320:], batch_size=100), ckpt_path=resume)
    return module


if __name__ == "__main__":
    resume = sys.argv[1] if len(sys.argv) > 1 else None
    module = train(20 if resume is None else 40, resume=resume)
    validation = float(module.trainer.callback_metrics["validation"])
    print(f"mean square error {validation:.1e} after {module.box.ledger.rows_run:,} rows")
