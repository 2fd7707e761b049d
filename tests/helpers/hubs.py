"""What the tests of imports share: folders of shards as published, and params.yaml over them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from crystalmix.prep.rows import shards
from crystalmix.prep.runtime.types import Json
from helpers.corpora import merged
from helpers.materials import shared

ONE: Json = {
    "train_input": {
        "data_processor": "GptHDF5MapDataProcessor",
        "batch_size": 6,
        "shuffle": False,
        "shuffle_seed": 1,
        "repeat": True,
        "num_workers": 1,
        "vocab_size": 32032,
        "mixture": [
            {"data_dir": "/path/to/Sets/star_part0of2", "weight": 0.6},
            {"data_dir": "/path/to/Sets/slim/", "weight": 0.4},
        ],
    },
    "model": {"hidden_size": 4096},
    "runconfig": {"max_steps": 70},
}
TWO = merged(
    ONE,
    {
        "train_input": {
            "shuffle_seed": 3,
            "mixture": [
                {"data_dir": "css", "weight": 0.7},
                {"data_dir": "/old/star_part0of2", "weight": 0.3, "data_subset": "0.0-0.1"},
            ],
        },
        "runconfig": {"max_steps": 20},
    },
)


def write(path: Path, content: Json) -> Path:
    """Write a params.yaml."""
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="rt").dump(content, file)
    return path


def golden_hub(root: Path) -> Path:
    """Lay out golden shards of the original packing as a dataset hub has them."""
    packed = shared("golden", "pipeline", "packed")
    for name, place in (
        ("star_split_p1_fpr20", "phase1/Sets/star_part0of2"),
        ("slim_split_p2", "phase1/Sets/slim"),
        ("stage3_css", "phase3/train/css"),
    ):
        (root / place).mkdir(parents=True)
        for path in packed.glob(f"{name}/*.h5"):
            shutil.copyfile(path, root / place / path.name)
    return root


def published(folder: Path, msl: int = 4) -> tuple[list[Path], Path]:
    """Return the published params, and tiny shards in folders laid out as on the dataset hub."""
    files = [shared("params") / f"phase{n}.yaml" for n in (1, 2, 3)]
    for number, path in enumerate(files[:2]):
        for each in YAML(typ="safe").load(path)["train_input"]["mixture"]:
            place = Path(each["data_dir"])
            place = folder / f"phase{number + 1}" / (
                place.name if "StarCoder" in place.name else f"SlimPajama/{place.name}"
            )  # fmt: skip
            tiny(place, [number, number + 2], each["weight"], msl)
    for language in ("css", "javascript", "html", "python"):
        for split in ("train_shuffled_correct_ratio", "valid_correct_ratio"):
            tiny(folder / "phase3/stage3_fim_0.3" / split / language, [0], 0.2, msl)
    return files, folder


def tiny(folder: Path, numbers: list[int], weight: float, msl: int = 4) -> None:
    for number in numbers:
        rows = np.zeros((10 + round(40 * weight), 3, msl), dtype=np.int32)
        shards.write(folder / shards.name(number), len(rows), [rows])


def fake(folder: Path, *places: str, msl: int = 4) -> Path:
    """Write shards of five rows, each its own number; return the folder."""
    for number, place in enumerate(places):
        rows = np.full((5, 3, msl), number, dtype=np.int32)
        shards.write(folder / place, 5, [rows])
    return folder


def params_of(folder: Path, *data_dirs: str, **changes: Any) -> Path:
    """Write a params.yaml that mixes folders evenly."""
    mixture = [{"data_dir": each, "weight": 1 / len(data_dirs)} for each in data_dirs]
    return write(folder / "p.yaml", merged(ONE, {"train_input": {"mixture": mixture, **changes}}))
