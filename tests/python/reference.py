"""The way from the pyramid to the score in f64, held against what cellgate computed.

Usage: reference.py FOLDER, where FOLDER/manifest.json names raw little-endian f32 files. Nothing is taken over from
cellgate but the four stage maps of each image and the projection matrix: all 960 channels are brought to the grid first
(bilinear, half-pixel centres) and projected then; mean and covariance are made in two passes; distances come from a
solved Cholesky system. Prints the largest errors of each case as JSON, and fails if one is above its tolerance.
"""

import json
import pathlib
import sys

import numpy as np

CHANNELS = [64, 128, 256, 512]
STRIDES = [4, 8, 16, 32]

folder = pathlib.Path(sys.argv[1])
manifest = json.loads((folder / "manifest.json").read_text())
size = manifest["size"]


def raw(name, *shape):
    return np.fromfile(folder / name, dtype="<f4").reshape(shape)


def pyramid(name):
    flat, maps = np.fromfile(folder / name, dtype="<f4"), []
    for channels, stride in zip(CHANNELS, STRIDES):
        side = size // stride
        maps.append(flat[: side * side * channels].reshape(side, side, channels).astype(np.float64))
        flat = flat[side * side * channels :]
    assert len(flat) == 0
    return maps


def interpolation(side, grid):
    """A grid × side matrix: row i holds the weights of position i."""
    at = np.clip((np.arange(grid) + 0.5) * side / grid - 0.5, 0, side - 1)
    low = np.minimum(at.astype(int), side - 1)
    high, weight = np.minimum(low + 1, side - 1), at - low
    matrix = np.zeros((grid, side))
    np.add.at(matrix, (np.arange(grid), low), 1 - weight)
    np.add.at(matrix, (np.arange(grid), high), weight)
    return matrix


def embedding(maps, grid, projection):
    upsampled = np.empty((grid, grid, sum(CHANNELS)))
    first = 0
    for stage in maps:
        by = interpolation(stage.shape[0], grid)
        rows = np.tensordot(by, stage, axes=(1, 0))
        np.matmul(by, rows, out=upsampled[:, :, first : first + stage.shape[2]])
        first += stage.shape[2]
    return upsampled.reshape(grid * grid, -1) @ projection


def smooth(heat, sigma):
    radius = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        padded = np.pad(heat, [(radius, radius) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        heat = np.apply_along_axis(lambda line: np.convolve(line, kernel, mode="valid"), axis, padded)
    return heat


def relative(got, want):
    return float(np.max(np.abs(got.astype(np.float64) - want) / np.abs(want)))


def spread(names):
    """Standard deviation of each channel over all pixels of some images, in two passes."""
    stages = [np.stack(parts) for parts in zip(*(pyramid(name) for name in names))]
    return np.concatenate([stage.reshape(-1, stage.shape[-1]).std(axis=0) for stage in stages])


failed = False
report = {"images": len(manifest["fit"])}

scale = raw("scale.f32", sum(CHANNELS)).astype(np.float64)
alive = scale > 0
# 8 bits of mantissa are kept of 1/σ.
report["scale"] = relative(scale[alive], 1 / spread(manifest["scale_of"])[alive])
report["dead_channels"] = int((~alive).sum())
failed |= report["scale"] > 2.0**-8

report["cases"] = []
for case in manifest["cases"]:
    grid, k, name = case["grid"], case["k"], case["name"]
    projection = raw(f"{name}-projection.f32", sum(CHANNELS), k).astype(np.float64)
    errors = {}

    good = np.stack([embedding(pyramid(image), grid, projection) for image in manifest["fit"][: case["images"]]])
    for index, image in enumerate(manifest["fit"][:2]):
        got = raw(f"{name}-embedding{index}.f32", grid * grid, k)
        error = np.max(np.abs(got - good[index])) / np.max(np.abs(good[index]))
        errors["embedding"] = max(errors.get("embedding", 0.0), float(error))

    mean = good.mean(axis=0)
    good -= mean
    got = raw(f"{name}-mean.f32", grid * grid, k)
    errors["mean"] = float(np.max(np.abs(got - mean)) / np.max(np.abs(mean)))

    n, positions = len(good), grid * grid
    test = [(embedding(pyramid(image), grid, projection) - mean) for image in manifest["test"]]
    distances = np.zeros((len(test), positions))
    errors["factors"], errors["condition"] = 0.0, 0.0
    every = case["factors_every"]
    factors = raw(f"{name}-F32-factors.f32", -(-positions // every), k, k)
    for p in range(positions):
        z = good[:, p, :]
        sigma = z.T @ z / (n - 1) + case["epsilon"] * np.eye(k)
        lower = np.linalg.cholesky(sigma)
        solved = np.linalg.solve(lower, np.stack([t[p] for t in test], axis=1))
        distances[:, p] = np.sqrt((solved**2).sum(axis=0))
        if p % every == 0:
            inverse = np.linalg.inv(lower)
            error = np.max(np.abs(factors[p // every] - inverse)) / np.max(np.abs(inverse))
            errors["factors"] = max(errors["factors"], float(error))
        if p % (16 * every) == 0:
            errors["condition"] = max(errors["condition"], float(np.linalg.cond(sigma)))

    limits = {"embedding": 1e-5, "mean": 1e-5, "factors": 1e-4}
    for precision, limit in (("F32", 1e-4), ("F16", 1e-2)):
        for what in ("distance", "heatmap", "scores"):
            errors[f"{precision} {what}"], limits[f"{precision} {what}"] = 0.0, limit
        for index in range(len(test)):
            heat = smooth(distances[index].reshape(grid, grid), case["sigma"])
            top = np.sort(heat.ravel())[::-1][: -(-positions // 100)].mean()
            scores = np.array([top, heat.max(), heat.mean()])
            for what, want in (("distance", distances[index]), ("heatmap", heat.ravel()), ("scores", scores)):
                got = raw(f"{name}-{precision}-{what}{index}.f32", len(want))
                errors[f"{precision} {what}"] = max(errors[f"{precision} {what}"], relative(got, want))
    above = sorted(what for what, limit in limits.items() if not errors[what] <= limit)
    failed |= bool(above)
    report["cases"].append({"case": name, "positions": positions, "k": k, "n": n, "above": above, "errors": errors})

print(json.dumps(report, indent=1))
sys.exit(1 if failed else 0)
