"""anomavision's PaDiM: ResNet18, layers 1 to 3, 100 features. From the normalised tensor to anomaly map and score.

As for anomalib, weights and statistics are random; the package downloads the weights otherwise.
"""

import pathlib

import numpy as np

LAYERS, FEATURES, SIZE = [0, 1, 2], 100, 256


def padim():
    import torch
    from anomavision.algorithm.common import feature_extraction

    make, _ = feature_extraction.BACKBONES["resnet18"]
    feature_extraction.BACKBONES["resnet18"] = (make, None)
    from anomavision.algorithm.padim import Padim

    return Padim("resnet18", torch.device("cpu"), layer_indices=LAYERS, feat_dim=FEATURES)


def build(folder):
    """Writes the whole model, `anomavision.pt`."""
    import torch
    from anomavision.algorithm.common.mahalanobis import MahalanobisDistance

    import peer_anomalib

    mean, inverse = peer_anomalib.statistics(torch)
    model = padim()
    model.mahalanobisDistance = MahalanobisDistance(mean.T.contiguous(), inverse)
    torch.save(model, pathlib.Path(folder, "anomavision.pt"))


def data(folder):
    """A folder's images as anomavision reads and transforms them."""
    from anomavision.datasets.dataset import AnodetDataset

    return AnodetDataset(str(folder), resize=(SIZE, SIZE), crop_size=None)


def load(model, image, threads, options):
    import importlib.metadata

    import torch

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    loaded = torch.load(model, weights_only=False)
    loaded.eval()
    given = torch.from_numpy(np.ascontiguousarray(np.repeat(image, 3, axis=1)))
    files = data(options["folder"]) if "folder" in options else None

    def run():
        with torch.inference_mode():
            score, heatmap = loaded.predict(files[0][0][None] if files else given)
        return [heatmap.numpy(), score.numpy()]

    return run, f"anomavision {importlib.metadata.version('anomavision')} in torch {torch.__version__}"
