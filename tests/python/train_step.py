"""One step of PyTorch's ResNet18 on given weights and a given batch, for tests/train_torch.rs.

Usage: train_step.py FOLDER STEPS. FOLDER has `settings.json` (planes, classes, batch, lr, weight_decay, smoothing,
class_weights), `tensors.json` (name to shape, in the order of `tensors.f32`), `inputs.f32` and `labels.json`. Writes
`gradients.f32` (of the first step, in the order of the names, parameters only) and `after.f32` (every tensor after the last
step), and prints each step's loss and the number of correct samples.
"""

import json
import pathlib
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        else:
            self.downsample = nn.Identity()

    def forward(self, x):
        inner = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.downsample(x))


class ResNet18(nn.Module):
    """torchvision's topology and names."""

    def __init__(self, planes, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(planes, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for layer, outputs in enumerate([64, 128, 256, 512], 1):
            blocks = [Block(inputs, outputs, 1 if layer == 1 else 2), Block(outputs, outputs, 1)]
            setattr(self, f"layer{layer}", nn.Sequential(*blocks))
            inputs = outputs
        self.fc = nn.Linear(512, classes)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def optimiser(net, settings):
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": settings["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings["lr"])


def main():
    folder, steps = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    settings = json.loads((folder / "settings.json").read_text())
    net = ResNet18(settings["planes"], settings["classes"]).double()
    numbers, at, state = np.fromfile(folder / "tensors.f32", "<f4"), 0, {}
    shapes = json.loads((folder / "tensors.json").read_text())
    for name, shape in shapes:
        count = int(np.prod(shape))
        state[name] = torch.from_numpy(numbers[at : at + count].reshape(shape).copy()).double()
        at += count
    missing, unexpected = net.load_state_dict(state, strict=False)
    if unexpected or any(not name.endswith("num_batches_tracked") for name in missing):
        raise SystemExit(f"missing {missing}, unexpected {unexpected}")
    inputs = np.fromfile(folder / "inputs.f32", "<f4").reshape(settings["batch"], settings["planes"], 64, 64)
    inputs = torch.from_numpy(inputs.copy()).double()
    labels = torch.tensor(json.loads((folder / "labels.json").read_text()))
    weight = settings["class_weights"]
    weight = None if weight is None else torch.tensor(weight).double()
    adam = optimiser(net, settings)
    for step in range(steps):
        adam.zero_grad()
        logits = net(inputs)
        loss = functional.cross_entropy(logits, labels, weight=weight, label_smoothing=settings["smoothing"])
        loss.backward()
        if step == 0:
            gradients = {name: p.grad.numpy() for name, p in net.named_parameters()}
            flat = [gradients[name].astype("<f4").ravel() for name, _ in shapes if name in gradients]
            np.concatenate(flat).tofile(folder / "gradients.f32")
        adam.step()
        print(float(loss.detach()), int((logits.argmax(1) == labels).sum()))
    after = net.state_dict()
    np.concatenate([after[name].numpy().astype("<f4").ravel() for name, _ in shapes]).tofile(folder / "after.f32")


if __name__ == "__main__":
    main()
