"""anomalib's PaDiM: ResNet18, layers 1 to 3, 100 features. From the normalised tensor to anomaly map and score.

`build` writes the torch state and anomalib's own OpenVINO export; `load` runs either. The network's weights and the
statistics are random: nothing need be downloaded or fitted, and the time does not depend on them. Pre- and
post-processing are left out of the export: they would only add to its time.
"""

import pathlib

import numpy as np

LAYERS, FEATURES, SIZE = ["layer1", "layer2", "layer3"], 100, 256


def padim():
    from anomalib.models import Padim

    return Padim(
        "resnet18", LAYERS, pre_trained=False, n_features=FEATURES,
        pre_processor=False, post_processor=False, evaluator=False, visualizer=False,
    )  # fmt: skip


def statistics(torch):
    """Means and inverse covariances of a grid of 64 positions, well conditioned: (100, 4096) and (4096, 100, 100)."""
    torch.manual_seed(1)
    positions = (SIZE // 4) ** 2
    noise = torch.randn(positions, FEATURES, FEATURES) * 0.01
    return torch.randn(FEATURES, positions), torch.eye(FEATURES) * 2 + noise + noise.transpose(1, 2)


def build(folder):
    """Makes `anomalib.pt`, the torch state, and the OpenVINO model."""
    import torch

    model = padim()
    model.model.gaussian.mean, model.model.gaussian.inv_covariance = statistics(torch)
    model.eval()
    torch.save(model.model.state_dict(), pathlib.Path(folder, "anomalib.pt"))
    model.to_openvino(pathlib.Path(folder), input_size=(SIZE, SIZE))


def reader():
    """From the paths of image files to a normalised batch, as anomalib's data sets and pre-processor do it."""
    import torch
    from anomalib.data.utils import read_image
    from anomalib.models import Padim

    transform = Padim.configure_pre_processor((SIZE, SIZE)).transform
    return lambda paths: transform(torch.stack([read_image(path, as_tensor=True) for path in paths]))


def load(model, image, threads, options):
    image = np.ascontiguousarray(np.repeat(image, 3, axis=1))
    if model.endswith(".xml"):
        import peer_openvino

        run, facts = peer_openvino.load(model, image, threads, options)
        return run, f"anomalib's export in {facts}"
    import torch
    from anomalib import __version__

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    loaded = padim().model
    state = torch.load(model)
    loaded.gaussian.mean, loaded.gaussian.inv_covariance = state["gaussian.mean"], state["gaussian.inv_covariance"]
    loaded.load_state_dict(state)
    loaded.eval()
    given = torch.from_numpy(image)
    read = reader() if "file" in options else None

    def run():
        with torch.inference_mode():
            result = loaded(read([options["file"]]) if read else given)
        return [result.anomaly_map.numpy(), result.pred_score.numpy()]

    return run, f"anomalib {__version__} in torch {torch.__version__}"
